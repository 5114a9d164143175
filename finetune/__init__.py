"""Training: configs, batches, the loop, checkpoints, and the quickstart recipe."""
