"""Captions as a network's condition: encoded at every step, or embeddings computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from guided_diffusers.core.condition import encode_text, tokenize


class EncodedText(Protocol):
    """Captions as the denoiser's condition."""

    def rows(self, captions: Sequence[str]) -> Tensor:
        """What the data thread looks up for some captions, (batch, ...)."""

    def embed(self, rows: Tensor, text_encoder: nn.Module) -> Tensor:
        """The denoiser's `encoder_hidden_states`, (batch, length, width)."""


class JointText:
    """Token ids, encoded at every step, with the gradients of an encoder that has any.

    Equal captions of a batch are encoded once.

    Args:
        tokenizer: a tokenizer of transformers.
        captions: all that `rows` will be asked for, tokenized now; None: any, tokenized when it is asked.
        masked: rows have the mask of their tokens too, for a text encoder that is not to see padding.
    """

    def __init__(self, tokenizer: Any, captions: Sequence[str] | None, masked: bool = False) -> None:
        self._tokenizer, self._masked = tokenizer, masked
        self._row = {caption: row for row, caption in enumerate(captions or ())}
        self._tokens = None if captions is None else self._tokenized(captions)

    def rows(self, captions: Sequence[str]) -> Tensor:
        """Token ids, (batch, length); with their mask, (batch, 2, length)."""
        if self._tokens is None:
            return self._tokenized(captions)
        return self._tokens[[self._row[caption] for caption in captions]]

    def _tokenized(self, captions: Sequence[str]) -> Tensor:
        ids, mask = tokenize(self._tokenizer, captions)
        return torch.stack([ids, mask], dim=1) if self._masked else ids

    def embed(self, rows: Tensor, text_encoder: nn.Module) -> Tensor:
        """The text encoder's last hidden states, (batch, length, width)."""
        unique, inverse = torch.unique(rows, dim=0, return_inverse=True)
        ids, mask = (unique, None) if unique.ndim == 2 else unique.unbind(1)
        return encode_text(text_encoder, ids, mask)[inverse]


class FrozenText:
    """Embeddings computed once.

    Args:
        captions: all that `rows` will be asked for.
        embeddings: (captions, length, width), in memory or memory-mapped.
    """

    def __init__(self, captions: Sequence[str], embeddings: Tensor) -> None:
        self._row = {caption: row for row, caption in enumerate(captions)}
        self._embeddings = embeddings

    def rows(self, captions: Sequence[str]) -> Tensor:
        """Embeddings, (batch, length, width), float32."""
        return self._embeddings[[self._row[caption] for caption in captions]].float()

    def embed(self, rows: Tensor, text_encoder: nn.Module) -> Tensor:
        """The rows themselves."""
        return rows


class PrecomputedText:
    """Embeddings that come with the rows of a stream.

    Args:
        empty: of the empty prompt, (length, width).
    """

    def __init__(self, empty: Tensor) -> None:
        self._empty = empty.float()

    def rows(self, captions: Sequence[str | Tensor]) -> Tensor:
        """Embeddings, (batch, length, width), float32; a text among them is the empty prompt."""
        return torch.stack([self._empty if isinstance(each, str) else each.float() for each in captions])

    def embed(self, rows: Tensor, text_encoder: nn.Module) -> Tensor:
        """The rows themselves."""
        return rows
