"""LoRA, textual inversion, IP-Adapter and single files, by diffusers' own loaders, and without pickles."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders import (
    FromSingleFileMixin,
    IPAdapterMixin,
    StableDiffusionLoraLoaderMixin,
    TextualInversionLoaderMixin,
)
from diffusers.models.embeddings import MultiIPAdapterImageProjection
from diffusers.utils import USE_PEFT_BACKEND
from diffusers.utils.peft_utils import scale_lora_layers, unscale_lora_layers
from torch import Tensor

from guided_diffusers.core.checks import shown


class AdaptersMixin(
    TextualInversionLoaderMixin, StableDiffusionLoraLoaderMixin, IPAdapterMixin, FromSingleFileMixin
):
    """What StableDiffusionPipeline loads beside its components. Files must be safetensors."""

    encode_image = StableDiffusionPipeline.encode_image
    prepare_ip_adapter_image_embeds = StableDiffusionPipeline.prepare_ip_adapter_image_embeds

    def load_lora_weights(
        self, pretrained_model_name_or_path_or_dict: Any, *args: Any, **kwargs: Any
    ) -> None:
        """As of StableDiffusionLoraLoaderMixin, for drawing: without dropout; ValueError for a pickle."""
        _refuse_pickles(pretrained_model_name_or_path_or_dict, kwargs.get("weight_name"))
        kwargs["use_safetensors"] = True
        super().load_lora_weights(pretrained_model_name_or_path_or_dict, *args, **kwargs)
        for network in (self.unet, self.text_encoder):  # layers that are loaded are in training mode
            for name, layer in network.named_modules():
                if "lora_" in name:
                    layer.eval()

    def load_textual_inversion(self, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> None:
        """As of TextualInversionLoaderMixin; ValueError for a pickle."""
        _refuse_pickles(pretrained_model_name_or_path, kwargs.get("weight_name"))
        kwargs["use_safetensors"] = True
        super().load_textual_inversion(pretrained_model_name_or_path, *args, **kwargs)

    def load_ip_adapter(
        self, pretrained_model_name_or_path_or_dict: Any, subfolder: Any, weight_name: Any, **kwargs: Any
    ) -> None:
        """As of IPAdapterMixin; ValueError for a pickle."""
        _refuse_pickles(weight_name)
        super().load_ip_adapter(pretrained_model_name_or_path_or_dict, subfolder, weight_name, **kwargs)

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """As of FromSingleFileMixin; ValueError for a pickle."""
        _refuse_pickles(pretrained_model_link_or_path)
        return super().from_single_file(os.fspath(pretrained_model_link_or_path), **kwargs)

    def check_ip_adapter(self, image: Any, embeds: Any) -> bool:
        """Whether there is one; ValueError where an image is given without, twice, or not with one."""
        given = [name for name, value in (("image", image), ("image_embeds", embeds)) if value is not None]
        loaded = isinstance(getattr(self.unet, "encoder_hid_proj", None), MultiIPAdapterImageProjection)
        if not loaded and given:
            raise ValueError(f"ip_adapter_{given[0]} is given, and no IP-Adapter is loaded: load_ip_adapter")
        if loaded and len(given) != 1:
            raise ValueError(
                f"{' and '.join(f'ip_adapter_{name}' for name in given) or 'no ip_adapter_image'} given, and "
                "an IP-Adapter is loaded; allowed: one of ip_adapter_image and ip_adapter_image_embeds, or "
                "unload_ip_adapter()"
            )
        if embeds is not None and not (isinstance(embeds, list) and all(map(torch.is_tensor, embeds))):
            raise ValueError(
                f"ip_adapter_image_embeds is {shown(embeds)}; allowed: a list of tensors, one an IP-Adapter"
            )
        return loaded

    def told_of_images(
        self, image: Any, embeds: list[Tensor] | None, with_null: bool, count: int, dtype: torch.dtype
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the network is told of an IP-Adapter's images, and its null: arguments of `count` samples.

        Args:
            image: An image, or one for each IP-Adapter.
            embeds: Their embeddings instead; with the null's before them where the call needs a null.
            with_null: Whether it does.
            count: How many samples.
            dtype: The network's.
        """
        both = embeds is None or with_null
        prepared = self.prepare_ip_adapter_image_embeds(image, embeds, self._execution_device, 1, both)
        pairs = [each.chunk(2) if both else (torch.zeros_like(each), each) for each in prepared]
        null, own = ([_for_all(pair[row].to(dtype), count) for pair in pairs] for row in (0, 1))
        return {"added_cond_kwargs": {"image_embeds": own}}, {"added_cond_kwargs": {"image_embeds": null}}


@contextmanager
def lora_scaled(network: Any, scale: float | None) -> Iterator[None]:
    """A block in which a text encoder's LoRA layers count `scale` times."""
    if scale is None or not USE_PEFT_BACKEND:
        yield
        return
    scale_lora_layers(network, scale)
    try:
        yield
    finally:
        unscale_lora_layers(network, scale)


def _refuse_pickles(*names: Any) -> None:
    flat = [each for name in names for each in (name if isinstance(name, list) else [name])]
    for name in flat:
        suffix = os.path.splitext(os.fspath(name))[1] if isinstance(name, str | os.PathLike) else ""
        if suffix in (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"):
            raise ValueError(
                f"{os.fspath(name)} is a pickle, which may run code; allowed: a .safetensors file"
            )


def _for_all(embeds: Tensor, count: int) -> Tensor:
    if len(embeds) not in (1, count):
        raise ValueError(
            f"ip_adapter_image_embeds has {len(embeds)} rows for {count} images; allowed: 1 or {count}"
        )
    return embeds.expand(count, *embeds.shape[1:])
