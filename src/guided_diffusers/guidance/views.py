"""Views: the same network with some of its layers perturbed, a weak network that needs no weights of its own.

| view | what the layers do instead | published as |
|---|---|---|
| `skip_layers` | nothing: what goes in comes out | skip-layer guidance of SD 3.5, STG-R |
| `identity_attention` | a place of the image attends to itself, and to the text if it did | PAG, STG-A |
| `blurred_attention` | queries are blurred over the image, by which attention weights are | SEG |

Their papers guide by D + s (D - D_view), which is `AutoGuidance(view, 1 + s)`. A view perturbs by hooks on
the layers, in the thread that entered it and as long as the context lasts: after an exception the network is
as it was, views may be nested, and two threads do not see each other's. Inside, a compiled network runs
uncompiled, and a cache of diffusers keeps the view's answers apart. A skipped layer is computed all the same:
offloading moves weights in the order of the calls.

What is taken where no layers are named, by the network's class; numbers count the blocks of its first stack:

| network | skipped | attention | source |
|---|---|---|---|
| UNet2DConditionModel (SD 1, 2, SDXL) | mid_block | mid_block | PAG in diffusers, SEG's code; skipped: ours |
| SD3Transformer2DModel | 7, 8, 9 | 1 | Stability AI for SD 3.5 medium; PAG in diffusers |
| FluxTransformer2DModel | 7, 8, 9 | 7, 8, 9 | ComfyUI's SkipLayerGuidanceDiT; attention: ours |
| PixArtTransformer2DModel | 1 | 1 | PAG in diffusers; skipped: ours |
| SanaTransformer2DModel | 0 | 0 | PAG in diffusers; skipped: ours |
| WanTransformer3DModel | 2 | 2 | STG's code for Wan 2.1 |
| QwenImageTransformer2DModel | 20 | 20 | ours, for none is published: a third of the way, as in SD 3.5 |

References:
    | Ahn et al., "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance" (arXiv:2403.17377)
    | Hong, "Smoothed Energy Guidance: Guiding Diffusion Models with Reduced Energy Curvature of Attention"
      (arXiv:2408.00760)
    | Hyung et al., "Spatiotemporal Skip Guidance for Enhanced Video Diffusion Sampling" (arXiv:2411.18664)
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from guided_diffusers.core.checks import as_number, check_callable, shown
from guided_diffusers.core.denoiser import dtype_of
from guided_diffusers.core.networks import unwrapped
from guided_diffusers.guidance.perturbed import EMBEDDERS, RETURNS_TEXT_FIRST, Hooks, blur, see_itself, skip

Layers = int | str | Sequence[int | str] | None
"""Blocks by number, modules by name, or the defaults."""

_DEFAULT_LAYERS: dict[str, tuple[tuple[int | str, ...], tuple[int | str, ...]]] = {
    "UNet2DConditionModel": (("mid_block",), ("mid_block",)),
    "SD3Transformer2DModel": ((7, 8, 9), (1,)),
    "FluxTransformer2DModel": ((7, 8, 9), (7, 8, 9)),
    "PixArtTransformer2DModel": ((1,), (1,)),
    "SanaTransformer2DModel": ((0,), (0,)),
    "WanTransformer3DModel": ((2,), (2,)),
    "QwenImageTransformer2DModel": ((20,), (20,)),
}
_SKIPPED, _ATTENTION = 0, 1
_STACKS = ("transformer_blocks", "joint_transformer_blocks", "blocks", "layers")


def skip_layers(network: Any, layers: Layers = None) -> View:
    """A network in which some layers do nothing.

    Args:
        network: A network of diffusers, or a denoiser made of one, such as `ModelDenoiser(unet, "epsilon")`.
        layers: Blocks, by their number in the network's first stack of them, or by a module's name
            ("single_transformer_blocks.7"; "mid_block" means the blocks in it); None is the table above.

    Raises:
        ValueError: No default layers for this network, or layers that it does not have; on use, a block that
            returns image and text in an order that is not known.
    """
    blocks: dict[str, nn.Module] = {}
    for name, module in _layers_of(network, layers, _SKIPPED):
        its = dict(_blocks_in(name, module))
        if not its:
            raise ValueError(f"layers has {name!r}, in which is no transformer block to skip")
        blocks.update(its)
    return View(network, partial(_each, skip, blocks))


def identity_attention(network: Any, layers: Layers = None) -> View:
    """A network whose image does not attend to itself: in some layers its attention map is the identity.

    Args:
        network: As of `skip_layers`.
        layers: As of `skip_layers`: the self-attention, or joint attention with the text, in them. Where a
            network keeps text and image in one sequence (Lumina 2, Z-Image), the text's places count too.

    Raises:
        ValueError: As `skip_layers`; on use, joint attention whose order of image and text is not known, or
            which another backend than PyTorch's computes.
    """
    attentions = _attentions_of(network, layers)
    return View(network, partial(_each, see_itself, attentions))


def blurred_attention(network: Any, layers: Layers = None, sigma: float = math.inf) -> View:
    """A network in which the queries of some layers' self-attention are blurred over the image.

    Args:
        network: As of `skip_layers`.
        layers: As of `identity_attention`.
        sigma: The Gaussian's deviation in places of the layer's grid, above 0; infinite is the mean.

    Raises:
        ValueError: As `skip_layers`; a `sigma` that is not above 0; on use, tokens that are no grid.
    """
    number = as_number(sigma)
    if number is None or not number > 0:
        raise ValueError(f"sigma is {shown(sigma)}; allowed: a number above 0, which may be infinite")
    attentions, module = _attentions_of(network, layers), _module_of(network)
    parts = (getattr(module, name, None) for name in EMBEDDERS)
    embedder = next((part for part in parts if isinstance(part, nn.Module)), None)
    if embedder is None:
        raise ValueError(f"network is {shown(module)}; allowed: one with {' or '.join(EMBEDDERS)}")
    return View(network, lambda hooks: blur(hooks, attentions, embedder, number))


class View:
    """A network, or a denoiser, with layers perturbed: called as what it is made of.

    `AutoGuidance(view, scale)` asks the guided denoiser itself inside `view.perturbed`, so that in a pipeline
    it is that pipeline's network, told the same. Make it by `skip_layers`, `identity_attention` or
    `blurred_attention`; a view of a view has both perturbations.

    Attributes:
        network: What it was made of.
        perturbed: `with view.perturbed(): ...` perturbs the network.
    """

    def __init__(self, network: Any, attach: Callable[[Hooks], object]) -> None:
        check_callable("network", network, "a network, or a denoiser made of one")
        self.network, self._attach = network, attach
        self._orig_mod: Any = _module_of(network)  # `core.networks` calls it as the network that this is
        self.perturbed = self._perturbed  # one object: the queries of a view are one batch

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The answer of the perturbed network."""
        with self.perturbed():
            return self.network(*args, **kwargs)

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return dtype_of(self._orig_mod, torch.float32)

    @contextmanager
    def _perturbed(self) -> Iterator[None]:
        with ExitStack() as stack:
            if isinstance(self.network, View):
                stack.enter_context(self.network.perturbed())
            if "torch._dynamo" in sys.modules:  # compiled code does not look for hooks that came later
                stack.enter_context(_uncompiled())
            hooks = stack.enter_context(Hooks())
            self._attach(hooks)
            yield
            hooks.check()


_LOCK = threading.Lock()
_STANCES: list[Any] = []


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Nothing runs compiled until the last of those who are inside has left, in whichever thread."""
    with _LOCK:
        _STANCES.append(_STANCES[0] if _STANCES else torch.compiler.set_stance("force_eager"))
    try:
        yield
    finally:
        with _LOCK:
            stance = _STANCES.pop()
            if not _STANCES:
                stance.__exit__(None, None, None)


def _each(perturb: Callable[..., None], layers: Mapping[str, nn.Module], hooks: Hooks) -> None:
    for name, module in layers.items():
        perturb(hooks, name, module)


def _module_of(network: Any) -> nn.Module:
    """The network inside a view, a denoiser and what compiles it."""
    module = unwrapped(getattr(network, "model", network))
    if not isinstance(module, nn.Module):
        raise ValueError(f"network is {shown(network)}; allowed: a network, or a ModelDenoiser of one")
    return module


def _layers_of(network: Any, layers: Layers, use: int) -> list[tuple[str, nn.Module]]:
    """The modules that `layers` means, with their names; of None by the table's column for this use."""
    module = _module_of(network)
    kind, parts = type(module).__name__, dict(module.named_modules())
    stack = next((name for name in _STACKS if isinstance(parts.get(name), nn.ModuleList)), None)
    numbers = f"numbers of its {stack}, below {len(parts[stack])}, or " if stack else ""
    allowed = f"{numbers}names of its modules, such as {list(parts)[1:2]}"
    if layers is None:
        layers = next(
            (_DEFAULT_LAYERS[c.__name__][use] for c in type(module).__mro__ if c.__name__ in _DEFAULT_LAYERS),
            None,
        )
        if layers is None:
            raise ValueError(f"layers is None, and {kind} has no defaults; give {allowed}")
    several = list(layers) if isinstance(layers, Sequence) and not isinstance(layers, str) else [layers]
    found = []
    for layer in several:
        name = f"{stack}.{layer}" if isinstance(layer, int) and not isinstance(layer, bool) else layer
        if not isinstance(name, str) or not name or name not in parts:
            raise ValueError(f"layers has {shown(layer)}; allowed of this {kind}: {allowed}")
        found.append((name, parts[name]))
    if not found:
        raise ValueError(f"layers is empty; allowed of this {kind}: {allowed}")
    return found


def _blocks_in(name: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    """A module that is a transformer's block, or the blocks inside it."""
    kind = type(module).__name__
    if kind.endswith("TransformerBlock") or kind in RETURNS_TEXT_FIRST:
        return [(name, module)]
    return [found for key, part in module.named_children() for found in _blocks_in(f"{name}.{key}", part)]


def _attentions_of(network: Any, layers: Layers) -> dict[str, nn.Module]:
    """The attention of the image to itself in some layers, by name."""
    found: dict[str, nn.Module] = {}
    for name, module in _layers_of(network, layers, _ATTENTION):
        its = {
            f"{name}.{key}".strip("."): part
            for key, part in module.named_modules()
            if isinstance(getattr(part, "to_q", None), nn.Module)
            and isinstance(getattr(part, "to_out", None), nn.ModuleList)
            and not getattr(part, "is_cross_attention", False)
        }
        if not its:
            raise ValueError(f"layers has {name!r}, in which is no self-attention with to_q, to_v and to_out")
        found.update(its)
    return found
