"""Likelihoods of diffusion models: the variational bound and its terms."""
