"""What this study does with rmlib: runs, batches, reports, figures, benchmarks."""
