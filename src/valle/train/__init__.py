"""Training: the loop, its tasks, the optimiser, checkpoints that resume bit for bit, and tracking."""
