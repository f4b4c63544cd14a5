import pytest
import torch

from guided_diffusers import NoiseLevel, from_denoised, to_denoised
from guided_diffusers.core.prediction import PREDICTION_TYPES, coefficients

SIGMA_DATA = 0.5
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-3, torch.float16: 2e-3}  # of x_0, at a ratio of 1000


def preserving(ratio):
    alpha = (1 + ratio**2).rsqrt()
    return NoiseLevel(alpha=alpha, sigma=ratio * alpha)


def exploding(ratio):
    return NoiseLevel(alpha=torch.ones_like(ratio), sigma=ratio, input_scale=(1 + ratio**2).rsqrt())


def edm(ratio):
    return NoiseLevel(
        alpha=torch.ones_like(ratio), sigma=ratio, input_scale=(SIGMA_DATA**2 + ratio**2).rsqrt()
    )


def flow(ratio):
    return NoiseLevel(alpha=1 / (1 + ratio), sigma=ratio / (1 + ratio))


def trigonometric(ratio):
    angle = (ratio / SIGMA_DATA).atan()
    return NoiseLevel(alpha=angle.cos(), sigma=SIGMA_DATA * angle.sin(), input_scale=1 / SIGMA_DATA)


PROCESSES = [preserving, exploding, edm, flow, trigonometric]
RATIOS = torch.logspace(-3, 3, 7, dtype=torch.float64)


def drawn(dtype=torch.float64, seed=0):
    return torch.randn(7, 3, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )


def types_of(process):
    own = {"edm": edm, "edm_v_prediction": edm, "trigflow": trigonometric, "scaled_trigflow": trigonometric}
    return [kind for kind in PREDICTION_TYPES if own.get(kind, process) is process]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize(("process", "kind"), [(p, k) for p in PROCESSES for k in types_of(p)])
def test_there_and_back_is_the_identity_at_every_noise_level(process, kind, dtype):
    x0, noise = drawn(dtype), drawn(dtype, seed=1)
    kept = dtype if dtype == torch.float64 else torch.float32
    batch = process(RATIOS)
    column = [value.reshape(-1, 1, 1, 1).to(kept) for value in (batch.alpha, batch.sigma)]
    sample = column[0] * x0 + column[1] * noise
    output = from_denoised(x0, sample, batch, kind)
    again = to_denoised(output, sample, batch, kind)
    assert output.dtype == again.dtype == kept
    torch.testing.assert_close(again, x0.to(kept), rtol=0, atol=TOLERANCE[dtype])
    for row, ratio in enumerate(RATIOS):  # one level a sample is the same as one at a time
        alone = to_denoised(output[row : row + 1], sample[row : row + 1], process(ratio), kind)
        torch.testing.assert_close(alone[0], again[row], rtol=0, atol=1e-14 if dtype == torch.float64 else 0)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_rows_are_their_definitions(process):
    x0, noise = drawn(), drawn(seed=1)
    for ratio in RATIOS:
        level = process(ratio)
        alpha, sigma = level.alpha, level.sigma
        sample = alpha * x0 + sigma * noise
        norm = (alpha**2 + sigma**2).sqrt()
        skip, out = (
            SIGMA_DATA**2 / (SIGMA_DATA**2 + sigma**2),
            sigma * SIGMA_DATA / (SIGMA_DATA**2 + sigma**2).sqrt(),
        )
        outputs = {
            "epsilon": noise,
            "sample": x0,
            "v_prediction": (alpha * noise - sigma * x0) / norm,
            "flow_prediction": noise - x0,
            "reversed_flow_prediction": x0 - noise,
            # F of alpha x_0 + sigma_data sin(t) eps, by its derivative in t; SCMScheduler reads sigma_data F.
            "trigflow": alpha * noise - sigma / SIGMA_DATA**2 * x0,
            "scaled_trigflow": SIGMA_DATA * alpha * noise - sigma / SIGMA_DATA * x0,
            "edm": (x0 - skip * sample) / out,
            "edm_v_prediction": -(x0 - skip * sample) / out,
        }
        assert set(outputs) == set(PREDICTION_TYPES)
        for kind in types_of(process):
            scale = float(outputs[kind].abs().max())
            torch.testing.assert_close(
                from_denoised(x0, sample, level, kind), outputs[kind], rtol=0, atol=1e-9 * scale
            )
            # EDM's rows find sigma_data by a difference, which loses digits where sigma is 2000 times larger.
            atol = 1e-8 if kind.startswith("edm") else 1e-9
            torch.testing.assert_close(to_denoised(outputs[kind], sample, level, kind), x0, rtol=0, atol=atol)


def test_half_precision_is_widened_and_float64_kept():
    level = preserving(torch.tensor(1.0).double())
    for sample, expected in [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64,) * 2,
    ]:
        x0 = to_denoised(drawn(torch.float16), drawn(sample), level, "epsilon")
        assert x0.dtype == expected


def test_epsilon_says_nothing_at_zero_terminal_snr():
    level = NoiseLevel(alpha=torch.tensor([0.5, 0.0]), sigma=torch.tensor([0.5**0.5, 1.0]))
    for convert in (to_denoised, from_denoised):
        with pytest.raises(ValueError, match="zero terminal SNR.*v_prediction"):
            convert(torch.ones(2, 3), torch.ones(2, 3), level, "epsilon")
    for kind in ("sample", "v_prediction", "flow_prediction"):
        assert to_denoised(torch.ones(2, 3), torch.ones(2, 3), level, kind).isfinite().all()


def test_no_output_belongs_to_an_x0_without_noise():
    clean = NoiseLevel(alpha=1.0, sigma=0.0)
    with pytest.raises(ValueError, match="sigma = 0"):
        from_denoised(torch.ones(2, 3), torch.ones(2, 3), clean, "epsilon")
    assert from_denoised(torch.ones(2, 3), torch.zeros(2, 3), clean, "sample").eq(1).all()


def test_an_unknown_type_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="'noise'; allowed: 'epsilon', 'sample'"):
        coefficients(NoiseLevel(alpha=0.6, sigma=0.8), "noise")
