"""ClassifierGuidedTextToImagePipeline: the loop by hand, its cost, what it refuses, loading."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler
from tiny import CONTEXT, tiny_autoencoder, tiny_tokenizer
from tiny_classifier import tiny_image_unet
from tiny_clip import WORDS, tiny_clip

from guided_diffusers import (
    ClassifierGuidedPipeline,
    ClassifierGuidedTextToImagePipeline,
    GuidedDDIMScheduler,
    GuidedDDPMScheduler,
    ModelDenoiser,
    NoiseAwareClassifier,
    NoiseLevel,
    sampling_loop,
)
from guided_diffusers.core.condition import TextCondition, tokenize
from guided_diffusers.guidance import AutoGuidance, ClassifierFreeGuidance, ClassifierGuidance
from guided_diffusers.schedulers import describe_process

STEPS = 4
LATENTS = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(7))
CLEAN = NoiseLevel(alpha=1.0, sigma=0.0, timestep=torch.tensor(0))


def ddim():
    return GuidedDDIMScheduler(clip_sample=False)


def pipeline(unet=None, scheduler=None, clip=None, **kwargs):
    scheduler = scheduler or ddim()
    clip = clip or tiny_clip(process=describe_process(scheduler))
    unet = unet or tiny_image_unet()
    made = ClassifierGuidedTextToImagePipeline(unet, scheduler, clip, tiny_tokenizer(), **kwargs)
    made.set_progress_bar_config(disable=True)
    return made


def drawn(pipe, prompt=WORDS, latents=LATENTS, **kwargs):
    arguments = {"num_inference_steps": STEPS, "output_type": "latent", "latents": latents}
    generator = torch.Generator().manual_seed(3)
    return pipe(prompt, generator=generator, **{**arguments, **kwargs}).images


def texts_of(pipe, words=WORDS):
    return pipe.clip.encode_text(tokenize(pipe.tokenizer, words)[0]).detach()


class TestWhatItDraws:
    @pytest.mark.parametrize(
        "options", [{}, {"form": "mean_shift", "at": "mean"}, {"max_gradient_norm": 0.05}], ids=str
    )
    @pytest.mark.parametrize(
        "scheduler",
        [ddim(), EulerDiscreteScheduler(), GuidedDDPMScheduler(clip_sample=False)],
        ids=lambda each: type(each).__name__,
    )
    def test_it_is_the_loop_by_hand(self, scheduler, options):
        pipe = pipeline(scheduler=scheduler)
        texts = texts_of(pipe)
        guidance = ClassifierGuidance(lambda x, at, _: pipe.clip.similarity(x, at, texts), 3.0, **options)
        expected = sampling_loop(
            guidance(ModelDenoiser(pipe.unet, "epsilon")),
            type(scheduler).from_config(scheduler.config),
            LATENTS,
            None,
            STEPS,
            generator=torch.Generator().manual_seed(3),
        )
        ours = drawn(pipe, classifier_scale=3.0, **options)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
        assert (ours - drawn(pipe, classifier_scale=0)).abs().max() > 1e-3

    @pytest.mark.parametrize("options", [{}, {"contrast_prompts": WORDS}, {"through": "denoised"}], ids=str)
    def test_what_it_draws_is_more_similar_to_its_prompt(self, options):
        pipe = pipeline()

        def similarity(scale):
            sample = drawn(pipe, classifier_scale=scale, num_inference_steps=10, **options)
            return pipe.clip.similarity(sample, CLEAN, texts_of(pipe)).mean()

        assert similarity(5.0) > similarity(0.0) + 0.1

    def test_a_contrast_counts_the_prompt_once_and_leaves_other_images_alone(self):
        pipe = pipeline()
        together = drawn(pipe, contrast_prompts=["bag", "coat"], classifier_scale=5.0)
        for row, (word, others) in enumerate([("boot", ["coat", "bag"]), ("bag", "coat"), ("coat", ["bag"])]):
            alone = drawn(pipe, word, LATENTS[row : row + 1], contrast_prompts=others, classifier_scale=5.0)
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-4)
        assert (together - drawn(pipe, classifier_scale=5.0)).abs().max() > 1e-3

    def test_images_of_a_prompt_follow_one_another(self):
        pipe, latents = pipeline(), torch.cat([LATENTS, LATENTS[:1]])
        twice = drawn(pipe, ["boot", "bag"], latents, num_images_per_prompt=2)
        assert torch.equal(twice, drawn(pipe, ["boot", "boot", "bag", "bag"], latents))
        assert drawn(pipe, "bag", LATENTS[:1], output_type="pil")[0].size == (8, 8)

    def test_one_generator_an_image_does_not_depend_on_the_batch(self):
        pipe = pipeline(scheduler=GuidedDDPMScheduler(clip_sample=False))

        def with_seeds(prompts, seeds):
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            return pipe(prompts, num_inference_steps=3, output_type="pt", generator=generators).images

        both = with_seeds(["boot", "coat"], [5, 6])
        torch.testing.assert_close(both[1:], with_seeds("coat", [6]), rtol=0, atol=1e-5)

    def test_of_a_denoiser_that_knows_classes(self):
        pipe = pipeline(tiny_image_unet(num_class_embeds=4))
        one, many = drawn(pipe, class_labels=2), drawn(pipe, class_labels=[2, 2, 1])
        assert torch.equal(one[:2], many[:2]) and not torch.equal(one[2], many[2])

    def test_the_default_is_scale_1_and_a_sum_of_terms_is_taken(self):
        pipe = pipeline()
        expected = drawn(pipe, classifier_scale=1.0)
        assert torch.equal(drawn(pipe), expected)
        assert torch.equal(drawn(pipe, guidance=ClassifierGuidance(pipe.log_prob, 1.0)), expected)

    def test_a_callback_ends_the_run(self):
        pipe, seen = pipeline(), []

        def callback(pipe, index, timestep, tensors):
            seen.append(index)
            pipe._interrupt = index == 1
            return {"latents": 0 * tensors["latents"]}

        assert drawn(pipe, callback_on_step_end=callback).abs().max() == 0 and seen == [0, 1]

    def test_the_denoiser_runs_without_graph_once_a_step_and_the_text_encoder_once(self):
        pipe = pipeline()
        counts, graphs = {"unet": 0, "image": 0, "text": 0}, []

        def count(name):
            return lambda *_: counts.update({name: counts[name] + 1})

        pipe.unet.register_forward_hook(count("unet"))
        pipe.unet.register_forward_hook(lambda *_: graphs.append(torch.is_grad_enabled()))
        pipe.clip.image_encoder.register_forward_hook(count("image"))
        pipe.clip.text_encoder.register_forward_hook(count("text"))
        drawn(pipe, classifier_scale=2.0)
        assert counts == {"unet": STEPS, "image": STEPS, "text": 1} and not any(graphs)
        drawn(pipe, classifier_scale=0.0)
        assert counts["image"] == STEPS


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"prompt": []}, "prompt is an empty list"),
            ({"prompt": 3}, "prompt is an int"),
            ({"prompt": ["bag", 3]}, r"prompt\[1\] is an int"),
            ({"contrast_prompts": []}, "contrast_prompts is an empty list"),
            ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
            ({"classifier_scale": math.nan}, "classifier_scale is nan; allowed: finite"),
            ({"classifier_scale": [1.0, 2.0]}, "classifier_scale has 2 values for 3 images"),
            ({"class_labels": 1}, "class_labels is 1; allowed: None: the network has no classes"),
            ({"form": "algorithm"}, "form is 'algorithm'"),
            ({"guidance": ClassifierFreeGuidance(2.0)}, "guidance has ClassifierFreeGuidance"),
            ({"guidance": AutoGuidance(print, 2.0, (0, 0.5), null=True)}, "guidance has AutoGuidance"),
            ({"guidance": ClassifierFreeGuidance(1.0), "form": "score"}, "guidance and form were both given"),
            ({"output_type": "jpeg"}, "output_type is 'jpeg'"),
            ({"latents": torch.zeros(2, 1, 8, 8)}, r"latents is \(2, 1, 8, 8\); allowed: .*\(3, 1, 8, 8\)"),
        ],
        ids=str,
    )
    def test_arguments(self, options, message):
        refused(pipeline(), message, **options)

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (None, "is None; allowed: a class for all, or one an image"),
            *((label, f"has {label}; allowed: indices, 0 to 3") for label in (4, -1, 0.5, True)),
            ([0, 1], "has 2 classes for 3 images; give 1 or 3"),
        ],
        ids=str,
    )
    def test_classes_that_there_are_not(self, labels, message):
        pipe = pipeline(tiny_image_unet(num_class_embeds=4))
        refused(pipe, f"class_labels {message}", class_labels=labels)

    def test_a_clip_of_other_samples(self):
        refused(pipeline(clip=tiny_clip(image={"in_channels": 2})), "clip has in_channels 2; allowed: 1")
        other = tiny_clip(image={"sample_size": 16, "pool": "attention"})
        refused(pipeline(clip=other), "clip has sample_size 16; allowed: ")
        with pytest.raises(ValueError, match="clip is a UNet2DModel; allowed: a NoiseAwareCLIP"):
            pipeline(clip=tiny_image_unet())

    def test_a_clip_of_another_process(self):
        other = GuidedDDPMScheduler(beta_schedule="squaredcos_cap_v2")
        clip = tiny_clip(process=describe_process(other))
        pipe = pipeline(clip=clip)
        assert drawn(pipe, classifier_scale=0.0).isfinite().all()  # never asked
        assert drawn(pipe, through="denoised").isfinite().all()  # sees no noise
        refused(pipe, "the clip was trained for another process .*beta_schedule squaredcos_cap_v2 for linear")
        refused(pipeline(clip=tiny_clip()), "the clip's process is unknown")

    def test_a_classifier_of_another_process(self):
        arguments = {"sample_size": 8, "in_channels": 1, "num_classes": 3, "block_out_channels": (8, 8)}
        other = describe_process(GuidedDDPMScheduler(num_train_timesteps=500))
        classifier = NoiseAwareClassifier(
            **arguments, attention_head_dim=4, norm_num_groups=4, layers_per_block=1, process=other
        )
        pipe = ClassifierGuidedPipeline(tiny_image_unet(), ddim(), classifier)
        with pytest.raises(ValueError, match="the classifier was trained for another process"):
            pipe(1, num_inference_steps=2)

    def test_a_tokenizer_of_another_text_encoder(self):
        pipe = pipeline()
        pipe.tokenizer.model_max_length = CONTEXT + 1
        refused(pipe, "tokenizer has .* tokens and a context of 17; allowed: at most .* and 16")


def refused(pipe, message, prompt=WORDS, **options):
    """The call raises; that nothing was computed before is asserted."""

    def never(*args):
        raise AssertionError("computed before the arguments were checked")

    for network in (pipe.unet, pipe.clip.image_encoder, pipe.clip.text_encoder):
        network.register_forward_hook(never)
    with pytest.raises(ValueError, match=message):
        pipe(prompt, **{"num_inference_steps": 2, **options})


def test_a_long_prompt_is_cut_with_a_warning(monkeypatch):
    from guided_diffusers.pipelines import prompts

    warned = []
    monkeypatch.setattr(prompts.logger, "warning", warned.append)
    drawn(pipeline(), ["bag", "bag " * 20, "coat"], num_inference_steps=1)
    assert len(warned) == 1 and "does not see" in warned[0]


@pytest.mark.parametrize("latent", [False, True], ids=["pixels", "latents"])
def test_the_plain_loader_of_diffusers_gives_the_same_pipeline(tmp_path, latent):
    channels = 2 if latent else 1
    scheduler = GuidedDDPMScheduler()
    pipe = pipeline(
        tiny_image_unet(channels),
        scheduler,
        tiny_clip(image={"in_channels": channels}, process=describe_process(scheduler)),
        vae=tiny_autoencoder().eval() if latent else None,
        default_guidance=ClassifierGuidance(None, 3.0, form="mean_shift"),
    )
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is ClassifierGuidedTextToImagePipeline
    latents = torch.randn(3, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    results = [drawn(each, latents=latents, output_type="pt") for each in (pipe, loaded)]
    torch.testing.assert_close(*results, rtol=0, atol=1e-5)  # loaded weights lie elsewhere in memory
    assert not torch.equal(results[0], drawn(pipe, latents=latents, output_type="pt", classifier_scale=1.0))


def test_condition_of_prompts_is_what_the_clip_reads():
    pipe = pipeline()
    condition = pipe._condition(WORDS, None, None)
    assert isinstance(condition, TextCondition) and not condition.positive
    torch.testing.assert_close(condition.text_embeds, texts_of(pipe))
