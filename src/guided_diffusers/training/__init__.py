"""What the training scripts share: configuration, engine, averaged weights, checkpoints, log, data."""
