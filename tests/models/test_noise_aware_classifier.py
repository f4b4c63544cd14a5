"""Laws of the noise-aware classifier: what it is told, log p and its gradient, labels, its process."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from tiny import randn

from guided_diffusers import (
    Condition,
    GuidedDDIMScheduler,
    GuidedDDPMScheduler,
    NoiseAwareClassifier,
    NoiseLevel,
    noise_level,
    sampling_loop,
)
from guided_diffusers.guidance import ClassifierGuidance
from guided_diffusers.schedulers import describe_process

SIZES = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
NAMES = {0: "shirt", 1: "ankle boot", 2: "bag"}


def classifier(**changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = {**SIZES, "num_classes": 3, "attention_head_dim": 4, "id2label": NAMES, **changes}
        return NoiseAwareClassifier(**config).eval()


def level_of(scheduler, steps=10, index=4):
    scheduler.set_timesteps(steps)
    return noise_level(scheduler, scheduler.timesteps[index])


def gradient_of(model, sample, level, labels):
    sample = sample.clone().requires_grad_()
    return torch.autograd.grad(model.log_prob(sample, level, labels).sum(), sample)[0]


VARIANTS = {
    "attention": {},
    "adaptive": {"pool": "adaptive"},
    "spatial": {"pool": "spatial"},
    "spatial_v2": {"pool": "spatial_v2"},
    "latents": {"in_channels": 4},
    "convolutions": {"downsample_type": "conv", "resnet_time_scale_shift": "default"},
    "no attention below": {"down_block_types": ("DownBlock2D", "DownBlock2D")},
    "attention everywhere": {"down_block_types": ("AttnDownBlock2D",) * 2, "attention_head_dim": (2, 8)},
    "wide timestep": {"timestep_channels": 12, "time_embedding_dim": 20},
}


@pytest.mark.parametrize("change", VARIANTS.values(), ids=VARIANTS)
class TestVariants:
    def test_a_sample_is_classified_alone_and_by_its_timestep(self, change):
        model = classifier(**change)
        sample = randn(3, model.config.in_channels, 8, 8)
        timesteps = torch.tensor([0, 400, 999])
        with torch.no_grad():
            logits = model(sample, timesteps)
            assert logits.shape == (3, 3)
            for i in range(3):
                torch.testing.assert_close(model(sample[i : i + 1], timesteps[i])[0], logits[i])
            assert (model(sample, 0) - model(sample, 999)).abs().amax(dim=1).min() > 1e-4

    def test_saved_and_loaded(self, change, tmp_path):
        model = classifier(**change)
        model.save_pretrained(tmp_path)
        loaded = NoiseAwareClassifier.from_pretrained(tmp_path)
        sample = randn(2, model.config.in_channels, 8, 8)
        with torch.no_grad():
            assert loaded(sample, 5).equal(model(sample, 5))
        assert loaded.class_names == NAMES
        assert list(tmp_path.glob("*.safetensors"))

    def test_gradient_checkpointing_changes_no_gradient(self, change):
        model = classifier(**change)
        sample = randn(2, model.config.in_channels, 8, 8)
        model(sample, 7)[:, 1].sum().backward()
        expected = [parameter.grad.clone() for parameter in model.parameters()]
        model.zero_grad()
        model.enable_gradient_checkpointing()
        assert model.is_gradient_checkpointing
        model(sample, 7)[:, 1].sum().backward()
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)


class TestLogProb:
    def test_it_is_the_log_softmax_of_what_the_network_is_told(self):
        model, sample = classifier(), randn(2, 3, 8, 8)
        for scheduler in (GuidedDDPMScheduler(), EulerDiscreteScheduler()):
            level = level_of(scheduler)
            with torch.no_grad():
                logits = model(level.input_scale.float() * sample, level.timestep)
                found = torch.stack([model.log_prob(sample, level, label) for label in range(3)], dim=1)
            torch.testing.assert_close(found, logits.log_softmax(dim=1))
            torch.testing.assert_close(found.exp().sum(dim=1), torch.ones(2))

    def test_its_gradient_agrees_with_finite_differences(self):
        model = classifier().double()
        sample, labels = randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([2, 0])
        level = level_of(EulerDiscreteScheduler())
        gradient = gradient_of(model, sample, level, labels)
        direction = randn(2, 3, 8, 8, seed=1, dtype=torch.float64)
        with torch.no_grad():
            ahead, behind = (
                model.log_prob(sample + step * direction, level, labels) for step in (1e-4, -1e-4)
            )
        slope = (gradient * direction).flatten(1).sum(dim=1)
        torch.testing.assert_close((ahead - behind) / 2e-4, slope, rtol=1e-5, atol=1e-8)

    @pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 0.02), (torch.bfloat16, 0.1)])
    def test_half_precision_gives_float32(self, dtype, bound):
        level, labels, sample = level_of(GuidedDDPMScheduler()), [1, 2], randn(2, 3, 8, 8)
        expected = gradient_of(classifier(), sample, level, labels)
        half = classifier().to(dtype)
        assert half.log_prob(sample.to(dtype), level, labels).dtype == torch.float32
        gradient = gradient_of(half, sample, level, labels)
        assert gradient.dtype == torch.float32
        assert (gradient - expected).norm() / expected.norm() < bound

    def test_float16_keeps_gradients_that_it_cannot_hold(self):
        """Of a classifier sure of its label: the plain backward through float16 loses most of this."""
        level, sample = level_of(GuidedDDPMScheduler()), randn(2, 3, 8, 8)
        full, half = classifier(), classifier().half()
        for model in (full, half):
            model.head.to_out.bias.data[1] = 12.0
        expected, found = (gradient_of(model, sample, level, 1) for model in (full, half))
        plain_input = sample.clone().requires_grad_()
        plain_log_prob = half(plain_input, level.timestep).float().log_softmax(dim=1)[:, 1].sum()
        (plain,) = torch.autograd.grad(plain_log_prob, plain_input)
        error, plain_error = ((g - expected).norm() / expected.norm() for g in (found, plain))
        assert expected.abs().max() < 1e-5
        assert error < 0.05 < plain_error

    def test_labels_of_every_form(self):
        model, level, sample = classifier(), level_of(GuidedDDPMScheduler()), randn(2, 3, 8, 8)
        expected = model.log_prob(sample, level, torch.tensor([1, 1]))
        forms = (
            1,
            [1],
            "ankle boot",
            ["ankle boot", 1],
            torch.tensor(1),
            torch.tensor([1, 1], dtype=torch.int32),
            {"class_labels": torch.tensor([1, 1])},
            Condition({"class_labels": torch.tensor([1, 1])}, {"class_labels": torch.tensor([3, 3])}),
        )
        for labels in forms:
            assert model.log_prob(sample, level, labels).equal(expected)

    @pytest.mark.parametrize(
        ("labels", "reason"),
        [
            (3, "labels has 3; allowed: indices, 0 to 2"),
            ([0, -1], "labels has -1; allowed: indices, 0 to 2"),
            (torch.tensor([7, 1]), "labels has 7"),
            ([0, 1, 2], "labels is .*allowed: 1 or 2 labels"),
            (torch.tensor([0.5, 1.0]), "allowed: integers"),
            (torch.zeros(2, 3, dtype=torch.int64), r"shape \(2, 3\)"),
            ("ankle boots", "'ankle boots', which is no class; did you mean 'ankle boot'"),
            ({"encoder_hidden_states": 0}, "the condition is .*allowed: one with class_labels"),
        ],
    )
    def test_labels_that_cannot_be(self, labels, reason):
        with pytest.raises(ValueError, match=reason):
            classifier().log_prob(randn(2, 3, 8, 8), level_of(GuidedDDPMScheduler()), labels)

    def test_a_name_needs_names(self):
        model = classifier(id2label=None)
        with pytest.raises(ValueError, match="'bag', and these classes have no names"):
            model.class_ids("bag")

    def test_a_level_without_a_timestep_is_refused(self):
        with pytest.raises(ValueError, match="level's timestep is None"):
            classifier().log_prob(randn(2, 3, 8, 8), NoiseLevel(alpha=1.0, sigma=1.0), 0)


def test_it_guides_as_it_is():
    """An unconditional denoiser of unit Gaussians is drawn to the label, by the loop and the term we have."""
    model = classifier()

    def denoiser(sample, level, condition):
        return level.alpha.float() * sample

    noise, scheduler = randn(4, 3, 8, 8), GuidedDDIMScheduler(clip_sample=False)
    labels = torch.tensor([0, 1, 2, 0])

    def log_prob(scale):
        guided = ClassifierGuidance(model.log_prob, scale)(denoiser)
        sample = sampling_loop(guided, scheduler, noise, labels, num_inference_steps=5)
        return model.log_prob(sample, NoiseLevel(alpha=1.0, sigma=0.0, timestep=0), labels).mean()

    assert log_prob(20.0) > log_prob(0.0) + 0.01


class TestRefusals:
    @pytest.mark.parametrize("shape", [(2, 4, 8, 8), (3, 8, 8)])
    def test_other_channels(self, shape):
        with pytest.raises(ValueError, match=r"sample is .*\(batch, 3, 8, 8\)"):
            classifier()(randn(*shape), 0)

    def test_another_size_where_pooling_has_positions(self):
        with pytest.raises(ValueError, match=r"sample is .*\(batch, 3, 8, 8\)"):
            classifier()(randn(2, 3, 16, 16), 0)
        assert classifier(pool="adaptive")(randn(2, 3, 16, 16), 0).shape == (2, 3)

    def test_timesteps_that_are_not_one_a_sample(self):
        with pytest.raises(ValueError, match=r"timestep is .* \(3,\).*; allowed: \(\) or \(2,\)"):
            classifier()(randn(2, 3, 8, 8), torch.arange(3))

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"pool": "mean"}, "pool is 'mean'; allowed: 'attention'"),
            (
                {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")},
                "down_block_types is 'CrossAttn",
            ),
            ({"down_block_types": ("DownBlock2D",)}, "down_block_types is .*allowed: 2 types"),
            ({"downsample_type": "pool"}, "downsample_type is 'pool'"),
            ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift is 'spatial'"),
            ({"attention_head_dim": 5}, "attention_head_dim at level 1 is 5; allowed: what divides 16"),
            ({"attention_head_dim": (4, 4, 4)}, "attention_head_dim is .*allowed: one number, or 2"),
            ({"id2label": {3: "coat"}}, r"keys of id2label is \[3\]; allowed: .*0 to 2"),
            ({"id2label": {0: "coat", 1: "coat"}}, r"two classes in id2label is \['coat'\]"),
            ({"id2label": {"first": "coat"}}, r"keys of id2label is \['first'\]"),
            ({"process": {"kind": "circular"}}, "process has kind 'circular'; allowed: variance_preserving"),
        ],
    )
    def test_options_that_cannot_be(self, change, reason):
        with pytest.raises(ValueError, match=reason):
            classifier(**change)


class TestProcess:
    def test_it_is_kept_and_compared(self, tmp_path):
        trained = GuidedDDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
        model = classifier(process=describe_process(trained))
        model.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["process"]["beta_end"] == 0.012
        loaded = NoiseAwareClassifier.from_pretrained(tmp_path)
        loaded.check_scheduler(trained)
        loaded.check_scheduler(EulerDiscreteScheduler.from_config(trained.config))
        with pytest.raises(
            ValueError, match="beta_schedule scaled_linear for linear; beta_start 0.00085 for"
        ):
            loaded.check_scheduler(GuidedDDPMScheduler())
        with pytest.raises(ValueError, match="kind variance_preserving for flow"):
            loaded.check_scheduler(FlowMatchEulerDiscreteScheduler())

    def test_an_unknown_one_is_no_process_at_all(self):
        model, scheduler = classifier(), GuidedDDPMScheduler()
        with pytest.raises(ValueError, match="process is unknown"):
            model.check_scheduler(scheduler)
        model.register_to_config(process=describe_process(scheduler))
        model.check_scheduler(scheduler)


def test_it_is_a_component_that_diffusers_loads(tmp_path):
    class Pair(DiffusionPipeline):
        def __init__(self, classifier, scheduler):
            super().__init__()
            self.register_modules(classifier=classifier, scheduler=scheduler)

    Pair(classifier(), GuidedDDPMScheduler()).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["classifier"] == ["guided_diffusers", "NoiseAwareClassifier"]
    assert type(Pair.from_pretrained(tmp_path).classifier) is NoiseAwareClassifier
