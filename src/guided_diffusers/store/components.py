"""The package's classes under a second name, by which its own pipelines load them.

A checkpoint that brings code (`hub.entry_point`) has a file `guided_diffusers.py` beside each component of
ours, so that diffusers, where this package was not imported, runs that file to find the class. Our own
pipelines need no such file and must not ask for trust in it: they look for this module, and find it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    return getattr(import_module("guided_diffusers"), name)
