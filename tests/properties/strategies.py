"""Values of every kind, right and wrong, that the properties share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

BATCH = 2
SHAPE = (BATCH, 1, 4, 4)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

TEXTS: SearchStrategy[str] = st.one_of(
    st.sampled_from(["", " ", "\n\t", "a boot", "\0", "\x1b[31m", "\ufb01\u0301"]),
    st.sampled_from(
        ["\U0001f469\u200d\U0001f467 \U0001f1f3\U0001f1f1 \U0001f45f", "שלום עולם", "مرحبا \u202e"]
    ),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=40),
    st.sampled_from(["a" * 10_000, "boot " * 2_000, "\U0001f45f" * 10_000]),
)
"""Any text: empty, of control characters, in any script, 10,000 characters long."""


def _tensors() -> list[Tensor]:
    """Tensors that fit nowhere: by their shape or their dtype."""
    return [
        torch.zeros(0),
        torch.zeros(0, 1, 4, 4),
        torch.zeros(7, 5),
        torch.zeros(1, 2, 3, 4, 5),
        torch.zeros(3, dtype=torch.bool),
        torch.zeros(3, dtype=torch.complex64),
        torch.zeros((), dtype=torch.complex64),
        torch.tensor(float("nan")),
    ]


WRONG: SearchStrategy[Any] = st.one_of(
    st.sampled_from([float("nan"), float("inf"), -float("inf"), -1, -0.5, 1e308, 2**70, -(2**70), 10**400]),
    st.sampled_from(["", "high", "1", "nan", b"bytes", "\ud800", None, True, False, 3 + 4j]),
    st.sampled_from([[], (), {}, set(), [None], ["a", 3], [float("nan")], [[1], [2, 3]], {"a": 1}, [{}]]),
    st.sampled_from([object(), np.zeros(3), np.array("x"), np.float32("nan"), range(3)]),
    st.sampled_from(_tensors()),
)
"""What most arguments refuse; a few take some of it."""

SEEDS = st.sampled_from([0, 1, 17, 2**31])


def tensors(*shape: int, dtypes: tuple[torch.dtype, ...] = DTYPES[:2]) -> SearchStrategy[Tensor]:
    """Finite standard normal tensors of a shape."""
    return st.builds(
        lambda seed, dtype: torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
        SEEDS,
        st.sampled_from(dtypes),
    )


def uniform(*shape: int) -> SearchStrategy[Tensor]:
    """Tensors of numbers in [0, 1)."""
    return st.builds(lambda seed: torch.rand(shape, generator=torch.Generator().manual_seed(seed)), SEEDS)


def integers(high: int, *shape: int) -> SearchStrategy[Tensor]:
    """Tensors of integers from 0 to `high` - 1."""
    return st.builds(
        lambda seed: torch.randint(high, shape, generator=torch.Generator().manual_seed(seed)), SEEDS
    )


def generators(images: int) -> SearchStrategy[Any]:
    """None, a generator, or one an image."""
    return st.one_of(
        st.none(),
        st.builds(lambda seed: torch.Generator().manual_seed(seed), SEEDS),
        st.builds(lambda seed: [torch.Generator().manual_seed(seed + i) for i in range(images)], SEEDS),
    )


def numbers(low: float, high: float) -> SearchStrategy[Any]:
    """Floats of a range, its ends, and the integers in it."""
    whole = st.integers(int(np.ceil(low)), int(high))
    return st.one_of(st.floats(low, high), st.sampled_from([float(low), float(high)]), whole)
