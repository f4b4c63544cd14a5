"""ClassifierGuidedPipeline: the loop by hand, its cost by counting, what it refuses, save and load."""

from __future__ import annotations

import math
import re

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, EulerDiscreteScheduler
from tiny import tiny_autoencoder
from tiny_classifier import (
    TinyClassifier,
    tiny_classifier,
    tiny_image_unet,
    tiny_noise_aware_classifier,
)
from transformers import ViTConfig, ViTForImageClassification

from guided_diffusers import (
    ClassifierGuidedPipeline,
    GuidedDDIMScheduler,
    GuidedDDPMScheduler,
    ModelDenoiser,
    NoiseLevel,
    noise_level,
    sampling_loop,
)
from guided_diffusers.core.condition import class_condition
from guided_diffusers.guidance import AutoGuidance, CFGPlusPlus, ClassifierFreeGuidance, ClassifierGuidance

STEPS = 4
LATENTS = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(7))
LABELS = [0, 1, 2]
CLASSES = torch.tensor(LABELS)


def pipeline(unet=None, scheduler=None, classifier=None, **kwargs):
    made = ClassifierGuidedPipeline(
        unet or tiny_image_unet(),
        scheduler or GuidedDDIMScheduler(clip_sample=False),
        classifier or tiny_classifier(),
        **kwargs,
    )
    made.set_progress_bar_config(disable=True)
    return made


def drawn(pipe, labels=LABELS, latents=LATENTS, **kwargs):
    arguments = {"num_inference_steps": STEPS, "output_type": "latent", "latents": latents}
    generator = torch.Generator().manual_seed(3)
    return pipe(labels, generator=generator, **{**arguments, **kwargs}).images


def log_prob_of(classifier):
    return lambda sample, level, condition: classifier.log_prob(sample, level, CLASSES)


def by_hand(pipe, guidance, condition=None, scheduler=None, clip=None):
    denoiser = ModelDenoiser(pipe.unet, "epsilon", clip)
    generator = torch.Generator().manual_seed(3)
    scheduler = scheduler or type(pipe.scheduler).from_config(pipe.scheduler.config)
    return sampling_loop(guidance(denoiser), scheduler, LATENTS, condition, STEPS, generator=generator)


class TestWhatItDraws:
    def test_a_classifier_of_transformers_is_asked_by_its_own_configuration(self):
        torch.manual_seed(0)
        shape = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 3}
        widths = {"hidden_size": 16, "intermediate_size": 16}
        heads = {"num_hidden_layers": 1, "num_attention_heads": 2}
        vit = ViTForImageClassification(ViTConfig(**shape, **widths, **heads)).eval()
        vit.log_prob = lambda x0, level, labels: (
            vit(pixel_values=x0).logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
        )
        pipe = pipeline(classifier=vit)
        guidance = ClassifierGuidance(log_prob_of(vit), 2.0, through="denoised")
        ours = drawn(pipe, classifier_scale=2.0, through="denoised")
        torch.testing.assert_close(ours, by_hand(pipe, guidance))
        assert not torch.equal(ours, drawn(pipe, classifier_scale=0))
        with pytest.raises(ValueError, match="has 3; allowed: indices, 0 to 2"):
            drawn(pipe, [0, 1, 3])

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"form": "mean_shift"},
            {"form": "mean_shift", "at": "mean"},
            {"max_gradient_norm": 0.05},
            {"interval": (0.5, 20.0)},
        ],
        ids=str,
    )
    @pytest.mark.parametrize(
        "scheduler",
        [
            GuidedDDIMScheduler(clip_sample=False),
            EulerDiscreteScheduler(),
            GuidedDDPMScheduler(variance_type="fixed_large", clip_sample=False),
        ],
        ids=lambda each: type(each).__name__,
    )
    def test_it_is_the_loop_by_hand(self, scheduler, options):
        pipe = pipeline(scheduler=scheduler)
        guidance = ClassifierGuidance(log_prob_of(pipe.classifier), 3.0, **options)
        names = {"guidance_interval" if name == "interval" else name: v for name, v in options.items()}
        ours = drawn(pipe, classifier_scale=3.0, **names)
        torch.testing.assert_close(ours, by_hand(pipe, guidance), rtol=0, atol=1e-6)
        assert (ours - drawn(pipe, classifier_scale=0)).abs().max() > 1e-3

    @pytest.mark.parametrize(
        ("options", "warned"),
        [
            ({}, True),
            ({"guidance_interval": (0, 100)}, False),
            ({"max_gradient_norm": 5.0}, False),
            ({"form": "mean_shift"}, False),
            ({"classifier_scale": 0.0}, False),
            ({"timesteps": [990, 500]}, False),
        ],
        ids=str,
    )
    def test_the_score_form_near_pure_noise_is_told(self, caplog, options, warned):
        scheduler = GuidedDDPMScheduler(
            beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing", clip_sample=False
        )
        drawn(pipeline(scheduler=scheduler), **options)
        told = [r.getMessage() for r in caplog.records if "sigma / alpha = 20,291" in r.getMessage()]
        assert len(told) == warned

    def test_scale_1_is_the_default(self):
        pipe = pipeline()
        assert torch.equal(drawn(pipe), drawn(pipe, classifier_scale=1.0))

    def test_classes_are_indices_or_names_for_all_or_one_an_image(self):
        pipe = pipeline()
        many = drawn(pipe, ["boot", "bag", "coat"])
        assert torch.equal(many, drawn(pipe, LABELS)) and torch.equal(many, drawn(pipe, CLASSES))
        one = drawn(pipe, "bag", batch_size=3)
        assert torch.equal(one, drawn(pipe, [1, 1, 1])) and torch.equal(one, drawn(pipe, 1, batch_size=3))
        assert not torch.equal(one, many)

    def test_a_scale_an_image(self):
        pipe, scales = pipeline(), [0.0, 1.0, 5.0]
        together = drawn(pipe, classifier_scale=scales)
        for row, scale in enumerate(scales):
            alone = drawn(pipe, [LABELS[row]], LATENTS[row : row + 1], classifier_scale=scale)
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-5)

    def test_one_generator_an_image_does_not_depend_on_the_batch(self):
        pipe = pipeline(scheduler=GuidedDDPMScheduler(clip_sample=False))

        def with_seeds(labels, seeds):
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            return pipe(labels, num_inference_steps=3, output_type="pt", generator=generators).images

        both = with_seeds([0, 2], [5, 6])
        torch.testing.assert_close(both[1:], with_seeds([2], [6]), rtol=0, atol=1e-5)

    def test_through_the_predicted_x0_the_classifier_is_told_that_there_is_no_noise(self):
        pipe = pipeline()
        clean = NoiseLevel(alpha=1.0, sigma=0.0, timestep=torch.tensor(0))

        def log_prob(x0, level, condition):
            return pipe.classifier.log_prob(x0, clean, CLASSES)

        guidance = ClassifierGuidance(log_prob, 2.0, through="denoised")
        ours = drawn(pipe, classifier_scale=2.0, through="denoised")
        torch.testing.assert_close(ours, by_hand(pipe, guidance), rtol=0, atol=1e-6)
        given = ClassifierGuidance(pipe.log_prob, 2.0, through="denoised")
        assert torch.equal(ours, drawn(pipe, guidance=given))

    def test_jointly_with_classifier_free_guidance(self):
        pipe = pipeline(tiny_image_unet(num_class_embeds=4))
        guidance = ClassifierFreeGuidance(2.5) + ClassifierGuidance(log_prob_of(pipe.classifier), 3.0)
        expected = by_hand(pipe, guidance, class_condition(CLASSES, null_class=3))
        ours = drawn(pipe, classifier_scale=3.0, guidance_scale=2.5)
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-5)
        assert (ours - drawn(pipe, classifier_scale=3.0)).abs().max() > 1e-3

    def test_any_sum_of_terms(self):
        pipe = pipeline(tiny_image_unet(num_class_embeds=3))
        weak = ModelDenoiser(tiny_image_unet(num_class_embeds=3).train(), "epsilon")
        terms = ClassifierGuidance(pipe.log_prob, 3.0) + AutoGuidance(lambda *each: 0.5 * weak(*each).x0, 1.5)
        expected = by_hand(pipe, terms, class_condition(CLASSES))
        torch.testing.assert_close(drawn(pipe, guidance=terms), expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("form", ["score", "mean_shift"])
    @pytest.mark.parametrize("kind", ["learned", "learned_range"])
    def test_a_learned_variance(self, kind, form):
        scheduler = GuidedDDPMScheduler(variance_type=kind, clip_sample=False)
        pipe = pipeline(tiny_image_unet(outputs=2), scheduler)
        guidance = ClassifierGuidance(log_prob_of(pipe.classifier), 3.0, form=form)
        ours = drawn(pipe, classifier_scale=3.0, form=form)
        torch.testing.assert_close(ours, by_hand(pipe, guidance), rtol=0, atol=1e-5)

    def test_in_pixels_x0_is_clipped_before_guidance_and_not_after(self):
        pipe = pipeline(scheduler=GuidedDDPMScheduler(clip_sample_range=0.3))
        guidance = ClassifierGuidance(log_prob_of(pipe.classifier), 40.0)
        unclipped = GuidedDDPMScheduler(clip_sample=False)
        expected = by_hand(pipe, guidance, scheduler=unclipped, clip=0.3)
        torch.testing.assert_close(drawn(pipe, classifier_scale=40.0), expected, rtol=0, atol=1e-5)
        after = by_hand(pipe, guidance, scheduler=GuidedDDPMScheduler(clip_sample_range=0.3))
        assert (after - expected).abs().max() > 0.01
        assert pipe.scheduler.config.clip_sample is True

    def test_in_latents(self):
        vae, latents = tiny_autoencoder(), torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(7))
        pipe = pipeline(
            tiny_image_unet(2), GuidedDDPMScheduler(), tiny_classifier(in_channels=2), vae=vae.eval()
        )
        sample = drawn(pipe, latents=latents, classifier_scale=3.0)
        assert sample.abs().max() > 1.2  # nothing clips a latent
        images = drawn(pipe, latents=latents, classifier_scale=3.0, output_type="pt")
        decoded = (vae.decode(sample).sample / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(images, decoded.detach(), rtol=0, atol=1e-6)
        assert images.shape == (3, 1, 16, 16)

    def test_images_of_every_kind(self):
        pipe = pipeline()
        assert drawn(pipe, output_type="pil")[0].size == (8, 8)
        assert drawn(pipe, output_type="np").shape == (3, 8, 8, 1)
        assert pipe(0, num_inference_steps=2, output_type="pt", return_dict=False)[0].shape == (1, 1, 8, 8)


class TestCallbacks:
    def test_a_callback_sees_and_replaces_the_latents_and_ends_the_run(self):
        pipe, seen = pipeline(), []

        def callback(pipe, index, timestep, tensors):
            seen.append((index, int(timestep)))
            pipe._interrupt = index == 1
            return {"latents": 0 * tensors["latents"]}

        assert drawn(pipe, callback_on_step_end=callback).abs().max() == 0
        assert seen == [(index, int(pipe.scheduler.timesteps[index])) for index in (0, 1)]
        assert pipe.num_timesteps == STEPS

    def test_a_callback_sets_the_scale(self):
        pipe = pipeline(tiny_image_unet(num_class_embeds=4))

        def callback(pipe, index, timestep, tensors):
            pipe._guidance_scale = 3.0
            return {}

        assert not torch.equal(drawn(pipe, callback_on_step_end=callback), drawn(pipe))


class TestCost:
    def counted(self, pipe, **kwargs):
        """Forwards and backwards of each network, and whether the denoiser's graph was on."""
        counts = {"unet": 0, "classifier": 0, "backward": 0, "unet_backward": 0}
        with_graph = []

        def unet_forward(module, arguments, output):
            counts["unet"] += 1
            with_graph.append(torch.is_grad_enabled() or output[0].requires_grad)
            if output[0].requires_grad:
                output[0].register_hook(lambda grad: counts.update(unet_backward=counts["unet_backward"] + 1))

        def classifier_forward(module, arguments, output):
            counts["classifier"] += 1
            output.register_hook(lambda grad: counts.update(backward=counts["backward"] + 1))

        handles = [
            pipe.unet.register_forward_hook(unet_forward),
            pipe.classifier.register_forward_hook(classifier_forward),
        ]
        drawn(pipe, **kwargs)
        for handle in handles:
            handle.remove()
        return counts, with_graph

    @pytest.mark.parametrize("options", [{}, {"form": "mean_shift"}, {"at": "mean"}], ids=str)
    def test_one_denoiser_forward_without_graph_and_one_classifier_forward_and_backward(self, options):
        counts, with_graph = self.counted(pipeline(), classifier_scale=2.0, **options)
        assert counts == {"unet": STEPS, "classifier": STEPS, "backward": STEPS, "unet_backward": 0}
        assert with_graph == [False] * STEPS

    def test_no_weight_gets_a_gradient(self):
        pipe = pipeline()
        drawn(pipe, classifier_scale=2.0, through="denoised")
        parameters = [*pipe.unet.parameters(), *pipe.classifier.parameters()]
        assert all(parameter.grad is None for parameter in parameters)

    def test_nothing_outside_the_interval(self):
        pipe = pipeline()
        pipe.scheduler.set_timesteps(STEPS)
        ratios = [float(noise_level(pipe.scheduler, t).noise_to_signal) for t in pipe.scheduler.timesteps]
        counts, _ = self.counted(pipe, classifier_scale=2.0, guidance_interval=(ratios[2], ratios[0]))
        assert counts == {"unet": STEPS, "classifier": 2, "backward": 2, "unet_backward": 0}

    def test_scale_0_never_runs_the_classifier(self):
        assert self.counted(pipeline(), classifier_scale=0.0)[0]["classifier"] == 0

    def test_classifier_free_guidance_is_in_the_one_forward(self):
        pipe = pipeline(tiny_image_unet(num_class_embeds=4))
        counts, with_graph = self.counted(pipe, classifier_scale=2.0, guidance_scale=2.0)
        assert counts == {"unet": STEPS, "classifier": STEPS, "backward": STEPS, "unet_backward": 0}

    def test_through_the_predicted_x0_the_denoiser_has_its_one_forward_with_its_graph(self):
        counts, with_graph = self.counted(pipeline(), classifier_scale=2.0, through="denoised")
        assert counts == {"unet": STEPS, "classifier": STEPS, "backward": STEPS, "unet_backward": STEPS}
        assert with_graph == [True] * STEPS


class TestErrors:
    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (3, "class_labels has 3; allowed: indices, 0 to 2"),
            (-1, "class_labels has -1; allowed: indices, 0 to 2"),
            ([0, 7], "class_labels has 7"),
            ("shoe", "class_labels has 'shoe'.*'boot', 'bag', 'coat'"),
            (1.5, "class_labels has 1.5; allowed: indices, 0 to 2, or names"),
            (True, "class_labels has True"),
            (None, "class_labels has None"),
            ([], r"class_labels is \[\]"),
        ],
    )
    def test_classes_that_there_are_not(self, labels, message):
        with pytest.raises(ValueError, match=message):
            self.refused(pipeline(), labels)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"batch_size": 2}, "class_labels has 3 classes for 2 images; give 1 or 2"),
            ({"batch_size": 0}, "batch_size is 0"),
            ({"classifier_scale": math.nan}, "classifier_scale is nan; allowed: finite"),
            ({"classifier_scale": [1.0, math.inf, 1.0]}, "classifier_scale is .*inf.*finite"),
            ({"classifier_scale": [1.0, 2.0]}, "classifier_scale has 2 values for 3 images"),
            ({"guidance_scale": math.nan}, "guidance_scale is nan; allowed: finite"),
            ({"guidance_scale": 2.0}, "guidance_scale is 2.0; allowed: 1 .*knows no classes"),
            (
                {"guidance": AutoGuidance(lambda *asked: None, 2.0, (0, 0.5), null=True)},
                "guidance has AutoGuidance; .*knows no classes",
            ),
            ({"guidance": CFGPlusPlus(0.6, (0, 0.5))}, "guidance has CFGPlusPlus; .*knows no classes"),
            ({"guidance": ClassifierFreeGuidance(2.0)}, "guidance_scale is 2.0; allowed: 1"),
            ({"form": "algorithm"}, "form is 'algorithm'; allowed: 'score', 'mean_shift'"),
            ({"through": "x0"}, "through is 'x0'"),
            ({"at": "x0"}, "at is 'x0'"),
            ({"max_gradient_norm": 0}, "max_gradient_norm is 0"),
            ({"guidance_interval": (2, 1)}, "interval is"),
            ({"guidance": 3}, "guidance is an int"),
            ({"guidance": ClassifierFreeGuidance(1.0), "form": "score"}, "guidance and form were both given"),
            ({"output_type": "jpeg"}, "output_type is 'jpeg'"),
            ({"eta": 2}, "eta is 2"),
            ({"generator": 3}, "generator is 3"),
            ({"latents": torch.zeros(2, 1, 8, 8)}, r"latents is \(2, 1, 8, 8\); allowed: .*\(3, 1, 8, 8\)"),
            ({"num_inference_steps": 0}, "num_inference_steps is 0"),
            ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "has 'prompt_embeds'"),
        ],
        ids=lambda value: re.sub(r" at 0x\w+", "", str(value)),
    )
    def test_arguments(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.refused(pipeline(), LABELS, **options)

    def test_networks_that_do_not_fit(self):
        with pytest.raises(ValueError, match="classifier has in_channels 2; allowed: 1"):
            self.refused(pipeline(classifier=tiny_classifier(in_channels=2)), LABELS)
        with pytest.raises(ValueError, match="num_class_embeds 5 and the classifier 3 .*: 3, or 4"):
            self.refused(pipeline(tiny_image_unet(num_class_embeds=5)), LABELS)
        with pytest.raises(ValueError, match="guidance_scale is 2.0; .*no null class"):
            self.refused(pipeline(tiny_image_unet(num_class_embeds=3)), LABELS, guidance_scale=2.0)
        with pytest.raises(ValueError, match="classifier is a UNet2DModel, which has no log_prob"):
            pipeline(classifier=tiny_image_unet())

    def test_a_noise_aware_classifier_of_another_process(self):
        trained, other = GuidedDDIMScheduler(clip_sample=False), GuidedDDIMScheduler(beta_end=0.01)
        classifier = tiny_noise_aware_classifier(trained)
        assert drawn(pipeline(scheduler=trained, classifier=classifier)).isfinite().all()
        with pytest.raises(ValueError, match="another process .* beta_end 0.02 for 0.01"):
            self.refused(pipeline(scheduler=other, classifier=classifier), LABELS)

    def test_names_without_names(self):
        with pytest.raises(ValueError, match="'boot', and these classes have no names; allowed: indices"):
            self.refused(pipeline(classifier=tiny_classifier(id2label=None)), "boot")
        twice = tiny_classifier(id2label={0: "bag", 1: "bag", 2: "coat"})
        with pytest.raises(ValueError, match="'bag', which is the name of 2 classes"):
            self.refused(pipeline(classifier=twice), "bag")

    def refused(self, pipe, labels, **options):
        """The call; that nothing was computed before it raises is asserted."""

        def never(*args):
            raise AssertionError("computed before the arguments were checked")

        pipe.unet.register_forward_hook(never)
        pipe.classifier.register_forward_hook(never)
        pipe(labels, **{"num_inference_steps": 2, **options})


class TestSaveAndLoad:
    @pytest.mark.parametrize("latent", [False, True], ids=["pixels", "latents"])
    def test_the_plain_loader_of_diffusers_gives_the_same_pipeline(self, tmp_path, latent):
        channels = 2 if latent else 1
        pipe = pipeline(
            tiny_image_unet(channels, num_class_embeds=4),
            GuidedDDPMScheduler(),
            tiny_classifier(in_channels=channels),
            vae=tiny_autoencoder() if latent else None,
            default_guidance=ClassifierFreeGuidance(2.0)
            + ClassifierGuidance(None, 3.0, (0.1, None), form="mean_shift", max_gradient_norm=2.0),
        )
        pipe.save_pretrained(tmp_path)
        loaded = DiffusionPipeline.from_pretrained(tmp_path)
        loaded.set_progress_bar_config(disable=True)
        assert type(loaded) is ClassifierGuidedPipeline and isinstance(loaded.classifier, TinyClassifier)
        assert loaded.config.default_guidance == pipe.config.default_guidance
        latents = torch.randn(3, channels, 8, 8, generator=torch.Generator().manual_seed(1))
        names = ["boot", "bag", "coat"]  # id2label went through JSON
        results = [drawn(each, names, latents, output_type="pt") for each in (pipe, loaded)]
        torch.testing.assert_close(*results, rtol=0, atol=1e-5)  # loaded weights lie elsewhere in memory
        asked = drawn(pipe, names, latents, output_type="pt", classifier_scale=1.0)
        assert not torch.equal(results[0], asked)

    def test_the_schedulers_of_diffusers_work_too(self):
        pipe = pipeline(scheduler=DDPMScheduler())
        assert drawn(pipe, classifier_scale=2.0, form="mean_shift").isfinite().all()
