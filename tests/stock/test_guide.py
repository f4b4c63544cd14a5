"""`guide` in pipelines of diffusers: what it draws, what it costs, what it leaves behind, what it refuses."""

from __future__ import annotations

import copy

import accelerate
import diffusers
import pytest
import torch
from own_loop import by_our_loop, drawn
from stock_families import (
    FAMILIES,
    GAMMA,
    STEPS,
    UNGUIDED,
    WITHOUT_A_NULL,
    embeds,
    made,
    stable_diffusion,
)

from guided_diffusers import ModelDenoiser, guide
from guided_diffusers.core.finite import NonFiniteError
from guided_diffusers.guidance import (
    AutoGuidance,
    CFGPlusPlus,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    HistoryGuidance,
    LossGuidance,
    ProjectedGuidance,
    RectifiedCFGPlusPlus,
    SlidingWindowGuidance,
)


@pytest.fixture(scope="module")
def sd():
    return FAMILIES["sd1"], made("sd1")


def assert_same(ours, theirs):
    """Equal to 1e-5 of the deviation of what was drawn."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(float(theirs.std()), 1))


class TestHandles:
    def test_a_scale_one_sample_each_and_a_batch(self, sd):
        case, pipeline = sd
        given = {name: value.repeat(2, 1, 1) for name, value in embeds().items()}
        latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
        with guide(pipeline, ClassifierFreeGuidance((1.0, GAMMA))) as run:
            both = case.call(pipeline, **given, latents=latents)
        assert run.calls == [4] * len(run.record)
        torch.testing.assert_close(run.record[0]["effective_scale"], [1.0, GAMMA], rtol=1e-4, atol=1e-4)
        for row, scale in enumerate((0.0, GAMMA)):
            alone = case.call(pipeline, latents=latents[row : row + 1], guidance_scale=scale)
            assert_same(both[row : row + 1], alone)

    def test_sequential_asks_one_condition_after_another(self, sd):
        case, pipeline = sd
        plain = case.call(pipeline)
        with guide(pipeline, ClassifierFreeGuidance(GAMMA), sequential=True) as run:
            assert_same(case.call(pipeline), plain)
        assert run.calls == [1, 1] * len(run.record)

    def test_every_call_begins_anew(self, sd):
        case, pipeline = sd
        with guide(pipeline, ProjectedGuidance(GAMMA, momentum=-0.7)) as run:
            first = case.call(pipeline)
            assert torch.equal(case.call(pipeline), first)
            assert len(run.record) == len(run.calls)

    def test_afterwards_nothing_is_left(self, sd):
        case, pipeline = sd
        before = case.call(pipeline)
        held = set(vars(pipeline.unet)), set(vars(pipeline.scheduler)), type(pipeline)
        with (
            pytest.raises(ZeroDivisionError),
            guide(pipeline, ClassifierGuidance(lambda *_: 1 / 0, 1.0)) as run,
        ):
            case.call(pipeline)
        assert (set(vars(pipeline.unet)), set(vars(pipeline.scheduler)), type(pipeline)) == held
        assert torch.equal(case.call(pipeline), before)
        run.remove()

    def test_copies_are_not_guided(self, sd):
        case, pipeline = sd
        plain = case.call(pipeline)
        with guide(pipeline, ClassifierFreeGuidance(9.0)):
            assert torch.equal(case.call(copy.deepcopy(pipeline)), plain)

    def test_a_scheduler_that_is_exchanged_later(self, sd):
        case, pipeline = sd
        own = pipeline.scheduler
        with guide(pipeline, ClassifierFreeGuidance(GAMMA)) as run:
            pipeline.scheduler = stable_diffusion(diffusers.HeunDiscreteScheduler)
            ours = case.call(pipeline)
        assert_same(ours, case.call(pipeline))
        assert len(run.record) == 2 * STEPS - 1
        pipeline.scheduler = own

    def test_a_callback_and_the_null_dropped_midway(self, sd):
        case, pipeline = sd

        def drop(pipe, index, timestep, given):
            if index == 2:
                pipe._guidance_scale = 0.0
                given["prompt_embeds"] = given["prompt_embeds"].chunk(2)[-1]
            return given

        callback = {
            "callback_on_step_end": drop,
            "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
        }
        with guide(pipeline, ClassifierFreeGuidance(1.0)):
            dropped = case.call(pipeline, **callback)
            assert_same(dropped, case.call(pipeline))
        with (
            guide(pipeline, ClassifierFreeGuidance(2.0)),
            pytest.raises(ValueError, match="told its network none"),
        ):
            case.call(pipeline, **callback)

    def test_a_weak_network_is_told_the_same(self, sd):
        """A weak denoiser gets what the network was told."""
        case, pipeline = sd
        weak = ModelDenoiser(made("sd1").unet, "epsilon")  # equal weights: no shift
        with guide(pipeline, AutoGuidance(weak, 3.0)) as run:
            ours = case.call(pipeline)
        with guide(pipeline, ClassifierFreeGuidance(1.0)):
            assert_same(ours, case.call(pipeline))
        assert run.calls == [1] * len(run.record)


LOSS = LossGuidance(lambda images: images.square().flatten(1).mean(1), 3.0, recurrence=2)


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"guidance_scale": 1.0}, "guidance_scale is 1.0, which switches off the null"),
            ({"guidance_scale": 0}, "give any above 1"),
        ],
    )
    def test_a_scale_that_switches_the_null_off(self, sd, arguments, message):
        case, pipeline = sd
        with guide(pipeline, ClassifierFreeGuidance(2.0)) as run, pytest.raises(ValueError, match=message):
            case.call(pipeline, **arguments)
        assert run.calls == []

    def test_a_scale_that_overflows_is_told_before_the_network_is_called(self, sd):
        case, pipeline = sd
        with (
            guide(pipeline, ClassifierFreeGuidance(2.0)) as run,
            pytest.raises(ValueError, match="guidance_s"),
        ):
            case.call(pipeline, guidance_scale=1e308)
        assert run.calls == []

    def test_a_run_that_stops_being_finite_is_told(self, sd):
        """What overflows in the loss alone: the pipeline would give a black picture."""
        case, pipeline = sd
        torn = LossGuidance(lambda images: (images.flatten(1) * 1e30).square().sum(1), 1.0)
        with guide(pipeline, torn), pytest.raises(NonFiniteError, match="not finite after step 1 of 6"):
            case.call(pipeline)

    def test_guidance_of_the_pipeline_itself(self):
        case, pipeline = FAMILIES["sd3"], made("sd3")
        with (
            guide(pipeline, ClassifierFreeGuidance(2.0)) as run,
            pytest.raises(ValueError, match="skip_layers"),
        ):
            case.call(pipeline, skip_guidance_layers=[1])
        assert run.calls == []

    @pytest.mark.parametrize(
        ("name", "term", "message"),
        [
            ("sd1", RectifiedCFGPlusPlus(2.0), "is of flow matching"),
            ("flux", SlidingWindowGuidance(1.0), "is of images"),
            ("flux", HistoryGuidance(), "allowed: cutoff=None"),
            (
                "sd1",
                CFGPlusPlus(0.6),
                "CFG[+][+] goes on from noise of .* to no less",
            ),  # PNDM, its second step
            ("sd2 zero-snr", ClassifierFreeGuidance(2.0), r"alpha = 0 \(zero terminal SNR\)"),
        ],
        ids=lambda value: value if isinstance(value, str) else type(value).__name__,
    )
    def test_terms_and_levels_that_do_not_suit_are_told_before_the_network_is_called(
        self, name, term, message
    ):
        case, pipeline = FAMILIES[name], made(name)
        if name == "sd2 zero-snr":
            pipeline.scheduler.register_to_config(prediction_type="epsilon")
        with guide(pipeline, term) as run, pytest.raises(ValueError, match=message):
            case.call(pipeline)
        assert run.calls == []

    @pytest.mark.parametrize(
        ("name", "message"),
        [("three conditions", "has image_guidance_scale"), ("sound", "predicts video and sound at once")],
    )
    def test_pipelines_that_cannot_be_guided_are_told_at_once(self, name, message):
        with pytest.raises(ValueError, match=message):
            guide(UNGUIDED[name](), ClassifierFreeGuidance(2.0))

    def test_no_negative_prompt(self):
        case, pipeline = FAMILIES["flux"], made("flux")
        alone = {"negative_prompt_embeds": None, "negative_pooled_prompt_embeds": None}
        with (
            guide(pipeline, ClassifierFreeGuidance(2.0)),
            pytest.raises(ValueError, match="negative_prompt is None"),
        ):
            case.call(pipeline, **alone)

    def test_a_network_that_keeps_answers(self):
        pipeline = made("flux")
        pipeline.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
        with pytest.raises(ValueError, match=r"transformer keeps answers.*transformer.disable_cache"):
            guide(pipeline, ClassifierFreeGuidance(2.0))

    def test_what_is_no_pipeline_or_no_guidance(self, sd):
        _, pipeline = sd
        term = ClassifierFreeGuidance(2.0)
        with pytest.raises(ValueError, match="pipeline is"):
            guide(pipeline.unet, term)
        with pytest.raises(TypeError, match="guidance is"):
            guide(pipeline, 7.5)
        with pytest.raises(ValueError, match="guidance is for transformer"):
            guide(pipeline, {"transformer": term})
        with pytest.raises(ValueError, match="condition has 'states'; the unet takes timestep"):
            guide(pipeline, term, condition={"states": torch.zeros(1)})
        with guide(pipeline, term), pytest.raises(ValueError, match="is guided already"):
            guide(pipeline, term)
        assert type(pipeline) is diffusers.StableDiffusionPipeline


class TestOthersAround:
    """What others put around a network or into it works, and is left as it was."""

    @pytest.mark.parametrize(
        "how",
        [
            pytest.param("compiled in place", marks=pytest.mark.slow),
            pytest.param("a compiled object", marks=pytest.mark.slow),
            "moved in groups",
            "moved as a whole",
        ],
    )
    def test_compiled_and_offloaded(self, sd, how):
        case, pipeline = sd[0], made("sd1")
        plain = case.call(pipeline)
        if how == "compiled in place":
            pipeline.unet.compile(backend="eager")
        elif how == "a compiled object":
            pipeline.unet = torch.compile(pipeline.unet, backend="eager")
        elif how == "moved as a whole":
            accelerate.cpu_offload_with_hook(pipeline.unet, "cpu")
        else:
            where = torch.device("cpu")
            pipeline.unet.enable_group_offload(where, where, offload_type="leaf_level")
        held = dict(vars(pipeline.unet))
        with guide(pipeline, ClassifierFreeGuidance(GAMMA)) as run:
            assert_same(case.call(pipeline), plain)
            assert run.calls == [2] * len(run.record)
        with guide(pipeline, case.viewed(pipeline, 2.0) + ClassifierFreeGuidance(GAMMA, (1.0, None))):
            case.call(pipeline)
        assert dict(vars(pipeline.unet)) == held
        assert_same(case.call(pipeline), plain)

    def test_half_precision(self):
        case, pipeline = FAMILIES["sd3"], made("sd3").to(torch.bfloat16)
        given = {name: value.bfloat16() for name, value in case.arguments().items()}
        plain = case.call(pipeline, **given)
        with guide(pipeline, ClassifierFreeGuidance(GAMMA)):
            ours = case.call(pipeline, **given)
        assert ours.dtype == torch.bfloat16 and (ours - plain).std() < 0.02 * plain.std()
        with guide(pipeline, LOSS + case.viewed(pipeline, 2.0)):
            assert case.call(pipeline, **given).isfinite().all()

    def test_a_distilled_scale_stays_an_input(self):
        """Flux's `guidance`: the embedding is told to both, and the null is the pipeline's or ours."""
        case = FAMILIES["flux distilled"]
        pipeline, given = made("flux distilled"), embeds(pooled_prompt_embeds=8)
        plain = case.call(pipeline, guidance_scale=3.5)
        with guide(pipeline, ClassifierFreeGuidance(GAMMA)):
            assert_same(case.call(pipeline, guidance_scale=3.5), plain)
            assert (case.call(pipeline, guidance_scale=1.5) - plain).abs().max() > 1e-3
        null = {"encoder_hidden_states": given["negative_prompt_embeds"]}
        null["pooled_projections"] = given["negative_pooled_prompt_embeds"]
        alone = {"negative_prompt_embeds": None, "negative_pooled_prompt_embeds": None, "true_cfg_scale": 1.0}
        with guide(pipeline, ClassifierFreeGuidance(GAMMA), condition=null) as run:
            assert_same(case.call(pipeline, guidance_scale=3.5, **alone), plain)
            assert_same(case.call(pipeline, guidance_scale=3.5), plain)
        assert run.calls == [1, 1] * STEPS

    @pytest.mark.parametrize(
        "term", [ClassifierFreeGuidance(GAMMA), ProjectedGuidance(GAMMA)], ids=["plain", "projected"]
    )
    def test_a_pipeline_without_a_negative_prompt(self, term):
        """Flux 2 knows none: the null is our call, of embeddings of any length."""
        case, pipeline = WITHOUT_A_NULL["flux2"], made("flux2")
        null = {"encoder_hidden_states": torch.randn(1, 6, 12, generator=torch.Generator().manual_seed(8))}
        with guide(pipeline, term, condition=null) as run:
            ours = drawn(case, pipeline, STEPS)
        assert run.calls == [1, 1] * STEPS
        assert_same(ours, by_our_loop(case, pipeline, term, STEPS, null))
        with guide(pipeline, term), pytest.raises(ValueError, match="told its network none.*condition="):
            case.call(pipeline)

    def test_two_networks_have_a_guidance_each(self):
        case, pipeline = FAMILIES["wan 2.2"], made("wan 2.2")
        plain = case.call(pipeline, guidance_scale_2=7.0)
        each = {"transformer": ClassifierFreeGuidance(GAMMA), "transformer_2": ClassifierFreeGuidance(7.0)}
        with guide(pipeline, each) as run:
            assert_same(case.call(pipeline), plain)
        scales = [round(each["effective_scale"][0]) for each in run.record]
        assert sorted(set(scales)) == [GAMMA, 7] and scales == sorted(scales)
        view = case.viewed(pipeline, 2.0)["transformer"]
        with pytest.raises(ValueError, match="view of another network than the pipeline's transformer_2"):
            guide(pipeline, view)
