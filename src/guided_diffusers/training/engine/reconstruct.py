"""The average of any length, from the two that a run kept (`posthoc`), in a folder for `from_pretrained`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from guided_diffusers.core.checks import check_that
from guided_diffusers.core.declared import Between, read
from guided_diffusers.store.files import atomic_folder, recover
from guided_diffusers.training.engine.posthoc import FOLDER, LONGEST, Kept, combination
from guided_diffusers.training.engine.settings import FILE, recorded

Averages = dict[Kept, Path]
RECORD = "ema.json"
WORST = 0.1  # error of the fitted profile beyond which it is another average


def kept_averages(run: Path) -> Averages:
    """The folders of a run's kept averages, by position and length.

    Raises:
        FileNotFoundError: the run kept none, or it is no run.
    """
    found = {
        (int(folder.parent.name), float(folder.name)): folder
        for folder in sorted((run / FOLDER).glob("[0-9]*/[0-9]*"))
    }
    if not found:
        what = (
            "no averages yet, or was trained without training.posthoc_ema" if recorded(run) else f"no {FILE}"
        )
        raise FileNotFoundError(f"{run} has {what}; allowed: the folder of a run with {FOLDER}/")
    return found


def reconstruct(run: Path, length: float, out: Path, images: int | None = None) -> dict[str, Any]:
    """Write the averaged networks of any length, where final/ is a pipeline as the whole pipeline.

    Args:
        run: the run's folder, of a run in progress too.
        length: sigma_rel, above 0 and below 0.288.
        out: the folder to write, replaced where it is there.
        images: the position of the average, at most the last one kept, which it is when not given. An early
            one is a weak network for autoguidance.

    Returns:
        What `ema.json` in the folder says: the length, the position, the weight of each average kept, and the
        error of the fitted profile.

    Raises:
        ValueError: a length that is not one, or that those kept do not reach; a folder with other things.
        FileNotFoundError: see `kept_averages`.
    """
    length = read("length", length, Annotated[float, Between(0, LONGEST)])
    ours = not out.exists() or (out.is_dir() and ((out / RECORD).is_file() or not any(out.iterdir())))
    check_that(ours, "out", str(out), f"a new folder, or one with {RECORD}, which is replaced")
    averages = kept_averages(run)
    last = max(position for position, _ in averages)
    images = last if images is None else images
    allowed = f"a position from {min(averages)[0]} to {last}, where averages are kept"
    check_that(min(averages)[0] <= images <= last, "images", images, allowed)
    usable = {kept: folder for kept, folder in averages.items() if kept[0] <= images}
    weights, error = combination(list(usable), images, length)
    if error > WORST:
        raise ValueError(
            f"length is {length}: the {len(usable)} averages kept up to {images} images reach it with an "
            f"error of {error:.0%} only; allowed: a length nearer to those kept, "
            f"{' and '.join(str(of) for of in sorted({of for _, of in usable}))} (or a run with more points)"
        )
    record = {
        "length": length,
        "images": images,
        "profile_error": error,
        "kept": [[*kept, float(weight)] for kept, weight in zip(usable, weights, strict=True)],
    }
    with atomic_folder(out) as folder:
        for template, name in _templates(run, usable, folder):
            _fill(template, [kept / name for kept in usable.values()], weights)
        (folder / RECORD).write_text(json.dumps(record, indent=2))
    return record


def _templates(run: Path, kept: Mapping[Kept, Path], folder: Path) -> list[tuple[Path, str]]:
    """Copy what the averages are put into; each module's folder there, with the module's name.

    That is final/, without the figures of its own weights, or where there is none the newest of what is kept.
    """
    newest = kept[max(kept)]
    names = sorted(path.name for path in newest.iterdir())
    final = run / "final"
    recover(final)
    if not final.is_dir():
        shutil.copytree(newest, folder, dirs_exist_ok=True)
        return [(folder / name, name) for name in names]
    shutil.copytree(
        final, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("metrics.*", "README.md")
    )
    if (final / "model_index.json").is_file():
        return [(folder / name, name) for name in names]
    return [(folder, name) for name in names]


def _fill(template: Path, folders: Sequence[Path], weights: Any) -> None:
    """Put a sum of networks into a network's files, each tensor in the precision that it has there."""
    with ExitStack() as stack:
        where = [_tensors(stack, folder) for folder in folders]
        for file in sorted(template.glob("*.safetensors")):
            tensors = load_file(file)
            for name, own in tensors.items():
                if any(name not in found for found in where):
                    raise ValueError(f"{file} has {name}, which the averages kept lack: another network's")
                if own.is_floating_point():
                    total = torch.zeros(own.shape, dtype=torch.float64)
                    for found, weight in zip(where, weights, strict=True):
                        total.add_(found[name].get_tensor(name).double(), alpha=float(weight))
                    tensors[name] = total.to(own.dtype)
            save_file(tensors, file, metadata=stack.enter_context(safe_open(file, "pt")).metadata())


def _tensors(stack: ExitStack, folder: Path) -> dict[str, Any]:
    """The opened file of each tensor of a network's folder, which may have several."""
    opened = [stack.enter_context(safe_open(file, "pt")) for file in sorted(folder.glob("*.safetensors"))]
    return {name: file for file in opened for name in file.keys()}  # noqa: SIM118 - it is no mapping
