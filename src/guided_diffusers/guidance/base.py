"""The algebra of guidance, in x_0 space: the base is D(condition), every term is a shift from it, terms add.

    x_0 = D(x_t; condition) + sum over active terms of shift(term)                                      (1)
    x_0 <- correct(term, x_0), one active term after another                                            (2)

A term says whether it is active at a step, which predictions it needs (queries), its shift given the answers,
and, where it has one, its correction of the sum. Queries that ask one network at one sample and level are
answered by one batched forward. Terms are immutable values; what must last from one step to the next lives in
`Step.memory`, which belongs to one run of the sampling loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from guided_diffusers.core.checks import check_callable, check_that, shown
from guided_diffusers.core.declared import Declared, build, kinds_of
from guided_diffusers.core.denoiser import Denoised, Denoiser, as_denoised
from guided_diffusers.core.noise import NoiseLevel
from guided_diffusers.guidance.interval import GuidanceInterval
from guided_diffusers.guidance.scale import MAX_SCALE, Scale, checked_scale, column
from guided_diffusers.guidance.step import Prediction, Query, Shift, Step

__all__ = [
    "MAX_SCALE",
    "Guidance",
    "GuidanceSum",
    "Guided",
    "Prediction",
    "Query",
    "Scale",
    "Shift",
    "Step",
    "checked_scale",
    "column",
    "network_field",
]

_AS_IT_IS = nullcontext()


class Guidance(Declared):
    """One guidance term, or a sum of them. Called on a denoiser it gives the guided denoiser; `+` adds terms.

    A subclass is a frozen dataclass with the fields `scale` and `interval`, says its `neutral` scale (at
    which it does nothing and costs nothing), and implements `queries` and `shift`, or `correct`. One without
    a scale says `scale: ClassVar[float] = 1.0`. Networks and functions are declared with `network_field()`,
    so that configurations leave them out.
    """

    neutral: ClassVar[float] = 0.0
    scale: Scale
    interval: GuidanceInterval | None
    recurrence: int = 1
    """How often a run predicts at each level at which the term is active, with new noise in between."""
    _types: ClassVar[dict[str, type[Guidance]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Guidance._types[cls.__name__] = cls

    def __post_init__(self) -> None:
        """Normalise `scale` to a float or a tuple of floats, and the rest as the annotations say."""
        cls: Any = type(self)
        if kinds_of(cls).get("scale", Scale) != Scale:  # of one's own: a number is a scale too
            object.__setattr__(self, "scale", checked_scale(self.scale))
        super().__post_init__()

    @property
    def terms(self) -> tuple[Guidance, ...]:
        """The terms of the sum; a single term is its own sum."""
        return (self,)

    @cached_property
    def idle(self) -> bool:
        """Whether the scale is neutral for every sample: the term does nothing at any step."""
        scales = self.scale if isinstance(self.scale, tuple) else (self.scale,)
        return all(s == self.neutral for s in scales)

    @property
    def gamma(self) -> Scale | None:
        """The scale of classifier-free guidance, 1 unguided; None for what has none, or several."""
        return None

    @property
    def needs_null(self) -> bool:
        """Whether it asks for the null of the condition at some step. A term that does says so here."""
        return False

    def active(self, step: Step) -> bool:
        """Whether the term does anything at this step: inside its interval, its scale not neutral."""
        return not self.idle and (self.interval is None or self.interval.touches(step.level))

    def queries(self, step: Step) -> tuple[Query, ...]:
        """The predictions that `shift` needs beside the denoiser's own under `step.condition`."""
        return ()

    def shift(self, step: Step, own: Denoised, answers: Sequence[Denoised]) -> Tensor | Shift:
        """What the term adds, given the answers to its queries in their order; a tensor is added to x_0."""
        return Shift()

    def correct(self, step: Step, own: Denoised, guided: Tensor) -> Tensor:
        """What the term makes of the guided x_0, `(batch, ...)`, after all shifts and earlier corrections."""
        return guided

    def __add__(self, other: Guidance) -> Guidance:
        """The sum of two guidances: all their terms, each a shift from the same base."""
        return GuidanceSum(self.terms + other.terms) if isinstance(other, Guidance) else NotImplemented

    def __call__(self, denoiser: Denoiser, sequential: bool = False) -> Guided:
        """Guide a denoiser. Guiding a guided denoiser adds the terms to those it has.

        Args:
            denoiser: What is guided.
            sequential: Ask one condition after another, in as many forwards: for a network of which two
                conditions do not fit in memory at once.
        """
        if isinstance(denoiser, Guided):
            terms, sequential = denoiser.guidance + self.terms, sequential or denoiser.sequential
            return Guided(denoiser.denoiser, terms, sequential)
        return Guided(denoiser, self.terms, sequential)

    def to_config(self) -> list[dict[str, Any]]:
        """The terms as JSON values; networks and functions are left out."""
        return [{"term": type(term).__name__, **_json_fields(term)} for term in self.terms]

    @staticmethod
    def from_config(config: Sequence[Mapping[str, Any]] | Mapping[str, Any], **networks: Any) -> Guidance:
        """The inverse of `to_config`.

        Args:
            config: One term or a list of terms.
            networks: What a configuration cannot hold, by the term's argument name (`weak=`, `log_prob=`).

        Raises:
            ValueError: An unknown term or argument, or a network that is needed and not given.
        """
        entries = [config] if isinstance(config, Mapping) else config
        several = isinstance(entries, Sequence) and not isinstance(entries, str)
        several = several and all(isinstance(entry, Mapping) for entry in entries)
        check_that(several, "config", config, "a term's to_config() value, or a list of them")
        terms = tuple(_term_from(entry, networks) for entry in entries)
        return terms[0] if len(terms) == 1 else GuidanceSum(terms)


@dataclass(frozen=True)
class GuidanceSum(Guidance):
    """Several guidance terms. Built by `+`; an empty sum leaves the denoiser as it is."""

    parts: tuple[Guidance, ...] = ()

    def __post_init__(self) -> None:
        """Check that the parts are terms; they have normalised themselves."""
        if not isinstance(self.parts, tuple) or not all(isinstance(part, Guidance) for part in self.parts):
            raise TypeError(f"parts is {shown(self.parts)}; allowed: a tuple of guidance terms")

    @property
    def terms(self) -> tuple[Guidance, ...]:
        """The terms, in the order they were added."""
        return self.parts

    @cached_property
    def idle(self) -> bool:
        """Whether no term does anything."""
        return all(term.idle for term in self.parts)

    @property
    def gamma(self) -> Scale | None:
        """The gamma of the only term that has one."""
        gammas = [term.gamma for term in self.parts if term.gamma is not None]
        return gammas[0] if len(gammas) == 1 else None

    @property
    def needs_null(self) -> bool:
        """Whether any term asks for the null."""
        return any(term.needs_null for term in self.parts)

    @property
    def recurrence(self) -> int:  # type: ignore[override]
        """The most of any term."""
        return max((term.recurrence for term in self.parts), default=1)


@dataclass(frozen=True)
class Guided:
    """A denoiser with guidance: itself a denoiser.

    Attributes:
        denoiser: The guided denoiser.
        guidance: The terms.
        sequential: Whether conditions are asked one after another, and not in one batch.
    """

    denoiser: Denoiser
    guidance: tuple[Guidance, ...] = ()
    sequential: bool = False

    def __post_init__(self) -> None:
        """Check that there is something to guide."""
        if not callable(self.denoiser):
            check_callable("denoiser", self.denoiser, "a denoiser, (sample, level, condition) -> x_0")

    def __call__(self, sample: Tensor, level: NoiseLevel, condition: Any = None) -> Tensor:
        """The guided x_0 of `sample`, outside a sampling run: no next level and an empty memory."""
        return self.run(Step(sample=sample, level=level, condition=condition)).x0

    def run(self, step: Step) -> Prediction:
        """The guided x_0 at a step of a run; learned-variance channels come from the conditional pass."""
        asked = [(term, term.queries(step)) for term in self.guidance if term.active(step)]
        queries = [Query(condition=step.condition)]
        for _, its in asked:
            queries += its
        graph = any([query.grad for query in queries])
        if graph:
            step = replace(step, sample=step.sample.detach().requires_grad_())
        answers = iter(self._answers(step, queries))
        own = next(answers)
        x0, mean = own.x0, None
        for term, its in asked:
            shift = term.shift(step, own, [next(answers) for _ in its])
            of_x0, of_mean = (shift, None) if isinstance(shift, Tensor) else shift
            # (1)
            if of_x0 is not None:
                x0 = x0 + _within(term, of_x0, 0, step.level)
            if of_mean is not None:
                masked = _within(term, of_mean, 0, step.level)
                mean = masked if mean is None else mean + masked
        for term, _ in asked:
            # (2)
            corrected = term.correct(step, own, x0)
            x0 = x0 if corrected is x0 else _within(term, corrected, x0, step.level)
        if not graph and not torch.is_grad_enabled():
            return Prediction(x0, own.extra, mean)
        others = (None if each is None else each.detach() for each in (own.extra, mean))
        return Prediction(x0.detach(), *others)

    def _answers(self, step: Step, queries: Sequence[Query]) -> list[Denoised]:
        """Answer all queries: those of one network, view, sample and level by one forward."""
        groups: dict[tuple[int, ...], dict[int, Query]] = {}
        graphs, places = set(), []
        for query in queries:
            network, condition = query.network or self.denoiser, id(query.condition)
            group: tuple[int, ...] = id(network), id(query.view), id(query.sample), id(query.level)
            groups.setdefault(group, {}).setdefault(condition, query)
            places.append((group, condition))
            if query.grad:
                graphs.add(group)
        answers: dict[tuple[tuple[int, ...], int], Denoised] = {}
        for group, of in groups.items():
            asked, grad = [*of.values()], group in graphs
            if callable(make := asked[0].sample):
                sample = make(answers[places[0]])
                asked = [replace(query, sample=sample) for query in asked]
            with _AS_IT_IS if grad is torch.is_grad_enabled() else torch.set_grad_enabled(grad):
                for condition, answer in zip(of, self.ask(step, asked), strict=True):
                    answers[group, condition] = answer
        return [answers[place] for place in places]

    def ask(self, step: Step, queries: list[Query]) -> list[Denoised]:
        """The answers to queries that have all but the condition in common; a subclass may answer otherwise.

        Args:
            step: The step, with a sample that takes a gradient where any query asks for one.
            queries: At least one, of one network, view, sample and level; of several conditions. A sample
                that is a function has been called.

        Returns:
            One answer a query, in their order: x_0 of the shape of the sample that was asked about, with its
            graph where `torch.is_grad_enabled()`, which it is for queries with `grad` alone.
        """
        first, conditions = queries[0], [query.condition for query in queries]
        network = first.network or self.denoiser
        sample = first.sample if isinstance(first.sample, Tensor) else step.sample
        level = step.level if first.level is None else first.level
        with _AS_IT_IS if first.view is None else first.view():
            if not hasattr(network, "batch"):
                return [_asked(network, sample, level, condition) for condition in conditions]
            if not self.sequential:
                return network.batch(sample, level, conditions)
            return [network.batch(sample, level, [condition])[0] for condition in conditions]


def _within(term: Guidance, inside: Tensor, outside: Tensor | float, level: NoiseLevel) -> Tensor:
    """`inside` where a sample's own level is in the term's interval, elsewhere `outside`."""
    return inside if term.interval is None else term.interval.apply(inside, level, outside)


def _asked(network: Denoiser, sample: Tensor, level: NoiseLevel, condition: Any) -> Denoised:
    """The answer of a denoiser that is any callable, checked where the mistake is."""
    answer = as_denoised(network(sample, level, condition))
    if not isinstance(answer.x0, Tensor) or answer.x0.shape != sample.shape:
        given, shape = shown(answer.x0), tuple(sample.shape)
        raise ValueError(f"the denoiser gives {given}; allowed: x_0 of the sample's shape, {shape}")
    return answer


def network_field(**kwargs: Any) -> Any:
    """A dataclass field that holds a network or a function: configurations leave it out."""
    return field(metadata={"network": True}, **kwargs)


def _json_fields(term: Guidance) -> dict[str, Any]:
    values = {f.name: getattr(term, f.name) for f in fields(term) if not f.metadata.get("network")}
    return {
        name: value.to_config()
        if isinstance(value, GuidanceInterval)
        else list(value)
        if isinstance(value, tuple)
        else value
        for name, value in values.items()
    }


def _term_from(entry: Mapping[str, Any], networks: Mapping[str, Any]) -> Guidance:
    name, arguments = entry.get("term"), {key: value for key, value in entry.items() if key != "term"}
    cls = Guidance._types.get(name) if isinstance(name, str) else None
    if cls is None or cls is GuidanceSum:
        known = ", ".join(sorted(set(Guidance._types) - {"GuidanceSum"}))
        raise ValueError(f"guidance term is {shown(name)}; known terms: {known}")
    for key in (f.name for f in fields(cls) if f.metadata.get("network")):
        if key not in networks:
            raise ValueError(f"{name} needs {key}=, which no configuration holds: pass it beside this one")
        arguments[key] = networks[key]
    return build(cls, arguments, where=str(name))
