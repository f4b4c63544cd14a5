import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from laws.exact import draw, exact_denoiser, level_at

from guided_diffusers import Condition, Denoised, sampling_loop
from guided_diffusers.guidance import (
    AutoGuidance,
    CFGPlusPlus,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    Guidance,
    GuidanceInterval,
    GuidanceSum,
    HistoryGuidance,
    ProjectedGuidance,
    Query,
    Step,
)
from guided_diffusers.guidance.base import checked_scale

LABELS = torch.tensor([0, 1, 2, 0])


def log_prob(sample, level, condition):
    return -sample.square().sum(1)


def weak(sample, level, condition=None):
    return 0.5 * sample


class TestConfig:
    GUIDANCE = (
        ClassifierFreeGuidance(2.5, (0.2, 8.0))
        + ClassifierGuidance(log_prob, [1.0, 2.0], (0.5, None), form="mean_shift")
        + ClassifierGuidance(log_prob, 0.5, at="mean", max_gradient_norm=3.0)
        + AutoGuidance(weak, 1.4)
    )

    def test_there_and_back_through_json(self):
        config = json.loads(json.dumps(self.GUIDANCE.to_config(), allow_nan=False))
        assert Guidance.from_config(config, weak=weak, log_prob=log_prob) == self.GUIDANCE

    def test_it_says_all_but_the_networks(self):
        assert self.GUIDANCE.to_config() == [
            {"term": "ClassifierFreeGuidance", "scale": 2.5, "interval": [0.2, 8.0]},
            {
                "term": "ClassifierGuidance",
                "scale": [1.0, 2.0],
                "interval": [0.5, None],
                "form": "mean_shift",
                "through": "classifier",
                "at": "sample",
                "max_gradient_norm": None,
            },
            {
                "term": "ClassifierGuidance",
                "scale": 0.5,
                "interval": None,
                "form": "score",
                "through": "classifier",
                "at": "mean",
                "max_gradient_norm": 3.0,
            },
            {"term": "AutoGuidance", "scale": 1.4, "interval": None, "null": False},
        ]

    def test_a_single_term_and_an_empty_sum(self):
        term = ClassifierFreeGuidance(2.5)
        assert Guidance.from_config(term.to_config()) == term == Guidance.from_config(term.to_config()[0])
        assert Guidance.from_config([]) == GuidanceSum()
        assert GuidanceSum().to_config() == []

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            (
                {"term": "MagicGuidance", "scale": 2.0},
                "'MagicGuidance'; known terms: .*ClassifierFreeGuidance",
            ),
            ({"scale": 2.0}, "guidance term is None"),
            ({"term": "GuidanceSum"}, "'GuidanceSum'"),
            ({"term": "ClassifierFreeGuidance", "gamma": 2.0}, "unknown key 'ClassifierFreeGuidance.gamma'"),
            ({"term": "ClassifierFreeGuidance"}, "scale is required"),
            ({"term": "ClassifierFreeGuidance", "scale": float("nan")}, "finite"),
            ({"term": "ClassifierFreeGuidance", "scale": 2.0, "interval": [3.0, 1.0]}, "interval is"),
            ({"term": "AutoGuidance", "scale": 2.0}, "AutoGuidance needs weak="),
            ({"term": "ClassifierGuidance", "scale": 2.0}, "ClassifierGuidance needs log_prob="),
        ],
    )
    def test_errors(self, config, message):
        with pytest.raises(ValueError, match=message):
            Guidance.from_config([config])

    def test_a_term_of_ones_own_is_known_by_its_name(self):
        @dataclass(frozen=True)
        class HalfwayToOrigin(Guidance):
            scale: float
            interval: GuidanceInterval | None = None

            def shift(self, step, own, answers):
                return -self.scale * own.x0 / 2

        term = HalfwayToOrigin(1.0)
        assert Guidance.from_config(term.to_config()) == term
        sample, level = draw(4, 2), level_at(1.0)
        x0 = exact_denoiser()(sample, level)
        torch.testing.assert_close(
            (term + ClassifierFreeGuidance(1.0))(exact_denoiser())(sample, level), x0 / 2
        )


class TestScale:
    @pytest.mark.parametrize(
        ("given", "kept"),
        [
            (2, 2.0),
            (np.float32(2.5), 2.5),
            (torch.tensor(2.5), 2.5),
            ([1, 2.5], (1.0, 2.5)),
            ((1.0,), (1.0,)),
            (torch.tensor([1.0, 2.5]), (1.0, 2.5)),
            (np.array([1.0, 2.5]), (1.0, 2.5)),
        ],
    )
    def test_what_it_may_be(self, given, kept):
        assert checked_scale(given) == kept
        assert ClassifierFreeGuidance(given).scale == kept

    @pytest.mark.parametrize("scale", ["2", None, True, {}, [[1.0]], ["x"], torch.ones(2, 2), object()])
    def test_wrong_types(self, scale):
        with pytest.raises(TypeError, match="(?s)scale is .*allowed: a number"):
            ClassifierFreeGuidance(scale)

    @pytest.mark.parametrize("scale", [math.nan, math.inf, [1.0, math.nan], torch.tensor(math.nan), []])
    def test_wrong_values(self, scale):
        with pytest.raises(ValueError, match="scale is .*finite"):
            AutoGuidance(weak, scale)

    def test_as_many_as_samples(self):
        guided = ClassifierFreeGuidance([1.0, 2.0, 3.0])(exact_denoiser())
        with pytest.raises(ValueError, match=r"\(3,\); allowed: \(\) or \(4,\)"):
            guided(draw(4, 2), level_at(1.0), LABELS)


class TestAlgebra:
    def test_terms_are_values(self):
        one = ClassifierFreeGuidance(2.0, GuidanceInterval(0.1, 2.0))
        assert one == ClassifierFreeGuidance(2.0, [0.1, 2.0]) and hash(one) == hash(replace(one))
        assert one != replace(one, scale=2.1)
        with pytest.raises(AttributeError):
            one.scale = 3.0

    def test_sums_are_flat_and_leave_their_parts_alone(self):
        a, b, c = ClassifierFreeGuidance(2.0), AutoGuidance(weak, 1.5), ClassifierGuidance(log_prob, 1.0)
        assert ((a + b) + c).terms == (a + (b + c)).terms == (a, b, c)
        assert (a + GuidanceSum()).terms == a.terms == (a,)
        with pytest.raises(TypeError):
            a + 1

    def test_an_empty_sum_leaves_the_denoiser_as_it_is(self):
        sample, level = draw(4, 2), level_at(1.0)
        assert torch.equal(
            GuidanceSum()(exact_denoiser())(sample, level, LABELS), exact_denoiser()(sample, level, LABELS)
        )

    def test_guiding_twice_adds(self):
        a, b = ClassifierFreeGuidance(2.0), AutoGuidance(weak, 1.5)
        assert b(a(weak)).guidance == (a, b) and b(a(weak)).denoiser is weak

    def test_a_guided_denoiser_is_a_denoiser(self):
        """Guided by itself at another scale, as a weak network for instance."""
        sample, level = draw(4, 2), level_at(1.0)
        guided = ClassifierFreeGuidance(3.0)(exact_denoiser())
        x0, strong = exact_denoiser()(sample, level, LABELS), guided(sample, level, LABELS)
        torch.testing.assert_close(
            AutoGuidance(guided, 2.0)(exact_denoiser())(sample, level, LABELS), 2 * x0 - strong
        )

    @pytest.mark.parametrize("through", ["classifier", "denoised"])
    def test_no_graph_leaves_a_step(self, through):
        sample = draw(4, 2).requires_grad_()
        guided = ClassifierGuidance(log_prob, 1.0, through=through)(
            lambda x, level, condition: Denoised(2 * x, 3 * x)
        )
        answer = guided.run(Step(sample=sample, level=level_at(1.0)))
        assert not answer.x0.requires_grad and not answer.extra.requires_grad
        assert sample.grad is None

    @pytest.mark.parametrize("term", [ProjectedGuidance(3.0), HistoryGuidance(cutoff=None)])
    def test_no_graph_stays_in_the_memory_of_a_run(self, term):
        """Each step's would hold those of all steps before it."""
        memory = {}
        guidance = term + ClassifierGuidance(log_prob, 1.0, through="denoised")
        step = Step(sample=draw(4, 2), level=level_at(1.0), condition=LABELS, memory=memory)
        for _ in range(2):
            guidance(exact_denoiser()).run(step)
        kept = [
            each for value in memory.values() for each in (value if isinstance(value, tuple) else [value])
        ]
        assert any(torch.is_tensor(each) for each in kept)
        assert not any(torch.is_tensor(each) and each.requires_grad for each in kept)

    def test_memory_belongs_to_the_run(self):
        @dataclass(frozen=True)
        class Momentum(Guidance):
            scale: float = 1.0
            interval: GuidanceInterval | None = None

            def shift(self, step, own, answers):
                step.memory["sum"] = own.x0 + step.memory.get("sum", 0.0)
                return step.memory["sum"]

        guided, sample, memory = Momentum()(weak), torch.ones(1, 2), {}
        step = Step(sample=sample, level=level_at(1.0), memory=memory)
        assert [guided.run(step).x0[0, 0].item() for _ in range(3)] == [1.0, 1.5, 2.0]
        assert guided(sample, level_at(1.0))[0, 0] == guided(sample, level_at(1.0))[0, 0] == 1.0

    def test_each_network_answers_its_own_queries_in_their_order(self):
        @dataclass(frozen=True)
        class Asks(Guidance):
            scale: float = 1.0
            interval: GuidanceInterval | None = None

            def queries(self, step):
                return (
                    Query(condition=3),
                    Query(condition=5, network=other),
                    Query(condition=7),
                    Query(condition=3),
                )

            def shift(self, step, own, answers):
                return sum(10 ** (2 * i) * answer.x0 for i, answer in enumerate(answers))

        def base(sample, level, condition):
            return torch.full_like(sample, condition)

        def other(sample, level, condition):
            return torch.full_like(sample, 2 * condition)

        assert Asks()(base)(torch.zeros(1, 1), level_at(1.0), 1).item() == 1 + 3 + 1000 + 70000 + 3000000

    @pytest.mark.parametrize(
        ("guidance", "gamma", "needs_null"),
        [
            (ClassifierFreeGuidance(3.0), 3.0, True),
            (ClassifierFreeGuidance(1.0), 1.0, False),
            (ClassifierFreeGuidance([1.0, 2.0]), (1.0, 2.0), True),
            (ProjectedGuidance(4.0), 4.0, True),
            (CFGPlusPlus(0.6), None, True),
            (CFGPlusPlus(1.0), None, True),
            (AutoGuidance(print, 2.0), None, False),
            (AutoGuidance(print, 2.0, null=True), None, True),
            (AutoGuidance(print, 1.0, null=True), None, False),
            (ClassifierGuidance(print, 2.0), None, False),
            (ClassifierGuidance(print, 2.0) + ClassifierFreeGuidance(3.0), 3.0, True),
            (ClassifierFreeGuidance(2.0) + ClassifierFreeGuidance(3.0), None, True),
            (GuidanceSum(), None, False),
        ],
    )
    def test_terms_say_their_gamma_and_whether_they_need_the_null(self, guidance, gamma, needs_null):
        assert guidance.gamma == gamma and guidance.needs_null is needs_null

    @pytest.mark.parametrize("null", [True, False])
    def test_a_null_that_is_not_there_is_missed_before_the_network_runs(self, null):
        calls = []

        def denoiser(sample, level, condition):
            calls.append(condition)
            return sample

        term = AutoGuidance(denoiser, 2.0, (0, 0.5), null=True) if null else CFGPlusPlus(0.5, (0, 0.5))
        with pytest.raises(ValueError, match="no negative"):
            sampling_loop(term(denoiser), DDIMScheduler(), torch.ones(1, 2), Condition({}), 10)
        assert not calls

    def test_a_condition_without_negative_is_refused(self):
        with pytest.raises(ValueError, match="no negative"):
            ClassifierFreeGuidance(2.0)(exact_denoiser())(draw(4, 2), level_at(1.0), Condition({"a": LABELS}))
