"""What a pipeline tells its network, call by call, and where its run is.

The network is told the condition and its null in one batch or in two calls, the condition's first. Where no
term asks for the null it runs on the condition alone, and the pipeline gets that answer twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from guided_diffusers.core.noise import NoiseLevel
from guided_diffusers.core.randomness import as_generators
from guided_diffusers.guidance.base import Guidance, Step
from guided_diffusers.schedulers.adapt import next_noise_level, noise_level, run_levels, run_timesteps
from guided_diffusers.stock.answers import answer_of, joined
from guided_diffusers.stock.facts import argument_names, copied, rows_of, told_timesteps
from guided_diffusers.stock.told import Told


@dataclass(kw_only=True)
class Call:
    """A call of the network as the pipeline made it.

    Attributes:
        told: What it was told.
        total: Its batch.
        output: What it gave; None where it was not run.
        half: The rows that were run, where they stand for the whole batch.
    """

    told: Told
    total: int
    output: Any = None
    half: slice | None = None


@dataclass(kw_only=True)
class Run:
    """What belongs to one run: a new list of timesteps begins another.

    Attributes:
        timesteps: The scheduler's, and `listed`, the same on the CPU in float64.
        calls: The batch of each network call.
        record: What each step did.
        memory: What terms keep from step to step.
        levels: Of all steps and of the end, where they are known beforehand.
        place: The step's place in the timesteps, `level` its noise level, `next_level` where it arrives.
        size: How many samples, known after the first step.
        sign: Of the network's output against what the scheduler reads, known after the first step.
        ordered: Whether the order of condition and null was seen to be the known one.
    """

    timesteps: Any = None
    listed: torch.Tensor | None = None
    calls: list[int] = field(default_factory=list)
    record: list[dict[str, Any]] = field(default_factory=list)
    memory: dict[Any, Any] = field(default_factory=dict)
    place: int = -1
    levels: list[NoiseLevel] | None = None
    level: NoiseLevel | None = None
    next_level: NoiseLevel | None = None
    size: int | None = None
    sign: int | None = None
    ordered: bool = False


class Recorder:
    """Stands between a pipeline and its networks.

    Args:
        pipeline: The pipeline, whose scheduler is read as it stands.
        guidance: The guidance of each network, by its id.
        own_null: Whether the null is ours, and the pipeline's is never asked for.
        sequential: Run condition and null one after the other, also where the pipeline asks both at once.
    """

    def __init__(
        self, pipeline: Any, guidance: Mapping[int, Guidance], own_null: bool, sequential: bool
    ) -> None:
        self.pipeline, self.guidance = pipeline, guidance
        self.own_null, self.sequential = own_null, sequential
        self.known = type(pipeline).__module__.startswith("diffusers.")  # and so is its order of halves
        self.name = type(pipeline).__name__
        self.run, self.pending, self._asking = Run(), [], False
        self.generator: Any = None  # of the call that runs

    def begin(self, generator: Any = None) -> None:
        """A call of the pipeline begins: nothing of the last one stays."""
        self.run, self.pending, self.generator = Run(), [], as_generators(generator)

    def called(self, plain: Callable[..., Any], network: Any, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """What the pipeline gets for a call of its network; `plain` is that call."""
        if self._asking:
            return plain(*args, **kwargs)
        given = {**dict(zip(argument_names(network), args, strict=False)), **kwargs}
        told = Told(network, copied(given))
        total = len(told.arguments[told.input_name])
        if not self.pending:
            self._find_place(told)
        needed = not self.own_null and any(term.needs_null for term in self.active(network))
        make = self._second_call if self.pending else self._first_call
        call = make(plain, told, total, needed)
        self.pending.append(call)
        return self.pending[0].output if call.output is None else call.output

    def _first_call(self, plain: Callable[..., Any], told: Told, total: int, needed: bool) -> Call:
        """The condition and its null, or the condition only."""
        pair = self._is_pair(told, total)
        if not pair or (needed and not self.sequential):
            return Call(told=told, total=total, output=self._answer(plain, told.arguments, total))
        own, null = halves(told, total)
        parts = sorted((own, null), key=lambda rows: rows.start) if needed else [own, own]
        outputs = [
            self._answer(plain, rows_of(told.arguments, rows, total, told.facts), total // 2)
            for rows in (parts if needed else parts[:1])
        ]
        output = joined(outputs[0], outputs[-1])
        return Call(told=told, total=total, output=output, half=None if needed else own)

    def _second_call(self, plain: Callable[..., Any], told: Told, total: int, needed: bool) -> Call:
        """The null, in a call of its own."""
        first = self.pending[0]
        if len(self.pending) > 1 or total != first.total or told.network is not first.told.network:
            raise ValueError(
                f"{self.name} asks its network for more than a condition and its null at a step: switch its "
                "further guidance off, and give guide a term that does the same"
            )
        unsure = self.run.size is None and not self.known
        output = self._answer(plain, told.arguments, total) if needed or unsure else None
        return Call(told=told, total=total, output=output)

    def _answer(self, plain: Callable[..., Any], arguments: Mapping[str, Any], count: int) -> Any:
        self.run.calls.append(count)
        return plain(**copied(arguments))

    def ask(self, told: Told, arguments: Mapping[str, Any]) -> Any:
        """The answer to a further query, of the network with whatever has been put around it."""
        self.run.calls.append(len(arguments[told.input_name]))
        self._asking = True
        try:
            return answer_of(told.network(**arguments))
        finally:
            self._asking = False

    def _is_pair(self, told: Told, total: int) -> bool:
        """Whether a batch holds every sample twice; before the first step its halves are compared."""
        if self.run.size is not None:
            return total == 2 * self.run.size
        if total % 2 or not self.known:
            return False
        return torch.equal(*told.input.chunk(2))

    def _find_place(self, told: Told) -> None:
        """The step's place among the timesteps, and its level."""
        scheduler = self.pipeline.scheduler
        if scheduler.timesteps is not self.run.timesteps:
            listed = run_timesteps(scheduler)
            levels = None if hasattr(scheduler, "noise_level") else list(run_levels(scheduler, listed))
            listed = torch.as_tensor(listed).cpu().double()
            self.run = Run(timesteps=scheduler.timesteps, listed=listed, levels=levels)
        place = getattr(scheduler, "step_index", None)
        if place is None:
            place = self._place_of(told)
        self.run.place = place
        if self.run.levels is not None:
            self.run.level, self.run.next_level = self.run.levels[place : place + 2]
        else:  # one that says its levels is asked for them as they come
            self.run.level = noise_level(scheduler, self.run.timesteps[place])
            self.run.next_level = next_noise_level(scheduler, place)

    def _place_of(self, told: Told) -> int:
        """The place by what the network is told: the next one where that fits, else the nearest."""
        value = torch.as_tensor(told.arguments[told.facts.timestep]).double().max().item()
        distances = (told_timesteps(told.facts, told.network, self.run.listed, value) - value).abs()
        place = self.run.place + 1
        if place >= len(distances) or distances[place] > distances.min() + 1e-9:
            place = int(distances.argmin())
        if distances[place] > 4e-3 * abs(value) + 1e-5:
            raise ValueError(
                f"{self.name} tells its network the timestep {value:g}, which its scheduler does not list"
            )
        return place

    def active(self, network: Any) -> list[Guidance]:
        """The terms that do something at this step."""
        step = Step(sample=torch.empty(0), level=self.run.level)
        return [term for term in self.guidance[id(network)].terms if term.active(step)]


def halves(told: Told, total: int) -> tuple[slice, slice]:
    """The rows of the condition, and those of its null."""
    first, second = slice(0, total // 2), slice(total // 2, total)
    return (first, second) if told.facts.condition_first else (second, first)
