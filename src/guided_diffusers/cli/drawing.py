"""What `guided-diffusers generate` does: load a pipeline, draw, save."""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from guided_diffusers.cli.stock import StockPipeline
    from guided_diffusers.pipelines.record import ImageRecord
    from guided_diffusers.pipelines.safe import SafePipeline
    from guided_diffusers.store.provenance import Processes

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("guided_diffusers.GuidedDDIMScheduler", {}),
    "ddpm": ("guided_diffusers.GuidedDDPMScheduler", {}),
    "deis": ("diffusers.DEISMultistepScheduler", {}),
    "dpmsolver++": ("diffusers.DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "euler": ("diffusers.EulerDiscreteScheduler", {}),
    "euler-ancestral": ("diffusers.EulerAncestralDiscreteScheduler", {}),
    "heun": ("diffusers.HeunDiscreteScheduler", {}),
    "kdpm2": ("diffusers.KDPM2DiscreteScheduler", {}),
    "kdpm2-ancestral": ("diffusers.KDPM2AncestralDiscreteScheduler", {}),
    "lcm": ("diffusers.LCMScheduler", {}),
    "lms": ("diffusers.LMSDiscreteScheduler", {}),
    "pndm": ("diffusers.PNDMScheduler", {"skip_prk_steps": True}),
    "sa-solver": ("diffusers.SASolverScheduler", {}),
    "tcd": ("diffusers.TCDScheduler", {}),
    "unipc": ("diffusers.UniPCMultistepScheduler", {}),
}
"""For each scheduler name of the command line: its class, and what overrides the checkpoint's config."""

CLASSIFIER_GUIDED = ("ClassifierGuidedPipeline", "ClassifierGuidedTextToImagePipeline")
"""The pipelines of this package that draw for classes or texts, beside TextToImagePipeline."""

PROMPTLESS = ("DDPMPipeline", "ImagePipeline")
"""Those that training leaves and that draw for no prompt; ImagePipeline reads both."""

CASCADE = "CascadePipeline"
"""Draws for what its first stage draws for."""

DRAWS_NOTHING_NEW = ("VAEPipeline", "UpsamplePipeline")
"""Those without a denoiser, or that need a picture to begin with."""


def load_pipeline(
    checkpoint: str,
    scheduler: str | None = None,
    device: str | None = None,
    revision: str | None = None,
    prompted: bool = True,
) -> SafePipeline | StockPipeline:
    """The pipeline of a folder, a shipped checkpoint or a Hub repository (owner/name), sought in this order.

    It is a cascade or one of `CLASSIFIER_GUIDED` where the checkpoint says so, an ImagePipeline for it or
    diffusers' DDPMPipeline, a StockPipeline for those of diffusers that training leaves of transformers, and
    else a TextToImagePipeline, which reads Stable Diffusion's folders too.

    Args:
        checkpoint: Which.
        scheduler: A key of SCHEDULERS; it takes over the noise schedule of the checkpoint's own, the default.
        device: The default is cuda where there is one, else cpu.
        revision: Of a Hub repository: branch, tag or commit.
        prompted: It is to draw for prompts, of texts or classes' names: an ImagePipeline is refused.

    Raises:
        ValueError: There is no such checkpoint, or it is of a pipeline that draws for no prompt.
        OSError: It could not be read, or fetched.
    """
    from diffusers.utils import logging
    from transformers.utils import logging as transformers_logging

    from guided_diffusers.core.checks import check_that

    source = local_folder(checkpoint) or checkpoint
    whole = not isinstance(source, Path) or (source / "model_index.json").is_file()
    check_that(whole, "checkpoint", checkpoint, "a folder with a model_index.json")
    for library in (logging, transformers_logging):
        library.disable_progress_bar()  # of loading; drawing has its own
    pipeline = _load(source, revision, prompted)
    if scheduler is not None:
        pipeline.scheduler = make_scheduler(scheduler, pipeline.scheduler)
    return pipeline.to(device_of(device))


def device_of(device: str | None) -> torch.device:
    """The device of that name; where there is none, cuda if there is one, else cpu.

    Raises:
        ValueError: It is no device's name, or one that this torch does not see.
    """
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"device is {device!r}, which torch cannot use here: {reason}") from error
    return found


def _load(source: Path | str, revision: str | None, prompted: bool) -> SafePipeline | StockPipeline:
    import guided_diffusers
    from guided_diffusers import TextToImagePipeline
    from guided_diffusers.cli.stock import BY_CLASS, BY_PROMPT, load_stock
    from guided_diffusers.hub.entry_point import plain_class_name
    from guided_diffusers.hub.errors import hub_errors

    with hub_errors(str(source), revision):
        index = TextToImagePipeline.load_config(source, revision=revision)
    name = plain_class_name(index)
    draws = index["base"][1] if name == CASCADE else name
    if name in DRAWS_NOTHING_NEW or (prompted and draws in PROMPTLESS):
        raise ValueError(
            f"{source} holds the pipeline {name}, which draws for no prompt: load it in Python, with "
            "diffusers.DiffusionPipeline.from_pretrained"
        )
    if name in (BY_CLASS, *BY_PROMPT):
        return load_stock(source, revision, index)
    cls = TextToImagePipeline
    if name in (CASCADE, *CLASSIFIER_GUIDED, *PROMPTLESS):
        cls = guided_diffusers.ImagePipeline if name in PROMPTLESS else getattr(guided_diffusers, name)
    return cls.from_pretrained(source, revision=revision)


def local_folder(checkpoint: str) -> Path | None:
    """The folder of a checkpoint that is here: given as such, or shipped; None for a Hub repository.

    Raises:
        ValueError: It is none of the three.
    """
    from guided_diffusers.core.checks import check_that
    from guided_diffusers.store.checkpoints import pretrained, shipped

    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    if checkpoint in shipped():
        return pretrained(checkpoint)
    allowed = f"a folder, a Hub repository (owner/name), or what ships: {', '.join(shipped())}"
    check_that(checkpoint.count("/") == 1, "checkpoint", checkpoint, allowed)
    return None


def identify(checkpoint: str, revision: str | None = None) -> str:
    """What a checkpoint that has been loaded was: "sha256:..." of a folder, "commit:..." of a repository."""
    from guided_diffusers.store.checkpoints import fingerprint

    folder = local_folder(checkpoint)
    if folder is not None:
        return fingerprint(folder)
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(checkpoint, "model_index.json", revision=revision)
    if not isinstance(index, str):
        raise OSError(f"{checkpoint} is not in the cache, so its commit is not known: load it first")
    return f"commit:{Path(index).parent.name}"  # a snapshot's folder has the name of its commit


def check_scheduler_name(name: str | None) -> str | None:
    """The name, unless SCHEDULERS does not have it, which is wrong usage."""
    if name is not None and name not in SCHEDULERS:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(SCHEDULERS)}", param_hint="--scheduler")
    return name


def make_scheduler(name: str, own: Any) -> Any:
    """The scheduler that the command line calls `name`, in the place of a checkpoint's own.

    Raises:
        ValueError: No such name, or one that does not know the noise process of the checkpoint's own.
    """
    from guided_diffusers.core.checks import check_choice, check_that
    from guided_diffusers.schedulers import process_of

    path, overrides = SCHEDULERS[check_choice("scheduler", name, [*SCHEDULERS])]
    library, class_name = path.split(".")
    made = getattr(import_module(library), class_name).from_config(own.config, **overrides)
    allowed = (
        f"the checkpoint's own, {type(own).__name__} (no --scheduler, or in a sweep `own`), or another of "
        f"its noise process, and {class_name} has another one"
    )
    check_that(process_of(made) == process_of(own), "scheduler", name, allowed)
    return made


def draw_call(
    pipeline: SafePipeline, call: ImageRecord, processes: Processes | None = None
) -> list[Image.Image | None]:
    """An image for each job of a call: the prompt of a number, and the noise of (seed, index) alone.

    So an image depends on the jobs it is drawn with by no more than the rounding of sums, and images of one
    index share their noise. Progress is shown on a terminal.

    Args:
        pipeline: Draws.
        call: What.
        processes: Who shares the batches; None for this process alone.

    Returns:
        The images in the order of the jobs, None in the place of what another process draws.

    Raises:
        ValueError: Prompts that are none for this pipeline.
    """
    from guided_diffusers.core.randomness import generator_for

    pipeline.set_progress_bar_config(disable=not sys.stderr.isatty())
    guidance, images = pipeline.guidance_from_config(call.guidance), [None] * len(call.jobs)
    first, step = (0, 1) if processes is None else (processes.process_index, processes.num_processes)
    with _told_once():
        for start in range(first * call.batch_size, len(call.jobs), step * call.batch_size):
            batch = call.jobs[start : start + call.batch_size]
            texts = [call.prompts[prompt] for prompt, _ in batch]
            images[start : start + len(batch)] = pipeline(
                **prompt_arguments(pipeline, texts, call.negative_prompt),
                generator=[generator_for(call.seed, index) for _, index in batch],
                guidance=guidance,
                num_inference_steps=call.steps,
            ).images
    return images


@contextmanager
def _told_once() -> Iterator[None]:
    """Let each warning of prompts be logged once, in however many batches they are drawn."""
    logger, told = logging.getLogger("guided_diffusers.pipelines.prompts"), set()

    def is_new(record: logging.LogRecord) -> bool:
        known = record.getMessage() in told
        told.add(record.getMessage())
        return not known

    logger.addFilter(is_new)
    try:
        yield
    finally:
        logger.removeFilter(is_new)


def prompt_arguments(pipeline: SafePipeline, texts: list[str], negative: str | None) -> dict[str, Any]:
    """What a pipeline is called with for these prompts, which are classes where it draws classes.

    Raises:
        ValueError: A negative prompt for a pipeline that takes none.
    """
    from guided_diffusers.core.checks import check_that

    taken = inspect.signature(getattr(pipeline, "base", pipeline).__call__).parameters
    fits = negative is None or "negative_prompt" in taken
    name = type(getattr(pipeline, "stock", pipeline)).__name__
    check_that(fits, "negative_prompt", negative, f"None: a {name} takes no negative prompt")
    if "class_labels" in taken and "prompt" not in taken:
        return {"class_labels": [int(text) if text.isdecimal() else text for text in texts]}
    return {"prompt": texts, **({} if negative is None else {"negative_prompt": [negative] * len(texts)})}


def save(images: Sequence[Image.Image | None], call: ImageRecord, folder: Path) -> list[Path]:
    """Writes one PNG for each image of a call that is here, at its own size, with its record; names all.

    Raises:
        DiskFullError: There was no room for a file; those that are there are whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (image, (row, index)) in enumerate(zip(images, call.jobs, strict=True)):
        words = re.sub(r"[^a-z0-9]+", "-", call.prompts[row].lower())[:48].strip("-") or "prompt"
        paths.append(folder / f"{row:02d}-{words}-seed{call.seed}-{index:02d}.png")
        if image is not None:
            save_png(image, call.image(number), paths[-1])
    return paths


def save_png(image: Image.Image, record: ImageRecord, path: Path) -> None:
    """Writes a PNG that says how it was made, whole or not at all."""
    from guided_diffusers.pipelines.record import png_info
    from guided_diffusers.store.files import write_atomically

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, partial(image.save, format="png", pnginfo=png_info(record)))


def grid_of(images: Sequence[Image.Image], call: ImageRecord) -> Image.Image:
    """All images of a call as one picture, a labelled row a prompt."""
    from guided_diffusers.evaluation.grid import labelled_grid

    rows: list[list[Image.Image]] = [[] for _ in call.prompts]
    for image, (row, _) in zip(images, call.jobs, strict=True):
        rows[row].append(image)
    return labelled_grid(rows, call.prompts)


def summary(call: ImageRecord, paths: list[Path], grid: Path | None) -> dict[str, Any]:
    """What `--json` prints."""
    images = [
        {"path": str(path), "prompt": call.prompts[row], "seed": call.seed, "index": index}
        for path, (row, index) in zip(paths, call.jobs, strict=True)
    ]
    return {
        "checkpoint": call.checkpoint,
        "fingerprint": call.fingerprint,
        "negative_prompt": call.negative_prompt,
        "scheduler": call.scheduler_class,
        "steps": call.steps,
        "guidance": call.guidance,
        "images": images,
        "grid": grid and str(grid),
    }
