"""An unmodified StableDiffusionPipeline is classifier-guided by its scheduler: ours is the reference."""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from laws.cases import CASES
from laws.mixture import MixtureClassifier, MixtureNetwork, levels_of, log_prob_of
from tiny import stable_diffusion_schedule, tiny_components
from tiny_classifier import tiny_classifier, tiny_noise_aware_classifier

from guided_diffusers import GuidedDDPMScheduler, TextToImagePipeline
from guided_diffusers.guidance import AutoGuidance, ClassifierFreeGuidance, ClassifierGuidance
from guided_diffusers.schedulers.adapt import initial_scale, run_timesteps, stepper
from guided_diffusers.schedulers.timesteps import set_timesteps
from guided_diffusers.stock import classifier_guided_scheduler

PROMPTS, LABELS = ["a boot", "a bag"], torch.tensor([0, 2])
SCHEDULERS = {
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "kdpm2": (diffusers.KDPM2DiscreteScheduler, {}),
    "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
    "multistep": (diffusers.DPMSolverMultistepScheduler, {}),
    "ancestral": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "ddpm": (GuidedDDPMScheduler, {"clip_sample": False, "variance_type": "fixed_large"}),
}


def both(name, scale=4.0, guidance_scale=3.0, **options):
    """The stock pipeline's latents under the wrapper, ours, and the stock pipeline's without it."""
    cls, config = SCHEDULERS[name]
    components = tiny_components()
    classifier = tiny_classifier(in_channels=2)
    term = ClassifierGuidance(lambda x, level, _: classifier.log_prob(x, level, LABELS), scale, **options)

    def latents(pipeline, **kwargs):
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(5)
        return pipeline(
            PROMPTS, num_inference_steps=8, generator=generator, output_type="latent", **kwargs
        ).images

    def stock(scheduler):
        parts = {**components, "scheduler": scheduler}
        return StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )

    plain = stable_diffusion_schedule(cls, **config)
    wrapped = classifier_guided_scheduler(
        stable_diffusion_schedule(cls, **config),
        ClassifierGuidance(classifier.log_prob, scale, **options),
        LABELS,
    )
    ours = TextToImagePipeline(
        **{**components, "scheduler": stable_diffusion_schedule(cls, **config)}, requires_safety_checker=False
    )
    return (
        latents(stock(wrapped), guidance_scale=guidance_scale),
        latents(ours, guidance=ClassifierFreeGuidance(guidance_scale) + term),
        latents(stock(plain), guidance_scale=guidance_scale),
    )


@pytest.mark.parametrize("name", SCHEDULERS)
def test_it_is_our_pipeline_with_both_terms(name):
    wrapped, ours, plain = both(name)
    torch.testing.assert_close(wrapped, ours, rtol=0, atol=1e-4)
    assert (wrapped - plain).abs().max() > 1e-2


@pytest.mark.parametrize(
    "options",
    [
        {"form": "mean_shift"},
        {"form": "mean_shift", "at": "mean", "guidance_scale": 1.0},  # there the two means are the same
        {"interval": (0.5, 3.0)},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["ddpm", "ancestral"])
def test_so_are_its_options(name, options):
    wrapped, ours, plain = both(name, **options)
    torch.testing.assert_close(wrapped, ours, rtol=0, atol=1e-4)
    assert (wrapped - plain).abs().max() > 1e-3


@pytest.mark.parametrize("case", {case.scheduler: case for case in CASES}.values(), ids=str)
def test_under_any_scheduler_the_exact_classifier_makes_the_conditional_model(case):
    """A loop as pipelines write it, with the wrapper as its scheduler, against the conditional model."""
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    noise = torch.randn(6, 2, dtype=case.dtype, generator=torch.Generator().manual_seed(1))

    def run(guided):
        scheduler = case.make()
        set_timesteps(scheduler, case.steps, sigmas=case.sigmas)
        levels = levels_of(scheduler, case.coordinates)
        network = MixtureNetwork(levels, case.written)
        if guided:
            term = ClassifierGuidance(log_prob_of(MixtureClassifier(levels), labels), 1.0)
            scheduler = classifier_guided_scheduler(scheduler, term)
        sample, generator = noise * initial_scale(scheduler), torch.Generator()
        kwargs = dict(case.step_kwargs)
        if "generator" in case.scheduler.step.__code__.co_varnames:
            kwargs["generator"] = generator.manual_seed(2)
        step = stepper(scheduler, **kwargs)  # what CogVideoX's pipelines remember between steps
        with torch.no_grad():
            for t in run_timesteps(scheduler):
                scales = hasattr(scheduler, "scale_model_input")
                by_hand = levels[float(t)][2] * sample  # as SanaSprintPipeline does
                scaled = scheduler.scale_model_input(sample, t) if scales else by_hand
                output = network(scaled, t, None if guided else labels)
                sample = step(output, t, sample)
        return sample

    torch.testing.assert_close(run(True), run(False), rtol=0, atol=max(100 * case.tolerance, 1e-6))


class TestBatchesThatArePaired:
    """DiTPipeline steps every image twice, with and without its label; the labels are one an image."""

    def steps(self, condition, sample):
        def log_prob(x, level, labels):
            return -0.1 * (x - labels.reshape(-1, 1).double()).square().sum(1)

        scheduler = diffusers.DDIMScheduler(clip_sample=False)
        guided = classifier_guided_scheduler(scheduler, ClassifierGuidance(log_prob, 3.0), condition)
        guided.set_timesteps(4)
        return guided.step(torch.zeros_like(sample), guided.timesteps[1], sample).prev_sample

    def test_both_halves_are_told_the_labels(self):
        half = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        alone, paired = self.steps(LABELS, half), self.steps(LABELS, torch.cat([half, half]))
        torch.testing.assert_close(paired, torch.cat([alone, alone]), rtol=0, atol=0)
        assert (alone[0] - self.steps(LABELS.flip(0), half)[0]).abs().max() > 1e-3

    @pytest.mark.parametrize("count", [1, 3, 4])
    def test_labels_of_other_images_are_not_guessed(self, count):
        sample = torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        with pytest.raises(ValueError, match=f"condition has 2 labels for a batch of {count} images"):
            self.steps(LABELS, sample)


class TestTheProcessOfTheClassifier:
    """A noise-aware network is checked against the scheduler, as in ClassifierGuidedPipeline."""

    def guided(self, trained, scheduler, scale=1.0):
        unknown = {} if trained else {"process": None}
        network = tiny_noise_aware_classifier(trained or scheduler, in_channels=2, **unknown)
        return classifier_guided_scheduler(scheduler, ClassifierGuidance(network.log_prob, scale), LABELS)

    @pytest.mark.parametrize(
        "other", [diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"), diffusers.EDMEulerScheduler()]
    )
    def test_another_is_refused_where_it_would_be_seen(self, other):
        own = diffusers.DDIMScheduler()
        same = {name: own.config[name] for name in ("beta_schedule", "beta_start", "beta_end")}
        for scheduler in (own, diffusers.LCMScheduler(**same)):  # from_config would leave defaults behind
            assert self.guided(own, scheduler)
        with pytest.raises(ValueError, match="classifier was trained for another process"):
            self.guided(own, other)
        assert self.guided(own, other, scale=0.0)

    def test_an_unknown_one_is_refused_with_what_to_say(self):
        with pytest.raises(ValueError, match=r"process is unknown: .*register_to_config\(process="):
            self.guided(None, diffusers.DDIMScheduler())
        assert self.guided(None, diffusers.DDIMScheduler(), scale=0.0)


def term(**options):
    return ClassifierGuidance(tiny_classifier(in_channels=2).log_prob, 1.0, **options)


def test_the_copy_is_of_the_same_kind_and_the_original_as_it_was(tmp_path):
    original = diffusers.DDIMScheduler(clip_sample=False)
    original.set_timesteps(7)
    guided = classifier_guided_scheduler(original, term(), LABELS)
    assert isinstance(guided, diffusers.DDIMScheduler) and type(original) is diffusers.DDIMScheduler
    assert guided.config == original.config and torch.equal(guided.timesteps, original.timesteps)
    guided.set_timesteps(3)
    assert len(original.timesteps) == 7
    guided.save_pretrained(tmp_path)
    loaded = diffusers.DDIMScheduler.from_pretrained(tmp_path)
    assert type(loaded) is diffusers.DDIMScheduler and loaded.config.clip_sample is False


def test_a_pipeline_saved_with_it_loads_without_guidance(tmp_path):
    scheduler = stable_diffusion_schedule(diffusers.EulerDiscreteScheduler)
    components = tiny_components(scheduler=classifier_guided_scheduler(scheduler, term(), LABELS))
    StableDiffusionPipeline(
        **components, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    ).save_pretrained(tmp_path)
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is diffusers.EulerDiscreteScheduler


def test_half_precision_stays():
    scheduler = classifier_guided_scheduler(diffusers.EulerDiscreteScheduler(), term(), LABELS)
    scheduler.set_timesteps(4)
    sample = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    timestep = scheduler.timesteps[1]
    scheduler.scale_model_input(sample, timestep)
    assert scheduler.step(0.1 * sample, timestep, sample).prev_sample.dtype == torch.float16


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        (ClassifierFreeGuidance(2.0), "has a ClassifierFreeGuidance .*needs the network.*allowed"),
        (AutoGuidance(None, 2.0), "has a AutoGuidance"),
        (term(through="denoised"), "ClassifierGuidance with through='denoised'"),
        (3.0, "guidance is a float; allowed: ClassifierGuidance"),
    ],
)
def test_terms_that_need_the_network(guidance, message):
    with pytest.raises(ValueError, match=message):
        classifier_guided_scheduler(diffusers.DDIMScheduler(), guidance)


def test_a_scheduler_that_nobody_knows():
    with pytest.raises(ValueError, match="RePaintScheduler, which is not supported: its step takes"):
        classifier_guided_scheduler(diffusers.RePaintScheduler(), term())
