"""Where images come from: official archives, folders of images, and the drawn figures."""

from rmlib.extras import needs

needs("datasets")
