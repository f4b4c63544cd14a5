"""The scale at which plain classifier-free guidance does as much, at one step, as any guidance did.

    w_e = 1 + <guided - own, d> / <d, d>,    d = D_cond - D_null

is the gamma whose shift (gamma - 1) d is nearest to what was added, and gamma itself of the plain term. Most
gains over plain guidance vanish against plain guidance at the same w_e.

References:
    "Guidance Matters: Rethinking the Evaluation Pitfall for Text-to-Image Generation" (arXiv:2602.22570):
    methods compared at an equal scale.
"""

from __future__ import annotations

from torch import Tensor


def effective_scale(own: Tensor, null: Tensor, guided: Tensor) -> Tensor:
    """The effective scale of each sample at a step.

    Args:
        own: x_0 under the condition, `(batch, ...)`.
        null: x_0 under its null, of own's shape.
        guided: The guided x_0, of own's shape.

    Returns:
        `(batch,)`: 1 is unguided; NaN of a sample that its condition does not change, which has no scale.
    """
    difference, moved = (own - null).flatten(1), (guided - own).flatten(1)
    # w_e
    return 1 + (moved * difference).sum(1) / difference.square().sum(1)
