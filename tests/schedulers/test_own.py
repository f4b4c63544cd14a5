"""A scheduler of one's own: it says its noise levels, and no list has to name it."""

import math

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from laws.exact import draw, exact_denoiser, exact_log_prob
from tiny import stable_diffusion_schedule, tiny_components

from guided_diffusers import NoiseLevel, TextToImagePipeline, noise_level, sampling_loop
from guided_diffusers.guidance import CFGPlusPlus, ClassifierFreeGuidance, ClassifierGuidance, Step
from guided_diffusers.pipelines.record import scheduler_config
from guided_diffusers.schedulers import next_noise_level, prediction_type_of
from guided_diffusers.schedulers.timesteps import set_timesteps
from guided_diffusers.stock import classifier_guided_scheduler

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


class Plain:
    """Euler's method in variance-exploding coordinates, by a network of epsilon; nothing of diffusers."""

    def set_timesteps(self, count):
        self.timesteps = torch.logspace(1.5, -2, count)

    def noise_level(self, t):
        return NoiseLevel(alpha=1.0, sigma=float(t))

    def step(self, output, t, x):
        place = int((self.timesteps == t).nonzero())
        following = self.timesteps[place + 1] if place + 1 < len(self.timesteps) else 0.0
        return x + (following - t) * output


class Worded(Plain):
    """The same with all that a scheduler may say besides, by a network of v."""

    config = {"prediction_type": "v_prediction"}
    init_noise_sigma = 10**1.5

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None):
        assert device == "cpu"
        spaced = torch.logspace(1.5, -2, num_inference_steps or 1).tolist()
        self.timesteps = spaced if sigmas is None else sigmas.tolist()

    def next_noise_level(self, index):
        last = index + 1 == len(self.timesteps)
        return NoiseLevel(alpha=1.0, sigma=0.0 if last else self.timesteps[index + 1])

    def step(self, model_output, timestep, sample, return_dict=True):
        assert return_dict is False
        following = self.next_noise_level(self.timesteps.index(timestep)).sigma
        norm = 1 + timestep**2
        x0 = sample / norm - timestep / norm**0.5 * model_output
        return x0 + following / timestep * (sample - x0), x0


class Objective(Worded):
    """Its step returns an object."""

    def step(self, model_output, timestep, sample):
        moved = super().step(model_output, timestep, sample, return_dict=False)[0]
        return diffusers.schedulers.scheduling_utils.SchedulerOutput(moved)


def guidance():
    return ClassifierFreeGuidance(2.5) + ClassifierGuidance(exact_log_prob(LABELS), 0.5)


@pytest.mark.parametrize("own", [Plain, Worded, Objective])
@pytest.mark.parametrize("term", [guidance(), CFGPlusPlus(0.7)], ids=lambda term: type(term).__name__)
def test_the_run_is_its_method_written_out(own, term):
    guided = term(exact_denoiser())
    drawn = sampling_loop(guided, own(), draw(6, 2), LABELS, 40)
    sigmas = [*torch.logspace(1.5, -2, 40).tolist(), 0.0]
    x = draw(6, 2) * sigmas[0]
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        level, after = (NoiseLevel(alpha=1.0, sigma=each) for each in (sigma, following))
        x0 = guided.run(Step(sample=x, level=level, next_level=after, condition=LABELS)).x0
        x = x0 + following / sigma * (x - x0)
    torch.testing.assert_close(drawn, x, rtol=0, atol=1e-6)


def test_what_it_says_is_what_is_read():
    plain, worded = Plain(), Worded()
    for scheduler in (plain, worded):
        with pytest.raises(ValueError, match="has no timesteps yet"):
            scheduler.timesteps = []
            noise_level(scheduler, 1.0)
        set_timesteps(scheduler, 5)
    assert prediction_type_of(plain) == "epsilon" and prediction_type_of(worded) == "v_prediction"
    first = plain.timesteps[0]
    assert noise_level(plain, first).timestep is first  # which its own answer left out
    assert noise_level(plain, plain.timesteps[:2]).sigma.shape == (2,)
    assert next_noise_level(plain, 0).sigma == noise_level(plain, plain.timesteps[1]).sigma
    assert (next_noise_level(plain, 4).alpha, next_noise_level(plain, 4).sigma) == (1, 0)
    with pytest.raises(ValueError, match=r"timestep is 3.3, which Plain does not list; its 5 timesteps"):
        noise_level(plain, 3.3)
    set_timesteps(worded, sigmas=[3.0, 1.0])
    assert worded.timesteps == [3.0, 1.0]
    with pytest.raises(ValueError, match="Plain takes no custom sigmas"):
        set_timesteps(plain, sigmas=[3.0, 1.0])


def test_what_is_no_scheduler_is_refused_by_name():
    class Half:
        timesteps = (1.0,)

        def noise_level(self, t):
            return 1.0

    with pytest.raises(ValueError, match="Half with a noise_level, and lacks set_timesteps, step"):
        sampling_loop(exact_denoiser(), Half(), draw(6, 2))
    Half.set_timesteps = Half.step = lambda *args: None
    with pytest.raises(TypeError, match="noise level that Half says is 1.0; allowed: a NoiseLevel"):
        sampling_loop(exact_denoiser(), Half(), draw(6, 2))


class MyLCM(diffusers.LCMScheduler):
    """A stock class whose subclass says its levels, as stock does."""

    def noise_level(self, t):
        abar = self.alphas_cumprod[int(t)].double()
        return NoiseLevel(alpha=abar.sqrt(), sigma=(1 - abar).sqrt(), timestep=t)


class Cosine(Plain):
    """DDIM in angles, with a network that counts its timesteps from 0 to 999."""

    def set_timesteps(self, count):
        self.timesteps = torch.linspace(990, 40, count)

    def noise_level(self, t):
        angle = math.pi / 2 * float(t) / 1000
        return NoiseLevel(alpha=math.cos(angle), sigma=math.sin(angle))

    def step(self, output, t, x):
        angle, turn = math.pi / 2 * t / 1000, 0.0
        place = int((self.timesteps == t).nonzero())
        if place + 1 < len(self.timesteps):
            turn = math.pi / 2 * self.timesteps[place + 1] / 1000
        x0 = (x - math.sin(angle) * output) / math.cos(angle)
        return math.cos(turn) * x0 + math.sin(turn) * output


@pytest.mark.parametrize("own", [MyLCM, Cosine])
def test_pipelines_take_it(own):
    scheduler = stable_diffusion_schedule(own) if own is MyLCM else own()
    pipeline = TextToImagePipeline(**tiny_components(scheduler=scheduler), requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)

    def images(pipe, **kwargs):
        generator = torch.Generator().manual_seed(3)
        call = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
        return pipe(["a boot", "a bag"], generator=generator, **call, **kwargs).images

    drawn = images(pipeline)
    if own is MyLCM:
        stock = StableDiffusionPipeline(
            **tiny_components(scheduler=stable_diffusion_schedule(diffusers.LCMScheduler)),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        torch.testing.assert_close(drawn, images(stock), rtol=0, atol=4e-5)
    assert drawn.isfinite().all() and drawn.std() > 0.1


def test_a_record_of_it_has_the_configuration_that_it_has():
    assert scheduler_config(Plain()) == {}
    assert scheduler_config(Worded()) == {"prediction_type": "v_prediction"}


def test_an_unmodified_loop_is_guided_by_it():
    """The wrapper for pipelines of others keeps the names of one's own step."""
    term = ClassifierGuidance(exact_log_prob(LABELS), 1.0)
    wrapped = classifier_guided_scheduler(Plain(), term)
    wrapped.set_timesteps(40)
    x = draw(6, 2) * float(wrapped.timesteps[0])
    for t in wrapped.timesteps:
        x0 = exact_denoiser()(x, wrapped.noise_level(t))
        x = wrapped.step((x - x0) / t, t, x)
    drawn = sampling_loop(term(exact_denoiser()), Plain(), draw(6, 2), num_inference_steps=40)
    torch.testing.assert_close(x, drawn, rtol=0, atol=1e-6)


class TestDynamicShifting:
    def test_mu_is_given_to_the_scheduler(self):
        shifted = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
        set_timesteps(shifted, 6, mu=0.8)
        expected = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
        expected.set_timesteps(6, mu=0.8)
        assert torch.equal(shifted.sigmas, expected.sigmas)
        drawn = sampling_loop(exact_denoiser(), shifted, draw(6, 2), LABELS, 6, mu=0.8)
        plain = sampling_loop(exact_denoiser(), shifted, draw(6, 2), LABELS, 6, mu=0.0)
        assert (drawn - plain).abs().max() > 1e-3

    @pytest.mark.parametrize(
        "cls", [diffusers.FlowMatchEulerDiscreteScheduler, diffusers.UniPCMultistepScheduler]
    )
    def test_without_mu_it_is_refused_and_so_is_mu_without_it(self, cls):
        with pytest.raises(ValueError, match="has use_dynamic_shifting, so it needs mu"):
            set_timesteps(cls(use_dynamic_shifting=True), 6)
        with pytest.raises(ValueError, match="mu is 0.5; .* has no use_dynamic_shifting"):
            set_timesteps(cls(), 6, mu=0.5)


class Shared(Plain):
    """As Plain, with a share of its noise: a number, or one a sample."""

    def __init__(self, share):
        self.share = torch.tensor(share, dtype=torch.float64)

    def noise_level(self, t):
        return NoiseLevel(alpha=1.0, sigma=float(t) * self.share)

    def step(self, output, t, x):
        return x + (super().step(output, t, x) - x) * self.share[..., None]


def test_a_level_may_be_one_a_sample():
    def denoiser(sample, level, condition):  # exact where the data are standard normal
        return sample / (1 + level.sigma**2).expand(len(sample))[:, None]

    def run(share, noise):
        return sampling_loop(denoiser, Shared(share), noise, num_inference_steps=5)

    noise = draw(4, 2)
    torch.testing.assert_close(run([1.0, 1.0, 0.5, 0.5], noise)[:2], run(1.0, noise[:2]))
    torch.testing.assert_close(run([1.0, 1.0, 0.5, 0.5], noise)[2:], run(0.5, noise[2:]))
    with pytest.raises(ValueError, match=r"first noise level has shape \(3,\); allowed: \(\) or \(4,\)"):
        run([1.0] * 3, noise)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("noise_level", 3.0, "lacks noise_level to call"),
        ("step", lambda self, output, t, x: None, "what Wrong.step gave is None; allowed: .*shape"),
        ("step", lambda self, output, t, x: {"prev_sample": x}, "what Wrong.step gave is {"),
        ("step", lambda self, output, t, x: x[:1], r"what Wrong.step gave is .*\(1, 2\).*shape of the"),
        ("set_timesteps", lambda self, count: vars(self).update(timesteps=[]), "timesteps that Wrong lists"),
        (
            "set_timesteps",
            lambda self, count: vars(self).update(timesteps=torch.ones(count, 6)),
            r"timesteps that Wrong lists .*\(4, 6\).*one number a step",
        ),
    ],
)
def test_what_does_not_do_what_a_scheduler_does_is_refused_by_name(name, value, words):
    wrong = type("Wrong", (Plain,), {name: value})()
    with pytest.raises(ValueError, match=words) as caught:
        sampling_loop(lambda sample, level, condition: sample, wrong, draw(6, 2), num_inference_steps=4)
    assert "\n" not in str(caught.value)


def test_a_step_in_half_precision_does_not_make_the_rest_of_the_run_so():
    halved = type("Halved", (Plain,), {"step": lambda self, o, t, x: Plain.step(self, o, t, x).half()})()
    dtypes = []

    def denoiser(sample, level, condition):
        dtypes.append(sample.dtype)
        return sample / 2

    assert sampling_loop(denoiser, halved, draw(6, 2).float(), num_inference_steps=3).dtype == torch.float32
    assert set(dtypes) == {torch.float32}


def test_a_table_without_numbers_is_told():
    config = {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"}
    scheduler = diffusers.KDPM2AncestralDiscreteScheduler(**config)
    with pytest.raises(ValueError, match=r"KDPM2AncestralDiscreteScheduler made has no number.*more steps"):
        sampling_loop(lambda sample, level, condition: sample, scheduler, draw(6, 2), num_inference_steps=3)
