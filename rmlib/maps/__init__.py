"""Class activation maps, and measures of them."""
