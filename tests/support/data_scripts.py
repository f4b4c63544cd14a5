"""The scripts of training/data as modules, their commands in this process, and what they read and write."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).parents[2] / "training" / "data"


def load(name: str) -> ModuleType:
    """A script as a module of another name: there is a package `emoji` that must not be shadowed."""
    spec = importlib.util.spec_from_file_location(f"{name}_script", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        spec.loader.exec_module(module)
    return module


def run(script: ModuleType, *words: object) -> None:
    """What its command line does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [script.__file__, *map(str, words)])
        script.main()


def write(path: Path, content: Any) -> None:
    """A file of text, or of anything else as JSON, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def write_names(source: Path, rows: Sequence[Any], groups: dict[str, Any]) -> None:
    """The package of the names of emoji, as --source has it."""
    write(source / "emojibase-data" / "en" / "data.json", rows)
    write(source / "emojibase-data" / "meta" / "groups.json", groups)
    write(source / "emojibase-data" / "LICENSE", "the licence of the names")


def pixels(row: dict[str, Any]) -> np.ndarray:
    """Those of a row's image, which is of three colours, as integers."""
    image = Image.open(io.BytesIO(row["image"]["bytes"]))
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)
