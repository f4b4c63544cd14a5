"""Captions for a transformer of diffusers: told as its pipeline tells them, which is what comes of the run.

The text encoders are the pipeline's: one or several, loaded or new, frozen or trained with the denoiser. They
are asked by the pipeline's own `encode_prompt` (`stock.prompted`), so that it draws with what was trained.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from guided_diffusers.core.condition import MAX_CONTEXT
from guided_diffusers.pipelines.default_guidance import keep_way_of_drawing
from guided_diffusers.stock.prompted import Prompted, encoded
from guided_diffusers.store.hashes import json_hash
from guided_diffusers.training.data.cache import cached_rows, fingerprint
from guided_diffusers.training.data.dataset import ImageTextDataset
from guided_diffusers.training.data.stream import ImageTextStream
from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.tasks.captions import texts_of
from guided_diffusers.training.tasks.conditioning import DrawingConfig, PromptConditioning
from guided_diffusers.training.tasks.kept import keep_tokenizer
from guided_diffusers.training.tasks.stock_text import check_draws, text_encoders, text_parts, tokenizer_of
from guided_diffusers.training.tasks.text import TextConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class FrozenRows:
    """What frozen text encoders say of captions, computed once.

    Attributes:
        numbers: the row of each caption.
        rows: (captions, numbers): all that the network is told of each, flat.
        shapes: of the network's arguments in a row, one after another.
    """

    numbers: Mapping[str, int]
    rows: Tensor
    shapes: Mapping[str, torch.Size]

    def told(self, rows: Tensor) -> dict[str, Tensor]:
        """The network's arguments, each (batch, ...)."""
        parts = rows.split([shape.numel() for shape in self.shapes.values()], dim=1)
        named = zip(self.shapes.items(), parts, strict=True)
        return {name: part.unflatten(1, shape) for (name, shape), part in named}


@dataclass(frozen=True, kw_only=True, eq=False)
class StockCaptions(PromptConditioning):
    """Captions, told as a pipeline of diffusers does; ends in that pipeline.

    Attributes:
        stock: the pipeline, with the networks that are trained.
        row: how it tells its transformer.
        length: tokens of a text, `max_sequence_length`.
        resolution: pixels of a side, at which it draws: FluxPipeline's own default is not of the network.
        frozen: what the text encoders say; None where they are asked at every step.
    """

    stock: DiffusionPipeline
    row: Prompted
    length: int
    resolution: int
    frozen: FrozenRows | None

    @property
    def trained(self) -> dict[str, nn.Module]:
        """The text encoders, or nothing."""
        return text_encoders(self.row, self.stock.components) if self.joint else {}

    def begin(self, folder: Path) -> None:
        """Write the run's tokenizer."""
        keep_tokenizer(folder, self.stock.tokenizer)

    def rows(self, indices: list[int], positions: list[int], seed: int) -> dict[str, Tensor]:
        """What frozen text encoders say of the captions, or their letters: UTF-8, padded with 0."""
        texts = self.texts(indices, positions, seed)
        if self.frozen is not None:
            return {"text": self.frozen.rows[[self.frozen.numbers[text] for text in texts]]}
        letters = [torch.tensor([*text.encode(), 0], dtype=torch.uint8) for text in texts]
        return {"text": nn.utils.rnn.pad_sequence(letters, batch_first=True)}

    def inputs(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """The network's arguments, each (batch, ...); equal captions of a batch are encoded once."""
        if self.frozen is not None:
            return self.frozen.told(rows["text"])
        unique, inverse = torch.unique(rows["text"], dim=0, return_inverse=True)
        texts = [bytes(each).rstrip(b"\0").decode() for each in unique.tolist()]
        told = encoded(self.stock, texts, self.length, unique.device)
        return {name: value[inverse] for name, value in told.items()}

    def pipeline(self, modules: Mapping[str, nn.Module], scheduler: Any) -> DiffusionPipeline:
        """The pipeline of diffusers; its model_index.json says how the pictures are drawn."""
        vae = self.stock.vae
        if self.row.shifts and vae.config.shift_factor is None:  # which means 0, and the pipeline adds it
            vae.register_to_config(shift_factor=0.0)
        pipeline = type(self.stock)(**{**self.stock.components, **modules, "scheduler": scheduler})
        keep_way_of_drawing(pipeline, self.drawing.guidance_scale, **self._call)
        return pipeline

    @property
    def _call(self) -> dict[str, int]:
        """What a call is given that draws as was trained."""
        return {"max_sequence_length": self.length, "height": self.resolution, "width": self.resolution}

    def pictures(self) -> tuple[dict[str, Any], int, int]:
        """A row of pictures a prompt, with guidance."""
        arguments, count, columns = super().pictures()
        arguments |= {
            "negative_prompt": [""] * len(arguments["prompt"]),
            self.row.scale: self.drawing.guidance_scale,
            **self._call,
            **self.row.call,
        }
        return arguments, count, columns


def make_stock_captions(
    row: Prompted,
    data: ImageTextDataset | ImageTextStream,
    text: TextConfig,
    training: TrainingConfig,
    parts: dict[str, Any],
    make_network: Callable[..., nn.Module],
    device: torch.device,
    *,
    base: bool,
    dropout: float,
    drawing: DrawingConfig,
) -> StockCaptions:
    """The pipeline with all its parts; where text encoders are frozen, what they say of all captions.

    Those of a stream are not all known: they are encoded at every step.

    Args:
        row: how the pipeline tells its transformer.
        data: images with captions.
        text: which text encoders.
        training: the engine's configuration.
        parts: scheduler and vae.
        make_network: the widths of a token and of the pooled text -> the transformer.
        device: that is to encode.
        base: as of `make_text`.
        dropout: the share of captions that becomes the empty prompt.
        drawing: what to draw.
    """
    check_draws(row, parts["scheduler"], parts["vae"])
    logging.getLogger(row.cls.__module__).setLevel(logging.ERROR)  # texts that are cut are told of once
    texts = texts_of(data)
    parts = {**parts, **text_parts(row, text, texts, training, base)}
    widths = row.widths(*(getattr(parts[name], "config", None) for name in row.encoders))
    stock = row.cls(**parts, transformer=make_network(text=widths[0], pooled=widths[1]))
    last = list(text_encoders(row, parts).values())[-1]
    holds = getattr(last.config, "max_position_embeddings", None)
    length = min(text.sequence_length or row.length, holds or MAX_CONTEXT)
    if length != row.length:
        logger.warning(
            "texts have %d tokens: a call of %s has to be given max_sequence_length=%d (a plain one has %d)",
            *(length, row.pipeline, length, row.length),
        )
    if lacking := [f"{name}=None" for name in row.encoders if parts[name] is None]:
        lacking += [tokenizer_of(name) for name in lacking]
        logger.warning("%s.from_pretrained has to be given %s", row.pipeline, ", ".join(lacking))
    frozen, known = text.encoder == "frozen", None
    if frozen:
        for encoder in text_encoders(row, parts).values():
            encoder.requires_grad_(False).eval().to(device)
        if not isinstance(data, ImageTextStream):
            known = frozen_rows(row, stock, texts, length, device, data.config.cache_dir)
    return StockCaptions(
        stock=stock,
        row=row,
        captions=lambda indices, positions: data.captions(indices, positions, training.seed),
        length=length,
        resolution=data.config.resolution,
        frozen=known,
        joint=not frozen,
        dropout=dropout,
        drawing=drawing,
    )


def frozen_rows(
    row: Prompted,
    stock: DiffusionPipeline,
    texts: list[str],
    length: int,
    device: torch.device,
    cache_dir: str | None,
) -> FrozenRows:
    """What the frozen text encoders of a pipeline, on the device, say of texts, computed now or cached."""
    made_of = {"length": str(length), "pipeline": row.pipeline}
    for name, encoder in text_encoders(row, stock.components).items():
        ids = getattr(stock, tokenizer_of(name))(texts, verbose=False).input_ids
        made_of[name] = fingerprint(encoder)
        made_of[tokenizer_of(name)] = json_hash(ids)

    @torch.no_grad()
    def encode(some: Sequence[str]) -> dict[str, Tensor]:
        return encoded(stock, some, length, device)

    def flat(some: Sequence[str]) -> Tensor:
        return torch.cat([value.flatten(1).float() for value in encode(some).values()], dim=1)

    shapes = {name: value.shape[1:] for name, value in encode(texts[:1]).items()}
    rows = cached_rows(texts, made_of, flat, cache_dir)
    return FrozenRows(numbers={text: number for number, text in enumerate(texts)}, rows=rows, shapes=shapes)
