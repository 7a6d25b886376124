"""Accuracy under attack and under corruption, and whether it can be believed."""

from rmlib.extras import needs

needs("robustness")
