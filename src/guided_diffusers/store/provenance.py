"""What something on the disk was made of: written beside it, and compared before it is used again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from guided_diffusers.store.files import write_json_atomically


class Processes(Protocol):
    """The part of `accelerate.PartialState` that sharing work needs."""

    process_index: int
    num_processes: int

    def wait_for_everyone(self) -> None:
        """Return when every process has come here."""


@dataclass(frozen=True)
class OneProcess:
    """No other processes."""

    process_index: int = 0
    num_processes: int = 1

    def wait_for_everyone(self) -> None:
        """Nobody to wait for."""


def differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """The keys, dotted within mappings, whose values differ or are in one of the two alone; sorted."""
    found = []
    for key in sorted({*stored, *asked}):
        one, other = stored.get(key), asked.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += [f"{key}.{within}" for within in differences(one, other)]
        elif one != other:
            found.append(key)
    return found


def write_or_check(path: Path, made_of: Mapping[str, Any], what: str, processes: Processes) -> None:
    """Write what a folder is made of, or compare it with what is there, so that work can go on.

    Args:
        path: The JSON file, in the folder.
        made_of: JSON values.
        what: The folder's content, for the message.
        processes: Who shares the folder; the first writes.

    Raises:
        ValueError: The folder's content was made of something else; the first key that differs is named.
    """
    made_of = json.loads(json.dumps(made_of))
    if processes.process_index == 0 and not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomically(path, made_of)
    processes.wait_for_everyone()
    stored = json.loads(path.read_text())
    if differing := differences(stored, made_of):
        one, other = (_value(values, differing[0]) for values in (stored, made_of))
        raise ValueError(
            f"{path.parent} holds {what} of another {differing[0]}: {one!r}, now {other!r}; "
            "give another folder, or remove it"
        )


def _value(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values
