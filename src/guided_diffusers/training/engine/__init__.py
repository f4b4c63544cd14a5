"""The training engine: the loop, averages, checkpoints, the log, configurations."""
