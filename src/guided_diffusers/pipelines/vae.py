"""What an autoencoder can draw by itself: samples of its prior, reconstructions, paths and planes of latents.

All latents here are **raw**: the z whose prior is N(0, I). What `VariationalAutoencoder.encode` gives and
latent diffusion works on is standardised; `vae.destandardise` brings it here.

A plain autoencoder (posterior "deterministic") has no prior: where its codes lie is known from its data
alone, so drawing from N(0, I) is refused. It reconstructs and interpolates like the others, and decodes
`latents` that are given, such as draws from a distribution fitted to its codes.

References:
    Kingma and Welling, "Auto-Encoding Variational Bayes" (arXiv:1312.6114), appendix A (traversals).
    White, "Sampling Generative Networks" (arXiv:1609.04468), section 2.1 (spherical interpolation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from diffusers import ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from guided_diffusers.core.checks import check_finite, check_int, check_number, check_tensor, shown
from guided_diffusers.models.latents import decode, encode
from guided_diffusers.pipelines import inputs
from guided_diffusers.pipelines.drawing import noise_of
from guided_diffusers.pipelines.safe import SafePipeline
from guided_diffusers.store.image_reader import eight_bit_image

OUTPUT_TYPES = ("pil", "np", "pt")
METHODS = ("spherical", "linear")
MAX_STEPS = 1024
NEARLY_PARALLEL = 1e-4
"""The sine of the angle below which a spherical path is replaced by the straight one."""


class VAEPipeline(SafePipeline):
    """Draws images from a `VariationalAutoencoder`.

    Every method gives an `ImagePipelineOutput`, or a tuple with `return_dict=False`; its images are as
    `output_type` says: "pil", "np" ((batch, height, width, channels)) or "pt" ((batch, channels, height,
    width)), both in [0, 1]. Images given are tensors (batch, channels, height, width) in [-1, 1], or PIL
    images of any mode, which are read as in training (`guided_diffusers.store.image_reader`).

    Args:
        vae: The autoencoder.
    """

    model_cpu_offload_seq = "vae"
    _uses_all_components = False  # of any checkpoint it is the autoencoder alone that is asked for

    def __init__(self, vae: Any) -> None:
        super().__init__()
        if vae is not None and not hasattr(vae, "destandardise"):
            raise ValueError(
                f"vae is a {type(vae).__name__}; allowed: a VariationalAutoencoder, which "
                "VariationalAutoencoder.from_autoencoder_kl makes of an AutoencoderKL"
            )
        self.register_modules(vae=vae)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw z from the prior N(0, I), or take the given ones, and decode.

        Args:
            batch_size: How many; with `latents`, theirs counts.
            generator: Source of the draw; a list has one generator an image.
            latents: Raw latents to decode, (batch, latent_channels, h, w): for a vector (batch, d, 1, 1).
            height: Of the images, for a spatial latent; the model's `sample_size` where it is not given.
            width: As height.
            output_type: See the class.
            return_dict: See the class.

        Raises:
            ValueError: a prior is asked of a plain autoencoder, or an argument is not as said.
        """
        inputs.check_choice("output_type", output_type, OUTPUT_TYPES)
        if latents is None:
            check_int("batch_size", batch_size, 1)
            generator = inputs.check_generator(generator, batch_size)
            self._check_prior("give latents, such as draws from a distribution fitted to its codes")
            for name, side in (("height", height), ("width", width)):
                if side is not None:
                    inputs.check_size(name, side, self._factor)
            shape = (batch_size, *self.vae.latent_shape(height, width))
            latents = noise_of(shape, generator, self._execution_device, self.vae.dtype).to(self.vae.dtype)
        else:
            self._check_latents(latents)
        return self._output(self._decode(latents), output_type, return_dict)

    @torch.no_grad()
    def reconstruct(
        self, images: Any, output_type: str = "pil", return_dict: bool = True
    ) -> ImagePipelineOutput | tuple[Any]:
        """Encode images and decode the mean of their posteriors.

        Args:
            images: See the class.
            output_type: See the class.
            return_dict: See the class.

        Raises:
            ValueError: an argument is not as said.
        """
        inputs.check_choice("output_type", output_type, OUTPUT_TYPES)
        return self._output(self._decode(self._encode(images, "images")), output_type, return_dict)

    @torch.no_grad()
    def interpolate(
        self,
        a: Any,
        b: Any,
        steps: int = 8,
        method: Literal["spherical", "linear"] = "spherical",
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """The images on a path between the latents of two, ends included.

        In many dimensions N(0, I) lives near a sphere. A straight path cuts through its inside, where the
        decoder was not trained; a spherical one turns from one end to the other.

        Args:
            a: One image, the path's beginning.
            b: One image, its end.
            steps: Images on the path, at least 2.
            method: "spherical" or "linear".
            output_type: See the class.
            return_dict: See the class.

        Raises:
            ValueError: an argument is not as said.
        """
        inputs.check_choice("output_type", output_type, OUTPUT_TYPES)
        inputs.check_choice("method", method, METHODS)
        _check_steps(steps)
        ends = [self._encode(image, name) for image, name in ((a, "a"), (b, "b"))]
        for name, end in zip("ab", ends, strict=True):
            if len(end) != 1:
                raise ValueError(f"{name} holds {len(end)} images; allowed: one")
        if ends[0].shape != ends[1].shape:
            raise ValueError(f"a and b have latents {tuple(ends[0].shape)} and {tuple(ends[1].shape)}")
        path: Callable[..., Tensor] = spherical if method == "spherical" else torch.lerp
        fractions = torch.linspace(0, 1, steps, dtype=ends[0].dtype).tolist()
        latents = torch.cat([path(*ends, fraction) for fraction in fractions])
        return self._output(self._decode(latents), output_type, return_dict)

    @torch.no_grad()
    def traverse(
        self,
        dims: tuple[int, int] = (0, 1),
        steps: int = 8,
        span: float = 3.0,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """One picture of the degree of x against the degree of y: a grid over two latent dimensions.

        Args:
            dims: Latent channels (i, j). The first grows from left to right, the second from the bottom up,
                both from -span to span; of a spatial latent, all positions of a channel together.
            steps: Images a side, at least 2.
            span: In deviations of the prior, positive.
            latents: Raw latent (1, latent_channels, h, w) that gives the other dimensions; zero, the prior's
                mean, where it is not given.
            output_type: See the class; the batch is 1, the grid (steps x height) by (steps x width).
            return_dict: See the class.

        Raises:
            ValueError: an argument is not as said, or the mean of a prior is asked of a plain autoencoder.
        """
        inputs.check_choice("output_type", output_type, OUTPUT_TYPES)
        _check_steps(steps)
        self._check_dims(dims)
        span = check_number("span", span, 0, 1e6, above=True)
        if latents is None:
            self._check_prior("give the latents to start from")
            latents = torch.zeros(1, *self.vae.latent_shape(), dtype=self.vae.dtype)
        self._check_latents(latents)
        if len(latents) != 1:
            raise ValueError(f"latents holds {len(latents)}; allowed: one")
        degrees = torch.linspace(-span, span, steps)
        grid = latents.repeat(steps * steps, 1, 1, 1)
        rows, columns = torch.meshgrid(degrees.flip(0), degrees, indexing="ij")
        for dim, values in zip(dims, (columns, rows), strict=True):
            grid[:, dim] = values.reshape(-1, 1, 1).to(grid)
        images = self._decode(grid)
        picture = images.unflatten(0, (steps, steps)).permute(2, 0, 3, 1, 4)  # channel, row, y, column, x
        return self._output(picture.flatten(3).flatten(1, 2)[None], output_type, return_dict)

    @property
    def _factor(self) -> int:
        """How many pixels of a side one position of the latent's map has."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def _decode(self, latents: Tensor) -> Tensor:
        """Images in [-1, 1] of raw latents, through `vae.decode`, which hooks such as offloading see."""
        latents = latents.to(self._execution_device)
        return decode(self.vae, self.vae.standardise(latents))

    def _encode(self, images: Any, name: str) -> Tensor:
        """The raw means of the posteriors of images."""
        if isinstance(images, Tensor):
            check_finite(name, check_tensor(name, images))
            if 0 in images.shape or images.ndim != 4 or images.shape[1] != self.vae.config.in_channels:
                allowed = f"(batch, {self.vae.config.in_channels}, height, width)"
                raise ValueError(f"{name} has shape {tuple(images.shape)}; allowed: {allowed}")
            if images.min() < -1.1 or images.max() > 1.1:  # beyond what dequantisation adds
                low, high = images.min().item(), images.max().item()
                raise ValueError(f"{name} reach from {low:.3g} to {high:.3g}; allowed: tensors in [-1, 1]")
        else:
            several = images if isinstance(images, list | tuple) else [images]
            if not several or not all(isinstance(image, Image.Image) for image in several):
                raise ValueError(f"{name} is {shown(images)}; allowed: a tensor, or PIL images")
            channels = self.vae.config.in_channels
            if channels not in (1, 3):
                raise ValueError(f"{name} are PIL images, the vae takes {channels} channels: give a tensor")
            read = [eight_bit_image(image, channels) for image in several]
            if len({image.size for image in read}) > 1:
                raise ValueError(f"{name} are of different sizes; allowed: one size")
            images = VaeImageProcessor(do_resize=False).preprocess(read)
        self.vae.latent_shape(*images.shape[2:])  # the sides fit, or it says why not
        return self.vae.destandardise(encode(self.vae, images.to(self._execution_device))[0])

    def _output(self, images: Tensor, output_type: str, return_dict: bool) -> Any:
        images = VaeImageProcessor().postprocess(images, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _check_prior(self, instead: str) -> None:
        if self.vae.config.posterior == "deterministic":
            raise ValueError(
                f"the posterior is 'deterministic': a plain autoencoder has no prior to draw from; {instead}"
            )

    def _check_latents(self, latents: Tensor) -> None:
        check_finite("latents", check_tensor("latents", latents))
        channels = self.vae.config.latent_channels
        vector = self.vae.config.latent == "vector"
        wrong = latents.ndim != 4 or latents.shape[1] != channels or 0 in latents.shape
        if wrong or (vector and latents.shape[2:] != (1, 1)):
            allowed = f"(batch, {channels}, 1, 1)" if vector else f"(batch, {channels}, h, w)"
            raise ValueError(f"latents has shape {tuple(latents.shape)}; allowed: {allowed}")

    def _check_dims(self, dims: Sequence[int]) -> None:
        channels = self.vae.config.latent_channels
        several = dims if isinstance(dims, list | tuple) else ()
        known = {dim for dim in several if type(dim) is int and 0 <= dim < channels}
        if len(several) != 2 or len(known) != 2:
            limits = f"two different latent channels of 0 to {channels - 1}"
            raise ValueError(f"dims is {shown(dims)}; allowed: {limits}")


def spherical(a: Tensor, b: Tensor, fraction: float) -> Tensor:
    """The point at a fraction of the way from a to b that turns at a constant rate.

    sin((1 - f) w) / sin(w) a + sin(f w) / sin(w) b with the angle w between them: on the sphere where both
    lie on one, and at the ends exactly a and b in any case.

    Args:
        a: (1, ...).
        b: Of a's shape.
        fraction: f, in [0, 1].

    References:
        Shoemake, "Animating Rotation with Quaternion Curves" (1985), section 3.3.
    """
    first, second = a.double().flatten(), b.double().flatten()
    norms = (first.norm() * second.norm()).clamp_min(torch.finfo(torch.float64).tiny)
    angle = (first.dot(second) / norms).clamp(-1, 1).acos()
    sine = angle.sin()
    if sine < NEARLY_PARALLEL:
        return torch.lerp(a, b, fraction)
    weights = ((1 - fraction) * angle).sin() / sine, (fraction * angle).sin() / sine
    return (weights[0] * first + weights[1] * second).view_as(a).to(a.dtype)


def _check_steps(steps: Any) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or not 2 <= steps <= MAX_STEPS:
        raise ValueError(f"steps is {shown(steps)}; allowed: at least 2, at most {MAX_STEPS}")
