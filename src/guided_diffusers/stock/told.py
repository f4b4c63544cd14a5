"""What a network was told and answered, as a condition; and the network that answers it again elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.core.checks import shown
from guided_diffusers.core.denoiser import Denoised
from guided_diffusers.core.noise import NoiseLevel, broadcast
from guided_diffusers.core.prediction import denoised_of
from guided_diffusers.guidance.base import Guided, Query, Step
from guided_diffusers.stock.answers import read
from guided_diffusers.stock.facts import (
    Facts,
    copied,
    largest,
    rows_of,
    told_timesteps,
)

_CLOSE = {torch.float16: 2e-2, torch.bfloat16: 2e-2}


@dataclass(eq=False)
class Told:
    """A condition under `guide`: what the pipeline gave its network, in one call or half a call.

    Attributes:
        network: The network that was called, and its `facts`.
        given: What it was told, by name, the sample and the timestep among them.
        rows: Which samples of that this is about; None is all.
        answer: What it answered; None where it has not been asked.
        null_told: The same of the null; None where the pipeline has none.
    """

    network: Any
    facts: Facts
    given: Mapping[str, Any]
    rows: slice | None = None
    answer: Any = None
    null_told: Told | None = None

    @property
    def input_name(self) -> str:
        """What the network calls its sample."""
        return self.facts.arguments[0]

    @cached_property
    def total(self) -> int:
        """How many samples the network was given."""
        return len(self.given[self.input_name])

    @cached_property
    def arguments(self) -> Mapping[str, Any]:
        """What the network was told of these samples; seldom asked for, as it has answered already."""
        return self.given if self.rows is None else rows_of(self.given, self.rows, self.total, self.facts)

    @property
    def null(self) -> Told:
        """The null condition.

        Raises:
            ValueError: The pipeline told its network none.
        """
        if self.null_told is None:
            raise ValueError(
                "guidance asks for the null condition, and the pipeline told its network none: give it a "
                "negative prompt and a guidance scale above 1 (it is not used), or guide(condition=)"
            )
        return self.null_told

    @property
    def positive(self) -> dict[str, Any]:
        """What the network was told beside sample and timestep: so a denoiser of another network takes it."""
        own = (self.input_name, self.facts.timestep, "return_dict")
        return {name: value for name, value in self.arguments.items() if name not in own}

    @property
    def input(self) -> Tensor:
        """What the network was given for a sample, `(batch, ...)`."""
        given = self.arguments[self.input_name]
        return torch.stack(given) if isinstance(given, list) else given

    @property
    def halves(self) -> tuple[slice, slice]:
        """The rows of the condition in a batch that holds every sample twice, and those of its null."""
        half = self.total // 2
        first, second = slice(0, half), slice(half, 2 * half)
        return (first, second) if self.facts.condition_first else (second, first)

    def unanswered(self) -> Told:
        """The same, to be asked anew."""
        null = None if self.null_told is None else self.null_told.unanswered()
        return replace(self, answer=None, null_told=null)


class Replay:
    """The pipeline's network as a denoiser: asked again with what it was told, at any sample and level.

    Args:
        ask: `(told, arguments) -> answer`.
        kind: The prediction type that the scheduler reads.
        negated: The network's output is the negative of that.
        level: Of the step, at which the network was called.
        sample: x_t of the step.

    `answers` has what the network said at the step itself, by the condition's id.
    """

    def __init__(
        self,
        ask: Callable[[Told, dict[str, Any]], Any],
        kind: str,
        negated: bool,
        level: NoiseLevel,
        sample: Tensor,
    ) -> None:
        self.ask, self.kind, self.negated, self.level, self.sample = ask, kind, negated, level, sample
        self.answers: dict[int, Denoised] = {}

    def __call__(self, sample: Tensor, level: NoiseLevel, condition: Told) -> Denoised:
        """The answer under one condition."""
        arguments = copied(condition.arguments)
        if sample is not self.sample or torch.is_grad_enabled():
            arguments[condition.input_name] = self._input(sample, level, condition)
        if level is not self.level:
            arguments[condition.facts.timestep] = _timestep(level, condition)
        return self.read(self.ask(condition, arguments), sample, level)

    def batch(self, sample: Tensor, level: NoiseLevel, conditions: Sequence[Told]) -> list[Denoised]:
        """One answer a condition, in a call each: their texts may differ in length."""
        return [self(sample, level, condition) for condition in conditions]

    def read(self, answer: Any, sample: Tensor, level: NoiseLevel) -> Denoised:
        """An answer as x_0."""
        output, extra = read(answer, sample, self.negated)
        return Denoised(denoised_of(output, sample, level, self.kind), extra)

    def _input(self, sample: Tensor, level: NoiseLevel, told: Told) -> Any:
        """The recorded input with another sample in the place of x_t; what stands behind that stays.

        Raises:
            ValueError: The recorded input does not begin with the scaled x_t.
        """
        given, recorded = told.arguments[told.input_name], told.input
        old, new = (
            (broadcast(level.input_scale, x) * x).to(recorded.dtype)
            for x, level in ((self.sample, self.level), (sample, level))
        )
        if recorded.ndim == sample.ndim + 1 and recorded.shape[2] == 1:
            old, new = old.unsqueeze(2), new.unsqueeze(2)
        beside = [axis for axis in range(old.ndim) if recorded.shape[axis] != old.shape[axis]]
        fits = recorded.ndim == old.ndim and len(beside) <= 1 and 0 not in beside
        if fits and beside:
            (axis,) = beside
            count = old.shape[axis]
            fits = recorded.shape[axis] > count
            own, rest = recorded.tensor_split([count], dim=axis)
            new = torch.cat([new, rest], axis)
        else:
            own = recorded
        close = _CLOSE.get(recorded.dtype, 1e-4)
        if not fits or not torch.allclose(own, old, close, close):
            raise ValueError(
                f"the network's {told.input_name} is {shown(recorded)}, and how the pipeline makes it of the "
                f"sample {tuple(sample.shape)} is not known: no term here can ask at another sample, with a "
                "gradient through the network or again at a level"
            )
        return list(new.unbind(0)) if isinstance(given, list) else new


def _timestep(level: NoiseLevel, told: Told) -> Tensor:
    """The timestep of another level, in the form in which the network was told its own."""
    if level.timestep is None:
        raise ValueError("a term asks the network at a level without a timestep, which it has to be told")
    given = torch.as_tensor(told.arguments[told.facts.timestep])
    timestep = torch.as_tensor(level.timestep).reshape(-1)
    scaled = told_timesteps(told.facts, told.network, timestep, largest(given))
    whole = given.is_floating_point() or bool((scaled == scaled.round()).all())
    scaled = scaled.to(given.device, given.dtype if whole else torch.float32)
    if given.ndim == 0:
        return scaled[0]
    return scaled.reshape(-1, *[1] * (given.ndim - 1)).expand_as(given)


class Asked(Guided):
    """A guided pipeline's network at one step: what it has answered is taken, anything else is asked."""

    def ask(self, step: Step, queries: list[Query]) -> list[Denoised]:
        """What the network has answered to its conditions at x_t itself; asked, for anything else."""
        first = queries[0]
        if any(each is not None for each in (first.network, first.view, first.sample, first.level)):
            return super().ask(step, queries)
        answers = self.denoiser.answers
        for told in (query.condition for query in queries):
            with_graph = torch.is_grad_enabled() and told is step.condition
            if told.answer is None or with_graph:
                answers[id(told)] = self.denoiser(step.sample, step.level, told)
            else:
                answers[id(told)] = self.denoiser.read(told.answer, step.sample, step.level)
        return [answers[id(query.condition)] for query in queries]
