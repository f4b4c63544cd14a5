"""`python -m guided_diffusers`: the command `guided-diffusers`."""

from guided_diffusers.cli import main

main()
