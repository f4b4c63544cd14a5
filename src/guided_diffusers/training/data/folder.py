"""A folder of pictures as rows, its files named one by one.

The library datasets guesses: a word such as "train", "test", "val" or "dev" in the name of any file or folder
makes splits of which the other files are no part, and names are patterns. Here names are what they are.

Splits are the folders at the top (of the folder, or of the one folder within it) where nothing lies beside
them and all are named after splits and otherwise alike: `train` and `test`, `Train` and `Val`, `train2017`
and `val2017`, `train_images` and `test_images`. In any other folder all pictures are the split "train"; but
where two of its folders are called after different splits it may be either, and is refused.

Metadata (`metadata.jsonl`, `.csv` or `.parquet`) gives the rows, and in `file_name` the picture of each.
Without any, pictures in folders of equal depth have the name of theirs as a class, `label`. Hidden files and
folders (a leading dot) and folders with two leading underscores are passed over, as datasets does.
"""

from __future__ import annotations

import io
import logging
import os
import re
from pathlib import PurePosixPath
from typing import Any

import pandas as pd
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetInfo, Features, concatenate_datasets
from datasets.arrow_reader import ReadInstruction

from guided_diffusers.core.checks import check_that
from guided_diffusers.store.files import visible_files
from guided_diffusers.store.hashes import json_hash
from guided_diffusers.store.image_reader import is_picture
from guided_diffusers.store.reading import read_json_lines, read_parquet, read_utf8, reading_as

logger = logging.getLogger(__name__)

UNQUOTED = "has more values in its lines than names in its first one: put a text with a comma in quotes"
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def open_pictures(path: str, split: str, listed: dict[str, list[str]] | None = None) -> Dataset | None:
    """The rows of a split of a folder of pictures; None of a folder in which pictures are not the most.

    Args:
        path: The folder.
        split: As datasets writes it, such as "train[:90%]".
        listed: The files of each split, where the folder's card lists them.

    Raises:
        ValueError: No such split; folders of which it is not clear whether they are splits; metadata that
            cannot be read, with the file and the line.
    """
    files = visible_files(path) if listed is None else [file for part in listed.values() for file in part]
    ours = {file: None for file in files if is_picture(file) or PurePosixPath(file).name in METADATA}
    others = sum(
        file.endswith((".parquet", ".arrow", ".csv", ".json", ".jsonl", ".tar", ".zip")) for file in files
    )
    pictures = sum(map(is_picture, ours))
    if not pictures or pictures < others - (len(ours) - pictures):
        return None
    if listed is None:
        parts = splits_of(path, list(ours))
    else:
        parts = {name: (0, [file for file in part if file in ours]) for name, part in listed.items()}
    labels = {name: _labels(depth, part) for name, (depth, part) in parts.items()}
    names = sorted({label for found in labels.values() for label in found or ()})
    several = any(len(set(found or ())) > 1 for found in labels.values())
    if len(names) < 2 or len(ours) > pictures or (listed and not several):
        labels, names = {}, []
    rows = {name: _rows(path, part, labels.get(name), names) for name, (_, part) in parts.items()}
    return take(rows, split)


def picture_rows(files: list[str]) -> Dataset:
    """The rows of pictures that are named one by one, without anything else known of them."""
    return _rows("", files, None, [])


def take(rows: dict[str, Dataset], split: str) -> Dataset:
    """The rows that a split in the syntax of datasets says."""
    split = "+".join(rows) if split == "all" else split
    lengths = {name: len(part) for name, part in rows.items()}
    wanted = ReadInstruction.from_spec(split).to_absolute(lengths)
    parts = [
        rows[part.splitname]
        if part.from_ is None and part.to is None
        else rows[part.splitname].select(range(*slice(part.from_, part.to).indices(lengths[part.splitname])))
        for part in wanted
    ]
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def splits_of(path: str, files: list[str]) -> dict[str, tuple[int, list[str]]]:
    """The files of each split, and how deep the split's folder is (see the head of this module)."""
    root = ""
    while True:
        heads = [file[len(root) :].partition("/")[0] if "/" in file[len(root) :] else "" for file in files]
        named = {head: _split_and_rest(head) for head in sorted(set(heads))}
        lone = next(iter(named))
        if len(named) > 1 or not lone or (named[lone] and not named[lone][1]):
            break
        root += f"{lone}/"
    splits, rests = ({found and found[part] for found in named.values()} for part in (0, 1))
    if None not in splits and len(rests) == 1 and (len(splits) > 1 or rests == {()}):
        parts: dict[str, list[str]] = {}
        for file, head in zip(files, heads, strict=True):
            parts.setdefault(named[head][0], []).append(file)
        return {
            name: (root.count("/") + 1, parts[name])
            for name in ("train", "validation", "test")
            if name in parts
        }
    exact = {head: found[0] for head, found in named.items() if found and not found[1]}
    if len(set(exact.values())) > 1:
        beside = [f"{head}/" if head else "files" for head in named if head not in exact]
        raise ValueError(
            f"{path!r} has folders that are named after splits ({', '.join(exact)}), but not everything lies "
            f"in them ({', '.join(beside)}): move what is part of no split elsewhere, put metadata into each "
            "split's folder, or list the files of each split as data_files in README.md"
        )
    if told := [head for head, found in named.items() if found]:
        logger.info(
            "%r has no splits: %s is read like the others", path, ", ".join(f"{head}/" for head in told)
        )
    return {"train": (0, files)}


def _split_and_rest(name: str) -> tuple[str, tuple[str, ...]] | None:
    """The split that a folder's name has a word of, and its other words; None without just one such word."""
    words = [word for word in re.split(r"[-._ \d]+", name.lower()) if word]
    splits = [SPLITS[word] for word in words if word in SPLITS]
    return (splits[0], tuple(word for word in words if word not in SPLITS)) if len(splits) == 1 else None


def _labels(depth: int, files: list[str]) -> list[str] | None:
    """The name of each picture's folder; None unless all are equally deep, and below the split's folder."""
    paths = [PurePosixPath(file) for file in files]
    depths = {len(path.parts) for path in paths}
    return [path.parent.name for path in paths] if len(depths) == 1 and depths.pop() > depth + 1 else None


def _rows(path: str, files: list[str], labels: list[str] | None, names: list[str]) -> Dataset:
    """The rows of some files: those of their metadata, or a row a picture."""
    metadata = [file for file in files if PurePosixPath(file).name in METADATA]
    if metadata:
        table = _metadata_table(path, metadata)
        _tell_others(path, [file for file in files if is_picture(file)], table)
    else:
        table = pa.table({"image": pa.array([os.path.join(path, file) for file in files], pa.string())})
    features = Features.from_arrow_schema(table.schema)
    if labels is not None:
        table = table.append_column("label", pa.array([names.index(label) for label in labels]))
        features["label"] = ClassLabel(names=names)
    paths = [os.path.join(path, file) for file in metadata] + table["image"].to_pylist()
    key = json_hash([names, table.column_names, *map(_state, paths)])
    return Dataset(table, info=DatasetInfo(features=features), fingerprint=key[:32])


def _state(path: str | None) -> tuple[str | None, ...]:
    """What changes when a file does."""
    try:
        found = os.stat(path) if path else None
    except OSError:  # which its row will say
        found = None
    return (path,) if found is None else (path, str(found.st_mtime_ns), str(found.st_size))


def _metadata_table(path: str, files: list[str]) -> pa.Table:
    """The rows of metadata files, the pictures' names in full."""
    kinds = {PurePosixPath(file).suffix for file in files}
    check_that(len(kinds) == 1, f"metadata of {path!r}", files, "files of one kind")
    tables = []
    for file in files:
        at = os.path.join(path, file)
        table = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": read_parquet}[kinds.copy().pop()](at)
        named = [name for name in table.column_names if name == "file_name" or name.endswith("_file_name")]
        check_that(named, f"columns of {at}", table.column_names, "file_name, of the pictures, among them")
        for name in named:
            column = pa.array(
                [_located(at, row, cell) for row, cell in enumerate(table[name].to_pylist())], pa.string()
            )
            place = table.column_names.index(name)
            table = table.set_column(
                place, "image" if name == "file_name" else name[: -len("_file_name")], column
            )
        tables.append(table)
    with reading_as("one table", f"{', '.join(files)} of {path!r}", pa.ArrowInvalid):
        return pa.concat_tables(tables, promote_options="permissive")


def _located(at: str, row: int, name: Any) -> str | None:
    """The path of a picture that metadata names."""
    if name is None:
        return None
    within = os.path.normpath(str(name))
    fits = isinstance(name, str) and not os.path.isabs(within) and within.split("/")[0] != ".."
    check_that(fits, f"{at}, row {row}: file_name", name, "a path within the folder of the file")
    found = os.path.join(os.path.dirname(at), within)
    if "\\" in within and not os.path.exists(found):
        found = found.replace("\\", "/")  # as Windows writes it
    return found


def _tell_others(path: str, pictures: list[str], table: pa.Table) -> None:
    """Say how many pictures no metadata names."""
    named = {os.path.normpath(at) for at in table["image"].to_pylist() if at}
    left = [file for file in pictures if os.path.normpath(os.path.join(path, file)) not in named]
    if left:
        logger.warning(
            "%d pictures of %r are in no metadata and left out, such as %s", len(left), path, left[0]
        )


def _read_jsonl(at: str) -> pa.Table:
    lines = read_json_lines(at)
    columns = {}
    for name in dict.fromkeys(name for _, row in lines for name in row):
        with reading_as("values of one kind", f"{at}: column {name!r}", pa.ArrowException, OverflowError):
            columns[name] = pa.array([row.get(name) for _, row in lines])
    return pa.table(columns)


def _read_csv(at: str) -> pa.Table:
    text = io.StringIO(read_utf8(at))
    with reading_as("CSV", at):  # "NA" and "null" are words; an empty cell is a missing one
        frame = pd.read_csv(text, keep_default_na=False, na_values=[""])
    if not isinstance(frame.index, pd.RangeIndex):
        raise ValueError(f"{at} {UNQUOTED}")
    return pa.Table.from_pandas(frame, preserve_index=False)
