"""The description of a process, and what counts as another."""

import math

import diffusers
import pytest
import torch

import guided_diffusers
from guided_diffusers import GuidedDDIMScheduler, GuidedDDPMScheduler, noise_level
from guided_diffusers.core.process import Process, VariancePreserving
from guided_diffusers.schedulers import SUPPORTED_SCHEDULERS, check_process, describe_process, process_of
from guided_diffusers.schedulers.timesteps import set_timesteps

LINEAR = {
    "kind": "variance_preserving",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
}


@pytest.mark.parametrize("name", [*SUPPORTED_SCHEDULERS, "GuidedDDPMScheduler", "GuidedDDIMScheduler"])
def test_a_process_says_what_its_scheduler_says(name):
    """At a timestep of a run the two are one level, whichever the coordinates of the scheduler's sample."""
    cls = getattr(diffusers, name, None) or getattr(guided_diffusers, name)
    scheduler = cls(**({"timestep_spacing": "leading"} if "timestep_spacing" in cls().config else {}))
    set_timesteps(scheduler, 10)
    process = process_of(scheduler)
    assert Process.from_config(process.to_config()) == process
    for timestep in scheduler.timesteps[1:-1:3]:
        theirs = noise_level(scheduler, timestep)
        if isinstance(process, VariancePreserving) and timestep != timestep.round():
            continue  # a second stage, between two timesteps of training
        ours = process.at(timestep)
        torch.testing.assert_close(ours.noise_to_signal, theirs.noise_to_signal, rtol=2e-4, atol=0)
        seen, meant = (level.input_scale * level.sigma for level in (theirs, ours))
        torch.testing.assert_close(seen, meant, rtol=2e-4, atol=0)
        again = process.at_log_noise_to_signal(ours.noise_to_signal.log().reshape(1))
        torch.testing.assert_close(
            again.timestep.double(), timestep.double().reshape(1), rtol=1e-5, atol=1e-5
        )


def test_a_description_is_of_what_the_network_is_told():
    assert describe_process(GuidedDDPMScheduler()) == LINEAR
    assert describe_process(GuidedDDIMScheduler(beta_schedule="squaredcos_cap_v2")) == {
        "kind": "variance_preserving",
        "num_train_timesteps": 1000,
        "beta_schedule": "squaredcos_cap_v2",
    }
    flow = {"kind": "flow", "num_train_timesteps": 1000}
    assert describe_process(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)) == flow
    solver = diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True)
    assert describe_process(solver) == flow
    euler = diffusers.EulerDiscreteScheduler.from_config(solver.config)  # keeps the key, and ignores it
    assert describe_process(euler)["kind"] == "variance_preserving"
    assert describe_process(diffusers.LTXEulerAncestralRFScheduler()) == flow
    assert describe_process(diffusers.EDMEulerScheduler(sigma_data=0.7)) == {"kind": "edm", "sigma_data": 0.7}


def test_processes_that_count_their_timesteps_otherwise():
    """The same timestep is another noise level in each, so none is the same as another."""
    reverse = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    expected = {
        diffusers.FlowMatchLCMScheduler(): {"kind": "flow", "num_train_timesteps": 1000},
        reverse: {"kind": "flow", "num_train_timesteps": 1000, "reversed": True},
        diffusers.MiniMaxH3Scheduler(): {"kind": "flow", "num_train_timesteps": 1, "reversed": True},
        diffusers.IPNDMScheduler(): {"kind": "trigflow", "noise_timestep": 1.0, "sigma_data": 1.0},
        diffusers.SCMScheduler(): {"kind": "trigflow", "noise_timestep": math.pi / 2, "sigma_data": 0.5},
    }
    for scheduler, process in expected.items():
        assert describe_process(scheduler) == Process.from_config(process).to_config() == process
        for other in expected:
            if other is scheduler:
                check_process(process, other)
            else:
                with pytest.raises(ValueError, match="trained for another process"):
                    check_process(process, other)


def test_cogvideox_shifts_its_table_away_from_the_betas_of_its_configuration():
    for zero_snr in (False, True):
        config = {"rescale_betas_zero_snr": zero_snr, "prediction_type": "v_prediction"}
        shifted, plain = (
            diffusers.CogVideoXDDIMScheduler(snr_shift_scale=scale, **config) for scale in (3.0, 1.0)
        )
        check_process(describe_process(shifted), diffusers.CogVideoXDPMScheduler(**config))
        betas = GuidedDDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        with pytest.raises(ValueError, match="trained for another process"):
            check_process(describe_process(betas), shifted)
        if not zero_snr:
            check_process(describe_process(plain), betas)


def test_a_scheduler_of_ones_own_says_its_process():
    class Own:
        timesteps = (1, 0)
        process = LINEAR

        def set_timesteps(self, count): ...
        def step(self, output, timestep, sample): ...
        def noise_level(self, timestep): ...

    check_process(LINEAR, Own())
    Own.process = {"kind": "cold"}
    with pytest.raises(ValueError, match="kind 'cold'"):
        describe_process(Own())
    del Own.process
    with pytest.raises(ValueError, match="Own, whose process is not known: give it an attribute `process`"):
        describe_process(Own())


def test_the_same_process_in_other_coordinates_or_words():
    betas = dict(beta_schedule="linear", beta_start=0.0001, beta_end=0.02)
    tables = [GuidedDDPMScheduler(trained_betas=torch.linspace(0.0001, 0.02, 1000).tolist())]
    others = [
        getattr(diffusers, name)(**betas)
        for name in ("EulerDiscreteScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler")
    ]
    for scheduler in [*tables, *others, GuidedDDPMScheduler(variance_type="learned_range")]:
        check_process(LINEAR, scheduler)
        check_process(describe_process(scheduler), GuidedDDPMScheduler())


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        (
            GuidedDDPMScheduler(beta_schedule="squaredcos_cap_v2"),
            "beta_schedule linear for squaredcos_cap_v2",
        ),
        (GuidedDDPMScheduler(beta_end=0.0202), "beta_end 0.02 for 0.0202"),
        (GuidedDDPMScheduler(num_train_timesteps=500), "num_train_timesteps 1000 for 500"),
        (GuidedDDPMScheduler(rescale_betas_zero_snr=True), "rescale_betas_zero_snr none for True"),
        (GuidedDDPMScheduler(trained_betas=[0.1] * 1000), "trained_betas none for 1000 numbers"),
        (diffusers.EDMEulerScheduler(), "kind variance_preserving for edm"),
        (
            diffusers.EulerDiscreteScheduler(
                beta_start=0.0001, beta_end=0.02, timestep_type="continuous", prediction_type="v_prediction"
            ),
            "timestep_type none for continuous",
        ),
    ],
)
def test_another_process_is_named_where_it_differs(scheduler, reason):
    with pytest.raises(ValueError, match=f"trained for another process .*{reason}"):
        check_process(LINEAR, scheduler)


def test_a_scheduler_that_is_not_known():
    with pytest.raises(ValueError, match="RePaintScheduler, which is not supported"):
        describe_process(diffusers.RePaintScheduler())


@pytest.mark.parametrize(
    ("process", "reason"),
    [
        ({}, "kind None"),
        ({"kind": "flow"}, "process.num_train_timesteps is required"),
        ({"kind": "edm", "sigma_data": "half"}, "process.sigma_data is 'half'"),
        ({**LINEAR, "beta_end": None}, "one with two numbers, or trained_betas"),
        ({**LINEAR, "beta_schedule": "straight"}, "beta_schedule is 'straight'; allowed: .*'linear'"),
    ],
)
def test_a_description_that_describes_nothing(process, reason):
    with pytest.raises(ValueError, match=reason):
        Process.from_config(process)
