"""The symmetric contrastive loss of images and their captions, where captions repeat.

In a batch of B images with captions c_1 ... c_B, the logits are l_ij = tau <image_i, text_j>. Each image is
to find its caption among the B, each caption its image:

    loss_i = (-sum_j y_ij log softmax_j l_ij - sum_j y_ji log softmax_j l_ji) / 2.

On a data set of few captions the same comes more than once in a batch, and another copy of an image's own
caption is not wrong: so y_i is uniform over the columns whose caption equals c_i. Equal captions have equal
embeddings, hence each is embedded once, and with m_c copies of caption c in the batch

    -sum_j y_ij log softmax_j l_ij = logsumexp_c (l_ic + log m_c) - l_i,own,

which is log p(own caption | image) up to the constant log m. A softmax over a part of the batch has fewer
captions to tell apart: with accumulation each part is its own batch. Processes share one (`parallel`).

References:
    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision"
        (arXiv:2103.00020), figure 3.
    Khosla et al., "Supervised Contrastive Learning" (arXiv:2004.11362), equation 2: several positives.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_TEMPERATURE = 100.0
"""Of tau, as in the paper: above it training is unstable."""


def contrastive_loss(images: Tensor, texts: Tensor, own: Tensor, temperature: Tensor) -> Tensor:
    """The loss of each image of a batch with its caption.

    Args:
        images: (batch, d) of length 1.
        texts: (captions, d) of length 1: the different captions of the batch, each once.
        own: (batch,) int64, the caption of each image; every caption is some image's.
        temperature: tau, 0-dim.

    Returns:
        (batch,), float32 (float64 of float64 embeddings), also under autocast.

    Raises:
        ValueError: a caption that is no image's, or shapes that do not fit.
    """
    copies = own.bincount(minlength=len(texts))
    if own.shape != images.shape[:1] or len(copies) != len(texts) or not copies.all():
        raise ValueError(
            f"own has {len(own)} captions for {len(images)} images, and numbers {len(copies)} of "
            f"{len(texts)} texts; allowed: one an image, and every text some image's"
        )
    with torch.autocast(images.device.type, enabled=False):
        logits = temperature.to(images.dtype) * images @ texts.to(images.dtype).T
        right = logits.gather(1, own[:, None])[:, 0]
        among_texts = (logits + copies.to(logits.dtype).log()).logsumexp(dim=1)
        among_images = logits.logsumexp(dim=0)[own]
        return (among_texts + among_images) / 2 - right


@torch.no_grad()
def limit_temperature(log_temperature: Tensor) -> None:
    """Keep log tau at most log 100, in place."""
    log_temperature.clamp_(max=math.log(MAX_TEMPERATURE))
