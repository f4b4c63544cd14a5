"""How a layer is perturbed while a view lasts: hooks of one thread, and what they put in a layer's place.

Joint attention is one softmax over the image and the text: there, the image's places are hidden from one
another by a mask. Attention to the image alone needs none: its output is its value.
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

RETURNS_TEXT_FIRST: dict[str, bool] = {
    **dict.fromkeys(
        """AuraFlowJointTransformerBlock BriaFiboTransformerBlock BriaSingleTransformerBlock
        BriaTransformerBlock ChromaTransformerBlock Flux2SingleTransformerBlock
        Flux2TransformerBlock FluxSingleTransformerBlock FluxTransformerBlock JointTransformerBlock
        LongCatImageSingleTransformerBlock LongCatImageTransformerBlock
        OvisImageSingleTransformerBlock OvisImageTransformerBlock QwenImageTransformerBlock""".split(),
        True,
    ),
    **dict.fromkeys(
        """CogVideoXBlock CogView3PlusTransformerBlock CogView4TransformerBlock EasyAnimateTransformerBlock
        GlmImageTransformerBlock HunyuanImageSingleTransformerBlock HunyuanImageTransformerBlock
        HunyuanVideo15TransformerBlock HunyuanVideoSingleTransformerBlock
        HunyuanVideoTransformerBlock MochiTransformerBlock MotifVideoSingleTransformerBlock
        MotifVideoTransformerBlock""".split(),
        False,
    ),
}
"""Blocks of diffusers that return image and text, and which is the first."""
ATTENDS_TEXT_FIRST: dict[str, bool] = {
    "AuraFlowAttnProcessor2_0": True,
    "CogVideoXAttnProcessor2_0": True,
    "CogView4AttnProcessor": True,
    "Flux2AttnProcessor": True,
    "FluxAttnProcessor": True,
    "FluxIPAdapterAttnProcessor": True,
    "JointAttnProcessor2_0": False,
    "QwenDoubleStreamAttnProcessor2_0": True,
    "SD3IPAdapterJointAttnProcessor2_0": False,
}
"""Its processors that attend to text and image as one sequence, and which is the first in it."""
EMBEDDERS = ("conv_in", "patch_embedding", "patch_embed", "pos_embed")
"""Where a network is told its image's size: by a map, a video, the places of tokens, or their numbers."""


class Hooks:
    """Hooks that act in the thread that made them, and are gone when the context ends."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._handles: list[RemovableHandle] = []
        self._ran: dict[str, bool] = {}

    def __enter__(self) -> Hooks:
        """These hooks."""
        return self

    def __exit__(self, *error: object) -> None:
        """Remove them."""
        for handle in self._handles:
            handle.remove()

    def check(self) -> None:
        """Raise ValueError where no layer ran: it was another network that did."""
        if not any(self._ran.values()):
            raise ValueError(
                f"the view perturbs {', '.join(self._ran)} of a network that was not asked; allowed: a view "
                "of the guided network itself; of another, ModelDenoiser(view, prediction_type)"
            )

    def before(self, name: str, module: nn.Module, change: Callable[..., Any]) -> None:
        """`change(module, args, kwargs)` before a layer runs: new arguments, or None."""

        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            return change(module, args, kwargs) if self._mine(name) else None

        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def after(self, name: str, module: nn.Module, change: Callable[..., Any], always: bool = False) -> None:
        """`change(module, args, kwargs, output)` after it: another output, or None; `always` after errors."""
        self._ran.setdefault(name, False)

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            return change(module, args, kwargs, output) if self._mine(name) else None

        self._handles.append(module.register_forward_hook(hook, with_kwargs=True, always_call=always))

    def _mine(self, name: str) -> bool:
        mine = threading.get_ident() == self._thread
        if mine and name in self._ran:
            self._ran[name] = True
        return mine


def skip(hooks: Hooks, name: str, block: nn.Module) -> None:
    """What goes into a block comes out of it. It is computed all the same: offloading counts on the order."""
    hooks.after(name, block, _inputs)


def _inputs(block: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    """What went into a block, as it would have come out."""
    told = _bound(block, args, kwargs)
    image = told.get("hidden_states", next(iter(told.values())))
    if isinstance(output, Tensor):
        return image
    text_first = RETURNS_TEXT_FIRST.get(type(block).__name__)
    if text_first is None or len(output) != 2:
        known = ", ".join(RETURNS_TEXT_FIRST)
        raise ValueError(f"skip_layers does not know what {type(block).__name__} returns; known: {known}")
    text = told["encoder_hidden_states"]
    return (text, image) if text_first else (image, text)


def _bound(module: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a call by their names."""
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def see_itself(hooks: Hooks, name: str, attention: Any) -> None:
    """Each place of the image has its own value alone, or, with the text, attends to that and itself."""
    values: list[Tensor] = []
    modes: list[_Masked] = []
    replaced: list[bool] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        told = _bound(module, args, kwargs)
        text, processor = told.get("encoder_hidden_states"), type(module.processor).__name__
        if text is None:
            return
        if processor not in ATTENDS_TEXT_FIRST:
            known = ", ".join(ATTENDS_TEXT_FIRST)
            raise ValueError(
                f"identity_attention does not know where {processor} has the text; known: {known}"
            )
        mode = _Masked(told["hidden_states"].shape[1], text.shape[1], ATTENDS_TEXT_FIRST[processor])
        mode.__enter__()
        modes.append(mode)

    def note(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        values.append(output)

    def replace(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if modes or not values:
            return None
        replaced.append(True)
        return (values[-1], *args[1:]), kwargs  # PSA(Q, K, V) = I V

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        perturbed = modes[-1].used if modes else bool(replaced)
        values.clear()
        replaced.clear()
        if modes:
            modes.pop().__exit__(None, None, None)
        if output is not None and not perturbed:
            raise ValueError(
                f"identity_attention does not find the attention of {name}; allowed: projections that are "
                'not fused, and, beside a text, network.set_attention_backend("native")'
            )

    hooks.before(name, attention, enter)
    hooks.after(name, attention.to_v, note)
    hooks.before(name, attention.to_out[0], replace)
    hooks.after(name, attention, leave, always=True)


class _Masked(TorchFunctionMode):
    """Inside, joint attention hides the image's places from one another."""

    def __init__(self, image: int, text: int, text_first: bool) -> None:
        super().__init__()
        self.used, self._total = False, image + text
        self._image = slice(text, None) if text_first else slice(image)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        told = {**dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)), **kwargs}
        query, mask = told["query"], told.get("attn_mask")
        if not query.shape[-2] == told["key"].shape[-2] == self._total:
            return func(*args, **kwargs)
        self.used = True
        seen = torch.ones(self._total, self._total, dtype=torch.bool, device=query.device)
        image = seen[self._image, self._image]
        image.copy_(torch.eye(len(image), dtype=torch.bool, device=query.device))
        if mask is not None:
            seen = seen & mask if mask.dtype == torch.bool else mask.masked_fill(~seen, -math.inf)
        return func(**{**told, "attn_mask": seen})


def blur(hooks: Hooks, layers: Mapping[str, Any], embedder: nn.Module, sigma: float) -> None:
    """The queries of some attentions are blurred over the grid that the network's embedder is told."""
    grid: list[int] = []
    hooks.before("", embedder, partial(_note_grid, grid))
    for name, attention in layers.items():
        hooks.after(name, attention.to_q, partial(_blur_queries, name, grid, sigma))


def _note_grid(grid: list[int], module: nn.Module, args: Any, kwargs: Any) -> None:
    """Frames, rows and columns of the image, from what the network's embedder is told."""
    told = next(iter(_bound(module, args, kwargs).values()))
    if not isinstance(told, Tensor):  # how many of each, for each sample
        while not isinstance(told[0], int):
            told = told[0]
        grid[:] = told
    elif told.ndim == 2:  # the place of each token
        grid[:] = [int(each) + 1 for each in told.amax(0)[-3:]]
    else:
        grid[:] = [told.shape[2] if told.ndim == 5 else 1, *told.shape[-2:]]


def _blur_queries(
    name: str, grid: list[int], sigma: float, module: nn.Module, args: Any, kwargs: Any, query: Tensor
) -> Tensor:
    """The queries, `(batch, tokens, channels)`, blurred over each frame's rows and columns."""
    frames, height, width = grid
    for factor in (1, 2, 4, 8, 16, 32, 64):
        rows, columns = -(-height // factor), -(-width // factor)
        count, rest = divmod(query.shape[1], rows * columns)
        if not rest and count in (1, frames):
            maps = query.unflatten(1, (count, rows, columns))
            return over(over(maps, sigma, 2), sigma, 3).flatten(1, 3)
    raise ValueError(
        f"blurred_attention finds no grid in the {query.shape[1]} tokens of {name}, of an image of "
        f"{height} x {width}; allowed: attention whose queries are the image's alone"
    )


def over(maps: Tensor, sigma: float, axis: int) -> Tensor:
    """A Gaussian blur along an axis, reflected at the ends and at most as wide as the axis, as SEG's is."""
    size = maps.shape[axis]
    if math.isinf(sigma):
        return maps.mean(axis, keepdim=True).expand_as(maps)
    reach = min(math.ceil(6 * sigma), size) // 2
    offsets = torch.arange(-reach, reach + 1, device=maps.device)
    weights = (-0.5 * (offsets / sigma) ** 2).softmax(0)
    places = (torch.arange(size, device=maps.device)[:, None] + offsets).abs()
    places = torch.where(places > size - 1, 2 * (size - 1) - places, places)
    matrix = torch.zeros(size, size, device=maps.device).scatter_add_(1, places, weights.expand(size, -1))
    return (maps.movedim(axis, -1) @ matrix.T.to(maps.dtype)).movedim(-1, axis)
