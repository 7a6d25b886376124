"""Class activation maps, and measures of them."""

from rmlib.extras import needs

needs("maps")
