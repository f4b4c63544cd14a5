"""The terms of an autoencoder's loss.

    loss = reconstruction + kl_weight KL + detail_weight detail + perceptual_weight perceptual
           + adversarial_weight adaptive adversarial

The reconstruction error is a **mean** over the pixels of an image, the Kullback-Leibler divergence a **sum**
over its latent (in nats), and both are means over the batch. The code of the latent diffusion paper sums the
error over pixels instead and divides all by that: its `kl_weight` divided by channels x height x width is
ours (`kl_weight_from_sum`). The perceptual distance is that of `perceptual`.

With a likelihood the reconstruction is -log p(x | z) / D, the mean over an image's D = channels x height x
width numbers, in nats, and the KL weight is beta / D (`kl_weight_from_sum(beta, ...)`; `kl_weight` is not
used): the loss is the negative evidence bound a dimension, and beta = 1 the bound itself. Its other weights
are thus on the scale of a mean over pixels too. Each latent channel's KL counts as at least `free_bits`.

A plain autoencoder (a deterministic posterior) has no divergence: the term is left out.

References:
    Auto-Encoding Variational Bayes, arXiv:1312.6114.
    Taming Transformers for High-Resolution Image Synthesis (equation 7), arXiv:2012.09841.
    High-Resolution Image Synthesis with Latent Diffusion Models (appendix G), arXiv:2112.10752.
    Geometric GAN (hinge loss), arXiv:1705.02894.
"""

from __future__ import annotations

import torch
from accelerate.utils import reduce
from torch import Tensor
from torch.nn import functional as F


def reconstruction_loss(reconstruction: Tensor, images: Tensor, squared: float = 0.0) -> Tensor:
    """`(1 - squared)` times the mean absolute plus `squared` times the mean squared error, a scalar.

    0 gives L1, which keeps edges, 1 gives L2, which maximises PSNR, anything between a mixture.
    """
    error = reconstruction.float() - images.float()
    loss = torch.zeros((), device=error.device)
    if squared < 1:
        loss = loss + (1 - squared) * error.abs().mean()
    if squared > 0:
        loss = loss + squared * error.square().mean()
    return loss


def kl_per_image(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats, summed over each image: `(batch,)` float32."""
    mean, logvar = mean.float(), logvar.float()
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def kl_weight_from_sum(weight: float, channels: int, height: int, width: int) -> float:
    """The `kl_weight` here that equals one of a loss whose error is summed over the pixels of an image."""
    return weight / (channels * height * width)


def laplacian(images: Tensor) -> Tensor:
    """The five-point Laplacian divided by 4, channel by channel, two pixels smaller each way."""
    neighbours = (
        images[..., :-2, 1:-1] + images[..., 2:, 1:-1] + images[..., 1:-1, :-2] + images[..., 1:-1, 2:]
    )
    return neighbours / 4 - images[..., 1:-1, 1:-1]


def detail_loss(reconstruction: Tensor, images: Tensor, gain: float = 1.0, window: int = 5) -> Tensor:
    """How far the local strength of detail is off, a scalar.

    The strength is the root mean square of the Laplacian over windows of `window` pixels (odd). Detail that
    cannot be reproduced pixel by pixel is averaged away by a pixelwise error; here it costs nothing to put
    it in the wrong phase but something to leave it out. It is a crude, deterministic stand-in for a
    discriminator.

    `gain` is what to aim at, in originals: slightly above 1 makes up for detail that is lost on average, be
    it here (the absolute error settles on the median of a strength, below its mean) or in a denoiser before.
    """

    def strength(batch: Tensor) -> Tensor:
        energy = F.avg_pool2d(laplacian(batch.float()).square(), window, stride=1, padding=window // 2)
        return (energy + 1e-4).sqrt()

    return (strength(reconstruction) - gain * strength(images)).abs().mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The hinge loss of a discriminator, half for each kind: 0 when all real >= 1 and all fake <= -1."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def adversarial_loss(fake_logits: Tensor) -> Tensor:
    """The generator's side of the hinge loss: minus the mean logit of its images."""
    return -fake_logits.mean()


def adaptive_weight(
    reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, maximum: float = 1e4
) -> Tensor:
    """The weight at which the adversarial loss pulls as hard as the reconstruction (arXiv:2012.09841, eq. 7).

    |gradient of reconstruction| / (|gradient of adversarial| + 1e-4) with respect to the decoder's last
    weight, at most `maximum`, without a graph. `reconstruction` is the error with the perceptual distance, as
    in the paper, and without KL. Several processes take the norms of their mean gradients, those of the whole
    batch, and so have one weight.
    """
    norms = [
        reduce(torch.autograd.grad(loss, last_layer, retain_graph=True)[0], "mean").norm()
        for loss in (reconstruction, adversarial)
    ]
    return (norms[0] / (norms[1] + 1e-4)).clamp(max=maximum).detach()
