"""Noise levels of the stock schedulers against their process of training, worked out here from its betas."""

import math

import diffusers
import numpy as np
import pytest
import torch
from laws.cases import CASES, SHORT, Case

import guided_diffusers
from guided_diffusers import GuidedDDPMScheduler, noise_level
from guided_diffusers.sampling import set_timesteps
from guided_diffusers.schedulers import SUPPORTED_SCHEDULERS, next_noise_level, prediction_type_of
from guided_diffusers.schedulers.compat import reads_variance


def trained_ratio(config, timestep):
    """sigma / alpha at a fractional timestep of the training process, interpolated in log space."""
    steps = config["num_train_timesteps"]
    if config["beta_schedule"] == "squaredcos_cap_v2":
        times = np.arange(steps + 1) / steps
        abar = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - abar[1:] / abar[:-1], 0.999)
    else:
        betas = np.linspace(config["beta_start"], config["beta_end"], steps)
    abar = np.cumprod(1 - betas)
    return np.exp(np.interp(float(timestep), np.arange(steps), 0.5 * np.log((1 - abar) / abar)))


def flow_ratio(timestep):
    sigma = float(timestep) / 1000
    return sigma / (1 - sigma) if sigma < 1 else math.inf


# One of each class and kind of sigmas: prediction types share the noise levels.
LEVELS = {(case.scheduler, case.coordinates, *case.config.items()): case for case in CASES}.values()


@pytest.mark.parametrize("case", LEVELS, ids=str)
def test_levels_are_those_of_training_at_each_timestep(case: Case):
    scheduler = case.make()
    set_timesteps(scheduler, case.steps, sigmas=case.sigmas)
    # Some schedulers round the timestep of a sigma to a whole one; in a table of 100 that, and the difference
    # between linear and logarithmic interpolation, weigh more.
    rounds, short = case.config.get("use_karras_sigmas"), SHORT.keys() <= case.config.keys()
    tolerance = (0.2 if short else 2e-2) if rounds else 1e-2 if short else 1e-4
    if case.coordinates == "flow":
        tolerance = 2e-3
    for timestep in scheduler.timesteps:
        level = noise_level(scheduler, timestep)
        if case.coordinates == "edm":
            expected = np.exp(4 * float(timestep))
        elif case.coordinates == "flow":
            expected = flow_ratio(timestep)
        else:
            expected = trained_ratio(scheduler.config, timestep)
        assert level.alpha.dtype == level.sigma.dtype == torch.float64 and level.alpha.ndim == 0
        assert level.timestep is timestep
        if case.coordinates == "flow" and timestep.dtype == torch.int64:  # 0.9994 is listed as 999
            assert (
                flow_ratio(timestep) * (1 - 1e-4)
                <= level.noise_to_signal
                <= flow_ratio(timestep + 1) * (1 + 1e-4)
            )
        else:
            assert float(level.noise_to_signal) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("case", LEVELS, ids=str)
def test_each_step_arrives_at_the_level_of_the_next(case: Case):
    scheduler = case.make()
    set_timesteps(scheduler, case.steps, sigmas=case.sigmas)
    levels = [noise_level(scheduler, timestep) for timestep in scheduler.timesteps]
    arrived = [next_noise_level(scheduler, index) for index in range(len(levels))]
    for following, level in zip(arrived, levels[1:], strict=False):
        assert (following.alpha, following.sigma, following.timestep) == (
            level.alpha,
            level.sigma,
            level.timestep,
        )
    # PNDM and DEIS may end where they are; the others take another step down.
    assert arrived[-1].noise_to_signal <= levels[-1].noise_to_signal and arrived[-1].timestep is None


@pytest.mark.parametrize("case", [c for c in LEVELS if c.coordinates in ("exploding", "edm")], ids=str)
def test_along_a_run_the_network_sees_what_scale_model_input_makes(case: Case):
    scheduler = case.make()
    set_timesteps(scheduler, case.steps)
    sample = torch.ones(1, 2, dtype=torch.float64)
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(sample, timestep)
        torch.testing.assert_close(
            scaled, noise_level(scheduler, timestep).input_scale * sample, rtol=1e-6, atol=0
        )
        sample = scheduler.step(torch.zeros_like(sample), timestep, sample).prev_sample


def test_init_noise_sigma_is_the_scale_of_pure_noise():
    """sqrt(alpha^2 + sigma^2) of the first level within the scheduler's own convention."""
    for case in LEVELS:
        if case.coordinates != "exploding" or case.config.get("timestep_spacing") == "leading":
            continue  # leading spacing starts from the larger noise it is trained to see
        scheduler = case.make()
        set_timesteps(scheduler, case.steps)
        sigma = noise_level(scheduler, scheduler.timesteps[0]).sigma
        assert float(scheduler.init_noise_sigma) == pytest.approx(float(sigma), rel=1e-4)


class TestErrors:
    @pytest.mark.parametrize(
        "read", [lambda s: noise_level(s, 1), prediction_type_of, lambda s: next_noise_level(s, 0)]
    )
    def test_an_unsupported_scheduler_is_told_the_supported_ones(self, read):
        with pytest.raises(ValueError, match="LCMScheduler.*supported: ") as caught:
            read(diffusers.LCMScheduler())
        assert all(name in str(caught.value) for name in SUPPORTED_SCHEDULERS)
        with pytest.raises(ValueError, match="scheduler is a str"):
            read("ddim")

    @pytest.mark.parametrize("name", SUPPORTED_SCHEDULERS)
    def test_before_set_timesteps(self, name):
        scheduler = getattr(diffusers, name)(num_train_timesteps=100)
        if name in ("HeunDiscreteScheduler", "LMSDiscreteScheduler", "KDPM2DiscreteScheduler"):
            assert (
                scheduler.num_inference_steps == 100
            )  # these list a run of all timesteps when they are made
        else:
            with pytest.raises(ValueError, match="call its set_timesteps first"):
                noise_level(scheduler, 1 if scheduler.timesteps is None else scheduler.timesteps[0])
        scheduler.set_timesteps(7)
        assert noise_level(scheduler, scheduler.timesteps[0]).sigma > 0

    @pytest.mark.parametrize("name", [*SUPPORTED_SCHEDULERS, "GuidedDDPMScheduler", "GuidedDDIMScheduler"])
    def test_a_timestep_that_is_not_listed(self, name):
        home = guided_diffusers if name.startswith("Guided") else diffusers
        scheduler = getattr(home, name)(num_train_timesteps=100)
        scheduler.set_timesteps(7)
        with pytest.raises(
            ValueError, match="timestep is 123.5, which .* does not list; its [0-9]+ timesteps begin"
        ):
            noise_level(scheduler, 123.5)

    def test_inverted_sigmas(self):
        with pytest.raises(ValueError, match="invert_sigmas"):
            prediction_type_of(diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True))

    @pytest.mark.parametrize(
        ("kind", "flow"), [("v_prediction", True), ("flow_prediction", False)], ids=["v of flow", "flow of v"]
    )
    def test_prediction_types_that_diffusers_misreads(self, kind, flow):
        scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type=kind, use_flow_sigmas=flow)
        with pytest.raises(ValueError, match=f"'{kind}' with use_flow_sigmas={flow}"):
            prediction_type_of(scheduler)


def test_the_prediction_type_is_the_row_that_the_scheduler_reads():
    for case in {(case.scheduler, case.written): case for case in CASES}.values():
        assert prediction_type_of(case.make()) == case.written
    # Euler's older name for the same.
    assert prediction_type_of(diffusers.EulerDiscreteScheduler(prediction_type="original_sample")) == "sample"


def test_a_subclass_is_read_as_its_parent():
    class Mine(diffusers.EulerDiscreteScheduler):
        pass

    scheduler = Mine()
    scheduler.set_timesteps(5)
    assert noise_level(scheduler, scheduler.timesteps[0]).alpha == 1


def test_multi_stage_schedulers_follow_the_step_under_way():
    """Heun lists a timestep twice and KDPM2 goes to sigmas in between: the place in the run decides."""
    for scheduler in (diffusers.HeunDiscreteScheduler(), diffusers.KDPM2DiscreteScheduler(**SHORT)):
        scheduler.set_timesteps(4)
        sample, seen = torch.ones(1, 2), []
        for timestep in scheduler.timesteps:
            scheduler.scale_model_input(sample, timestep)
            seen.append(float(noise_level(scheduler, timestep).sigma))
            sample = scheduler.step(torch.zeros(1, 2), timestep, sample).prev_sample
        assert len(seen) == 7 and min(seen) > 0
        assert seen == sorted(seen, reverse=True)


def test_which_schedulers_read_a_learned_variance():
    for kind in ("learned", "learned_range"):
        assert reads_variance(GuidedDDPMScheduler(variance_type=kind))
        assert reads_variance(diffusers.DDPMScheduler(variance_type=kind))
        assert not reads_variance(diffusers.DPMSolverMultistepScheduler(variance_type=kind))
    assert not reads_variance(diffusers.DDPMScheduler())
    assert not reads_variance(diffusers.FlowMatchEulerDiscreteScheduler())


@pytest.mark.parametrize(
    "name", ["DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "EDMEulerScheduler"]
)
def test_a_timestep_a_sample(name):
    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(10)
    timesteps = scheduler.timesteps[[0, 4, 9]]
    together = noise_level(scheduler, timesteps)
    for i, timestep in enumerate(timesteps):
        alone = noise_level(scheduler, timestep)
        for value in ("alpha", "sigma", "input_scale"):
            assert getattr(together, value).shape == (3,)
            assert getattr(together, value)[i] == getattr(alone, value)
