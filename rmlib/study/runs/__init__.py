"""One run: training with checkpoints, its record, its network."""
