"""What frozen networks make of the data, computed once and kept on disk.

A cache is a memory-mapped array `<name>.npy` with a manifest `<name>.json` of all that made it: the dataset's
fingerprint and transform, a hash of the network's weights and configuration, and the dtype. A cache whose
manifest does not match is made anew, with a message that says what changed. The array is written under a
temporary name and renamed, and while it is replaced there is no manifest: a run that is stopped leaves
nothing that another would believe. Of several processes each computes its share of the one file's rows.

An autoencoder's cache holds the moments of its posterior and not a draw: training draws anew at every step.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from guided_diffusers.core.condition import encode_text, tokenize
from guided_diffusers.models import latents
from guided_diffusers.store.files import cache_folder, new_array, write_json_atomically
from guided_diffusers.store.hashes import json_hash
from guided_diffusers.store.provenance import differences
from guided_diffusers.store.weight_files import weight_bytes
from guided_diffusers.training.data.dataset import ImageTextDataset

logger = logging.getLogger(__name__)

CACHE_VERSION = 1
"""Part of every manifest: raise it when the meaning of an array changes."""


class LatentMoments:
    """The posteriors of a dataset's standardised latents, by row.

    Args:
        moments: `(rows, 2, channels, height, width)`: means and standard deviations.
    """

    def __init__(self, moments: np.ndarray) -> None:
        self._moments = moments

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._moments)

    def moments(self, indices: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of some rows, each `(batch, channels, height, width)` float32."""
        mean, std = torch.from_numpy(self._moments[np.asarray(indices)]).float().unbind(1)
        return mean, std

    def sample(self, indices: Sequence[int] | np.ndarray, noise: Tensor) -> Tensor:
        """A draw from the posteriors of some rows: mean + deviation x noise.

        Args:
            indices: Row numbers in [0, len).
            noise: Standard normal, `(batch, channels, height, width)`, as of `randomness.randn_for`: one
                generator a sample makes the draw independent of the batch.

        Returns:
            `(batch, channels, height, width)` float32.
        """
        mean, std = self.moments(indices)
        return torch.addcmul(mean, std, noise)


def cached_latents(
    autoencoder: nn.Module,
    data: ImageTextDataset,
    dtype: Literal["float32", "float16"] = "float32",
    batch_size: int = 64,
) -> LatentMoments:
    """The latent moments of all images, from the cache or encoded now, in `data.config.cache_dir`.

    Args:
        autoencoder: A frozen autoencoder, of `latents.IMAGE_AUTOENCODERS`, on the device that is to encode.
        data: The images. Its fingerprint is part of the key.
        dtype: Of the file; float16 halves it and rounds means and deviations to 11 bits.
        batch_size: Images encoded at once.
    """
    made_of = {"data": data.fingerprint, "autoencoder": fingerprint(autoencoder), "dtype": dtype}

    @torch.no_grad()
    def encode(start: int, stop: int) -> Tensor:
        images = data.pixels(range(start, stop)).to(autoencoder.device)
        return torch.stack(latents.encode(autoencoder, images), dim=1)

    rows = [os.path.abspath(data.config.path), data.config.split, *data.shape]
    if data.config.mirror:  # a file of its own: runs with and without would make each other's anew
        rows.append("mirror")
    name = f"latents-{short_hash(*rows)}"
    shape = (len(data), 2, *latents.latent_shape(autoencoder, *data.shape[1:]))
    was_training = autoencoder.training
    autoencoder.eval()
    array = _cached(cache_folder(data.config.cache_dir) / name, made_of, shape, dtype, encode, batch_size)
    autoencoder.train(was_training)
    return LatentMoments(array)


def cached_embeddings(
    text_encoder: nn.Module,
    tokenizer: Any,  # noqa: ANN401 (any of transformers' tokenizers)
    captions: Sequence[str],
    cache_dir: str | Path | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    batch_size: int = 64,
) -> Tensor:
    """A frozen text encoder's last hidden states of some captions, from the cache or computed now.

    Args:
        text_encoder: A frozen text encoder of transformers, on the device that is to encode.
        tokenizer: Its tokenizer; captions are padded to its `model_max_length`.
        captions: The texts.
        cache_dir: The folder; None: `files.cache_folder()`.
        dtype: Of the file and the result.
        batch_size: Captions encoded at once.

    Returns:
        `(captions, length, width)`, memory-mapped.
    """
    ids, mask = tokenize(tokenizer, captions)
    content = hashlib.sha256(ids.numpy().tobytes()).hexdigest()
    made_of = {"captions": content, "text_encoder": fingerprint(text_encoder), "dtype": dtype}
    device = next(text_encoder.parameters()).device

    @torch.no_grad()
    def encode(start: int, stop: int) -> Tensor:
        return encode_text(text_encoder, ids[start:stop].to(device), mask[start:stop].to(device))

    shape = (*ids.shape, text_encoder.config.hidden_size)
    was_training = text_encoder.training
    text_encoder.eval()
    stem = cache_folder(cache_dir) / f"embeddings-{short_hash(*captions)}"
    array = _cached(stem, made_of, shape, dtype, encode, batch_size, mmap_mode="c")
    text_encoder.train(was_training)
    return torch.from_numpy(array)


def cached_rows(
    texts: Sequence[str],
    made_of: Mapping[str, str],
    encode: Callable[[Sequence[str]], Tensor],
    cache_dir: str | Path | None = None,
    batch_size: int = 64,
) -> Tensor:
    """What frozen networks make of some texts, `(texts, numbers)` float32, from the cache or computed now.

    Args:
        texts: The texts.
        made_of: What else it depends on, such as a `fingerprint` of each network.
        encode: Some texts to a row each.
        cache_dir: As of `cached_embeddings`.
        batch_size: Texts encoded at once.
    """

    @torch.no_grad()
    def compute(start: int, stop: int) -> Tensor:
        return encode(texts[start:stop])

    stem = cache_folder(cache_dir) / f"texts-{short_hash(*texts)}"
    shape = (len(texts), compute(0, 1).shape[1])
    return torch.from_numpy(_cached(stem, dict(made_of), shape, "float32", compute, batch_size, "c"))


def fingerprint(network: nn.Module) -> str:
    """A hash of a network's class, configuration and weights (names, dtypes, shapes and bytes)."""
    config = dict(network.config.items() if hasattr(network.config, "items") else network.config.to_dict())
    told = {name: value for name, value in config.items() if not name.startswith("_")}
    told.pop("transformers_version", None)
    digest = hashlib.sha256(json.dumps([type(network).__name__, told], sort_keys=True, default=str).encode())
    for name, tensor, data in weight_bytes(network):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + data)
    return digest.hexdigest()


def _cached(
    stem: Path,
    made_of: dict[str, str],
    shape: tuple[int, ...],
    dtype: str,
    compute: Callable[[int, int], Tensor],
    batch_size: int,
    mmap_mode: Literal["r", "c"] = "r",
) -> np.ndarray:
    array, manifest, state = stem.with_suffix(".npy"), stem.with_suffix(".json"), PartialState()
    made_of = {"version": str(CACHE_VERSION), **made_of}
    found = json.loads(manifest.read_text()) if manifest.is_file() and array.is_file() else None
    if not all(gather_object([found == made_of])):  # on every process the same answer, before one writes
        if state.is_main_process:
            if found in (None, made_of):
                logger.info("computing %s", array)
            else:
                changed = ", ".join(differences(found, made_of))
                logger.warning("%s was made of another %s: computing it anew", array, changed)
            manifest.unlink(missing_ok=True)
        _compute(array, shape, dtype, compute, batch_size)
        if state.is_main_process:
            write_json_atomically(manifest, made_of)
        state.wait_for_everyone()
    return np.load(array, mmap_mode=mmap_mode)


def _compute(
    path: Path, shape: tuple[int, ...], dtype: str, compute: Callable[[int, int], Tensor], batch_size: int
) -> None:
    state = PartialState()
    temporary = path.with_suffix(f".{gather_object([os.getpid()])[0]}.tmp")
    try:
        if state.is_main_process:
            path.parent.mkdir(parents=True, exist_ok=True)
            new_array(temporary, dtype, shape)
        state.wait_for_everyone()
        if not all(gather_object([temporary.is_file()])):
            raise OSError(
                f"data.cache_dir {path.parent} is not one folder to all processes; allowed: one on a disk "
                "that they share"
            )
        size = math.prod(shape[1:]) * np.dtype(dtype).itemsize
        number, about = state.process_index, f"encoding {path.stem.partition('-')[0]}"
        batches, ends = -(-shape[0] // batch_size), (number, number + 1)  # the same whoever computes them
        first, stop = (min(batches * n // state.num_processes * batch_size, shape[0]) for n in ends)
        silent = None if state.is_main_process else True
        with (
            temporary.open("rb+") as file,
            tqdm(total=stop - first, desc=about, disable=silent) as bar,
        ):
            file.seek(temporary.stat().st_size - (shape[0] - first) * size)
            for start in range(first, stop, batch_size):
                end = min(start + batch_size, stop)
                file.write(compute(start, end).float().cpu().numpy().astype(dtype).tobytes())
                bar.update(end - start)
            file.flush()
            os.fsync(file.fileno())
        state.wait_for_everyone()
        if state.is_main_process:
            os.replace(temporary, path)
    finally:
        if state.is_main_process:
            temporary.unlink(missing_ok=True)


def short_hash(*parts: object) -> str:
    """The name of a file by what JSON can hold, 32 letters."""
    return json_hash(parts)[:32]
