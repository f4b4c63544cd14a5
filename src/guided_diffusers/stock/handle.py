"""Any guidance in any pipeline of diffusers: `guide`.

    with guide(pipeline, ProjectedGuidance(9.0, (0.3, 5.0))) as run:
        image = pipeline("a red bicycle").images[0]

Two places of a pipeline see all that guidance needs. Its network is told the condition and the null; its
scheduler's step gets x_t and knows the level. While a call of the pipeline runs, both are listened to;
between calls nothing but the pipeline's own `__call__` is changed, and `remove` gives that back.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import wraps
from types import TracebackType
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.modular_pipelines import ModularPipeline

from guided_diffusers.core.checks import shown
from guided_diffusers.core.declared import read
from guided_diffusers.core.networks import unwrapped
from guided_diffusers.guidance.base import Guidance
from guided_diffusers.guidance.views import View
from guided_diffusers.schedulers.families import check_supported
from guided_diffusers.stock.facts import facts_of
from guided_diffusers.stock.listening import listen, replace_step
from guided_diffusers.stock.output import check_process_of
from guided_diffusers.stock.recorder import Recorder
from guided_diffusers.stock.refused import check_call, check_pipeline, networks_of
from guided_diffusers.stock.stepping import Stepper


def guide(
    pipeline: DiffusionPipeline | ModularPipeline,
    guidance: Guidance | Mapping[str, Guidance],
    condition: Mapping[str, Any] | None = None,
    sequential: bool = False,
) -> Handle:
    """Guide all calls of a pipeline of diffusers, from now until the handle's `remove`.

    The pipeline's own guidance has no effect: neither its scale, which only has to switch the null condition
    on where a term asks for that, nor its rescaling or normalising. A guidance scale that a network was
    distilled with is an input of the network, and stays.

    Args:
        pipeline: A pipeline whose network is called once a step with the condition and the null in one batch,
            or once with each, and whose scheduler is one of
            `guided_diffusers.schedulers.SUPPORTED_SCHEDULERS` or says its noise levels. Its parts may be
            offloaded, compiled, adapted.
        guidance: A term or a sum; or one for each network, by its name in the pipeline (`transformer` and
            `transformer_2` of Wan 2.2). A term's functions get what the network was told as their condition:
            its `.positive` are the network's arguments.
        condition: The null's arguments of the network where the pipeline has no negative prompt, or others
            than the pipeline's: those that differ from the condition's, by name, for one sample or for all.
            The null is then a call that `guide` makes itself.
        sequential: Ask the network under the condition and the null one after the other, never in one batch:
            less memory.

    Returns:
        The handle, active already.

    Raises:
        TypeError: A guidance that is none.
        ValueError: A pipeline that cannot be guided or is already, an unsupported scheduler, a network that
            is not there, a classifier of another noise process; on use, arguments of the pipeline that switch
            off what the terms ask for, or that guide in a way of their own.
    """
    return Handle(pipeline, guidance, condition, sequential)


class Handle:
    """The guidance of a pipeline: `guide` makes it. A context manager that removes it at the end.

    Attributes:
        pipeline: The pipeline.
        guidance: The guidance of each network, by its name.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline | ModularPipeline,
        guidance: Guidance | Mapping[str, Guidance],
        condition: Mapping[str, Any] | None,
        sequential: bool,
    ) -> None:
        check_pipeline(pipeline)
        self.pipeline = pipeline
        self.guidance = _by_network(pipeline, guidance)
        self._null = _checked_null(pipeline, condition, self.guidance)
        self._sequential, self._running = read("sequential", sequential, bool), False
        self._recorder = self._make_recorder()
        self._check_parts()
        self._class = type(pipeline)
        pipeline.__class__ = _guided_class(self._class, self)

    @property
    def calls(self) -> list[int]:
        """The batch of each call of the network in the last run, further queries among them."""
        return list(self._recorder.run.calls)

    @property
    def record(self) -> list[dict[str, Any]]:
        """What each step of the last run did.

        | entry | |
        |---|---|
        | `noise_to_signal` | sigma / alpha, in which intervals are |
        | `effective_scale` | of each sample (see `effective_scale`); None where the null was not asked for |
        | `terms` | the names of the terms that were active |
        """
        return [
            {
                "noise_to_signal": float(level.noise_to_signal),
                "effective_scale": None if scale is None else scale.tolist(),
                "terms": [type(term).__name__ for term in active],
            }
            for level, active, scale in self._recorder.run.record
        ]

    def remove(self) -> None:
        """Leave the pipeline as it was; once more does nothing."""
        if getattr(type(self.pipeline), "_handle", None) is self:
            self.pipeline.__class__ = self._class

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _make_recorder(self) -> Recorder:
        by_id = {id(getattr(self.pipeline, name)): each for name, each in self.guidance.items()}
        return Recorder(self.pipeline, by_id, self._null is not None, self._sequential)

    def _check_parts(self) -> None:
        """Check the terms against the pipeline's parts as they stand."""
        check_supported(self.pipeline.scheduler)
        for name, guidance in self.guidance.items():
            check_process_of(guidance, self.pipeline.scheduler)
            network = unwrapped(getattr(self.pipeline, name))
            if getattr(network, "is_cache_enabled", False):
                raise ValueError(
                    f"the {name} keeps answers from call to call (enable_cache), and guide asks in another "
                    f"order; allowed: without, after pipeline.{name}.disable_cache()"
                )
            for view in _views_in(guidance):
                if unwrapped(view) is not network:
                    raise ValueError(
                        f"guidance has a view of another network than the pipeline's {name}, which it would "
                        f"leave as it is; allowed: views of pipeline.{name}, and where a pipeline has two "
                        "networks a guidance for each, by its name"
                    )

    @contextmanager
    def running(self, arguments: Mapping[str, Any]) -> Iterator[None]:
        """Listen to the networks and the scheduler during one call of the pipeline."""
        if self._running:
            raise ValueError("the guided pipeline was called inside a call of itself; allowed: one at a time")
        self._check_parts()
        check_call(self.pipeline, self.guidance, self._null is not None, arguments)
        networks = [getattr(self.pipeline, name) for name in self.guidance]
        self._recorder = recorder = self._make_recorder()
        recorder.begin(arguments.get("generator"))
        stepper = Stepper(recorder, self._null)
        scheduler = self.pipeline.scheduler
        self._running, undo = True, []
        try:
            for network in networks:
                undo.append(listen(network, recorder))
            undo.append(replace_step(scheduler, stepper))
            yield
            recorder.run.watch.check()
        finally:
            for each in undo:
                each()
            self._running, recorder.pending = False, []
            recorder.run.memory.clear()


def _by_network(pipeline: Any, guidance: Any) -> dict[str, Guidance]:
    names = networks_of(pipeline)
    if isinstance(guidance, Mapping):
        if set(guidance) != set(names) or not names:
            raise ValueError(
                f"guidance is for {', '.join(map(str, guidance)) or 'none'}; allowed: one for each of "
                f"{', '.join(names)}, or one for all"
            )
        each = {name: guidance[name] for name in names}
    else:
        each = dict.fromkeys(names, guidance)
    for value in each.values():
        if not isinstance(value, Guidance):
            raise TypeError(f"guidance is {shown(value)}; allowed: a term of guidance or a sum of them")
    return each


def _views_in(guidance: Guidance) -> list[View]:
    values = (getattr(term, each.name) for term in guidance.terms for each in fields(term))
    return [value for value in values if isinstance(value, View)]


def _checked_null(pipeline: Any, condition: Any, names: Mapping[str, Guidance]) -> Mapping[str, Any] | None:
    if condition is None:
        return None
    if not isinstance(condition, Mapping) or not condition:
        raise ValueError(
            f"condition is {shown(condition)}; allowed: the null's arguments of the network, by name"
        )
    for name in names:
        taken = facts_of(getattr(pipeline, name)).arguments[1:]
        unknown = [key for key in condition if key not in taken]
        if unknown:
            raise ValueError(f"condition has {shown(unknown[0])}; the {name} takes {', '.join(taken)}")
    return dict(condition)


def _guided_class(base: type, handle: Handle) -> type:
    """The pipeline's class with a `__call__` that guides; a copy of the pipeline is not guided."""

    @wraps(base.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        if self is not handle.pipeline:
            return base.__call__(self, *args, **kwargs)
        call = inspect.signature(base.__call__).bind_partial(self, *args, **kwargs)
        call.apply_defaults()
        with handle.running({**call.arguments, **call.arguments.get("kwargs", {})}):
            return base.__call__(self, *args, **kwargs)

    named = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(base.__name__, (base,), {**named, "__call__": __call__, "_handle": handle})
