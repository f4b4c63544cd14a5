"""The scheduler's steps of a stock pipeline under guidance.

A step gets x_t and whatever the pipeline made of its network's answers. That is thrown away: x_0 under the
condition is read from the recorded answers, the terms shift it, and it is written back as an output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from guided_diffusers.core.prediction import at_least_float32, output_of
from guided_diffusers.guidance.base import Prediction, Step
from guided_diffusers.guidance.effective import effective_scale
from guided_diffusers.guidance.recurrence import renoised
from guided_diffusers.schedulers.adapt import prediction_type_of, step_names
from guided_diffusers.stock.answers import answer_of, read
from guided_diffusers.stock.facts import copied, largest, parameters_of
from guided_diffusers.stock.recorder import Call, Recorder
from guided_diffusers.stock.told import Asked, Replay, Told


class Stepper:
    """The steps of the pipeline that a recorder listens to.

    Args:
        recorder: What was told and answered, and the terms.
        null: Arguments of the null condition that differ from the condition's; None takes the pipeline's.
    """

    def __init__(self, recorder: Recorder, null: Mapping[str, Any] | None = None) -> None:
        self.recorder, self.null = recorder, null
        scheduler = recorder.pipeline.scheduler
        self.parameters, self.names = parameters_of(type(scheduler).step), step_names(scheduler)
        self.kind, self.shifts_mean = prediction_type_of(scheduler), "guidance_gradient" in self.parameters

    def step(self, scheduler: Any, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """The scheduler's step, of the guided output in the place of the pipeline's."""
        recorder = self.recorder
        calls, recorder.pending = recorder.pending, []
        if not calls:
            raise ValueError(
                f"{recorder.name} steps its scheduler twice after a call of its network, as one that draws "
                "two things at once; allowed: pipelines of which each step has a prediction of its own"
            )
        given = {**dict(zip(self.parameters[1:], args, strict=False)), **kwargs}
        output, timestep, sample = (given[name] for name in self.names)
        first = calls[0].told
        twice = first.facts.doubled and len(sample) == first.total and _is_doubled(sample)
        x = at_least_float32(sample[: len(sample) // 2] if twice else sample)
        if recorder.run.size is None:
            self._check_timestep(timestep)
            recorder.run.size = len(x)
        own = self._condition(calls, len(x))
        self._learn(own, output, x)
        last, prediction = self._predicted(own, x)
        written = self._written(prediction, last, output)
        given[self.names[0]] = torch.cat([written, written]) if twice else written
        if last is not x:
            renewed = last.to(sample.dtype)
            given[self.names[2]] = torch.cat([renewed, renewed]) if twice else renewed
        if prediction.mean is not None:
            given["guidance_gradient"] = prediction.mean
        stepped = type(scheduler).step(scheduler, **given)
        recorder.run.watch.note(recorder.run.level, prediction.x0, stepped[0])
        return stepped

    def _check_timestep(self, timestep: Any) -> None:
        """The step must be of the timestep that the network was told."""
        stepped = largest(timestep)
        listed = float(self.recorder.run.listed[self.recorder.run.place])
        if abs(stepped - listed) > 1e-3 * abs(listed) + 1e-6:
            raise ValueError(
                f"{self.recorder.name} steps its scheduler at the timestep {stepped:g}, and its network was "
                f"told {listed:g}; allowed: pipelines that do both at one"
            )

    def _condition(self, calls: list[Call], size: int) -> Told:
        """What the network was told of the samples at this step, and its null."""
        first, own = calls[0], calls[0].told
        answer, total = answer_of(first.output), own.total
        null = calls[1].told if len(calls) > 1 else None
        if total == 2 * size:
            rows, others = own.halves
            told = own.network, own.facts, own.given
            own, null = Told(*told, rows, answer[rows]), Told(*told, others)
            null.answer = answer[others] if first.half is None else None
        elif total == size:
            # Equal samples may have been taken for a condition and its null.
            own.answer = answer if first.half is None else self.recorder.ask(own, copied(own.arguments))
            if null is not None and calls[1].output is not None:
                null.answer = answer_of(calls[1].output)
        else:
            raise ValueError(
                f"{self.recorder.name} gives its network a batch of {total} for {size} samples; "
                "allowed: one a sample, or two, of the condition and its null"
            )
        if self.null is not None:
            ours = {name: _for_all(value, size) for name, value in self.null.items()}
            null = Told(own.network, own.facts, {**own.arguments, **ours})
        own.null_told = null
        return own

    def _learn(self, own: Told, output: Tensor, sample: Tensor) -> None:
        """Compare what the pipeline made of the answers with them, once: their sign, and their order."""
        run, null = self.recorder.run, own.null_told
        both = null is not None and null.answer is not None
        if run.sign is not None and (run.ordered or not both):
            return
        answers = [read(each.answer, sample)[0] for each in ([own, null] if both else [own])]
        weights = _fitted(read(output[: len(sample)], sample)[0], answers)
        total = float(sum(weights))
        if abs(total) > 1e-3:
            run.sign = 1 if total > 0 else -1
        else:
            run.sign = -1 if own.facts.negated else 1
        run.ordered = both
        if both and weights[0] * run.sign < -1e-2 and weights[1] * run.sign > 1:
            raise ValueError(
                f"{self.recorder.name} tells a {type(own.network).__name__} the null where others tell it "
                "the condition; allowed: the null first in one batch, the condition first in two calls"
            )

    def _predicted(self, own: Told, x: Tensor) -> tuple[Tensor, Prediction]:
        """x_t and its guided prediction, the last of as many as the terms ask for at a level."""
        recorder, run = self.recorder, self.recorder.run
        replay = Replay(recorder.ask, self.kind, run.sign < 0, run.level, x)
        guided = Asked(replay, tuple(run.active), recorder.sequential)
        times = max((term.recurrence for term in run.active), default=1)
        for left in reversed(range(times)):
            step = Step(
                sample=x,
                level=run.level,
                next_level=run.next_level,
                condition=own,
                memory=run.memory,
                prediction_type=self.kind,
                shifts_mean=self.shifts_mean and not left,
            )
            prediction = guided.run(step)
            if left:
                noise = randn_tensor(x.shape, recorder.generator, x.device, x.dtype)
                x, own = renoised(x, prediction.x0, run.level, run.next_level, noise), own.unanswered()
        answers = [replay.answers.get(id(told)) for told in (own, own.null_told)]
        scale = None
        if all(answers):
            scale = effective_scale(answers[0].x0.detach(), answers[1].x0.detach(), prediction.x0)
        run.record.append((run.level, run.active, scale))
        return x, prediction

    def _written(self, prediction: Prediction, x: Tensor, output: Tensor) -> Tensor:
        """The prediction as the pipeline's own output was: its type, and its channels of a variance."""
        written = output_of(prediction.x0, x, self.recorder.run.level, self.kind)
        if output.ndim == x.ndim and output.shape[1] == 2 * x.shape[1]:
            written = torch.cat([written, prediction.extra.to(written)], dim=1)
        return written.to(output.dtype)


def _is_doubled(sample: Tensor) -> bool:
    return len(sample) % 2 == 0 and torch.equal(*sample.chunk(2))


def _for_all(value: Any, size: int) -> Any:
    """An argument of one sample for all of them."""
    one = isinstance(value, Tensor) and value.ndim > 1 and len(value) == 1
    return value.expand(size, *value.shape[1:]) if one else value


def _fitted(output: Tensor, answers: list[Tensor]) -> list[float]:
    """The weights of the answers in what a pipeline made of them, by least squares."""
    columns = torch.stack([answer.flatten() for answer in answers], dim=1).double()
    gram, moments = columns.T @ columns, columns.T @ output.flatten().double()
    if not moments.isfinite().all():  # which is told at the end of the run
        return [0.0] * len(answers)
    weights = torch.linalg.lstsq(gram.cpu(), moments.cpu()[:, None]).solution[:, 0]
    return weights.nan_to_num(0.0).tolist()
