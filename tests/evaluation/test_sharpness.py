import pytest
import torch
import torch.nn.functional as F

from guided_diffusers.evaluation import high_frequency_energy, laplacian_energy
from guided_diffusers.evaluation.sharpness import beyond

MEASURES = (high_frequency_energy, laplacian_energy)


@pytest.fixture
def noise():
    return torch.randn(400, 2, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("measure", MEASURES)
def test_constant_has_none(measure):
    assert measure(torch.full((2, 3, 16, 16), 0.7)).abs().max() < 1e-25


def test_white_noise_has_the_known_energy(noise):
    """Variance 4: spectral 4 x the fraction of bins; Laplacian 4 (4^2 + 4 x 1^2)."""
    images = 2 * noise
    expected = 4 * beyond(32, 32).double().mean()
    assert high_frequency_energy(images).mean() == pytest.approx(expected.item(), rel=0.01)
    assert laplacian_energy(images).mean() == pytest.approx(80, rel=0.01)


def test_all_frequencies_add_up_to_the_mean_square(noise):
    """Parseval: beyond 0 lies everything but the mean."""
    energy = high_frequency_energy(noise, cutoff=0)
    torch.testing.assert_close(energy, noise.var(dim=(-2, -1), correction=0).mean(dim=1))


@pytest.mark.parametrize(("cycles", "counts"), [(4, False), (8, False), (9, True), (15, True)])
def test_a_wave_counts_when_it_is_beyond_half_of_nyquist(cycles, counts):
    """cos(2 pi k x / 32) has mean square 1/2, all at k/32 cycles per pixel; k = 8 is half of Nyquist."""
    wave = torch.cos(2 * torch.pi * cycles * torch.arange(32, dtype=torch.float64) / 32)
    energy = high_frequency_energy(wave.expand(1, 1, 32, 32))
    assert energy.item() == pytest.approx(0.5 if counts else 0, abs=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
def test_blur_lowers_and_contrast_scales(measure, noise):
    blurred = F.avg_pool2d(noise, 3, stride=1, padding=1)
    assert (measure(blurred) < measure(noise)).all()
    torch.testing.assert_close(measure(3 * noise), 9 * measure(noise))


@pytest.mark.parametrize("measure", MEASURES)
def test_an_image_does_not_depend_on_its_batch(measure, noise):
    images = noise[:7].float()
    alone = torch.cat([measure(image[None]) for image in images])
    assert measure(images).dtype == torch.float64
    torch.testing.assert_close(measure(images), alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize("measure", MEASURES)
def test_wrong_images_are_refused(measure):
    with pytest.raises(ValueError, match="images"):
        measure(torch.zeros(3, 32, 32))
    with pytest.raises(ValueError, match="images"):
        measure(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_cutoff_out_of_range_is_refused():
    with pytest.raises(ValueError, match="cutoff"):
        high_frequency_energy(torch.zeros(1, 1, 8, 8), cutoff=0.5)
