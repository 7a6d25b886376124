"""Grids of notebooks that can be stopped anywhere."""
