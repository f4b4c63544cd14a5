"""TextToImagePipeline: its calls, its guidance, its callbacks."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
)
from tiny import CONTEXT, LATENT, WIDTH, stable_diffusion_schedule, tiny_components, tiny_unet
from torch import Tensor

from guided_diffusers import Condition, ModelDenoiser, TextToImagePipeline, noise_level, sampling_loop
from guided_diffusers.guidance import (
    AutoGuidance,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    GuidanceInterval,
)


@pytest.fixture
def pipeline() -> TextToImagePipeline:
    pipe = TextToImagePipeline(**tiny_components())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents_of(pipe: TextToImagePipeline, prompt: Any = "a boot", **arguments: Any) -> Tensor:
    call = {"num_inference_steps": 4, "generator": torch.Generator().manual_seed(0), "output_type": "latent"}
    return pipe(prompt, **{**call, **arguments}).images


def count_batches(unet: UNet2DConditionModel) -> list[int]:
    batches: list[int] = []
    unet.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(len(args[0])), with_kwargs=True
    )
    return batches


def test_output_types_and_shapes(pipeline: TextToImagePipeline) -> None:
    images = {
        kind: pipeline(
            ["a boot", "a bag"],
            num_inference_steps=2,
            output_type=kind,
            generator=torch.Generator().manual_seed(0),
        ).images
        for kind in ("pil", "np", "pt", "latent")
    }
    assert [image.size for image in images["pil"]] == [(16, 16)] * 2
    assert images["np"].shape == (2, 16, 16, 1)
    assert images["pt"].shape == (2, 1, 16, 16)
    assert images["latent"].shape == (2, *LATENT)
    assert 0 <= images["np"].min() and images["np"].max() <= 1
    torch.testing.assert_close(torch.from_numpy(images["np"]).permute(0, 3, 1, 2), images["pt"])
    decoded = (pipeline.vae.decode(images["latent"]).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(decoded, images["pt"])


@pytest.mark.slow
def test_a_compiled_denoiser_draws_the_same(pipeline: TextToImagePipeline, tmp_path: Path) -> None:
    """In guided and unguided steps, and it is saved as what it was."""
    arguments = {"guidance_scale": 3.0, "guidance_interval": (0.2, 5.0)}
    expected = latents_of(pipeline, **arguments)
    pipeline.unet = torch.compile(pipeline.unet, backend="aot_eager")
    torch.testing.assert_close(latents_of(pipeline, **arguments), expected, rtol=0, atol=1e-5)
    pipeline.save_pretrained(tmp_path)
    loaded = TextToImagePipeline.from_pretrained(tmp_path)
    torch.testing.assert_close(latents_of(loaded, **arguments), expected, rtol=0, atol=1e-5)


def test_return_dict_false_gives_the_pair(pipeline: TextToImagePipeline) -> None:
    images, flagged = pipeline("a boot", num_inference_steps=1, output_type="pt", return_dict=False)
    assert images.shape == (1, 1, 16, 16) and flagged is None


def test_unconditional_and_conditional_ends_of_the_scale(pipeline: TextToImagePipeline) -> None:
    """gamma = 1 ignores the negative prompt, gamma = 0 the prompt."""
    conditional = latents_of(pipeline, guidance_scale=1)
    torch.testing.assert_close(latents_of(pipeline, guidance_scale=1, negative_prompt="bag"), conditional)
    unconditional = latents_of(pipeline, guidance_scale=0)
    torch.testing.assert_close(
        latents_of(pipeline, "another thing", guidance_scale=0), unconditional, rtol=0, atol=1e-4
    )
    torch.testing.assert_close(latents_of(pipeline, "", guidance_scale=1), unconditional, rtol=0, atol=1e-4)
    assert (conditional - unconditional).abs().max() > 1e-3


def test_the_network_runs_once_a_step_and_doubled_only_while_guidance_is_active(
    pipeline: TextToImagePipeline,
) -> None:
    batches = count_batches(pipeline.unet)
    latents_of(pipeline, ["a boot", "a bag"], guidance_scale=3)
    assert batches == [4, 4, 4, 4]
    batches.clear()
    latents_of(pipeline, ["a boot", "a bag"], guidance_scale=1)
    assert batches == [2, 2, 2, 2]
    batches.clear()
    pipeline.scheduler.set_timesteps(4)
    ratios = [noise_level(pipeline.scheduler, t).noise_to_signal.item() for t in pipeline.scheduler.timesteps]
    latents_of(pipeline, ["a boot", "a bag"], guidance_scale=3, guidance_interval=(ratios[3], ratios[1]))
    assert batches == [2, 4, 4, 2]


def test_interval_is_guidance_in_some_steps_only(pipeline: TextToImagePipeline) -> None:
    everywhere = latents_of(pipeline, guidance_scale=3, guidance_interval=GuidanceInterval())
    torch.testing.assert_close(everywhere, latents_of(pipeline, guidance_scale=3))
    nowhere = latents_of(pipeline, guidance_scale=3, guidance_interval=(1e6, 1e7))
    torch.testing.assert_close(nowhere, latents_of(pipeline, guidance_scale=1))


def test_guidance_terms_and_scale_agree(pipeline: TextToImagePipeline) -> None:
    by_term = latents_of(pipeline, guidance=ClassifierFreeGuidance(3))
    torch.testing.assert_close(by_term, latents_of(pipeline, guidance_scale=3))
    itself = ModelDenoiser(pipeline.unet, "epsilon")
    same = latents_of(pipeline, guidance=ClassifierFreeGuidance(3) + AutoGuidance(itself, 2))
    torch.testing.assert_close(same, by_term, rtol=0, atol=1e-4)


def test_a_weak_network_comes_with_the_checkpoint_and_serves_its_default_guidance(tmp_path: Path) -> None:
    weak = tiny_components(seed=7)["unet"]
    default = AutoGuidance(weak, 2.0, null=True)
    made = TextToImagePipeline(
        **tiny_components(), requires_safety_checker=False, default_guidance=default, weak_unet=weak
    )
    made.save_pretrained(tmp_path)
    pipeline = TextToImagePipeline.from_pretrained(tmp_path)
    by_hand = AutoGuidance(pipeline.weak_denoiser, 2.0, null=True)
    expected = latents_of(pipeline, guidance=by_hand)
    torch.testing.assert_close(latents_of(pipeline), expected, rtol=0, atol=0)
    assert (expected - latents_of(pipeline, guidance_scale=2)).abs().max() > 1e-3
    with pytest.raises(ValueError, match="give weak_unet, or another default_guidance, such as a scale"):
        TextToImagePipeline.from_pretrained(tmp_path, weak_unet=None)
    scaled = TextToImagePipeline.from_pretrained(tmp_path, weak_unet=None, default_guidance=2.0)
    assert (expected - latents_of(scaled)).abs().max() > 1e-3
    pipeline.weak_unet = None  # taken away later
    with pytest.raises(ValueError, match="give guidance_scale, or load the pipeline with its weak_unet"):
        pipeline("a", num_inference_steps=1)


def test_classifier_guidance_moves_the_sample_uphill(pipeline: TextToImagePipeline) -> None:
    target = torch.full((1, *LATENT), 2.0)

    def log_prob(sample: Tensor, level: Any, condition: Any) -> Tensor:
        return -(sample - level.alpha.float() * target).square().flatten(1).sum(1) / 2

    plain = latents_of(pipeline, guidance_scale=1, num_inference_steps=10)
    guided = latents_of(pipeline, guidance=ClassifierGuidance(log_prob, 0.5), num_inference_steps=10)
    assert (guided - target).square().mean() < 0.9 * (plain - target).square().mean()


def test_per_image_scales_equal_separate_runs(pipeline: TextToImagePipeline) -> None:
    noise = torch.randn(2, *LATENT, generator=torch.Generator().manual_seed(3))
    both = latents_of(pipeline, ["a boot", "a bag"], latents=noise, guidance_scale=[2.0, 5.0])
    for index, (prompt, scale) in enumerate([("a boot", 2.0), ("a bag", 5.0)]):
        one = latents_of(pipeline, prompt, latents=noise[index : index + 1], guidance_scale=scale)
        torch.testing.assert_close(both[index : index + 1], one, rtol=0, atol=1e-4)


@pytest.mark.parametrize("cls", [DDPMScheduler, EulerDiscreteScheduler])
def test_one_generator_an_image_makes_images_independent_of_the_batch(cls: type) -> None:
    pipe = TextToImagePipeline(**tiny_components(scheduler=stable_diffusion_schedule(cls)))
    pipe.set_progress_bar_config(disable=True)
    prompts = ["a boot", "a bag", "a coat"]
    together = latents_of(pipe, prompts, generator=[torch.Generator().manual_seed(i) for i in range(3)])
    for index, prompt in enumerate(prompts):
        alone = latents_of(pipe, prompt, generator=[torch.Generator().manual_seed(index)])
        torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-4)


def test_images_per_prompt_repeat_each_prompt(pipeline: TextToImagePipeline) -> None:
    noise = torch.randn(4, *LATENT, generator=torch.Generator().manual_seed(3))
    repeated = latents_of(pipeline, ["a boot", "a bag"], num_images_per_prompt=2, latents=noise)
    spelled = latents_of(pipeline, ["a boot", "a boot", "a bag", "a bag"], latents=noise)
    torch.testing.assert_close(repeated, spelled)


def test_precomputed_embeddings(pipeline: TextToImagePipeline) -> None:
    positive, negative = pipeline.encode_prompt(["a boot", "a bag"], torch.device("cpu"), 1, True, "coat")
    assert positive.shape == negative.shape == (2, CONTEXT, WIDTH)
    given = latents_of(
        pipeline, None, prompt_embeds=positive, negative_prompt_embeds=negative, guidance_scale=4
    )
    torch.testing.assert_close(
        given, latents_of(pipeline, ["a boot", "a bag"], negative_prompt="coat", guidance_scale=4)
    )
    alone, none = pipeline.encode_prompt("a boot", torch.device("cpu"), 2, False)
    assert alone.shape == (2, CONTEXT, WIDTH) and none is None
    skipped, _ = pipeline.encode_prompt("a boot", torch.device("cpu"), 1, False, clip_skip=1)
    assert (skipped - alone[:1]).abs().max() > 1e-3


def test_embeddings_need_no_text_encoder(pipeline: TextToImagePipeline) -> None:
    embeds = pipeline.encode_prompt("a boot", torch.device("cpu"), 1, True)
    expected = latents_of(pipeline, guidance_scale=3)
    alone = TextToImagePipeline(**{**tiny_components(), "text_encoder": None, "tokenizer": None})
    given = {"prompt_embeds": embeds[0], "negative_prompt_embeds": embeds[1], "guidance_scale": 3}
    torch.testing.assert_close(latents_of(alone, None, **given), expected)


def test_words_beyond_the_context_are_named(
    pipeline: TextToImagePipeline, caplog: pytest.LogCaptureFixture
) -> None:
    root = logging.getLogger("diffusers")
    module = logging.getLogger("guided_diffusers.pipelines.text_to_image")
    for logger in (root, module):
        logger.addHandler(caplog.handler)
    latents_of(pipeline, "abcdefghijkl mnopqrstuvwx", num_inference_steps=1)
    text = caplog.text
    for logger in (root, module):
        logger.removeHandler(caplog.handler)
    assert f"reads {CONTEXT} tokens" in text and "wx" in text


def test_default_guidance_is_used_saved_and_overridden(pipeline: TextToImagePipeline, tmp_path: Any) -> None:
    pipe = TextToImagePipeline(**pipeline.components, default_guidance=ClassifierFreeGuidance(2.5, (0.5, 20)))
    pipe.set_progress_bar_config(disable=True)
    by_default = latents_of(pipe)
    explicit = latents_of(pipe, guidance_scale=2.5, guidance_interval=(0.5, 20))
    torch.testing.assert_close(by_default, explicit)
    pipe.save_pretrained(tmp_path)
    again = TextToImagePipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    torch.testing.assert_close(latents_of(again), by_default, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        latents_of(pipe, guidance_interval=(0, None)), latents_of(pipe, guidance_scale=2.5)
    )
    assert not torch.allclose(latents_of(pipe, guidance_scale=1), by_default)


def test_callback_sees_and_changes_the_run(pipeline: TextToImagePipeline) -> None:
    seen: list[tuple[int, int, set[str]]] = []

    def watch(pipe: Any, index: int, timestep: Any, tensors: dict) -> dict:
        seen.append((index, int(timestep), set(tensors)))
        return tensors

    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    watched = latents_of(pipeline, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=names)
    assert seen == [(i, int(t), set(names)) for i, t in enumerate(pipeline.scheduler.timesteps)]
    torch.testing.assert_close(watched, latents_of(pipeline))
    zeroed = latents_of(
        pipeline,
        callback_on_step_end=lambda p, i, t, x: {"latents": torch.zeros_like(x["latents"])} if i == 3 else x,
    )
    assert zeroed.abs().max() == 0
    assert pipeline.num_timesteps == 4


def test_guidance_scale_is_read_again_each_step(pipeline: TextToImagePipeline) -> None:
    def switch_off(pipe: Any, index: int, timestep: Any, tensors: dict) -> dict:
        pipe._guidance_scale = 1.0
        return tensors

    batches = count_batches(pipeline.unet)
    latents_of(pipeline, guidance_scale=5, callback_on_step_end=switch_off)
    assert batches == [2, 1, 1, 1]
    batches.clear()

    def switch_on(pipe: Any, index: int, timestep: Any, tensors: dict) -> dict:
        pipe._guidance_scale = 5.0
        return tensors

    latents_of(pipeline, guidance_scale=1, callback_on_step_end=switch_on)
    assert batches == [1, 2, 2, 2]


def test_replaced_embeddings_are_used(pipeline: TextToImagePipeline) -> None:
    other, _ = pipeline.encode_prompt("a bag", torch.device("cpu"), 1, False)
    changed = latents_of(
        pipeline,
        guidance_scale=1,
        callback_on_step_end=lambda p, i, t, x: {"prompt_embeds": other},
        callback_on_step_end_tensor_inputs=["prompt_embeds"],
    )
    assert (changed - latents_of(pipeline, guidance_scale=1)).abs().max() > 1e-3


def test_interrupt_ends_the_run(pipeline: TextToImagePipeline) -> None:
    kept: list[Tensor] = []

    def stop(pipe: Any, index: int, timestep: Any, tensors: dict) -> dict:
        kept.append(tensors["latents"])
        pipe._interrupt = index == 1
        return tensors

    interrupted = latents_of(pipeline, callback_on_step_end=stop)
    assert len(kept) == 2 and torch.equal(interrupted, kept[1])
    latents_of(pipeline)
    assert not pipeline.interrupt


def test_interrupt_from_outside_ends_the_run(pipeline: TextToImagePipeline) -> None:
    """As another thread may, without a callback."""
    steps: list[int] = []

    def stop(module: Any, args: Any) -> None:
        steps.append(1)
        pipeline._interrupt = len(steps) == 2

    hook = pipeline.unet.register_forward_pre_hook(stop)
    latents_of(pipeline)
    hook.remove()
    assert len(steps) == 2


def test_two_threads_in_one_pipeline_draw_what_they_draw_alone(pipeline: TextToImagePipeline) -> None:
    def loud(pipe: Any, index: int, timestep: Any, tensors: dict) -> dict:
        return {"latents": 1.01 * tensors["latents"]}

    calls = [
        {"guidance_scale": 1.0, "num_inference_steps": 12},
        {"guidance_scale": 6.0, "num_inference_steps": 17, "negative_prompt": "a bag"},
        {"guidance_scale": 3.0, "num_inference_steps": 12, "callback_on_step_end": loud},
    ]
    alone = [latents_of(pipeline, **call) for call in calls]
    with ThreadPoolExecutor(len(calls)) as threads:
        together = list(threads.map(lambda call: latents_of(pipeline, **call), calls))
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_a_component_that_is_replaced_is_checked_at_the_next_call(pipeline: TextToImagePipeline) -> None:
    latents_of(pipeline, num_inference_steps=1)
    pipeline.unet = tiny_unet(num_class_embeds=3)
    with pytest.raises(ValueError, match="unet .* has to be told class_labels"):
        latents_of(pipeline)


def test_clip_sample_is_switched_off_in_a_copy() -> None:
    scheduler = stable_diffusion_schedule(DDIMScheduler)
    pipe = TextToImagePipeline(**tiny_components(scheduler=scheduler))
    assert scheduler.config.clip_sample and not pipe.scheduler.config.clip_sample


def test_without_an_autoencoder_pixels_are_drawn_and_clipped_before_guidance(tmp_path: Path) -> None:
    unet, scheduler = tiny_unet(in_channels=1, out_channels=1), stable_diffusion_schedule(DDIMScheduler)
    pipe = TextToImagePipeline(**tiny_components(vae=None, unet=unet, scheduler=scheduler), pixels=True)
    pipe.save_pretrained(tmp_path)
    pipe = TextToImagePipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.vae is None and pipe.vae_scale_factor == 1 and pipe.scheduler.config.clip_sample
    noise = torch.randn(1, 1, *LATENT[1:], generator=torch.Generator().manual_seed(0))
    drawn = latents_of(pipe, guidance_scale=3.0)
    null, told = (pipe.encode_prompt(words, "cpu", 1, False)[0] for words in ("", "a boot"))
    condition = Condition({"encoder_hidden_states": told}, {"encoder_hidden_states": null})
    unclipped = DDIMScheduler.from_config(scheduler.config, clip_sample=False)
    denoiser = ClassifierFreeGuidance(3.0)(ModelDenoiser(pipe.unet, "epsilon", clip=1.0))
    torch.testing.assert_close(drawn, sampling_loop(denoiser, unclipped, noise, condition, 4))
    pictures = latents_of(pipe, guidance_scale=3.0, output_type="pt", height=16)
    assert pictures.shape == (1, 1, 16, LATENT[2]) and 0 <= pictures.min() < pictures.max() <= 1
    pipe.weak_unet = unet
    assert pipe.weak_denoiser is not None and pipe.weak_denoiser.clip == 1.0
    with pytest.raises(ValueError, match="vae is .*; allowed: None with pixels"):
        TextToImagePipeline(**tiny_components(), pixels=True)


@pytest.mark.parametrize("channels", [LATENT[0], 3])
def test_latents_without_an_autoencoder_stay_latents(channels: int) -> None:
    unet = tiny_unet(in_channels=channels, out_channels=channels)
    pipeline = TextToImagePipeline(**tiny_components(unet=unet, vae=None))
    assert latents_of(pipeline).shape == (1, channels, *LATENT[1:])
    with pytest.raises(ValueError, match="output_type is 'pil'; allowed: \"latent\", as vae is None"):
        pipeline("a boot")


def test_half_precision_network_keeps_latents_in_float32(pipeline: TextToImagePipeline) -> None:
    full = latents_of(pipeline)
    pipeline.unet.to(torch.bfloat16)
    half = latents_of(pipeline, latents=torch.randn(1, *LATENT, generator=torch.Generator().manual_seed(0)))
    assert half.dtype == torch.float32
    assert (half - full).abs().max() < 0.1 * full.abs().max()
    assert pipeline("a boot", num_inference_steps=1, output_type="pt").images.isfinite().all()


def test_network_that_learns_its_variance() -> None:
    from guided_diffusers import GuidedDDPMScheduler

    components = tiny_components(
        unet=tiny_unet(out_channels=2 * LATENT[0]),
        scheduler=GuidedDDPMScheduler(variance_type="learned_range", clip_sample=False),
    )
    pipe = TextToImagePipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    assert latents_of(pipe, guidance_scale=3).isfinite().all()


@pytest.mark.parametrize("mu", [0.5, 1.15])
def test_a_schedule_that_shifts_with_the_size_is_told_mu(mu: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipeline = TextToImagePipeline(**tiny_components(scheduler=scheduler))
    with pytest.raises(ValueError, match="mu is None; allowed: a number: FlowMatchEulerDiscreteScheduler"):
        pipeline("a bag")
    latents, seen = torch.randn(1, *LATENT), []
    pipeline.unet.register_forward_pre_hook(lambda module, given: seen.append(float(given[1])))
    pipeline("a bag", num_inference_steps=3, guidance_scale=1.0, latents=latents, mu=mu)
    scheduler.set_timesteps(3, mu=mu)
    assert seen == scheduler.timesteps.tolist()


def test_little_is_called_before_the_network(tiny_pipeline: Any, load_script: Any) -> None:
    tiny_pipeline.scheduler = DDIMScheduler.from_config(tiny_pipeline.scheduler.config)
    loop = load_script("speed/loop")
    calls, changes = loop.calls_before_the_network(tiny_pipeline)
    assert calls <= loop.BOUNDS["calls"] and changes <= loop.BOUNDS["changes"], (calls, changes)


def test_the_denoiser_is_made_anew_where_what_it_is_made_of_changes() -> None:
    pipeline = TextToImagePipeline(**tiny_components())
    latents = torch.randn(1, *LATENT)

    def draw() -> Tensor:
        return pipeline("a bag", num_inference_steps=2, latents=latents, output_type="latent").images

    first, kept = draw(), pipeline._kept
    assert torch.equal(draw(), first) and pipeline._kept is kept
    pipeline.scheduler.register_to_config(prediction_type="v_prediction")
    other = draw()
    assert not torch.equal(other, first) and pipeline._kept is not kept
    config = pipeline.scheduler.config
    pipeline.scheduler = type(pipeline.scheduler).from_config(config, prediction_type="epsilon")
    assert torch.equal(draw(), first)
    pipeline.unet = tiny_unet(sample_size=8)
    assert pipeline._kept is None, "the network that was replaced is not kept in memory"
