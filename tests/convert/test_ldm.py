"""First stages of latent diffusion: parity with the published implementation, full sizes, refusals."""

import pytest
import torch
from convert import published
from convert.published import golden, meta, total

from guided_diffusers.convert import ldm_autoencoder

F8 = {"embed_dim": 4, "z_channels": 4, "ch": 128, "ch_mult": (1, 2, 4, 4), "num_res_blocks": 2}
F16 = {
    "embed_dim": 16,
    "ckpt_path": "model.ckpt",
    "ddconfig": {
        "double_z": True,
        "z_channels": 16,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": [1, 1, 2, 2, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [16],
        "dropout": 0.0,
    },
}


def assert_within(bound, actual, expected):
    torch.testing.assert_close(actual, expected, atol=bound, rtol=0)


@torch.no_grad()
def test_posterior_kl_and_reconstruction_are_the_published_ones():
    config, weights, values = golden("ldm_autoencoder_kl")
    model = ldm_autoencoder(weights, config)
    posterior = model.posterior(values["sample"])
    assert_within(1e-5, posterior.mean, values["mean"])
    assert_within(1e-5, posterior.logvar, values["logvar"])
    torch.testing.assert_close(posterior.kl(), values["kl"], rtol=1e-5, atol=0)
    assert_within(2e-5, model(values["sample"]).sample, values["reconstruction"])
    assert model.encode(values["sample"]).latent_dist.mean.equal(posterior.mean)


@torch.no_grad()
def test_saved_and_loaded(tmp_path):
    config, weights, values = golden("ldm_autoencoder_kl")
    model = ldm_autoencoder(weights, config)
    model.save_pretrained(tmp_path)
    assert (
        type(model).from_pretrained(tmp_path)(values["sample"]).sample.equal(model(values["sample"]).sample)
    )


def test_of_a_whole_model_the_first_stage_is_taken_and_a_loss_left_out():
    config, weights, _ = golden("ldm_autoencoder_kl")
    whole = {f"first_stage_model.{name}": weight for name, weight in weights.items()}
    whole |= {"model.diffusion_model.out.2.bias": torch.zeros(4)}
    beside = {**weights, "loss.logvar": torch.zeros(())}
    expected = ldm_autoencoder(weights, config).state_dict()
    for given in (whole, beside):
        found = ldm_autoencoder(given, config).state_dict()
        assert all(found[name].equal(weight) for name, weight in expected.items())


SHAPES_F8 = published.ldm_autoencoder(128, (1, 2, 4, 4), 2, 4, 256, ())
SHAPES_F16 = published.ldm_autoencoder(128, (1, 1, 2, 2, 4), 2, 16, 256, (16,))


@pytest.mark.parametrize(("config", "shapes"), [(F8, SHAPES_F8), (F16, SHAPES_F16)], ids=["f8", "f16"])
def test_full_sizes_load_their_shapes(config, shapes):
    model = ldm_autoencoder(meta(shapes), config)
    assert sum(parameter.numel() for parameter in model.parameters()) == total(shapes)


def test_the_f8_autoencoder_has_the_known_size():
    """It is Stable Diffusion's."""
    assert total(SHAPES_F8) == 83_653_863


@torch.no_grad()
def test_attention_at_a_level_runs_at_its_resolution():
    shapes = published.ldm_autoencoder(32, (1, 2), 1, 4, 32, (16,))
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}
    config = {"embed_dim": 4, "z_channels": 4, "resolution": 32, "ch": 32, "ch_mult": (1, 2)}
    model = ldm_autoencoder(weights, {**config, "num_res_blocks": 1, "attn_resolutions": [16]})
    sample = torch.randn(1, 3, 32, 32, generator=generator)
    before = model(sample).sample
    attention = model.encoder.down_blocks[1].attentions[0].to_out[0]
    attention.weight.zero_()
    attention.bias.zero_()
    assert (model(sample).sample - before).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"embed_dim": 8}, "embed_dim is 8; allowed: z_channels, 4"),
        ({"double_z": False}, "double_z is False"),
        ({"chanels": 3}, r"keys of config is \['chanels'\]; allowed: "),
        ({"ch": 64}, "does not fit the configuration .* of another shape: "),
        ({"attn_resolutions": [16]}, "missing: encoder.down.1.attn.0.norm.weight"),
    ],
)
def test_what_does_not_fit_is_refused(change, reason):
    config, weights, _ = golden("ldm_autoencoder_kl")
    with pytest.raises(ValueError, match=reason):
        ldm_autoencoder(weights, {**config, **change})
