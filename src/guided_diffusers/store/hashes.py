"""Hashes of what is kept: of values that JSON can hold, and of files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def json_hash(value: Any) -> str:
    """SHA-256 of what JSON can hold, 64 hexadecimal digits; the order of a mapping's keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
