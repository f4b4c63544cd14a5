"""A cache of JSON values in a folder, each with what it was made of: a stopped measurement goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from guided_diffusers.store.files import write_json_atomically


class CachedValues:
    """Values by name, made when they are not there or were made of something else.

    Attributes:
        seconds: What it took to make all the values asked for so far, whenever that was.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.seconds = folder, 0.0
        folder.mkdir(parents=True, exist_ok=True)

    def value(self, name: str, of: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """The value of that name.

        Args:
            name: Of the file, without its suffix.
            of: JSON values that say what the value depends on.
            make: Makes it; a JSON value.
        """
        path = self.folder / f"{name}.json"
        record = json.loads(path.read_text()) if path.is_file() else {}
        if record.get("of") != of:
            start = time.perf_counter()
            record = {"of": dict(of), "value": make()}
            record["seconds"] = time.perf_counter() - start
            write_json_atomically(path, record)
            print(f"{name}: {record['seconds']:.0f} s", flush=True)
        self.seconds += record["seconds"]
        return record["value"]
