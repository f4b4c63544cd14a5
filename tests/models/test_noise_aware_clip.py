"""NoiseAwareCLIP: similarity and log p by hand, their gradient, what it refuses, save and load."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from tiny import randn, tiny_tokenizer
from tiny_clip import IMAGE, WORDS, tiny_clip

from guided_diffusers import (
    GuidedDDIMScheduler,
    GuidedDDPMScheduler,
    NoiseAwareCLIP,
    NoiseLevel,
    noise_level,
    sampling_loop,
)
from guided_diffusers.core.condition import TextCondition, tokenize
from guided_diffusers.guidance import ClassifierGuidance
from guided_diffusers.schedulers import describe_process

IDS = tokenize(tiny_tokenizer(), WORDS)[0]
LEVEL = NoiseLevel(alpha=0.8, sigma=0.6, timestep=torch.tensor(300))


def gradient_of(clip, sample, condition, level=LEVEL):
    sample = sample.clone().requires_grad_()
    return torch.autograd.grad(clip.log_prob(sample, level, condition).sum(), sample)[0]


class TestSimilarity:
    def test_it_is_tau_times_the_cosine_of_the_two_embeddings(self):
        clip, sample = tiny_clip(), randn(3, 1, 8, 8)
        image = clip.image_encoder(sample, LEVEL.timestep)
        text = clip.text_encoder(IDS).text_embeds
        cosine = (image * text).sum(1) / (image.norm(dim=1) * text.norm(dim=1))
        found = clip.similarity(sample, LEVEL, clip.encode_text(IDS))
        torch.testing.assert_close(found, clip.logit_scale.exp() * cosine)
        torch.testing.assert_close(found, clip.log_prob(sample, LEVEL, TextCondition({}, text_embeds=text)))
        torch.testing.assert_close(found, clip(sample, LEVEL.timestep, IDS).diagonal())

    def test_one_text_for_all(self):
        clip, sample = tiny_clip(), randn(3, 1, 8, 8)
        one = clip.encode_text(IDS[:1])
        torch.testing.assert_close(
            clip.similarity(sample, LEVEL, one), clip.similarity(sample, LEVEL, one.expand(3, -1))
        )

    def test_it_sees_the_scaled_sample_at_the_levels_timestep(self):
        clip, scheduler, sample = tiny_clip(), EulerDiscreteScheduler(), 5 * randn(3, 1, 8, 8)
        scheduler.set_timesteps(5)
        level = noise_level(scheduler, scheduler.timesteps[1])
        scaled = sample / math.sqrt(1 + float(level.sigma) ** 2)
        seen = clip(scaled, level.timestep, IDS).diagonal()
        torch.testing.assert_close(clip.similarity(sample, level, clip.encode_text(IDS)), seen)
        at_another = clip(scaled, level.timestep / 2, IDS).diagonal()
        assert (seen - at_another).abs().max() > 1e-3


class TestLogProb:
    def test_against_others_it_is_the_share_among_them(self):
        clip, sample = tiny_clip(), randn(3, 1, 8, 8)
        texts, logits = clip.encode_text(IDS), clip(sample, LEVEL.timestep, IDS)
        condition = TextCondition({}, text_embeds=texts[[0, 1, 0]], contrast_embeds=texts[2:])
        two = torch.stack([logits[[0, 1, 2], [0, 1, 0]], logits[:, 2]], dim=1)
        torch.testing.assert_close(clip.log_prob(sample, LEVEL, condition), two.log_softmax(1)[:, 0])
        others = ~torch.eye(3, dtype=torch.bool)  # all of them, each sample's own left out
        condition = TextCondition({}, text_embeds=texts, contrast_embeds=texts, contrast_mask=others)
        found = clip.log_prob(sample, LEVEL, condition)
        torch.testing.assert_close(found, logits.log_softmax(1).diagonal())

    @pytest.mark.parametrize("contrast", [False, True])
    def test_gradient_against_finite_differences(self, contrast):
        clip, sample = tiny_clip().double(), randn(2, 1, 8, 8, dtype=torch.float64)
        texts = clip.encode_text(IDS).detach()
        condition = TextCondition({}, text_embeds=texts[:2], contrast_embeds=texts[2:] if contrast else None)
        direction, step = randn(2, 1, 8, 8, seed=1, dtype=torch.float64), 1e-5
        ahead, behind = (
            clip.log_prob(sample + sign * step * direction, LEVEL, condition) for sign in (1, -1)
        )
        slope = (gradient_of(clip, sample, condition) * direction).flatten(1).sum(1)
        torch.testing.assert_close(slope, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)
        assert slope.abs().min() > 1e-4

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.1)])
    def test_half_precision_has_a_float32_log_and_gradient(self, dtype, tolerance):
        clip, sample = tiny_clip(), randn(3, 1, 8, 8)
        exact = gradient_of(clip, sample, clip.encode_text(IDS).detach())
        half = tiny_clip().to(dtype)
        texts = half.encode_text(IDS).detach()
        found = gradient_of(half, sample, texts)
        assert found.dtype == texts.dtype == half.log_prob(sample, LEVEL, texts).dtype == torch.float32
        assert (found - exact).norm() < tolerance * exact.norm()


@pytest.mark.parametrize("contrast", [False, True])
def test_it_guides_as_it_is(contrast):
    """A denoiser of unit Gaussians is drawn to the text, by the loop and the term that there are."""
    clip = tiny_clip()
    texts = clip.encode_text(IDS).detach()
    condition = TextCondition({}, text_embeds=texts, contrast_embeds=texts[:2] if contrast else None)

    def similarity(scale):
        guided = ClassifierGuidance(clip.log_prob, scale)(lambda x, level, _: level.alpha.float() * x)
        scheduler = GuidedDDIMScheduler(clip_sample=False)
        sample = sampling_loop(guided, scheduler, randn(3, 1, 8, 8), condition, num_inference_steps=5)
        return clip.log_prob(sample, NoiseLevel(alpha=1.0, sigma=0.0, timestep=0), condition).mean()

    assert similarity(5.0) > similarity(0.0) + 0.1


class TestRefusals:
    @pytest.mark.parametrize(
        ("condition", "reason"),
        [
            (torch.zeros(2, 6), r"text_embeds is a tensor of shape \(2, 6\).*; allowed: \(1 or 3, 6\)"),
            (torch.zeros(3, 5), r"text_embeds is a tensor of shape \(3, 5\)"),
            ({"class_labels": 0}, "condition is .*allowed: a TextCondition"),
            (TextCondition({}), "with text_embeds"),
            (
                TextCondition({}, text_embeds=torch.ones(3, 6), contrast_embeds=torch.ones(2, 4)),
                r"contrast_embeds is a tensor of shape \(2, 4\).*; allowed: \(texts, 6\)",
            ),
        ],
    )
    def test_conditions(self, condition, reason):
        with pytest.raises(ValueError, match=reason):
            tiny_clip().log_prob(randn(3, 1, 8, 8), LEVEL, condition)

    def test_samples_and_levels(self):
        clip, text = tiny_clip(), torch.ones(1, 6)
        with pytest.raises(ValueError, match=r"of shape \(3, 2, 8, 8\).*\(batch, 1, height, width\)"):
            clip.log_prob(randn(3, 2, 8, 8), LEVEL, text)
        with pytest.raises(ValueError, match="level's timestep is None"):
            clip.log_prob(randn(3, 1, 8, 8), NoiseLevel(alpha=0.8, sigma=0.6), text)

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"image": {"num_classes": 3}}, "image_config is .*allowed: without num_classes"),
            ({"image": {"process": {}}}, "image_config is .*process"),
            ({"projection_dim": 0}, "projection_dim is 0"),
            ({"process": {"kind": "circular"}}, "process has kind 'circular'"),
        ],
    )
    def test_options(self, change, reason):
        with pytest.raises(ValueError, match=reason):
            tiny_clip(**change)


class TestSaveAndLoad:
    @pytest.mark.slow
    def test_in_a_fresh_process_from_safetensors_only(self, tmp_path):
        clip = tiny_clip(process=describe_process(GuidedDDPMScheduler()))
        clip.save_pretrained(tmp_path, safe_serialization=False)
        assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
        lines = [
            "import json, sys, torch",
            "torch.set_num_threads(1)",
            "from guided_diffusers import NoiseAwareCLIP",
            "clip = NoiseAwareCLIP.from_pretrained(sys.argv[1])",
            "sample, ids = torch.arange(192.0).reshape(3, 1, 8, 8) / 192, json.loads(sys.argv[2])",
            "print(json.dumps(clip(sample, 300, torch.tensor(ids)).tolist()))",
        ]
        command = [sys.executable, "-c", "\n".join(lines), str(tmp_path), json.dumps(IDS.tolist())]
        process = subprocess.run(command, capture_output=True, text=True, timeout=280)
        assert process.returncode == 0, process.stderr
        expected = clip(torch.arange(192.0).reshape(3, 1, 8, 8) / 192, 300, IDS)
        found = torch.tensor(json.loads(process.stdout.splitlines()[-1]))
        torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-5)

    def test_its_configuration_holds_both_encoders_and_no_librarys_version(self, tmp_path):
        tiny_clip().save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["image_config"] == {**IMAGE, "block_out_channels": [8, 8]}
        assert config["text_config"]["eos_token_id"] == tiny_tokenizer().eos_token_id
        assert "transformers_version" not in config["text_config"]

    def test_a_pickle_is_refused(self, tmp_path):
        tiny_clip().save_pretrained(tmp_path)
        weights = tmp_path / "diffusion_pytorch_model.safetensors"
        weights.rename(tmp_path / "diffusion_pytorch_model.bin")
        with pytest.raises(OSError, match="pickles are refused"):
            NoiseAwareCLIP.from_pretrained(tmp_path)

    def test_its_process_is_compared(self):
        clip, scheduler = tiny_clip(), GuidedDDPMScheduler()
        with pytest.raises(ValueError, match="the clip's process is unknown"):
            clip.check_scheduler(scheduler)
        clip = tiny_clip(process=describe_process(scheduler))
        clip.check_scheduler(scheduler)
        with pytest.raises(ValueError, match="the clip was trained for another process"):
            clip.check_scheduler(GuidedDDPMScheduler(beta_schedule="squaredcos_cap_v2"))


def test_recomputed_activations_give_the_same_gradients():
    sample, gradients = randn(3, 1, 8, 8), []
    for checkpointing in (False, True):
        clip = tiny_clip().train()
        if checkpointing:
            clip.enable_gradient_checkpointing()
        clip(sample, 300, IDS).square().sum().backward()
        gradients.append([parameter.grad for parameter in clip.parameters() if parameter.grad is not None])
    torch.testing.assert_close(*gradients)
