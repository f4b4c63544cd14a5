"""Latents and text embeddings of a data set, computed once into shards, of every process its share.

A shard of the source becomes a file, and files that are there are not made again: what was stopped goes on.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from datasets import Dataset, Features, Value
from datasets import Sequence as ListOf
from torch import nn

from guided_diffusers.core.condition import encode_text, tokenize
from guided_diffusers.core.declared import Count, Declared
from guided_diffusers.models.latents import encode, latent_shape
from guided_diffusers.store.files import write_atomically
from guided_diffusers.training.data.cache import fingerprint
from guided_diffusers.training.data.dataset import DataConfig
from guided_diffusers.training.data.images import load_autoencoder
from guided_diffusers.training.data.lanes import Row
from guided_diffusers.training.data.precomputed import EMBEDDINGS, MOMENTS, Precomputed
from guided_diffusers.training.data.rows import CAPTIONS, Rows, report
from guided_diffusers.training.data.stream import ImageTextStream
from guided_diffusers.training.engine.config import option
from guided_diffusers.training.tasks.text import TextConfig, load_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PrecomputeConfig(Declared):
    """Compute the latents, and with a frozen text encoder the embeddings, of data that are then streamed."""

    output_dir: str = field(metadata={"help": "the folder of the shards: data.path of the training"})
    data: DataConfig
    autoencoder: str = field(metadata={"help": "of the latents: folder, fashion-32 or Hub id"})
    text: TextConfig = field(default_factory=TextConfig)
    dtype: Literal["float16", "float32"] = option("float16", "of latents and embeddings in the files")
    encode_batch: Count = option(64, "pictures encoded at once")


def precompute(config: PrecomputeConfig, device: torch.device) -> dict[str, int]:
    """Make the shards of this process's share that are not there yet.

    Returns:
        How many `shards`, `rows` and rows left out, `skipped`, this process has made.
    """
    state, folder = PartialState(), Path(config.output_dir)
    stream = ImageTextStream(replace(config.data, stream=True), seed=0)
    maker = _Maker.of(config, stream, device)
    if state.is_main_process:
        maker.made.keep(folder)
    state.wait_for_everyone()
    done = {"shards": 0, "rows": 0, "skipped": 0}
    for number in range(state.process_index, maker.made.shards, state.num_processes):
        file = maker.made.shard(folder, number)
        if file.is_file():
            continue
        before = dict(done)
        write_atomically(file, lambda at, number=number: maker.write(stream.shards.rows(number), at, done))
        done["shards"] += 1
        rows, skipped = (done[name] - before[name] for name in ("rows", "skipped"))
        logger.info("%s: %d rows, %d left out", file, rows, skipped)
    state.wait_for_everyone()
    return done


@dataclass(frozen=True, kw_only=True)
class _Maker:
    """What makes rows of latents of rows of pictures."""

    config: PrecomputeConfig
    stream: ImageTextStream
    made: Precomputed
    autoencoder: nn.Module
    tokenizer: Any
    text_encoder: nn.Module | None

    @classmethod
    def of(cls, config: PrecomputeConfig, stream: ImageTextStream, device: torch.device) -> _Maker:
        data, tokenizer, encoder, text = config.data, None, None, None
        autoencoder = load_autoencoder(config.autoencoder, data.channels).to(device)
        if config.text.encoder == "frozen" and data.caption_column is not None:
            tokenizer, encoder = load_text(config.text)
            encoder.requires_grad_(False).eval().to(device)
            text = [tokenizer.model_max_length, encoder.config.hidden_size]
        made = Precomputed(
            path=data.path,
            split=data.split,
            shards=stream.shards.count,
            resolution=data.resolution,
            crop=data.crop,
            channels=data.channels,
            mirror=data.mirror,
            autoencoder=fingerprint(autoencoder),
            latent=list(latent_shape(autoencoder, data.resolution, data.resolution)),
            text_encoder=None if encoder is None else fingerprint(encoder),
            text=text,
            dtype=config.dtype,
        )
        parts = {"autoencoder": autoencoder, "tokenizer": tokenizer, "text_encoder": encoder}
        return cls(config=config, stream=stream, made=made, **parts)

    @property
    def features(self) -> Features:
        """The columns of a shard."""
        kept = {name: kind for name, kind in self.stream.features.items() if name not in self._replaced}
        texts = {} if self.text_encoder is None else {EMBEDDINGS: ListOf(Value("binary"))}
        return Features({**kept, MOMENTS: Value("binary"), **texts})

    @property
    def _replaced(self) -> tuple[str, ...]:
        return (self.config.data.image_column, "__key__", "__url__")

    def write(self, source: Iterator[Row], file: Path, done: dict[str, int]) -> None:
        """The rows of a shard that can be read, into a file, a row group a batch; `done` counts on."""
        with pq.ParquetWriter(file, self.features.arrow_schema) as writer:
            while batch := list(itertools.islice(source, self.config.encode_batch)):
                good = []
                for row in batch:
                    columns = self.stream.decoder(row)
                    if isinstance(columns, str):
                        report(row, columns, self.stream.config.skips, done["skipped"])
                        done["skipped"] += 1
                    else:
                        good.append((row, Rows(columns)))
                if good:
                    rows = self._encoded([row for row, _ in good], Rows.joined([each for _, each in good]))
                    table = Dataset.from_list(rows, features=self.features).data.table
                    schema = self.features.arrow_schema
                    writer.write_table(table.select(schema.names).cast(schema))
                    done["rows"] += len(rows)

    @torch.no_grad()
    def _encoded(self, rows: Sequence[Row], columns: Rows) -> list[dict[str, Any]]:
        """Each row, with the mirrored one after it where that is asked for."""
        pixels, times = self.stream.pixels(columns), 1
        if self.config.data.mirror:
            pixels, times = torch.stack([pixels, pixels.flip(-1)], dim=1).flatten(0, 1), 2
        device = next(self.autoencoder.parameters()).device
        moments = torch.stack(encode(self.autoencoder, pixels.to(device)), dim=1)
        moments = moments.float().cpu().numpy().astype(self.config.dtype)
        cells = [
            {name: value for name, value in row.cells.items() if name not in self._replaced} for row in rows
        ]
        if self.text_encoder is not None:
            texts = columns.columns[CAPTIONS]
            different = list(dict.fromkeys(itertools.chain(*texts)))
            ids, mask = (part.to(device) for part in tokenize(self.tokenizer, different))
            embedded = encode_text(self.text_encoder, ids, mask).float().cpu().numpy()
            of = dict(zip(different, embedded.astype(self.config.dtype), strict=True))
            cells = [
                {**cell, EMBEDDINGS: [of[text].tobytes() for text in options]}
                for cell, options in zip(cells, texts, strict=True)
            ]
        twice = [cell for cell in cells for _ in range(times)]
        return [{**cell, MOMENTS: each.tobytes()} for cell, each in zip(twice, moments, strict=True)]
