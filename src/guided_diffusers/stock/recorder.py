"""What a pipeline tells its network, call by call, and where its run is.

The network is told the condition and its null in one batch or in two calls, the condition's first. Where no
term asks for the null it runs on the condition alone, and the pipeline gets that answer twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch

from guided_diffusers.core.finite import Watch
from guided_diffusers.core.noise import NoiseLevel
from guided_diffusers.core.prediction import coefficients
from guided_diffusers.core.randomness import as_generators
from guided_diffusers.guidance.base import Guidance, Step
from guided_diffusers.schedulers.adapt import adapted, next_noise_level, noise_level, prediction_type_of
from guided_diffusers.stock.answers import answer_of, joined
from guided_diffusers.stock.facts import copied, facts_of, largest, rows_of, told_timesteps
from guided_diffusers.stock.told import Told

_NOTHING = torch.empty(0)


@dataclass(kw_only=True)
class Call:
    """A call of the network as the pipeline made it.

    Attributes:
        told: What it was told.
        output: What it gave; None where it was not run.
        half: The rows that were run, where they stand for the whole batch.
    """

    told: Told
    output: Any = None
    half: slice | None = None


@dataclass(kw_only=True)
class Run:
    """What belongs to one run: a new list of timesteps begins another.

    Attributes:
        timesteps: The scheduler's, and `listed`, the same on the CPU in float64.
        told: The same as networks are told them, by the network's class.
        calls: The batch of each network call.
        record: The level, the active terms and the effective scale of each step.
        memory: What terms keep from step to step.
        levels: Of all steps and of the end, where they are known beforehand.
        place: The step's place in the timesteps, `level` its noise level, `next_level` where it arrives.
        active: The terms that do something at the step.
        size: How many samples, known after the first step.
        sign: Of the network's output against what the scheduler reads, known after the first step.
        ordered: Whether the order of condition and null was seen to be the known one.
        watch: Notices where its sample stops being finite.
    """

    timesteps: Any = None
    listed: torch.Tensor | None = None
    told: dict[type, list[float]] = field(default_factory=dict)
    calls: list[int] = field(default_factory=list)
    record: list[tuple[NoiseLevel, list[Guidance], torch.Tensor | None]] = field(default_factory=list)
    memory: dict[Any, Any] = field(default_factory=dict)
    place: int = -1
    levels: list[NoiseLevel] | None = None
    level: NoiseLevel | None = None
    next_level: NoiseLevel | None = None
    active: list[Guidance] = field(default_factory=list)
    size: int | None = None
    sign: int | None = None
    ordered: bool = False
    watch: Watch = field(default_factory=lambda: Watch("", ()))


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
        facts = facts_of(network)
        given = {**dict(zip(facts.arguments, args, strict=False)), **kwargs}
        told = Told(network, facts, copied(given))  # networks take entries out of lists that they are given
        if not self.pending:
            self._find_place(told)
        needed = not self.own_null and any(term.needs_null for term in self.run.active)
        make = self._second_call if self.pending else self._first_call
        call = make(plain, told, given, needed)
        self.pending.append(call)
        return self.pending[0].output if call.output is None else call.output

    def _first_call(
        self, plain: Callable[..., Any], told: Told, given: Mapping[str, Any], needed: bool
    ) -> Call:
        """The condition and its null, or the condition only."""
        total = told.total
        pair = self._is_pair(told, total)
        if not pair or (needed and not self.sequential):
            return Call(told=told, output=self._answer(plain, given, total))
        own, null = told.halves
        parts = sorted((own, null), key=lambda rows: rows.start) if needed else [own, own]
        outputs = [
            self._answer(plain, copied(rows_of(given, rows, total, told.facts)), total // 2)
            for rows in (parts if needed else parts[:1])
        ]
        output = joined(outputs[0], outputs[-1])
        return Call(told=told, output=output, half=None if needed else own)

    def _second_call(
        self, plain: Callable[..., Any], told: Told, given: Mapping[str, Any], needed: bool
    ) -> Call:
        """The null, in a call of its own."""
        first, total = self.pending[0].told, told.total
        if len(self.pending) > 1 or total != first.total or told.network is not first.network:
            raise ValueError(
                f"{self.name} asks its network for more than a condition and its null at a step: switch its "
                "further guidance off, and give guide a term that does the same"
            )
        unsure = self.run.size is None and not self.known
        return Call(told=told, output=self._answer(plain, given, total) if needed or unsure else None)

    def _answer(self, plain: Callable[..., Any], arguments: Mapping[str, Any], count: int) -> Any:
        self.run.calls.append(count)
        return plain(**arguments)

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
        """The step's place among the timesteps, its level, and which terms are active there."""
        scheduler = self.pipeline.scheduler
        begins = scheduler.timesteps is not self.run.timesteps
        if begins:
            read = adapted(scheduler)
            levels = None if hasattr(scheduler, "noise_level") else list(read.levels)
            listed = torch.as_tensor(read.timesteps).cpu().double()
            self.run.watch.check()
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
        terms, step = self.guidance[id(told.network)].terms, Step(sample=_NOTHING, level=self.run.level)
        self.run.active = [term for term in terms if term.active(step)]
        if begins:
            self.run.watch = Watch(type(scheduler).__name__, listed[place:])
            self._check_terms(terms, told)

    def _check_terms(self, terms: tuple[Guidance, ...], told: Told) -> None:
        """Let terms say what does not suit them, and the level what says nothing of x_0, before any call."""
        kind, run = prediction_type_of(self.pipeline.scheduler), self.run
        coefficients(run.level, kind)
        asked = replace(told)
        asked.null_told = asked
        levels = [run.level, run.next_level] if run.levels is None else run.levels[run.place :]
        for term in terms:
            for level, following in pairwise(levels):
                step = Step(
                    sample=told.input,
                    level=level,
                    next_level=following,
                    condition=asked,
                    prediction_type=kind,
                )
                if term.active(step):
                    term.queries(step)

    def _place_of(self, told: Told) -> int:
        """The place by what the network is told: the next one where that fits, else the nearest."""
        value, kind = largest(told.given[told.facts.timestep]), type(told.network)
        if kind not in self.run.told:
            self.run.told[kind] = told_timesteps(told.facts, told.network, self.run.listed, value).tolist()
        timesteps, place = self.run.told[kind], self.run.place + 1
        if place < len(timesteps) and abs(timesteps[place] - value) <= 1e-6 * abs(value):
            return place
        distances = [abs(timestep - value) for timestep in timesteps]
        nearest = min(distances)
        if place >= len(distances) or distances[place] > nearest + 1e-9:
            place = distances.index(nearest)
        if nearest > 4e-3 * abs(value) + 1e-5:
            raise ValueError(
                f"{self.name} tells its network the timestep {value:g}, which its scheduler does not list"
            )
        return place
