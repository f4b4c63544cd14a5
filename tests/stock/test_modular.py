"""A tiny modular Stable Diffusion XL: classifier-guided by a block, and by our terms as its guider."""

from __future__ import annotations

import pytest
import torch
from diffusers import ClassifierFreeGuidance as StockGuidance
from diffusers import DDPMScheduler, EulerDiscreteScheduler, ModularPipeline
from diffusers.modular_pipelines import SequentialPipelineBlocks, StableDiffusionXLAutoBlocks
from diffusers.modular_pipelines.stable_diffusion_xl import before_denoise, denoise
from tiny import WIDTH, stable_diffusion_schedule, tiny_autoencoder, tiny_unet
from tiny_classifier import tiny_classifier, tiny_noise_aware_classifier

import guided_diffusers
from guided_diffusers import Condition, ModelDenoiser, guide, noise_level, sampling_loop
from guided_diffusers.guidance import (
    AutoGuidance,
    CFGPlusPlus,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    LossGuidance,
    ProjectedGuidance,
    RescaledGuidance,
    views,
)
from guided_diffusers.stock import ClassifierFreeGuider, ClassifierGuidanceBlock, classifier_guided_step
from guided_diffusers.stock.blocks import _loops

LABELS, STEPS, POOLED = torch.tensor([0, 2]), 6, 8


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LATENTS = draw(2, 2, 8, 8, seed=1)
EMBEDS, NEGATIVE = draw(2, 5, WIDTH, seed=2), draw(2, 5, WIDTH, seed=3)
TEXT, NEGATIVE_TEXT = draw(2, POOLED, seed=4), draw(2, POOLED, seed=5)


@pytest.fixture(scope="module")
def components():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = tiny_unet(
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + POOLED,
        )
        return {"unet": unet, "vae": tiny_autoencoder(), "classifier": tiny_classifier(in_channels=2)}


def modular(components, guided=True, guider=None):
    """Everything of Stable Diffusion XL between the text encoders and the decoder, as diffusers has it."""
    loop = denoise.StableDiffusionXLDenoiseStep()
    blocks = {
        "input": before_denoise.StableDiffusionXLInputStep(),
        "set_timesteps": before_denoise.StableDiffusionXLSetTimestepsStep(),
        "prepare_latents": before_denoise.StableDiffusionXLPrepareLatentsStep(),
        "prepare_add_cond": before_denoise.StableDiffusionXLPrepareAdditionalConditioningStep(),
        "denoise": classifier_guided_step(loop) if guided else loop,
    }
    pipeline: ModularPipeline = SequentialPipelineBlocks.from_blocks_dict(blocks).init_pipeline()
    parts = {name: part for name, part in components.items() if guided or name != "classifier"}
    scheduler = stable_diffusion_schedule(EulerDiscreteScheduler)
    pipeline.update_components(**parts, scheduler=scheduler, guider=guider or StockGuidance(3.0))
    return pipeline


def run(pipeline, **kwargs):
    embeds = {
        "prompt_embeds": EMBEDS,
        "negative_prompt_embeds": NEGATIVE,
        "pooled_prompt_embeds": TEXT,
        "negative_pooled_prompt_embeds": NEGATIVE_TEXT,
    }
    state = pipeline(
        num_inference_steps=STEPS, latents=LATENTS.clone(), height=16, width=16, **embeds, **kwargs
    )
    return state.get("latents")


def by_hand(components, guidance):
    """Our loop on the same network."""
    time_ids = torch.tensor([[16.0, 16, 0, 0, 16, 16]]).repeat(2, 1)

    def arguments(states, text):
        added = {"text_embeds": text, "time_ids": time_ids}
        return {"encoder_hidden_states": states, "added_cond_kwargs": added, "return_dict": False}

    condition = Condition(arguments(EMBEDS, TEXT), arguments(NEGATIVE, NEGATIVE_TEXT))
    denoiser = guidance(ModelDenoiser(components["unet"], "epsilon"))
    scheduler = stable_diffusion_schedule(EulerDiscreteScheduler)
    return sampling_loop(denoiser, scheduler, LATENTS, condition, STEPS)


def classifier_term(components, scale, **options):
    classifier = components["classifier"]
    return ClassifierGuidance(lambda x, level, _: classifier.log_prob(x, level, LABELS), scale, **options)


class TestTheBlock:
    @pytest.mark.parametrize("options", [{}, {"interval": (0.5, 3.0)}, {"max_gradient_norm": 0.05}], ids=str)
    def test_it_is_our_loop_with_both_terms(self, components, options):
        ours = by_hand(components, ClassifierFreeGuidance(3.0) + classifier_term(components, 4.0, **options))
        arguments = {"classifier_scale": 4.0, "classifier_options": options}
        guided = run(modular(components), class_labels=LABELS, **arguments)
        torch.testing.assert_close(guided, ours, rtol=0, atol=1e-4)
        assert (guided - run(modular(components, guided=False))).abs().max() > 1e-3

    def test_scale_0_is_the_plain_pipeline(self, components):
        guided = run(modular(components), class_labels=LABELS, classifier_scale=0.0)
        torch.testing.assert_close(guided, run(modular(components, guided=False)), rtol=0, atol=1e-5)

    def test_the_pipeline_lists_what_it_adds(self, components):
        blocks = modular(components).blocks
        assert {"class_labels", "classifier_scale"} <= {each.name for each in blocks.inputs}
        assert "classifier" in blocks.component_names
        with pytest.raises(ValueError, match="'class_labels' is missing"):
            run(modular(components))

    def test_the_loop_that_it_is_put_in_stays_as_it_was(self):
        loop = denoise.StableDiffusionXLDenoiseStep()
        guided = classifier_guided_step(loop)
        assert list(loop.sub_blocks) == ["before_denoiser", "denoiser", "after_denoiser"]
        assert list(guided.sub_blocks)[1:3] == ["denoiser", "classifier_guidance"]
        assert isinstance(guided.sub_blocks["classifier_guidance"], ClassifierGuidanceBlock)
        with pytest.raises(ValueError, match="after is 'unet'; allowed: 'before_denoiser', 'denoiser'"):
            classifier_guided_step(loop, after="unet")

    def test_blocks_that_hold_loops_are_guided_in_each_of_them(self):
        whole = StableDiffusionXLAutoBlocks()
        guided = classifier_guided_step(whole)
        loops = [[*_loops(blocks)] for blocks in (whole, guided)]
        assert len(loops[0]) == len(loops[1]) > 2
        assert not any("classifier_guidance" in loop.sub_blocks for loop in loops[0])
        assert all(list(loop.sub_blocks)[1:3] == ["denoiser", "classifier_guidance"] for loop in loops[1])
        assert "classifier" in {each.name for each in guided.expected_components}
        with pytest.raises(ValueError, match="StableDiffusionXLDecodeStep, which holds no denoising loop"):
            classifier_guided_step(whole.sub_blocks["decode"].sub_blocks["non-inpaint"])

    def test_a_classifier_of_another_process_is_refused(self, components):
        cosine = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
        other = {**components, "classifier": tiny_noise_aware_classifier(cosine, in_channels=2)}
        with pytest.raises(ValueError, match="classifier was trained for another process"):
            run(modular(other), class_labels=LABELS)

    def test_what_needs_the_network_is_refused(self, components):
        with pytest.raises(ValueError, match="through='denoised'"):
            run(modular(components), class_labels=LABELS, classifier_options={"through": "denoised"})


class TestTheGuider:
    def outputs(self):
        return draw(2, 2, 8, 8, seed=6), draw(2, 2, 8, 8, seed=7)

    @pytest.mark.parametrize("scale", [0.0, 1.0, 3.5])
    def test_its_forward_is_diffusers_own_and_ours(self, scale):
        cond, null = self.outputs()
        ours = ClassifierFreeGuider(ClassifierFreeGuidance(scale))(self.predictions(cond, null, scale)).pred
        theirs = StockGuidance(scale).forward(cond, null if scale != 1 else None).pred
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours, null + scale * (cond - null), rtol=0, atol=1e-5)

    def predictions(self, cond, null, scale):
        guider = ClassifierFreeGuider(ClassifierFreeGuidance(scale))
        given = {"states": (torch.ones(1), torch.zeros(1))}
        batches = guider.prepare_inputs(given)
        assert len(batches) == (1 if scale == 1 else 2) == guider.num_conditions
        for batch, prediction in zip(batches, (cond, null), strict=False):
            batch.noise_pred = prediction
        return batches

    def test_rescaled_is_diffusers_own(self):
        cond, null = self.outputs()
        ours = ClassifierFreeGuider(RescaledGuidance(4.0, rescale=0.7)).forward(cond, null).pred
        theirs = StockGuidance(4.0, guidance_rescale=0.7).forward(cond, null).pred
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)

    def test_a_sum_of_terms_and_a_scale_a_sample(self):
        cond, null = self.outputs()
        guidance = ClassifierFreeGuidance([1.0, 3.0]) + ClassifierFreeGuidance(2.0)
        ours = ClassifierFreeGuider(guidance).forward(cond, null).pred
        weight = torch.tensor([0.0, 2.0])[:, None, None, None] + 1
        torch.testing.assert_close(ours, cond + weight * (cond - null), rtol=0, atol=1e-5)

    def test_in_a_pipeline_it_is_our_loop(self, components):
        guided = run(
            modular(components, guided=False, guider=ClassifierFreeGuider(ClassifierFreeGuidance(2.5)))
        )
        torch.testing.assert_close(
            guided, by_hand(components, ClassifierFreeGuidance(2.5)), rtol=0, atol=1e-4
        )

    def test_outside_its_interval_the_network_runs_once(self, components):
        guidance = ClassifierFreeGuidance(2.5, (0.5, 3.0))
        guider = ClassifierFreeGuider(guidance)
        pipeline, calls = modular(components, guided=False, guider=guider), []
        pipeline.guider.attach(pipeline.scheduler)
        handle = components["unet"].register_forward_hook(lambda *each: calls.append(1))
        guided = run(pipeline)
        handle.remove()
        torch.testing.assert_close(guided, by_hand(components, guidance), rtol=0, atol=1e-4)
        scheduler = stable_diffusion_schedule(EulerDiscreteScheduler)
        scheduler.set_timesteps(STEPS)
        inside = sum(noise_level(scheduler, t) in guidance.interval for t in scheduler.timesteps)
        assert len(calls) == STEPS + inside and 0 < inside < STEPS

    def test_disabled_it_is_the_conditional_model(self):
        guider = ClassifierFreeGuider(ClassifierFreeGuidance(2.5))
        guider.disable()
        assert guider.num_conditions == 1
        cond, null = self.outputs()
        assert torch.equal(guider.forward(cond, null).pred, cond)

    def test_save_and_load(self, tmp_path):
        guider = ClassifierFreeGuider(RescaledGuidance(4.0, (0.2, None), rescale=0.5))
        guider.save_pretrained(tmp_path)
        assert ClassifierFreeGuider.from_pretrained(tmp_path).guidance == guider.guidance
        assert guider.new(enabled=False).guidance == guider.guidance
        assert "RescaledGuidance" in repr(guider)
        assert guided_diffusers.ClassifierFreeGuider is ClassifierFreeGuider

    @pytest.mark.parametrize("how", ["guider", "guide"])
    @pytest.mark.parametrize("name", ["projected", "cfg++", "classifier", "loss", "view"])
    def test_any_term_is_our_loop(self, components, name, how):
        view = AutoGuidance(views.skip_layers(components["unet"], "mid_block"), 2.0)
        term = {
            "projected": ProjectedGuidance(3.0, (0.5, None)),
            "cfg++": CFGPlusPlus(0.6),
            "classifier": classifier_term(components, 4.0) + ClassifierFreeGuidance(2.0),
            "loss": LossGuidance(lambda x: x.square().flatten(1).mean(1), 3.0, through="denoised"),
            "view": view,
        }[name]
        pipeline = modular(
            components, guided=False, guider=ClassifierFreeGuider(term) if how == "guider" else None
        )
        handle = pipeline.guider.attach(pipeline).handle if how == "guider" else guide(pipeline, term)
        torch.testing.assert_close(run(pipeline), by_hand(components, term), rtol=0, atol=1e-4)
        assert len(handle.record) == STEPS and handle.calls[0] == 2
        handle.remove()

    def test_a_term_that_needs_more_than_outputs(self, components):
        pipeline = modular(components, guided=False, guider=ClassifierFreeGuider(ProjectedGuidance(3.0)))
        with pytest.raises(ValueError, match=r"has a ProjectedGuidance.*guider.attach\(pipeline\)"):
            run(pipeline)

    def test_an_interval_without_a_scheduler_and_a_prediction_type(self):
        guider = ClassifierFreeGuider(ClassifierFreeGuidance(2.0, (0.5, 2.0)))
        with pytest.raises(ValueError, match=r"call guider.attach\(pipeline.scheduler\)"):
            guider.forward(*self.outputs())
        with pytest.raises(ValueError, match="has a RescaledGuidance"):
            ClassifierFreeGuider(RescaledGuidance(2.0, prediction_type="epsilon")).forward(*self.outputs())

    def test_why_classifier_guidance_is_no_guider(self, components):
        """Stable Diffusion XL's block gives a guider conditions and a timestep: no latents, no scheduler."""
        received = set()

        class Recording(ClassifierFreeGuider):
            def prepare_inputs(self, data):
                received.update(data)
                return super().prepare_inputs(data)

        run(modular(components, guided=False, guider=Recording(ClassifierFreeGuidance(2.0))))
        assert received == {"prompt_embeds", "time_ids", "text_embeds", "image_embeds"}
