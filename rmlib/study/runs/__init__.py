"""One run: training with checkpoints, its record, its network."""

from rmlib.extras import needs

needs("study")
