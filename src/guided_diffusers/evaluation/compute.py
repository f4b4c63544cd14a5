"""What drawing costs: forwards and backwards of every network, and FLOPs, an image.

Counted, not timed: the same on every machine. A forward is one image through a network once, so a batch of
two conditions for one image counts two. FLOPs are those of `torch.utils.flop_counter.FlopCounterMode`: matrix
products, convolutions and attention, two FLOPs a multiply-add, forward and backward, of whatever network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from guided_diffusers.core.checks import check_int


@dataclass(frozen=True, kw_only=True)
class Compute:
    """The cost of one image.

    Attributes:
        forwards: Forwards of each network, by name.
        backwards: Backwards through each network, by name; a network without any is left out.
        flops: FLOPs of all of them together.
    """

    forwards: dict[str, float]
    backwards: dict[str, float]
    flops: float

    def to_dict(self) -> dict[str, Any]:
        """The fields under their names, ready for JSON."""
        return asdict(self)


def count_compute(networks: Mapping[str, nn.Module], run: Callable[[], Any], images: int) -> Compute:
    """Count what `run` costs.

    Args:
        networks: The networks to count, by name.
        run: Draws `images` images; called once. Attention takes its plain path meanwhile, for the counter
            does not know the fused ones of every device.
        images: How many images the cost is divided by, at least 1.
    """
    check_int("images", images, 1, None)
    forwards: Counter[str] = Counter()
    backwards: Counter[str] = Counter()
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _OneModule()
    with _counting(networks, forwards, backwards), sdpa_kernel(SDPBackend.MATH), counter:
        run()
    return Compute(
        forwards={name: forwards[name] / images for name in networks if forwards[name]},
        backwards={name: backwards[name] / images for name in networks if backwards[name]},
        flops=counter.get_total_flops() / images,
    )


class _OneModule:
    """In place of the counter's tracker of modules, which fails on `torch.autograd.grad` of an input."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


@contextmanager
def _counting(
    networks: Mapping[str, nn.Module], forwards: Counter[str], backwards: Counter[str]
) -> Iterator[None]:
    def watch(name: str, network: nn.Module) -> Any:
        def after_forward(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            tensor = _first_tensor(output)
            rows = len(tensor)
            forwards[name] += rows
            if tensor.requires_grad:
                tensor.register_hook(lambda gradient: backwards.update({name: rows}))

        return network.register_forward_hook(after_forward, with_kwargs=True)

    handles = [watch(name, network) for name, network in networks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first_tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output
    return next(value for value in values if isinstance(value, Tensor))


def all_components(components: Mapping[str, Any]) -> dict[str, Any]:
    """A pipeline's components; of a cascade those of its stages, as "base.unet" and so on."""
    found: dict[str, Any] = {}
    for name, component in components.items():
        parts = getattr(component, "components", None)
        several = all_components(parts) if isinstance(parts, Mapping) else {}
        found |= {f"{name}.{part}": each for part, each in several.items()} or {name: component}
    return found


_PARTS = (("encoder", "decoder"), ("image_encoder", "text_encoder"))


def networks_of(components: Mapping[str, Any]) -> dict[str, nn.Module]:
    """The networks among a pipeline's components; an autoencoder and a CLIP as their two parts.

    An autoencoder's `encode` and `decode` are no forward of it, but its parts have their own; so has a CLIP.
    """
    networks: dict[str, nn.Module] = {}
    for name, component in all_components(components).items():
        if not isinstance(component, torch.nn.Module):
            continue
        for pair in _PARTS:
            parts = {f"{name}.{part}": getattr(component, part, None) for part in pair}
            if all(isinstance(part, nn.Module) for part in parts.values()):
                networks |= parts
                break
        else:
            networks[name] = component
    return networks
