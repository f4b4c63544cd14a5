"""What `guided-diffusers generate` does: load a pipeline, draw, save."""

from __future__ import annotations

import re
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

    from guided_diffusers import TextToImagePipeline
    from guided_diffusers.evaluation.generation import Processes

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("guided_diffusers.GuidedDDIMScheduler", {}),
    "ddpm": ("guided_diffusers.GuidedDDPMScheduler", {}),
    "deis": ("diffusers.DEISMultistepScheduler", {}),
    "dpmsolver++": ("diffusers.DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "euler": ("diffusers.EulerDiscreteScheduler", {}),
    "euler-ancestral": ("diffusers.EulerAncestralDiscreteScheduler", {}),
    "heun": ("diffusers.HeunDiscreteScheduler", {}),
    "pndm": ("diffusers.PNDMScheduler", {"skip_prk_steps": True}),
    "unipc": ("diffusers.UniPCMultistepScheduler", {}),
}
"""For each scheduler name of the command line: its class, and what overrides the checkpoint's config."""


def load_pipeline(
    checkpoint: str, scheduler: str | None = None, device: str | None = None
) -> TextToImagePipeline:
    """The pipeline of a folder, a shipped checkpoint or a Hub repository (owner/name), sought in this order.

    Args:
        checkpoint: Which.
        scheduler: A key of SCHEDULERS; it takes over the noise schedule of the checkpoint's own, the default.
        device: The default is cuda where there is one, else cpu.

    Raises:
        ValueError: There is no such checkpoint.
        OSError: It could not be read, or fetched.
    """
    import torch
    from diffusers.utils import logging
    from transformers.utils import logging as transformers_logging

    from guided_diffusers import TextToImagePipeline, pretrained
    from guided_diffusers.checkpoints import shipped

    source: str | Path = checkpoint
    if Path(checkpoint).is_dir():
        source = Path(checkpoint)
        if not (source / "model_index.json").is_file():
            raise ValueError(f"checkpoint={checkpoint!r} is a folder without a model_index.json")
    elif checkpoint in shipped():
        source = pretrained(checkpoint)
    elif checkpoint.count("/") != 1:
        raise ValueError(
            f"checkpoint={checkpoint!r} is no folder, no Hub repository (owner/name) and no checkpoint that "
            f"ships with the package, which are: {', '.join(shipped())}"
        )
    for library in (logging, transformers_logging):
        library.disable_progress_bar()  # of loading; drawing has its own
    pipeline = TextToImagePipeline.from_pretrained(source)
    if scheduler is not None:
        pipeline.scheduler = make_scheduler(scheduler, pipeline.scheduler.config)
    return pipeline.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def make_scheduler(name: str, config: dict[str, Any]) -> Any:
    """The scheduler that the command line calls `name`, with the noise schedule of `config`."""
    path, overrides = SCHEDULERS[name]
    library, class_name = path.split(".")
    return getattr(import_module(library), class_name).from_config(config, **overrides)


def draw(
    pipeline: TextToImagePipeline,
    prompts: list[str],
    num_images: int,
    seed: int,
    batch_size: int,
    negative_prompt: str | None = None,
    processes: Processes | None = None,
    **options: Any,
) -> list[list[Image.Image | None]]:
    """Draws `num_images` images for each prompt, image k from the noise of (seed, k) alone.

    So an image depends neither on the other prompts nor on `num_images` or `batch_size`, and the images of a
    grid's column share their noise.

    Args:
        pipeline: Draws.
        prompts: What to draw.
        num_images: For each prompt.
        seed: Of the noise.
        batch_size: Images drawn at once.
        negative_prompt: For all of them; None for none.
        processes: Who shares the batches; None for this process alone.
        options: More arguments of the pipeline's call.

    Returns:
        A list for each prompt, None in the place of what another process draws.
    """
    from guided_diffusers.randomness import generator_for

    jobs = [(row, index) for row in range(len(prompts)) for index in range(num_images)]
    images: list[list[Image.Image | None]] = [[None] * num_images for _ in prompts]
    share = (
        slice(None) if processes is None else slice(processes.process_index, None, processes.num_processes)
    )
    for start in range(0, len(jobs), batch_size)[share]:
        batch = jobs[start : start + batch_size]
        drawn = pipeline(
            prompt=[prompts[row] for row, _ in batch],
            negative_prompt=None if negative_prompt is None else [negative_prompt] * len(batch),
            generator=[generator_for(seed, index) for _, index in batch],
            **options,
        ).images
        for (row, index), image in zip(batch, drawn, strict=True):
            images[row][index] = image
    return images


def save(
    images: list[list[Image.Image | None]],
    prompts: list[str],
    seed: int,
    folder: Path,
    grid: bool,
    processes: Processes,
) -> tuple[list[dict[str, Any]], Path | None]:
    """Writes one PNG for each image, at its own size, and the labelled grid; says what was written where.

    Each process writes the images that it has, and the main one the grid of all.

    Raises:
        DiskFullError: There was no room for a file; those that are there are whole.
    """
    from PIL import Image

    from guided_diffusers.evaluation.grid import labelled_grid
    from guided_diffusers.files import write_atomically

    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for row, (prompt, drawn) in enumerate(zip(prompts, images, strict=True)):
        words = re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:48].strip("-") or "prompt"
        for index, image in enumerate(drawn):
            path = folder / f"{row:02d}-{words}-seed{seed}-{index:02d}.png"
            if image is not None:
                write_atomically(path, partial(image.save, format="png"))
            records.append({"path": str(path), "prompt": prompt, "seed": seed, "index": index})
    processes.wait_for_everyone()
    if not grid or processes.process_index != 0:
        return records, None
    paths = iter(record["path"] for record in records)
    whole = [[Image.open(next(paths)) for _ in drawn] for drawn in images]
    picture = labelled_grid(whole, prompts)
    write_atomically(folder / "grid.png", lambda at: picture.save(at, format="png"))
    return records, folder / "grid.png"
