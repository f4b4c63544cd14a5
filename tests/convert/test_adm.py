"""ADM checkpoints: parity with the published implementation, order of qkv, full sizes, refusals."""

import pytest
import torch
from convert import published
from convert.published import golden, meta, total
from diffusers import DiffusionPipeline, UNet2DModel

from guided_diffusers import (
    ADMUNet2DModel,
    GuidedDDPMScheduler,
    ImagePipeline,
    ModelDenoiser,
    NoiseLevel,
    sampling_loop,
)
from guided_diffusers.convert import CLASSIFIER_PRESETS, UNET_PRESETS, adm_classifier, adm_unet
from guided_diffusers.convert.flags import process_of_flags
from guided_diffusers.guidance import ClassifierGuidance
from guided_diffusers.schedulers import check_process

UNETS = ("adm_unet_new_order", "adm_unet_legacy_order", "adm_unet_four_heads")
MULTIPLIERS = {
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
FULL_UNETS = {
    "64": (published.adm_unet(192, MULTIPLIERS[64], 3, (2, 4, 8), 1000), UNet2DModel, 296),
    "128": (published.adm_unet(256, MULTIPLIERS[128], 2, (4, 8, 16), 1000), ADMUNet2DModel, 422),
    "256": (published.adm_unet(256, MULTIPLIERS[256], 2, (8, 16, 32), 1000), UNet2DModel, 554),
    "256-unconditional": (
        published.adm_unet(256, MULTIPLIERS[256], 2, (8, 16, 32), None),
        UNet2DModel,
        553,
    ),
    "512": (published.adm_unet(256, MULTIPLIERS[512], 2, (16, 32, 64), 1000), ADMUNet2DModel, 559),
    "64-to-256": (
        published.adm_unet(192, MULTIPLIERS[256], 2, (8, 16, 32), 1000, in_channels=6),
        ADMUNet2DModel,
        312,
    ),
    "128-to-512": (
        published.adm_unet(192, MULTIPLIERS[256], 2, (16, 32), 1000, in_channels=6),
        UNet2DModel,
        309,
    ),
}
"""Shapes, class, and the millions of parameters that the paper gives (but for the unconditional one)."""
FULL_CLASSIFIERS = {
    "64": (published.adm_classifier(128, MULTIPLIERS[64], 4, (2, 4, 8), 64), 65),
    "128": (published.adm_classifier(128, MULTIPLIERS[128], 2, (4, 8, 16), 128), 43),
    "256": (published.adm_classifier(128, MULTIPLIERS[256], 2, (8, 16, 32), 256), 54),
    "512": (published.adm_classifier(128, MULTIPLIERS[512], 2, (16, 32, 64), 512), 54),
}


def assert_within(bound, actual, expected):
    torch.testing.assert_close(actual, expected, atol=bound, rtol=0)


def inputs(values):
    return [values[name] for name in ("sample", "timesteps", "class_labels") if name in values]


@torch.no_grad()
@pytest.mark.parametrize("name", UNETS)
class TestDenoiser:
    def test_output_is_the_published_ones(self, name):
        config, weights, values = golden(name)
        model = adm_unet(weights, config)
        assert type(model) is (ADMUNet2DModel if name == "adm_unet_four_heads" else UNet2DModel)
        assert not model.training
        assert_within(1e-5, model(*inputs(values)).sample, values["output"])

    def test_the_wrong_order_is_wrong(self, name):
        config, weights, values = golden(name)
        other = {**config, "use_new_attention_order": not config["use_new_attention_order"]}
        output = adm_unet(weights, other)(*inputs(values)).sample
        assert (output - values["output"]).abs().max() > 1e-3

    def test_saved_and_loaded(self, name, tmp_path):
        config, weights, values = golden(name)
        model = adm_unet(weights, config)
        ImagePipeline(unet=model, scheduler=GuidedDDPMScheduler()).save_pretrained(tmp_path)
        alone = type(model).from_pretrained(tmp_path, subfolder="unet")
        piped = DiffusionPipeline.from_pretrained(tmp_path).unet
        for loaded in (alone, piped):
            assert type(loaded) is type(model)
            assert loaded(*inputs(values)).sample.equal(model(*inputs(values)).sample)

    def test_weights_are_copies(self, name):
        config, weights, _ = golden(name)
        model = adm_unet(weights, config)
        before = model.conv_in.bias.clone()
        weights["input_blocks.0.0.bias"].add_(1)
        assert model.conv_in.bias.equal(before)
        assert sum(p.numel() for p in model.parameters()) == sum(w.numel() for w in weights.values())


def test_head_width_matters_where_it_varies():
    """The four-headed checkpoint under one head width loads, and is another network."""
    config, weights, values = golden("adm_unet_four_heads")
    one_width = adm_unet(weights, {**config, "num_heads": 1, "num_head_channels": 16})
    with torch.no_grad():
        assert (one_width(*inputs(values)).sample - values["output"]).abs().max() > 1e-3


class TestClassifier:
    def test_logits_and_gradient_are_the_published_ones(self):
        config, weights, values = golden("adm_classifier_attention")
        model = adm_classifier(weights, config)
        sample = values["sample"].requires_grad_()
        assert not model.training
        assert_within(1e-5, model(sample, values["timesteps"]), values["logits"])
        level = NoiseLevel(alpha=torch.ones(2), sigma=torch.ones(2), timestep=values["timesteps"])
        log_prob = model.log_prob(sample, level, values["class_labels"])
        assert log_prob.shape == (2,)
        (gradient,) = torch.autograd.grad(log_prob.sum(), sample)
        assert_within(1e-5, gradient, values["log_prob_grad"])

    def test_the_order_matters_and_is_the_legacy_one(self):
        config, weights, values = golden("adm_classifier_attention")
        with torch.no_grad():
            wrong = adm_classifier(weights, {**config, "use_new_attention_order": True})
            difference = wrong(values["sample"], values["timesteps"]) - values["logits"]
        assert difference.abs().max() > 1e-4

    def test_a_denoisers_flags_beside_do_not_change_the_order(self):
        """On the published command line both networks' flags stand together; the order is the denoiser's."""
        flags = {"image_size": 64, "classifier_width": 64, "classifier_depth": 1}
        shapes = published.adm_classifier(64, (1, 2, 3, 4), 1, (2, 4, 8), 64)
        generator = torch.Generator().manual_seed(0)
        weights = {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}
        both = {**UNET_PRESETS["64"], **flags}
        assert both["use_new_attention_order"]
        alone, beside = adm_classifier(weights, flags), adm_classifier(weights, both)
        assert all(a.equal(b) for a, b in zip(alone.parameters(), beside.parameters(), strict=True))
        assert beside.config.process["beta_schedule"] == "squaredcos_cap_v2"


@pytest.mark.parametrize("name", UNET_PRESETS)
def test_a_full_denoiser_loads_its_shapes(name):
    shapes, cls, millions = FULL_UNETS[name]
    model = adm_unet(meta(shapes), UNET_PRESETS[name])
    assert type(model) is cls and model.config.out_channels == 6
    assert round(total(shapes) / 1e6) == millions
    assert sum(parameter.numel() for parameter in model.parameters()) == total(shapes)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize("name", CLASSIFIER_PRESETS)
def test_a_full_classifier_loads_its_shapes(name):
    shapes, millions = FULL_CLASSIFIERS[name]
    model = adm_classifier(meta(shapes), CLASSIFIER_PRESETS[name])
    assert model.config.num_classes == 1000 and model.config.sample_size == int(name)
    assert round(total(shapes) / 1e6) == millions
    assert sum(parameter.numel() for parameter in model.parameters()) == total(shapes)


@pytest.mark.parametrize("name", ["128", "512", "64-to-256"])
def test_a_full_denoiser_runs_on_shapes(name):
    """Its timestep embedding fits its blocks, whatever the width of the first level."""
    model = adm_unet(meta(FULL_UNETS[name][0]), UNET_PRESETS[name])
    size, channels = model.config.sample_size, model.config.in_channels
    sample, zeros = torch.empty(1, channels, size, size, device="meta"), torch.zeros(1, device="meta")
    assert model(sample, zeros, zeros.long()).sample.shape == (1, 6, size, size)


def test_the_process_is_the_flags():
    """Linear betas run from 1e-4 to 0.02 in 1000 steps, and in T steps from 1000 / T times as much."""
    check_process(process_of_flags({}), GuidedDDPMScheduler())
    check_process(
        process_of_flags({"noise_schedule": "cosine"}), GuidedDDPMScheduler(beta_schedule="squaredcos_cap_v2")
    )
    check_process(
        process_of_flags({"diffusion_steps": "250"}),
        GuidedDDPMScheduler(num_train_timesteps=250, beta_start=4e-4, beta_end=0.08),
    )
    with pytest.raises(ValueError, match="rescale_timesteps"):
        process_of_flags({"diffusion_steps": 500, "rescale_timesteps": True})


@torch.no_grad()
def test_an_upsampler_sees_the_small_image_beside_the_sample():
    shapes = published.adm_unet(32, (1, 2, 3, 4), 1, (4,), None, in_channels=6)
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}
    flags = {"large_size": 64, "small_size": 16, "num_channels": 32, "num_res_blocks": 1}
    flags |= {"attention_resolutions": "16", "learn_sigma": True, "resblock_updown": True}
    model = adm_unet(weights, {**flags, "num_head_channels": 32})
    sample, small = torch.randn(1, 3, 64, 64, generator=generator), torch.ones(1, 3, 16, 16)
    outputs = [
        model(torch.cat([sample, torch.nn.functional.interpolate(image, (64, 64))], dim=1), 10).sample
        for image in (small, -small)
    ]
    assert outputs[0].shape == (1, 6, 64, 64) and not torch.allclose(*outputs)


@pytest.mark.parametrize("form", ["score", "mean_shift"])
def test_a_converted_classifier_guides_a_converted_denoiser(form):
    """With learned variance, by the loop, a scheduler and a term of this package."""
    config, weights, values = golden("adm_classifier_attention")
    classifier = adm_classifier(weights, config)
    config, weights, _ = golden("adm_unet_four_heads")
    denoiser = ModelDenoiser(adm_unet(weights, config), "epsilon", clip=1.0)
    scheduler = GuidedDDPMScheduler(variance_type="learned_range", timestep_spacing="linspace")
    classifier.check_scheduler(scheduler)
    labels, clean = torch.tensor([3, 8]), NoiseLevel(alpha=1.0, sigma=0.0, timestep=0)

    def log_prob(scale):
        def of_labels(sample, level, condition):  # the condition is the denoiser's, which has none
            return classifier.log_prob(sample, level, labels)

        guided = ClassifierGuidance(of_labels, scale, form=form)(denoiser)
        generator = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        steps = {"num_inference_steps": 4, "generator": generator}
        sample = sampling_loop(guided, scheduler, values["sample"], **steps)
        return classifier.log_prob(sample, clean, labels)

    with torch.no_grad():
        assert (log_prob(1000.0) > log_prob(0.0)).all()


def test_flags_as_text_are_flags():
    """As on a command line."""
    text = {name: str(value) for name, value in UNET_PRESETS["128"].items()}
    assert adm_unet(meta(FULL_UNETS["128"][0]), text).config.attention_head_dim == (64, 64, 128, 192, 256)


def without_residual_resampling(weights):
    """The weights with the resampling blocks replaced by convolutions, as improved diffusion has them."""
    widths = {"input_blocks.2.0": 32, "output_blocks.1.2": 64}
    kept = {k: v for k, v in weights.items() if not k.startswith(tuple(widths))}
    for (block, width), name in zip(widths.items(), ("op", "conv"), strict=True):
        if any(key.startswith(block) for key in weights):
            kept[f"{block}.{name}.weight"] = torch.randn(width, width, 3, 3) * 0.05
            kept[f"{block}.{name}.bias"] = torch.zeros(width)
    return kept


@torch.no_grad()
def test_convolutions_that_resample_and_pools_of_every_kind():
    config, weights, values = golden("adm_unet_legacy_order")
    model = adm_unet(without_residual_resampling(weights), {**config, "resblock_updown": False})
    assert model(*inputs(values)).sample.isfinite().all()
    config, weights, values = golden("adm_classifier_attention")
    weights = without_residual_resampling(weights)
    body = {k: v for k, v in weights.items() if not k.startswith("out.")}
    features = 32 + 32 + 32 + 64 + 64  # the first convolution, two blocks around the downsampler, the middle
    heads = {
        "adaptive": {"0": (64,), "3": (10, 64, 1, 1)},
        "spatial": {"0": (2048, features), "2": (10, 2048)},
        "spatial_v2": {"0": (2048, features), "1": (2048,), "3": (10, 2048)},
    }
    for pool, layers in heads.items():
        head = {f"out.{place}.weight": torch.randn(shape) * 0.05 for place, shape in layers.items()}
        head |= {f"out.{place}.bias": torch.zeros(shape[0]) for place, shape in layers.items()}
        model = adm_classifier({**body, **head}, {**config, "resblock_updown": False, "pool": pool})
        assert model(values["sample"], values["timesteps"]).shape == (2, 10)


class TestRefusals:
    def test_what_differs_is_named_and_counted(self):
        config, weights, _ = golden("adm_unet_new_order")
        del weights["out.2.bias"]
        weights["extra"] = torch.zeros(1)
        weights["conv.weight"] = weights.pop("input_blocks.0.0.weight")
        weights["out.0.bias"] = torch.zeros(7)
        with pytest.raises(ValueError, match="does not fit") as caught:
            adm_unet(weights, config)
        message = str(caught.value)
        assert "2 missing: input_blocks.0.0.weight, out.2.bias" in message
        assert "2 unexpected: extra, conv.weight" in message
        assert "1 of another shape: out.0.bias (7,) for (32,)" in message

    def test_a_classifier_is_no_denoiser(self):
        config, _, _ = golden("adm_unet_new_order")
        _, weights, _ = golden("adm_classifier_attention")
        with pytest.raises(ValueError, match="missing: .*unexpected: "):
            adm_unet(weights, config)

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"num_channels": 64}, r"\d+ of another shape: .*\(128, 32\) for \(256, 64\), .*\.\.\."),
            ({"class_cond": False}, "1 unexpected: label_emb.weight"),
            ({"num_chanels": 32}, r"keys of config is \['num_chanels'\]; allowed: "),
            ({"num_channels": "wide"}, "num_channels is 'wide'; allowed: a int"),
            ({"use_new_attention_order": "maybe"}, "use_new_attention_order is 'maybe'"),
            ({"attention_resolutions": "16,x"}, "attention_resolutions is '16,x'"),
            ({"num_head_channels": 24}, "num_head_channels is 24"),
            ({"channel_mult": ""}, "image_size is 32; allowed: .*where channel_mult is left out"),
            ({"num_head_channels": -1, "num_heads_upsample": 2}, "num_heads_upsample is 2"),
        ],
    )
    def test_flags_that_cannot_be(self, change, reason):
        config, weights, _ = golden("adm_unet_new_order")
        with pytest.raises(ValueError, match=reason):
            adm_unet(weights, {**config, **change})

    def test_a_classifiers_process_that_cannot_be(self):
        config, weights, _ = golden("adm_classifier_attention")
        with pytest.raises(ValueError, match="noise_schedule is 'sine'; allowed: 'linear', 'cosine'"):
            adm_classifier(weights, {**config, "noise_schedule": "sine"})
