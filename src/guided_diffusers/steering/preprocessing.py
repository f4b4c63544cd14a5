"""What an image processor of transformers does to pictures, on tensors and with a gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from guided_diffusers.core.checks import shown

MODES = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}
"""PIL's numbers of the ways to resize that have a gradient here."""
_KNOWN = ("do_resize", "size", "resample", "crop_pct", "do_center_crop", "crop_size", "do_rescale")
_KNOWN += ("rescale_factor", "do_normalize", "image_mean", "image_std", "do_convert_rgb", "default_to_square")
_OF_NO_PICTURE = ("image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "device")
_OF_NO_PICTURE += ("data_format", "input_data_format", "return_tensors", "disable_grouping", "_commit_hash")
_OF_NO_PICTURE += ("_valid_processor_keys", "do_reduce_labels", "num_labels", "id2label", "label2id")


class Preprocessing:
    """Pixel values of images, as a processor gives them, but without rounding to 8 bits in between.

    Args:
        processor: An image processor of transformers: resize, crop, rescale and normalise are done as its
            configuration says.

    Raises:
        ValueError: A processor that does something else, which the error names.
    """

    def __init__(self, processor: Any) -> None:
        if not hasattr(processor, "to_dict"):
            raise ValueError(f"processor is {shown(processor)}; allowed: an image processor of transformers")
        config = processor.to_dict()
        unknown = [key for key, value in config.items() if value and key not in _KNOWN + _OF_NO_PICTURE]
        if unknown:
            raise ValueError(
                f"processor has {unknown[0]}, which is not known here; allowed: one that resizes, crops, "
                "rescales and normalises, or instead a function from images in [-1, 1] to pixel values"
            )
        if config.get("do_resize") and config.get("resample", 2) not in MODES:
            raise ValueError(f"processor has resample {config['resample']}; allowed: {list(MODES)}")
        self.config = config

    def __call__(self, images: Tensor) -> Tensor:
        """Pixel values of images `(batch, 1 or 3, height, width)` in [-1, 1]."""
        config = self.config
        pixels = (images + 1) * 127.5
        if config.get("do_resize"):
            pixels = self._resized(pixels)
        if config.get("do_center_crop"):
            pixels = _cropped(pixels, config["crop_size"]["height"], config["crop_size"]["width"])
        if config.get("do_rescale"):
            pixels = pixels * config["rescale_factor"]
        if config.get("do_normalize"):
            mean, std = (torch.tensor(config[name]).to(pixels) for name in ("image_mean", "image_std"))
            pixels = (pixels - mean[:, None, None]) / std[:, None, None]  # grey ones become as many channels
        return pixels

    def _resized(self, pixels: Tensor) -> Tensor:
        size: Mapping[str, int] = self.config["size"]
        if "shortest_edge" not in size:
            return self._interpolated(pixels, size["height"], size["width"])
        edge, part = size["shortest_edge"], self.config.get("crop_pct")
        if part is None:
            return self._interpolated(pixels, *_scaled(pixels, edge))
        if edge >= 384:  # of ConvNeXT: large images are warped, smaller ones cropped
            return self._interpolated(pixels, edge, edge)
        return _cropped(self._interpolated(pixels, *_scaled(pixels, int(edge / part))), edge, edge)

    def _interpolated(self, pixels: Tensor, height: int, width: int) -> Tensor:
        mode = MODES[self.config.get("resample", 2)]
        return F.interpolate(pixels, (height, width), mode=mode, antialias=mode != "nearest-exact")


def as_preprocessing(processor: Any) -> Callable[[Tensor], Tensor]:
    """A function as it is; an image processor, or one that has one, as a `Preprocessing`."""
    processor = getattr(processor, "image_processor", processor)
    return Preprocessing(processor) if hasattr(processor, "to_dict") or not callable(processor) else processor


def _scaled(pixels: Tensor, edge: int) -> tuple[int, int]:
    """The sides of images whose shorter one becomes `edge`."""
    height, width = pixels.shape[-2:]
    return (edge, int(edge * width / height)) if height <= width else (int(edge * height / width), edge)


def _cropped(pixels: Tensor, height: int, width: int) -> Tensor:
    """The middle of images, with zeros around where they are smaller."""
    padding = []
    for side, wanted in ((pixels.shape[-1], width), (pixels.shape[-2], height)):
        before = math.ceil((wanted - side) / 2) if wanted > side else -((side - wanted) // 2)
        padding += [before, wanted - side - before]
    return F.pad(pixels, padding)
