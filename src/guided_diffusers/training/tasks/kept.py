"""What belongs to a training run beside its weights: the tokenizer, and the classes by number.

Both are learned from the data when a run begins, and say which row of the network a word or a class is.
Learned anew when it goes on, from data that have changed meanwhile, they would number the rows otherwise. So
they are written into the run's folder before its first step (`tokenizer/`, `classes.json`), and come from
there as long as there is a checkpoint to go on from.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from guided_diffusers.core.checks import check_that
from guided_diffusers.models.transformers_models import load_tokenizer
from guided_diffusers.pipelines.safe import forget_calls
from guided_diffusers.store.config_safety import read_json
from guided_diffusers.store.files import atomic_folder, recover, write_json_atomically
from guided_diffusers.training.data.dataset import ImageTextDataset
from guided_diffusers.training.data.labels import class_labels
from guided_diffusers.training.data.rows import StreamedLabels
from guided_diffusers.training.data.stream import ImageTextStream
from guided_diffusers.training.engine.checkpoint import latest_checkpoint

logger = logging.getLogger(__name__)

TOKENIZER, CLASSES = "tokenizer", "classes.json"


def images_seen(folder: str | Path) -> int:
    """How far a run has come: the images that its newest checkpoint has seen, 0 where it begins."""
    newest = latest_checkpoint(Path(folder) / "checkpoints")
    return 0 if newest is None else int(newest.name)


def kept_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a run that goes on, from its folder or what it has exported; None where it begins.

    Raises:
        OSError: It cannot be read; in one line.
    """
    if not images_seen(folder):
        return None
    folder = Path(folder)
    recover(folder / TOKENIZER)
    recover(folder / "final")
    for place in (folder / TOKENIZER, folder / "final" / TOKENIZER, folder / "final"):
        if (place / "tokenizer_config.json").is_file():
            return load_tokenizer(place)
    _warn_of_older(folder, "tokenizer", "captions")
    return None


def keep_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Write the tokenizer of a run into its folder."""
    forget_calls(tokenizer)
    with atomic_folder(folder / TOKENIZER) as place:
        tokenizer.save_pretrained(place)


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The classes that a run knows.

    Attributes:
        count: how many: the rows of its network that stand for classes, numbered from 0.
        names: by number, where the data name them.
    """

    count: int
    names: list[str] | None = None


def run_labels(
    data: ImageTextDataset | ImageTextStream, column: str, folder: str | Path
) -> tuple[Tensor | StreamedLabels, Classes]:
    """The class of each row, and the classes of a run: those it was begun with, where it goes on.

    Raises:
        ValueError: as of `class_labels`; a name that the run does not know is one.
    """
    kept = kept_classes(folder)
    if isinstance(data, ImageTextStream):
        streamed = data.labels(column)
        classes = Classes(count=streamed.count, names=streamed.names)
        check_that(kept in (None, classes), "classes of the data", classes, f"those of the run, {kept}")
        return streamed, classes
    labels, names = class_labels(data, column, None if kept is None else kept.names)
    return labels, kept or Classes(count=int(labels.max()) + 1 if names is None else len(names), names=names)


def kept_classes(folder: str | Path) -> Classes | None:
    """The classes of a run that goes on, from its folder or what it has exported; None where it begins."""
    if not images_seen(folder):
        return None
    folder = Path(folder)
    recover(folder / "final")
    if (folder / CLASSES).is_file():
        return Classes(**read_json(folder / CLASSES))
    exported = folder / "final" / "config.json"
    if exported.is_file() and (names := read_json(exported).get("id2label")):
        return Classes(count=len(names), names=[names[number] for number in sorted(names, key=int)])
    _warn_of_older(folder, "classes", "classes of the data")
    return None


def keep_classes(folder: Path, classes: Classes) -> None:
    """Write the classes of a run into its folder."""
    write_json_atomically(folder / CLASSES, asdict(classes))


def _warn_of_older(folder: Path, what: str, source: str) -> None:
    logger.warning(
        "%s was begun by a version that kept no %s: learned anew, which is right only where the %s are those "
        "that it was begun with",
        folder,
        what,
        source,
    )
