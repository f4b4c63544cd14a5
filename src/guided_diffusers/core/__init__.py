"""The algebra: noise levels, predictions, denoisers, conditions, randomness. It needs torch and no more."""
