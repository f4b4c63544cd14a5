"""Prior preservation: beside the new pictures the network sees pictures that it drew itself before training.

A network that learns a few pictures of one thing forgets what else its words meant. So the pretrained
pipeline draws pictures of what is to be kept, once, into the run's folder, and every step learns as many of
them as of the data:

    loss = loss of the data + weight x loss of the pictures drawn

References:
    Ruiz et al., "DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation"
        (arXiv:2208.12242), equation 2.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from torch import Tensor

from guided_diffusers.core.checks import check_that
from guided_diffusers.core.declared import Amount, Declared, Whole
from guided_diffusers.core.randomness import Stream, generator_for, seed_for
from guided_diffusers.store.files import atomic_folder, recover
from guided_diffusers.training.data.dataset import ImageTextDataset
from guided_diffusers.training.data.images import Images, image_arguments
from guided_diffusers.training.engine.config import option
from guided_diffusers.training.engine.order import data_order
from guided_diffusers.training.engine.task import Metrics
from guided_diffusers.training.tasks.captions import encoded_text, texts_of
from guided_diffusers.training.tasks.conditioning import PromptConditioning
from guided_diffusers.training.tasks.denoiser import DenoisingTask
from guided_diffusers.training.tasks.stock_captions import StockCaptions, frozen_rows

FOLDER, LIST = "prior", "metadata.jsonl"


@dataclass(frozen=True, kw_only=True)
class PriorConfig(Declared):
    """Pictures that the pretrained pipeline draws at the start, and that it is not to forget."""

    images: Whole = option(0, "how many are drawn, with the guidance and steps of `drawing`; 0: none")
    prompt: str | tuple[str, ...] = option((), "what is drawn: a prompt, or several by turns")
    weight: Amount = option(1.0, "of their loss, beside that of the data")

    def __post_init__(self) -> None:
        """Check that there is something to draw."""
        super().__post_init__()
        check_that(self.prompts or not self.images, "prior.prompt", self.prompt, "a prompt, or several")

    @property
    def prompts(self) -> tuple[str, ...]:
        """One or several."""
        return (self.prompt,) if isinstance(self.prompt, str) else self.prompt


class TaskWithPrior:
    """A task whose loss has a second term; everything else is the task's.

    Args:
        task: Of the data.
        prior: Of the pictures drawn: it trains the same networks, with another seed.
        weight: Of its loss.
    """

    def __init__(self, task: DenoisingTask, prior: DenoisingTask, weight: float) -> None:
        self._task, self._prior, self._weight = task, prior, weight

    def __getattr__(self, name: str) -> Any:
        """What the task has."""
        return getattr(self._task, name)

    def batch(self, indices: list[int], positions: list[int]) -> dict[str, Any]:
        """The task's, and as many of the pictures drawn."""
        rows = data_order(self._prior.seed, positions, self._prior.num_samples)
        return {"own": self._task.batch(indices, positions), "prior": self._prior.batch(rows, positions)}

    def losses(self, batch: dict[str, Any]) -> Iterator[tuple[str, Tensor, Metrics]]:
        """The sum of both."""
        ((name, own, metrics),) = self._task.losses(batch["own"])
        ((_, prior, _),) = self._prior.losses(batch["prior"])
        # arXiv:2208.12242, equation 2
        yield name, own + self._weight * prior, {**metrics, "own": own.detach(), "prior": prior.detach()}


def with_prior(config: Any, task: DenoisingTask, device: torch.device) -> Any:
    """The task with prior preservation, where `config.prior` asks for it; its pictures are drawn, or there.

    Args:
        config: A script's with `prior`, `data`, `drawing` and `training`.
        task: With captions.
        device: That draws.
    """
    if config.prior.images == 0:
        return task
    folder = Path(config.training.output_dir) / FOLDER
    with PartialState().main_process_first():
        draw(config, task, folder, device)
    plain = {"mirror": False, "crop": None, "buckets": None, "stream": False}
    kept = {"path": str(folder), "split": "train", "image_column": "image", "caption_column": "text"}
    data = ImageTextDataset(replace(config.data, **kept, **plain))
    parts, conditioning = task.pipeline(task.modules).components, cast(PromptConditioning, task.condition)
    condition = replace(
        conditioning,
        captions=lambda indices, positions: data.captions(indices, positions, task.seed),
        **_text(conditioning, texts_of(data), device, config.data.cache_dir),
    )
    images = Images(**image_arguments(data, parts["vae"]))
    training = replace(config.training, seed=seed_for(config.training.seed, Stream.PRIOR))
    prior = DenoisingTask(task.unet, images, condition, task.objective, training)
    return TaskWithPrior(task, prior, config.prior.weight)


def _text(condition: Any, texts: list[str], device: torch.device, cache_dir: str | None) -> dict[str, Any]:
    """What a condition needs of captions that are not the data's."""
    if isinstance(condition, StockCaptions):
        if condition.frozen is None:
            return {}
        length = condition.length
        return {"frozen": frozen_rows(condition.row, condition.stock, texts, length, device, cache_dir)}
    words = (condition.components["tokenizer"], condition.components["text_encoder"])
    return {"text": encoded_text(texts, *words, condition.joint, device, cache_dir)}


def draw(config: Any, task: DenoisingTask, folder: Path, device: torch.device) -> None:
    """Draw the pictures of the prior into a folder, unless they are there.

    Raises:
        ValueError: The run was begun with others.
    """
    prompts = [config.prior.prompts[n % len(config.prior.prompts)] for n in range(config.prior.images)]
    recover(folder)
    if folder.is_dir():
        found = [json.loads(line)["text"] for line in (folder / LIST).read_text().splitlines()]
        told = f"{len(prompts)} of {', '.join(config.prior.prompts)}"
        check_that(
            found == prompts, "prior", told, f"that of the pictures in {folder}, or another output_dir"
        )
        return
    pipeline = task.pipeline(task.modules).to(device)
    pipeline.set_progress_bar_config(desc="drawing the prior")
    seed, size = seed_for(config.training.seed, Stream.PRIOR), config.training.batch_size
    with atomic_folder(folder) as place:
        for start in range(0, len(prompts), size):
            some = replace(config.drawing, prompts=tuple(prompts[start : start + size]), images_per_prompt=1)
            arguments, count, _ = replace(cast(PromptConditioning, task.condition), drawing=some).pictures()
            generators = [generator_for(seed, number) for number in range(start, start + count)]
            images = pipeline(**arguments, generator=generators).images
            for number, image in enumerate(images, start):
                image.save(place / f"{number:06d}.png")
        lines = [json.dumps({"file_name": f"{n:06d}.png", "text": text}) for n, text in enumerate(prompts)]
        (place / LIST).write_text("\n".join(lines) + "\n")
