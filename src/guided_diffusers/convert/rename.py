"""A state dict under other names: which tensor becomes which, and a check before anything is loaded.

Two kinds of tensors change more than their name. A 1x1 convolution that is a linear layer here loses its last
dimensions. A fused projection to queries, keys and values is split into three, and there are two orders in
which its 3 C rows lie, with h heads of d = C / h rows each:

    legacy      head by head:   q_1 k_1 v_1  q_2 k_2 v_2  ...     view (h, 3, d)
    new         one by one:     q_1 q_2 ...  k_1 k_2 ...  v_1 ... view (3, h, d)

Both have one shape, so the checkpoint cannot say which it is, and the wrong one loads and is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Rename:
    """One tensor of a checkpoint and what it becomes.

    Attributes:
        source: Its name in the checkpoint.
        targets: Its name in the model; three of them split it.
        dimensions: Trailing dimensions of size 1 that it has in the checkpoint only.
        heads: Of a split: rows lie head by head for this many heads, one by one for 0.
    """

    source: str
    targets: tuple[str, ...]
    dimensions: int = 0
    heads: int = 0

    def shape(self, model: Mapping[str, Tensor]) -> tuple[int, ...]:
        """The shape it must have in the checkpoint."""
        rows, *rest = model[self.targets[0]].shape
        return (rows * len(self.targets), *rest, *[1] * self.dimensions)

    def convert(self, tensor: Tensor) -> dict[str, Tensor]:
        """The tensors of the model; each its own storage."""
        tensor = tensor.flatten(tensor.ndim - 1 - self.dimensions) if self.dimensions else tensor
        if len(self.targets) == 1:
            return {self.targets[0]: tensor.clone()}
        if self.heads:
            by_head = tensor.unflatten(0, (self.heads, len(self.targets), -1))
            parts = [part.flatten(0, 1) for part in by_head.unbind(1)]
        else:
            parts = list(tensor.chunk(len(self.targets)))
        return {name: part.clone() for name, part in zip(self.targets, parts, strict=True)}


def layer(source: str, target: str, dimensions: int = 0) -> list[Rename]:
    """The weight and the bias of a layer."""
    return [
        Rename(source=f"{source}.weight", targets=(f"{target}.weight",), dimensions=dimensions),
        Rename(source=f"{source}.bias", targets=(f"{target}.bias",)),
    ]


def fused(source: str, target: str, heads: int, dimensions: int = 1) -> list[Rename]:
    """The weight and the bias of a fused projection to `to_q`, `to_k` and `to_v`."""
    return [
        Rename(
            source=f"{source}.{kind}",
            targets=tuple(f"{target}.to_{part}.{kind}" for part in "qkv"),
            dimensions=dimensions if kind == "weight" else 0,
            heads=heads,
        )
        for kind in ("weight", "bias")
    ]


def load_renamed(model: nn.Module, renames: Iterable[Rename], checkpoint: Mapping[str, Tensor]) -> None:
    """Load a checkpoint into a model strictly, under other names; the model takes the checkpoint's dtype.

    Renames whose targets the model does not have are left out, so optional layers may be listed. The model
    may be on the meta device: its parameters are replaced.

    Raises:
        ValueError: Tensors are missing, unexpected, or of another shape; it names the first and counts all.
    """
    own = model.state_dict()
    wanted = [rename for rename in renames if all(target in own for target in rename.targets)]
    _check({rename.source: rename.shape(own) for rename in wanted}, checkpoint)
    dtypes = {checkpoint[rename.source].dtype for rename in wanted}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    converted = {}
    for rename in wanted:
        converted |= rename.convert(checkpoint[rename.source].to(dtype))
    model.load_state_dict(converted, strict=True, assign=True)


def _check(expected: Mapping[str, tuple[int, ...]], checkpoint: Mapping[str, Tensor]) -> None:
    missing = [name for name in expected if name not in checkpoint]
    unexpected = [name for name in checkpoint if name not in expected]
    shapes = [
        f"{name} {tuple(checkpoint[name].shape)} for {shape}"
        for name, shape in expected.items()
        if name in checkpoint and tuple(checkpoint[name].shape) != shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    said = [f"{len(names)} {kind}: {_first(names)}" for kind, names in kinds if names]
    if said:
        raise ValueError(
            f"the checkpoint does not fit the configuration ({len(expected)} tensors): {'; '.join(said)}"
        )


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
