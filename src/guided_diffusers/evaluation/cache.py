"""Where features of real images and converted weights are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where features and weights are kept: $GUIDED_DIFFUSERS_CACHE, else in the user's cache folder."""
    given = os.environ.get("GUIDED_DIFFUSERS_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "guided_diffusers"
