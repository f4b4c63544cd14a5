"""Noise levels of the stock schedulers against their process of training, worked out here from its betas."""

import math

import diffusers
import numpy as np
import pytest
import torch
from laws.cases import CASES, SHORT, Case

import guided_diffusers
from guided_diffusers import GuidedDDPMScheduler, noise_level
from guided_diffusers.schedulers import SUPPORTED_SCHEDULERS, next_noise_level, prediction_type_of
from guided_diffusers.schedulers.adapt import run_timesteps
from guided_diffusers.schedulers.families import REFUSED, reads_variance
from guided_diffusers.schedulers.timesteps import set_timesteps


def trained_ratio(config, timestep):
    """sigma / alpha at a fractional timestep of the training process, interpolated in log space."""
    steps = config["num_train_timesteps"]
    if config["beta_schedule"] == "squaredcos_cap_v2":
        times = np.arange(steps + 1) / steps
        abar = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - abar[1:] / abar[:-1], 0.999)
    else:
        power = 2 if config["beta_schedule"] == "scaled_linear" else 1
        ends = config["beta_start"] ** (1 / power), config["beta_end"] ** (1 / power)
        betas = np.linspace(*ends, steps) ** power
    abar = np.cumprod(1 - betas)
    shift = config.get("snr_shift_scale", 1.0)
    abar = abar / (shift + (1 - shift) * abar)
    return np.exp(np.interp(float(timestep), np.arange(steps), 0.5 * np.log((1 - abar) / abar)))


NEEDING_TORCHSDE = ("CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler")
QUARTER_TURN = {"quarter turn": (1.0, 1.0), "angle": (math.pi / 2, 0.5)}


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
    if case.coordinates in ("flow", "signal"):
        tolerance = 2e-3
    for timestep in run_timesteps(scheduler):
        level = noise_level(scheduler, timestep)
        if case.coordinates == "edm":
            expected = np.exp(4 * float(timestep))
        elif case.written == "reversed_flow_prediction":
            expected = 1 / flow_ratio(timestep * (1000 if case.coordinates == "flow" else 1))
        elif case.coordinates == "flow":
            expected = flow_ratio(timestep)
        elif case.coordinates in QUARTER_TURN:
            quarter, sigma_data = QUARTER_TURN[case.coordinates]
            expected = sigma_data * math.tan(float(timestep) / quarter * math.pi / 2)
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
            most = 1e4  # a float32 sine of 1 leaves nothing of alpha
            given = min(float(level.noise_to_signal), most)
            assert given == pytest.approx(min(expected, most), rel=tolerance)


@pytest.mark.parametrize("case", LEVELS, ids=str)
def test_each_step_arrives_at_the_level_of_the_next(case: Case):
    scheduler = case.make()
    set_timesteps(scheduler, case.steps, sigmas=case.sigmas)
    levels = [noise_level(scheduler, timestep) for timestep in run_timesteps(scheduler)]
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


LISTED_WHEN_MADE = (
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "IPNDMScheduler",
    "DPMSolverSDEScheduler",
)
"""These list a run of all timesteps when they are made."""


def small(name):
    config = {} if name == "MiniMaxH3Scheduler" else {"num_train_timesteps": 100}
    return getattr(guided_diffusers if name.startswith("Guided") else diffusers, name)(**config)


NEEDED = {
    "AmusedScheduler": {"mask_token_id": 1},
    "RFD4ProteinaScheduler": {"schedule_mode": "log", "noise_mode": "tan", "tsr_k": 1.0, "tsr_sigma": 1.0},
    "VQDiffusionScheduler": {"num_vec_classes": 3},
}


def test_every_scheduler_of_diffusers_is_adapted_or_refused_with_a_reason():
    names = {name for name in dir(diffusers) if name.endswith("Scheduler")} - {*NEEDING_TORCHSDE}
    assert names <= {*SUPPORTED_SCHEDULERS, *REFUSED} and not {*SUPPORTED_SCHEDULERS} & {*REFUSED}
    for name in sorted(names & {*REFUSED}):
        scheduler = getattr(diffusers, name)(**NEEDED.get(name, {}))
        with pytest.raises(ValueError, match=f"scheduler is a {name}, which is not supported: ") as caught:
            set_timesteps(scheduler, 4)
        assert "\n" not in str(caught.value)


class TestErrors:
    @pytest.mark.parametrize(
        "read", [lambda s: noise_level(s, 1), prediction_type_of, lambda s: next_noise_level(s, 0)]
    )
    def test_an_unsupported_scheduler_is_told_the_supported_ones(self, read):
        class Mine(diffusers.SchedulerMixin):
            pass

        with pytest.raises(ValueError, match="Mine.*supported: any that has noise_level") as caught:
            read(Mine())
        assert all(name in str(caught.value) for name in SUPPORTED_SCHEDULERS)
        with pytest.raises(ValueError, match="scheduler is a str"):
            read("ddim")

    @pytest.mark.parametrize("name", SUPPORTED_SCHEDULERS)
    def test_before_set_timesteps(self, name):
        scheduler = small(name)
        if name in LISTED_WHEN_MADE:
            assert scheduler.num_inference_steps == 100
        else:
            with pytest.raises(ValueError, match="call its set_timesteps first"):
                noise_level(scheduler, 1 if scheduler.timesteps is None else scheduler.timesteps[0])
        set_timesteps(scheduler, 7)
        assert noise_level(scheduler, scheduler.timesteps[0]).sigma > 0

    @pytest.mark.parametrize("name", [*SUPPORTED_SCHEDULERS, "GuidedDDPMScheduler", "GuidedDDIMScheduler"])
    def test_a_timestep_that_is_not_listed(self, name):
        scheduler = small(name)
        set_timesteps(scheduler, 7)
        with pytest.raises(
            ValueError, match="timestep is 123.5, which .* does not list; its [0-9]+ timesteps begin"
        ):
            noise_level(scheduler, 123.5)

    @pytest.mark.parametrize(
        ("name", "config"),
        [("FlowMatchLCMScheduler", {}), ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True})],
        ids=str,
    )
    def test_inverted_sigmas_whose_noise_diffusers_misreads(self, name, config):
        with pytest.raises(ValueError, match=f"{name} with invert_sigmas=True .*a wrong x_0"):
            prediction_type_of(getattr(diffusers, name)(invert_sigmas=True, **config))

    def test_steps_that_change_the_size(self):
        made, told = diffusers.FlowMatchLCMScheduler(scale_factors=[0.5]), diffusers.FlowMatchLCMScheduler()
        told.set_scale_factors([0.5], "bicubic")
        for scheduler in (made, told):
            with pytest.raises(ValueError, match="FlowMatchLCMScheduler with scale_factors, .* leave"):
                set_timesteps(scheduler, 2)

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
