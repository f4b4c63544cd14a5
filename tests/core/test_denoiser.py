import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import UNet2DConditionModel
from laws.exact import draw, level_at
from torch import nn

from guided_diffusers import Condition, Denoised, ModelDenoiser, NoiseLevel, from_denoised
from guided_diffusers.core.denoiser import DynamicThreshold
from guided_diffusers.guidance import ClassifierFreeGuidance, Step


class Recorder(nn.Module):
    """A network that notes what it receives; it answers `weight` times it, with the channels repeated."""

    def __init__(self, channels=1, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0, dtype=dtype))
        self.channels, self.seen = channels, []

    def forward(self, sample, timestep, **arguments):
        self.seen.append((sample, timestep, arguments))
        return self.weight * sample.repeat(1, self.channels, *[1] * (sample.ndim - 2))


def test_the_network_sees_the_scaled_sample_its_timestep_and_its_arguments():
    network = Recorder()
    level = NoiseLevel(alpha=1.0, sigma=3.0, timestep=torch.tensor(17.5), input_scale=10**-0.5)
    sample, states = draw(2, 3, 4, 4, dtype=torch.float32), draw(2, 5, 6)
    x0, extra = ModelDenoiser(network, "epsilon")(sample, level, Condition({"states": states}))
    seen, timestep, arguments = network.seen[0]
    torch.testing.assert_close(seen, sample / 10**0.5)
    assert timestep == 17.5 and arguments == {"states": states} and extra is None
    torch.testing.assert_close(x0, sample - 3 * (2 * sample / 10**0.5))


def test_several_conditions_are_one_forward_with_the_answers_of_separate_ones():
    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
    ).eval()
    denoiser = ModelDenoiser(network, "v_prediction")
    sample, level = draw(3, 4, 8, 8, dtype=torch.float32), level_at(2.0, timestep=torch.tensor(400))
    conditions = [
        Condition({"encoder_hidden_states": draw(3, 5, 8, seed=seed, dtype=torch.float32)}) for seed in (1, 2)
    ]
    with torch.no_grad():
        together = denoiser.batch(sample, level, conditions)
        apart = [denoiser(sample, level, condition) for condition in conditions]
    assert (apart[0].x0 - apart[1].x0).abs().max() > 1e-3
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one.x0, other.x0, rtol=0, atol=1e-5)


def test_a_level_a_sample_gives_a_timestep_a_sample():
    network = Recorder()
    ratios = torch.tensor([0.5, 2.0]).double()
    alpha = (1 + ratios**2).rsqrt()
    level = NoiseLevel(alpha=alpha, sigma=ratios * alpha, timestep=torch.tensor([100, 500]))
    sample = draw(2, 3, dtype=torch.float32)
    one, other = ModelDenoiser(network, "epsilon").batch(sample, level, [None, None])
    assert network.seen[0][1].tolist() == [100, 500, 100, 500]
    assert torch.equal(one.x0, other.x0)
    for row, ratio in enumerate([0.5, 2.0]):
        alone = ModelDenoiser(network, "epsilon")(sample[row : row + 1], level_at(ratio, timestep=0)).x0
        torch.testing.assert_close(alone[0], one.x0[row])


@pytest.mark.parametrize(
    ("sample", "network", "expected"),
    [
        (torch.float32, torch.float16, torch.float32),
        (torch.float16, torch.float32, torch.float32),
        (torch.float64,) * 3,
    ],
)
def test_the_network_works_in_its_own_dtype_and_x0_is_at_least_float32(sample, network, expected):
    network = Recorder(dtype=network)
    x0 = ModelDenoiser(network, "epsilon")(
        draw(2, 3, dtype=torch.float32).to(sample), level_at(1.0, timestep=1)
    ).x0
    assert network.seen[0][0].dtype == network.weight.dtype and x0.dtype == expected


def test_learned_variance_channels_ride_along_and_are_not_guided():
    class WithVariance(Recorder):
        def forward(self, sample, timestep, shift):
            return torch.cat([sample + shift[:, None], 10 * sample + shift[:, None]], dim=1)

    denoiser = ModelDenoiser(WithVariance(), "sample")
    sample = draw(2, 3, dtype=torch.float32)
    condition = Condition({"shift": torch.tensor([1.0, 2.0])}, {"shift": torch.zeros(2)})
    conditional = denoiser(sample, level_at(1.0, timestep=1), condition)
    torch.testing.assert_close(conditional.extra, 10 * sample + torch.tensor([[1.0], [2.0]]))

    step = Step(sample=sample, level=level_at(1.0, timestep=1), condition=condition)
    guided = ClassifierFreeGuidance(4.0)(denoiser).run(step)
    torch.testing.assert_close(guided.x0, sample + 4 * torch.tensor([[1.0], [2.0]]))
    assert torch.equal(guided.extra, conditional.extra)


def test_outputs_may_be_tensors_tuples_or_objects():
    for wrap in (lambda out: out, lambda out: (out, None), lambda out: Denoised(out)):
        x0 = ModelDenoiser(lambda sample, timestep, wrap=wrap: wrap(3 * sample), "sample")(
            torch.ones(1, 2), level_at(1.0, timestep=1)
        ).x0
        assert x0.eq(3).all()


def test_clipping_comes_before_guidance():
    x0s = {"positive": torch.tensor([[3.0, -0.5]]), "negative": torch.tensor([[-4.0, 0.5]])}
    denoiser = ModelDenoiser(lambda sample, timestep, x0: x0, "sample", clip=1.0)
    condition = Condition({"x0": x0s["positive"]}, {"x0": x0s["negative"]})
    guided = ClassifierFreeGuidance(3.0)(denoiser)
    # -1 + 3 (1 - (-1)) and 0.5 + 3 (-0.5 - 0.5): guided afterwards, and not clipped again.
    assert guided(torch.zeros(1, 2), level_at(1.0, timestep=1), condition).tolist() == [[5.0, -2.5]]


def test_dynamic_threshold():
    x0 = torch.stack([torch.linspace(-4, 4, 101), torch.linspace(-0.5, 0.5, 101)])
    out = DynamicThreshold(quantile=0.5)(x0)
    torch.testing.assert_close(out[0], (x0[0] / 2).clamp(-1, 1))  # the median of |x_0| is 2
    assert torch.equal(out[1], x0[1])  # inside [-1, 1] nothing changes
    assert torch.equal(DynamicThreshold(quantile=1.0, maximum=1.0)(x0), x0.clamp(-1, 1))
    denoiser = ModelDenoiser(lambda sample, timestep: x0, "sample", clip=DynamicThreshold(0.5))
    assert torch.equal(denoiser(torch.zeros_like(x0), level_at(1.0, timestep=1)).x0, out)


class TestErrors:
    def test_constructor(self):
        with pytest.raises(ValueError, match="'eps'; allowed: 'epsilon'"):
            ModelDenoiser(Recorder(), "eps")
        for clip in (0, -1.0, float("nan")):
            with pytest.raises(ValueError, match="clip"):
                ModelDenoiser(Recorder(), "epsilon", clip=clip)
        with pytest.raises(ValueError, match="quantile"):
            DynamicThreshold(0.0)

    def test_output_shape(self):
        with pytest.raises(ValueError, match=r"\(2, 9\) for a sample of \(2, 3\)"):
            ModelDenoiser(Recorder(channels=3), "epsilon")(draw(2, 3), level_at(1.0, timestep=1))

    @pytest.mark.parametrize(
        ("positive", "negative", "message"),
        [
            ({"a": torch.ones(2, 5, 4)}, {"a": torch.ones(2, 7, 4)}, r"'a'.*\(2, 5, 4\), \(2, 7, 4\)"),
            ({"a": torch.ones(2, 4)}, {"a": None}, "'a'"),
            ({"a": torch.ones(2, 4)}, {"b": torch.ones(2, 4)}, "differ in their arguments"),
            ({"a": torch.ones(2, 4)}, {}, r"\['a'\] and \[\]; allowed: .* Condition\(positive, negative\)"),
            ({"a": {"b": torch.ones(2)}}, {"a": {"c": torch.ones(2)}}, "under a"),
            ({"a": "one"}, {"a": "two"}, "'a' is no tensor"),
        ],
    )
    def test_conditions_that_do_not_go_into_one_batch(self, positive, negative, message):
        guided = ClassifierFreeGuidance(2.0)(ModelDenoiser(Recorder(), "epsilon"))
        with pytest.raises(ValueError, match=message):
            guided(draw(2, 3), level_at(1.0, timestep=1), Condition(positive, negative))

    def test_a_condition_that_is_no_condition(self):
        with pytest.raises(TypeError, match="condition is a str"):
            ModelDenoiser(Recorder(), "epsilon")(draw(2, 3), level_at(1.0, timestep=1), "a cat")


def test_nested_and_shared_arguments_are_joined():
    network = Recorder()
    positive = {
        "states": torch.ones(2, 4),
        "added": {"size": torch.ones(2, 1), "mode": "x"},
        "scale": 0.5,
        "mask": None,
    }
    negative = {
        "states": torch.zeros(2, 4),
        "added": {"size": torch.zeros(2, 1), "mode": "x"},
        "scale": 0.5,
        "mask": None,
    }
    guided = ClassifierFreeGuidance(2.0)(ModelDenoiser(network, "epsilon"))
    guided(draw(2, 3, dtype=torch.float32), level_at(1.0, timestep=1), Condition(positive, negative))
    arguments = network.seen[0][2]
    assert arguments["states"][:, 0].tolist() == arguments["added"]["size"][:, 0].tolist() == [1, 1, 0, 0]
    assert (arguments["scale"], arguments["mask"], arguments["added"]["mode"]) == (0.5, None, "x")


def test_a_denoiser_inverts_its_own_writing():
    sample, level = draw(2, 3), level_at(0.7, timestep=1)
    output = from_denoised(torch.ones(2, 3), sample, level, "v_prediction")
    x0 = ModelDenoiser(lambda sample, timestep: output, "v_prediction")(sample, level).x0
    torch.testing.assert_close(x0, torch.ones(2, 3).double())


def test_an_answer_without_gradients_serves_autograd_and_leaves_the_network_trainable():
    """The forward is in inference mode, and nothing of it shows."""
    network = Recorder(channels=2).eval()
    denoiser, sample = ModelDenoiser(network, "epsilon"), draw(2, 3, 4, 4, dtype=torch.float32)
    modes = []
    network.register_forward_hook(lambda *_: modes.append(torch.is_inference_mode_enabled()))
    with torch.no_grad():
        answer = denoiser(sample, level_at(1.0))
    weight = torch.ones((), requires_grad=True)
    for tensor in answer:
        (weight * tensor).square().sum().backward()
    assert weight.grad > 0
    denoiser(sample, level_at(1.0)).x0.square().sum().backward()
    assert network.weight.grad != 0
    with torch.no_grad():
        denoiser_in_training = ModelDenoiser(network.train(), "epsilon")(sample, level_at(1.0))
    assert modes == [True, False, False]
    torch.testing.assert_close(denoiser_in_training.x0, answer.x0, rtol=0, atol=0)


def test_weights_that_a_call_brings_are_not_born_in_inference_mode():
    """Offloading moves them while the network is called; training could not use them after."""
    network = Recorder().eval()
    add_hook_to_module(network, ModelHook())
    seen = []
    network.register_forward_hook(lambda *_: seen.append(torch.is_inference_mode_enabled()))
    with torch.no_grad():
        ModelDenoiser(network, "epsilon")(draw(2, 3, 4, 4, dtype=torch.float32), level_at(1.0))
    assert seen == [False]
