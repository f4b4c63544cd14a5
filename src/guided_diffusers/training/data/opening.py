"""Opening a data set: a folder, files or a name on the Hub, and which of its columns hold images and texts.

Paths that exist are taken as they are, whatever signs are in their names; others are patterns if they have
`*` or `?`, or braces: `{0000..0099}` counts, `{a,b}` lists.
"""

from __future__ import annotations

import glob
import io
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from datasets import Dataset, Features, IterableDataset, load_dataset
from datasets import Image as ImageFeature
from datasets.data_files import DataFilesDict, DataFilesList, sanitize_patterns
from PIL import Image

from guided_diffusers.core.checks import check_choice, check_that, one_line
from guided_diffusers.store.files import visible_files
from guided_diffusers.store.image_reader import is_picture
from guided_diffusers.store.reading import plain_schema, read_utf8, reading_as
from guided_diffusers.training.data.column_types import holds_images, holds_texts, pixel_type, type_name
from guided_diffusers.training.data.folder import (
    SPLITS,
    UNQUOTED,
    open_pictures,
    picture_rows,
    take,
)

if TYPE_CHECKING:
    from guided_diffusers.training.data.dataset import DataConfig

logger = logging.getLogger(__name__)

BUILDERS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".tar": "webdataset",
}
"""What of datasets reads files of a kind."""
LACKS_END = "breaks off (it lacks the two empty blocks that end a tar)"


def load_image_text(config: DataConfig) -> Dataset | IterableDataset:
    """Opens the dataset of `config` with its images left undecoded.

    Returns:
        A `datasets.Dataset` with the columns of the source, of a stream an `IterableDataset`; the image
        column holds {"bytes", "path"}.

    Raises:
        FileNotFoundError: `path` looks like a file or pattern and matches nothing.
        ValueError: what is there cannot be read; a column is missing or of a type that holds no images or
            texts, naming the columns that would do; the dataset has no rows.
    """
    if config.stream and not re.fullmatch(r"[\w.-]+", config.split):
        raise ValueError(f"data.split is {config.split!r}; allowed in a stream: the name of a whole split")
    dataset = _opened(os.path.expanduser(config.path), config)
    for argument, holds, allowed in (
        ("image_column", holds_images, "images, the bytes of image files, their paths, or arrays of pixels"),
        ("caption_column", holds_texts, "texts, lists of texts, or class labels with names"),
    ):
        column = getattr(config, argument)
        if column is None:
            continue
        check_choice(argument, column, dataset.column_names)
        others = [name for name, feature in dataset.features.items() if holds(feature)]
        if column not in others:
            found = f"columns that would do: {others}" if others else "no column would do"
            raise ValueError(
                f"{argument} is {column!r}, which in {config.path!r} is of type "
                f"{type_name(dataset.features[column])}; allowed: {allowed}; {found}"
            )
    check_that(config.stream or len(dataset), f"split of {config.path!r}", config.split, "one that has rows")
    return _as_images(dataset, config)


def _as_images(dataset: Dataset | IterableDataset, config: DataConfig) -> Dataset | IterableDataset:
    """The dataset with {"bytes", "path"} in its image column."""
    column, image = config.image_column, ImageFeature(decode=False)
    kind = pixel_type(dataset.features[column])
    try:
        if kind is None:
            return dataset.cast_column(column, image)
        features = Features({**dataset.features, column: image})
        told = {"column": column, "kind": kind}
        return dataset.map(_encoded, batched=True, features=features, fn_kwargs=told, batch_size=256)
    except MemoryError:
        raise
    except Exception as error:  # as Arrow or Pillow raises it
        where = f"image_column {column!r} of {config.path!r}"
        raise ValueError(f"{where} does not read as images: {one_line(error)}") from error


def _encoded(batch: dict[str, list[Any]], column: str, kind: str) -> dict[str, list[Any]]:
    """Arrays of pixels as image files: of 8 bits, of 16 where the type says so, or of floating point."""
    cells = []
    for cell in batch[column]:
        if cell is None:
            cells.append(None)
            continue
        array = np.asarray(cell)
        stored = array.astype(kind if kind == "uint16" else "uint8" if "int" in kind else "float32")
        fits, range_of = "int" not in kind or np.array_equal(stored, array), "the range of an array"
        ends = [array.min().item(), array.max().item()]
        check_that(fits, range_of, ends, "0 to 255")
        could_be_8_bits = kind == "uint16" and 0 < ends[1] < 256
        check_that(not could_be_8_bits, range_of, ends, "of 16 bits some above 255, or the type uint8")
        buffer = io.BytesIO()
        Image.fromarray(stored[..., 0] if stored.shape[2:] == (1,) else stored).save(buffer, "TIFF")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    return {column: cells}


def expanded(path: str) -> list[str]:
    """The paths that one with braces stands for; `x-{08..11}` are four, `{a,b}` two."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", path)
    if found is None:
        return [path]
    first, last, listed = found.groups()
    parts = listed.split(",") if listed else range(int(first), int(last) + 1)
    width = 0 if listed else len(first)
    start, end = path[: found.start()], path[found.end() :]
    return [each for part in parts for each in expanded(f"{start}{part:0>{width}}{end}")]


def _opened(path: str, config: DataConfig) -> Dataset | IterableDataset:
    split, pattern = config.split.split("[")[0], any(sign in path for sign in "*?{")
    kind = Path(path.partition("?")[0] if "://" in path else path).suffix
    if "://" in path and (kind in BUILDERS or pattern):
        files = {split: expanded(path)}
        builder = BUILDERS.get(kind, "parquet")
        return _local(config, [], "", lambda: _load(config, builder, data_files=files))
    if os.path.isdir(path):
        return _local(config, visible_files(path), path, lambda: _folder(path, split, config))
    if os.path.isfile(path):
        return _local(config, [path], "", lambda: _files([path], split, config))
    if kind == ".parquet" or pattern:
        files = []
        for each in expanded(path):
            matches = sorted(file for file in glob.glob(each, recursive=True) if os.path.isfile(file))
            if not matches:
                kind = " parquet" if kind == ".parquet" else ""
                named = "" if each == path else f": there is no {each!r}"
                raise FileNotFoundError(f"path {config.path!r} matches no{kind} file{named}")
            files += matches
        return _local(config, files, "", lambda: _files(files, split, config))
    return _from_hub(path, config)


def _load(config: DataConfig, *arguments: Any, **options: Any) -> Dataset | IterableDataset:
    """What the library opens of a split, or of a stream the first rows' types where it has none."""
    dataset = load_dataset(*arguments, split=config.split, streaming=config.stream, **options)
    if config.stream and dataset.features is None:
        dataset = dataset.cast(Dataset.from_list(list(dataset.take(100))).features)
    return dataset


def has_its_end(tar: str) -> bool:
    """Whether a tar ends in two blocks of zeros; one that is cut between files tarfile takes for whole."""
    try:
        with fsspec.open(tar, "rb") as file:
            file.seek(-1024, os.SEEK_END)
            return not any(file.read())
    except (OSError, ValueError, NotImplementedError):  # what is not a file has no end to look at
        return True


def _from_hub(path: str, config: DataConfig) -> Dataset | IterableDataset:
    if path.startswith((".", "/")) or (path.count("/") > 1 and "://" not in path):
        raise FileNotFoundError(f"path {config.path!r} is no folder, nor the name of a dataset on the Hub")
    try:
        return _load(config, path)
    except MemoryError:
        raise
    except Exception as error:  # as datasets and the Hub's client raise it
        kind = FileNotFoundError if isinstance(error, OSError) else ValueError
        reason = str(error).split("\n")[0] or type(error).__name__
        raise kind(f"path {config.path!r} is no folder here; on the Hub: {reason}") from error


def _local(
    config: DataConfig, files: list[str], folder: str, load: Callable[[], Dataset | IterableDataset]
) -> Dataset | IterableDataset:
    """What `load` opens; whatever datasets raises for files that it cannot read is one sentence."""
    try:
        for file in files if not config.stream else ():
            if file.endswith(".tar") and not has_its_end(os.path.join(folder, file)):
                raise ValueError(f"{file} {LACKS_END}")
        dataset = load()
        if "__index_level_0__" in (dataset.column_names or ()) and any(
            file.endswith(".csv") for file in files
        ):
            raise ValueError(f"a file of CSV {UNQUOTED}")  # pandas took the first values for rows' names
        return dataset
    except (MemoryError, FileNotFoundError):
        raise
    except Exception as error:
        theirs = not isinstance(error, ValueError) or isinstance(error, UnicodeDecodeError)
        for file in files:
            if theirs and file.endswith((".csv", ".json", ".jsonl")):
                read_utf8(os.path.join(folder, file))  # says which line is not UTF-8, if one is
        known = isinstance(error, ValueError | OSError) or error.__cause__ is None
        reason = one_line(error if known else error.__cause__)
        told = os.path.expanduser(config.path) in reason
        raise ValueError(reason if told else f"{config.path!r} does not open: {reason}") from error


def _folder(path: str, split: str, config: DataConfig) -> Dataset | IterableDataset:
    """A folder: with parquet files named after the split, a card that lists files, pictures, or other."""
    start = f"{glob.escape(path)}/{split}"
    if files := sorted(glob.glob(f"{start}.parquet")) or sorted(glob.glob(f"{start}-*.parquet")):
        return _files(files, split, config)
    described, listed = _card(path)
    if listed is not None or not described:
        if (pictures := open_pictures(path, config.split, listed)) is not None:
            _refuse_pictures(config)
            return pictures
    if not described:
        files = [file for file in visible_files(path) if Path(file).suffix in BUILDERS]
        unnamed = [file for file in files if not SPLITS.keys() & set(re.split(r"[-._ \d/]+", file))]
        if unnamed and len(unnamed) < len(files):
            logger.warning(
                "%r: %s left out, for datasets takes other files for splits by words in their names: rename "
                "them, or list the files of each split as data_files in README.md",
                config.path,
                ", ".join(unnamed[:5]),
            )
    return _load(config, path)


def _card(path: str) -> tuple[bool, dict[str, list[str]] | None]:
    """Whether the folder's card describes the data, and the files of each split that it lists, if it does."""
    card = os.path.join(path, "README.md")
    parts = read_utf8(card).split("---") if os.path.isfile(card) else [""]
    front = yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0] else None
    if not isinstance(front, dict) or not {"configs", "dataset_info"} & set(front):
        return False, None
    configs = front.get("configs") or [{}]
    if len(configs) > 1 or "data_files" not in configs[0]:
        return True, None
    root = os.path.abspath(path)
    found = DataFilesDict.from_patterns(sanitize_patterns(configs[0]["data_files"]), base_path=root)
    return True, {split: [os.path.relpath(file, root) for file in files] for split, files in found.items()}


def _files(files: list[str], split: str, config: DataConfig) -> Dataset | IterableDataset:
    """Files that are named one by one."""
    if all(map(is_picture, files)):
        _refuse_pictures(config)
        return take({split: picture_rows(files)}, config.split)
    kinds = {Path(file).suffix.lower() for file in files}
    builders = {BUILDERS.get(kind) for kind in kinds}
    if len(builders) > 1 or None in builders:
        told = ", ".join(map(repr, sorted(kinds)))
        raise ValueError(
            f"its files are of the kinds {told}; allowed: pictures, or one of {', '.join(BUILDERS)}"
        )
    options: dict[str, Any] = {}
    if ".parquet" in kinds:
        schemas = [_schema(file) for file in files]
        first = plain_schema(schemas[0])
        columns = [name for name in first.names if all(name in schema.names for schema in schemas)]
        if others := sorted({name for schema in schemas for name in schema.names}.difference(columns)):
            logger.info(
                "%r: columns that not every file has are left out: %s", config.path, ", ".join(others)
            )
            options["columns"] = columns
        if first != schemas[0]:
            features = Features.from_arrow_schema(first)
            options["features"] = Features({name: features[name] for name in columns})
    here = [os.path.abspath(file) for file in files]
    listed = DataFilesList(here, [(str(os.stat(file).st_mtime_ns),) for file in here])
    return _load(config, builders.pop(), data_files=DataFilesDict({split: listed}), **options)


def _refuse_pictures(config: DataConfig) -> None:
    if config.stream:
        raise ValueError(
            f"data.path is {config.path!r}, pictures in files of their own, of which a stream would list "
            "every one; allowed with data.stream: .tar files of pictures (WebDataset), parquet or a dataset "
            "on the Hub"
        )


def _schema(file: str) -> pa.Schema:
    with reading_as("parquet", file, pa.ArrowException):
        return pq.read_schema(file)
