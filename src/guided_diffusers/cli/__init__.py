"""The command `guided-diffusers`."""

from guided_diffusers.cli.app import app, main

__all__ = ["app", "main"]
