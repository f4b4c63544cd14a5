"""The noise that pipelines start from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from guided_diffusers.core.randomness import as_generators


def noise_of(
    shape: Sequence[int],
    generator: torch.Generator | Sequence[torch.Generator] | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Standard normal noise for networks of a dtype, drawn in float32 at least.

    So a seed means one picture in every precision: some versions of torch draw other numbers, not the same
    ones rounded, in half precision on a CPU.

    Args:
        shape: `(batch, ...)`.
        generator: One, or one a sample.
        device: Where the noise is wanted; it is drawn where the generator is.
        dtype: The networks'.

    Returns:
        Noise of `shape`, in float32, or in float64 where the networks are.
    """
    promoted = torch.promote_types(dtype, torch.float32)
    return randn_tensor(tuple(shape), as_generators(generator), device, promoted)
