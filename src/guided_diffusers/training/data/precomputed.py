"""Latents and embeddings of a data set in shards of parquet, which a stream reads again.

A folder of them is `<split>-00000-of-00016.parquet` and so on, one for each shard of the source, and
`precomputed.json`, the manifest: which networks made them and in what form. A row has the columns of the
source but the image; in its place `moments`, the bytes of (2, channels, height, width), mean and standard
deviation of the standardised latent's posterior; and, of a frozen text encoder, `embeddings`, for each of the
row's captions the bytes of (length, width).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from guided_diffusers.core.checks import check_that
from guided_diffusers.store.config_safety import read_json
from guided_diffusers.store.files import write_json_atomically

MANIFEST, MOMENTS, EMBEDDINGS = "precomputed.json", "moments", "embeddings"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Precomputed:
    """What made the shards of a folder, and their form.

    Attributes:
        path: the source, as `data.path` named it.
        split: its split.
        shards: how many the source has.
        resolution: of the pictures, in pixels.
        crop: as `data.crop`.
        channels: of the pictures.
        mirror: whether each picture's mirror image follows it.
        autoencoder: its fingerprint.
        latent: the shape of a latent, (channels, height, width).
        text_encoder: its fingerprint; None without embeddings.
        text: the shape of a caption's embedding, (length, width).
        dtype: of both.
        version: of this format.
    """

    path: str
    split: str
    shards: int
    resolution: int
    crop: int | None
    channels: int
    mirror: bool
    autoencoder: str
    latent: list[int]
    text_encoder: str | None = None
    text: list[int] | None = None
    dtype: Literal["float16", "float32"] = "float16"
    version: int = VERSION

    @classmethod
    def of(cls, folder: str | Path) -> Precomputed | None:
        """What a folder's manifest says; None of a folder without one."""
        file = Path(folder) / MANIFEST
        if not file.is_file():
            return None
        found = read_json(file)
        check_that(found.get("version") == VERSION, f"{file}: version", found.get("version"), str(VERSION))
        return cls(**found)

    def keep(self, folder: Path) -> None:
        """Write the manifest, or find the same one.

        Raises:
            ValueError: the folder holds what other networks or data made; what differs is named.
        """
        earlier = self.of(folder)
        if earlier is None:
            folder.mkdir(parents=True, exist_ok=True)
            write_json_atomically(folder / MANIFEST, asdict(self))
            return
        before, now = asdict(earlier), asdict(self)
        if changed := [name for name in now if json.dumps(before[name]) != json.dumps(now[name])]:
            name = changed[0]
            raise ValueError(
                f"{folder} was made with {name} {before[name]!r}, and now it is {now[name]!r}: name another "
                "folder, or remove this one"
            )

    def shard(self, folder: Path, number: int) -> Path:
        """The file of a shard."""
        return folder / f"{self.split}-{number:05d}-of-{self.shards:05d}.parquet"

    def moments(self, data: bytes) -> Tensor:
        """A row's mean and deviation, (1, 2, channels, height, width)."""
        return self._tensor(data, (1, 2, *self.latent))

    def embedding(self, data: bytes) -> Tensor:
        """A caption's embedding, (length, width)."""
        return self._tensor(data, tuple(self.text or ()))

    def _tensor(self, data: bytes, shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(np.frombuffer(data, self.dtype).reshape(shape).copy())

    def check(self, config: Any, autoencoder: str | None) -> None:
        """Raise ValueError where a run's data or autoencoder are not those that the latents were made of."""
        for name in ("resolution", "crop", "channels"):
            check_that(
                getattr(config, name) == getattr(self, name),
                f"data.{name}",
                getattr(config, name),
                f"{getattr(self, name)}, of which {config.path!r} was precomputed",
            )
        check_that(not config.mirror, "data.mirror", True, "false: it is what the latents were made with")
        if autoencoder != self.autoencoder:
            raise ValueError(
                f"data.path {config.path!r} holds latents of another autoencoder than this run's; allowed: "
                "the one that they were precomputed with"
            )
