"""diffusers' tests of DDPMScheduler and DDIMScheduler, on ours."""

import pytest
from diffusers_checkout import upstream

from guided_diffusers.schedulers import GuidedDDIMScheduler, GuidedDDPMScheduler

ddpm = upstream("schedulers.test_scheduler_ddpm")
ddim = upstream("schedulers.test_scheduler_ddim")

UNLISTED = (
    "steps from timesteps that set_timesteps did not list, which has no previous timestep: ValueError here"
)


class TestGuidedDDPM(ddpm.DDPMSchedulerTest):
    scheduler_classes = (GuidedDDPMScheduler,)

    @pytest.mark.xfail(
        reason="expects 387.9466 +- 0.01, with the rounding of float32 tables; with float64 it is 387.9672",
        strict=True,
    )
    def test_full_loop_with_noise(self) -> None:
        super().test_full_loop_with_noise()


class TestGuidedDDIM(ddim.DDIMSchedulerTest):
    scheduler_classes = (GuidedDDIMScheduler,)

    @pytest.mark.xfail(reason=UNLISTED, raises=ValueError, strict=True)
    def test_eta(self) -> None:
        super().test_eta()

    @pytest.mark.xfail(reason=UNLISTED, raises=ValueError, strict=True)
    def test_inference_steps(self) -> None:
        super().test_inference_steps()

    @pytest.mark.xfail(reason=UNLISTED, raises=ValueError, strict=True)
    def test_steps_offset(self) -> None:
        super().test_steps_offset()

    @pytest.mark.xfail(reason=UNLISTED, raises=ValueError, strict=True)
    def test_time_indices(self) -> None:
        super().test_time_indices()

    @pytest.mark.xfail(reason=UNLISTED, raises=ValueError, strict=True)
    def test_timestep_spacing(self) -> None:
        super().test_timestep_spacing()
