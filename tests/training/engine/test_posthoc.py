"""Averages whose length is chosen after training: the law of their profiles, and a real run's own."""

import json

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file
from torch import nn
from training_scripts import same, weights

from guided_diffusers.training.engine.posthoc import LENGTHS, PowerFunctionAverage, combination, exponent
from guided_diffusers.training.engine.reconstruct import reconstruct
from guided_diffusers.training.engine.trainer import Trainer


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_a_length_is_the_deviation_of_its_profile(length):
    gamma = exponent(length)
    tau = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    profile = (gamma + 1) * tau**gamma / 400_000
    mean = (profile * tau).sum()
    assert profile.sum() == pytest.approx(1, abs=1e-6)
    assert (profile * (tau - mean) ** 2).sum().sqrt() == pytest.approx(length, rel=1e-4)


@pytest.mark.parametrize("length", [0.05, 0.2])
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_average_of_a_known_trajectory_is_its_closed_form(length, power):
    module = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    average, gamma = PowerFunctionAverage({"m": module}, length), exponent(length)
    steps, images = 4000, 8
    for step in range(1, steps + 1):
        nn.init.constant_(module.weight, ((step - 0.5) / steps) ** power)  # theta(tau) = tau^power
        average.update(step * images, images)
    # (gamma + 1) / t^(gamma + 1) times the integral of tau^(gamma + power), at t = 1
    expected = (gamma + 1) / (gamma + power + 1)
    assert average.modules["m"].weight.item() == pytest.approx(expected, rel=1e-5)


def test_a_combination_is_the_average_itself_where_that_is_kept_and_near_where_it_is_not():
    kept = [(position, length) for position in range(100, 3300, 100) for length in LENGTHS]
    for number in (10, 63):
        position, length = kept[number]
        found, error = combination([one for one in kept if one[0] <= position], position, length)
        assert error < 1e-6 and abs(found[kept[:number].index(kept[number - 1]) + 1] - 1) < 1e-6
    errors = {length: combination(kept, 3200, length)[1] for length in (0.04, 0.08, 0.15, 0.2)}
    assert all(error < 1e-2 for error in errors.values())
    assert combination(kept, 3200, 0.28)[1] > 0.1  # almost the plain mean, which these do not reach


@pytest.fixture
def tracked(run, monkeypatch):
    """A real run that keeps averages, with averages of other lengths tracked along; folder and averages."""

    def of(lengths, **overrides):
        own = Trainer.__init__

        def begin(trainer, task, *rest):
            own(trainer, task, *rest)
            others = {length: PowerFunctionAverage(task.modules, length) for length in lengths}
            ema_update = trainer.ema.update
            trainer.ema.update = lambda *at: [ema_update(*at), *(one.update(*at) for one in others.values())]
            of.others = others

        monkeypatch.setattr(Trainer, "__init__", begin)
        _, folder = run(num_images=320, dropout=0.0, learning_rate=1e-2, warmup_images=0, **overrides)
        return folder, of.others

    return of


def test_reconstructed_averages_are_those_that_were_tracked(tracked, tmp_path):
    lengths = (0.06, 0.08, 0.15)
    folder, tracked_ones = tracked(lengths, posthoc_ema=16)
    begun = load_file(next(min((folder / "averages").iterdir()).glob("0.05/unet/*.safetensors")))
    for length in lengths:
        out = tmp_path / f"{length}"
        record = reconstruct(folder, length, out)
        assert record["images"] == 320 and json.loads((out / "ema.json").read_text()) == record
        made = UNet2DModel.from_pretrained(out / "unet").state_dict()
        wanted = tracked_ones[length].modules["unet"].state_dict()
        difference = torch.cat([(made[name] - wanted[name]).flatten() for name in wanted])
        assert difference.norm() < 1e-2 * torch.cat([t.flatten() for t in wanted.values()]).norm()
        # and beside what the run moved the weights by
        moved = torch.cat([(begun[name].float() - wanted[name]).flatten() for name in wanted])
        assert difference.norm() < 3e-2 * moved.norm()


def test_a_run_that_was_stopped_keeps_the_same_averages_to_the_bit(run):
    settings = {"posthoc_ema": 8, "num_images": 80}
    _, whole = run("whole", **settings)
    run("parts", stop_at_images=48, **settings)
    _, parts = run("parts", **settings)
    assert len(list((whole / "averages").iterdir())) == 8
    assert same(weights(whole / "averages"), weights(parts / "averages"))


def test_averages_that_began_late_or_are_not_there_are_refused(run, tmp_path):
    _, folder = run(num_images=16)
    with pytest.raises(FileNotFoundError, match=r"trained without training\.posthoc_ema"):
        reconstruct(folder, 0.1, tmp_path / "out")
    with pytest.raises(ValueError, match="posthoc_ema is 4.*of all positions from the first"):
        run(num_images=32, posthoc_ema=4)
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        reconstruct(tmp_path, 0.1, tmp_path / "out")
    _, kept = run("kept", num_images=32, posthoc_ema=2)
    for problem, arguments in {
        "length is 0.3; allowed": (0.3, tmp_path / "out"),
        "length is 0.01: the 4 averages kept": (0.01, tmp_path / "out"),
        "images is 8; allowed: a position from 16 to 32": (0.1, tmp_path / "out", 8),
        "out is .*; allowed: a new folder": (0.1, kept),
    }.items():
        with pytest.raises(ValueError, match=problem):
            reconstruct(kept, *arguments)
    assert not (tmp_path / "out").exists()
