import math

import pytest
import torch

from guided_diffusers import NoiseLevel
from guided_diffusers.core.noise import broadcast


def test_everything_is_kept_in_float64():
    level = NoiseLevel(
        alpha=torch.tensor([0.6, 0.8]), sigma=torch.tensor([0.8, 0.6], dtype=torch.float16), input_scale=1
    )
    assert {level.alpha.dtype, level.sigma.dtype, level.input_scale.dtype} == {torch.float64}
    assert NoiseLevel(alpha=0.1, sigma=1).alpha.item() == 0.1  # never through float32


def test_the_ratio_and_its_logarithm():
    level = NoiseLevel(
        alpha=torch.tensor([0.6, 0.0, 1.0]).double(), sigma=torch.tensor([0.8, 1.0, 0.0]).double()
    )
    torch.testing.assert_close(level.noise_to_signal, torch.tensor([4 / 3, math.inf, 0.0]).double())
    torch.testing.assert_close(
        level.log_snr, torch.tensor([2 * math.log(0.75), -math.inf, math.inf]).double()
    )


def test_it_is_a_value_with_named_fields():
    level = NoiseLevel(alpha=0.6, sigma=0.8)
    with pytest.raises(AttributeError):
        level.alpha = 1.0
    with pytest.raises(TypeError):
        NoiseLevel(0.6, 0.8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_broadcast_multiplies_each_sample_by_its_own_value(dtype):
    sample = torch.ones(2, 3, 4, 5, dtype=dtype)
    one, many = (
        broadcast(torch.tensor(0.5).double(), sample),
        broadcast(torch.tensor([0.5, 2.0]).double(), sample),
    )
    assert one.shape == () and many.shape == (2, 1, 1, 1)
    assert (one * sample).dtype == (many * sample).dtype == dtype
    assert (many * sample)[0].unique().tolist() == [0.5] and (many * sample)[1].unique().tolist() == [2.0]
    assert broadcast(0.25, sample).item() == 0.25


@pytest.mark.parametrize("shape", [(3,), (2, 1)])
def test_broadcast_names_the_shapes_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"shape \(.*allowed: \(\) or \(2,\)"):
        broadcast(torch.ones(shape), torch.ones(2, 3))
