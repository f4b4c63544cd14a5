"""Views: against diffusers' own pipelines and processors, and networks without the blocks; nothing stays."""

from __future__ import annotations

import ast
import copy
import inspect
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models import attention_processor as processors
from tiny import stable_diffusion_schedule, tiny_unet
from torch import Tensor, nn

from guided_diffusers import Condition, ModelDenoiser, NoiseLevel, sampling_loop
from guided_diffusers.guidance import AutoGuidance, ClassifierFreeGuidance, views
from guided_diffusers.guidance.perturbed import RETURNS_TEXT_FIRST

STEPS = 3


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
TEXT = {"encoder_hidden_states": randn(1, 5, 16, seed=1)}
POOLED = {**TEXT, "pooled_projections": randn(1, 16, seed=2)}
IDS = {"txt_ids": torch.zeros(5, 3), "img_ids": torch.cartesian_prod(*map(torch.arange, (1, 2, 3))).float()}
KINDS: dict[str, tuple[dict[str, Any], tuple[int, ...], dict[str, Any]]] = {
    "UNet2DConditionModel": ({}, (1, 2, 8, 12), TEXT),
    "SD3Transformer2DModel": (
        {"sample_size": 16, "patch_size": 2, "in_channels": 2, "out_channels": 2, "joint_attention_dim": 16}
        | {**HEADS, "caption_projection_dim": 16, "pooled_projection_dim": 16},
        (1, 2, 4, 6),
        POOLED,
    ),
    "FluxTransformer2DModel": (
        {**HEADS, "in_channels": 8, "num_single_layers": 1, "joint_attention_dim": 16}
        | {"pooled_projection_dim": 16, "axes_dims_rope": (4, 2, 2)},
        (1, 6, 8),
        {**POOLED, **IDS},
    ),
    "PixArtTransformer2DModel": (
        {**HEADS, "in_channels": 2, "out_channels": 2, "cross_attention_dim": 16, "caption_channels": 16}
        | {"sample_size": 8, "norm_num_groups": 2, "use_additional_conditions": False},
        (1, 2, 4, 6),
        TEXT,
    ),
    "SanaTransformer2DModel": (
        {**HEADS, "in_channels": 2, "out_channels": 2, "num_cross_attention_heads": 2, "caption_channels": 16}
        | {"cross_attention_head_dim": 8, "cross_attention_dim": 16, "sample_size": 8},
        (1, 2, 2, 3),
        TEXT,
    ),
    "WanTransformer3DModel": (
        {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 2, "out_channels": 2}
        | {"text_dim": 16, "freq_dim": 16, "ffn_dim": 24, "rope_max_seq_len": 32},
        (1, 2, 2, 4, 6),
        TEXT,
    ),
    "QwenImageTransformer2DModel": (
        {
            **HEADS,
            "in_channels": 8,
            "out_channels": 2,
            "joint_attention_dim": 16,
            "axes_dims_rope": (4, 2, 2),
        },
        (1, 6, 8),
        {**TEXT, "encoder_hidden_states_mask": torch.ones(1, 5).bool(), "img_shapes": [[(1, 2, 3)]]},
    ),
}
"""Tiny networks, their samples of 2 x 3 places, and what they are told."""
TRANSFORMERS = [kind for kind in KINDS if kind != "UNet2DConditionModel"]


def network_of(kind: str, blocks: int = 3, **options: Any) -> Any:
    """The network of a kind, its weights random, those that begin at zero too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "UNet2DConditionModel":
            return tiny_unet()
        network = getattr(diffusers, kind)(**{**KINDS[kind][0], **options}, num_layers=blocks).eval()
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.2)
    return network


def asked(network: Any, kind: str, sample: Tensor | None = None, batch: int = 1) -> Tensor:
    """One forward."""
    _, shape, told = KINDS[kind]
    sample = randn(*shape, seed=3) if sample is None else sample
    told = {
        key: value.repeat(batch, *[1] * (value.ndim - 1))
        if isinstance(value, Tensor) and not key.endswith("_ids")
        else value
        for key, value in told.items()
    }
    timestep = torch.full((batch,), 0.5 if kind[0] in "FQ" else 500.0)
    sample = sample.repeat(batch, *[1] * (sample.ndim - 1))
    if kind == "UNet2DConditionModel":
        return network(sample, timestep, **told, return_dict=False)[0]
    return network(hidden_states=sample, timestep=timestep, **told, return_dict=False)[0]


@pytest.mark.parametrize(
    ("kind", "layer"),
    [(kind, 1) for kind in TRANSFORMERS]
    + [("FluxTransformer2DModel", "single_transformer_blocks.0")]
    + [("UNet2DConditionModel", "mid_block")],
)
@torch.no_grad()
def test_skipping_layers_is_the_network_without_them(kind, layer):
    network, without = network_of(kind), network_of(kind)
    if layer == "mid_block":
        blocks, place = without.mid_block.attentions[0].transformer_blocks, 0
    elif layer == 1:
        blocks, place = getattr(without, "blocks", None) or without.transformer_blocks, 1
    else:
        blocks, place = without.single_transformer_blocks, 0
    del blocks[place]
    before = asked(network, kind)
    skipped = asked(views.skip_layers(network, layer), kind)
    torch.testing.assert_close(skipped, asked(without, kind), rtol=0, atol=1e-6)
    assert (skipped - before).abs().max() > 1e-3 and torch.equal(asked(network, kind), before)


def test_the_order_of_what_blocks_return_is_that_of_their_source():
    """Every block of diffusers that returns its image and its text by name."""
    folder, found = Path(diffusers.__file__).parent / "models", {}
    for path in [folder / "attention.py", *(folder / "transformers").glob("*.py")]:
        for block in ast.parse(path.read_text()).body:
            if isinstance(block, ast.ClassDef) and block.name in RETURNS_TEXT_FIRST:
                returns = [
                    ast.unparse(each.value) for each in ast.walk(block) if isinstance(each, ast.Return)
                ]
                found[block.name] = "(encoder_hidden_states, hidden_states)" in returns
                assert found[block.name] != ("(hidden_states, encoder_hidden_states)" in returns)
    assert found == RETURNS_TEXT_FIRST


PAG: dict[str, tuple[Callable[[Any], nn.Module], str | int, type]] = {
    "UNet2DConditionModel": (
        lambda net: net.mid_block.attentions[0].transformer_blocks[0].attn1,
        "mid_block",
        processors.PAGIdentitySelfAttnProcessor2_0,
    ),
    "SD3Transformer2DModel": (
        lambda net: net.transformer_blocks[1].attn,
        1,
        processors.PAGJointAttnProcessor2_0,
    ),
    "PixArtTransformer2DModel": (
        lambda net: net.transformer_blocks[1].attn1,
        1,
        processors.PAGIdentitySelfAttnProcessor2_0,
    ),
    "SanaTransformer2DModel": (
        lambda net: net.transformer_blocks[0].attn1,
        0,
        processors.PAGIdentitySanaLinearAttnProcessor2_0,
    ),
}


@pytest.mark.parametrize("kind", PAG)
@torch.no_grad()
def test_identity_attention_is_that_of_diffusers_processors(kind):
    """They perturb the second half of a batch."""
    attention_of, layer, processor = PAG[kind]
    network, theirs = network_of(kind), network_of(kind)
    attention_of(theirs).processor = processor()
    plain, perturbed = asked(theirs, kind, batch=2)
    torch.testing.assert_close(asked(network, kind)[0], plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        asked(views.identity_attention(network, layer), kind)[0], perturbed, rtol=0, atol=1e-5
    )
    assert (plain - perturbed).abs().max() > 1e-3


@pytest.mark.parametrize("kind", TRANSFORMERS)
@torch.no_grad()
def test_a_place_of_a_single_layer_of_identity_attention_depends_on_no_other(kind):
    options = {"num_single_layers": 0} if kind.startswith("Flux") else {}
    network = network_of(kind, 1, **options)
    if kind.startswith("Sana"):  # its feed-forward is a convolution
        network.transformer_blocks[0].ff.forward = torch.zeros_like
    shape = KINDS[kind][1]
    sample = randn(*shape, seed=3)
    other = sample.clone()
    place = (0, 0) if len(shape) == 3 else (0, slice(None), *[0] * (len(shape) - 2))
    other[place] += 1.0
    for view, least in ((network, 1), (views.identity_attention(network, 0), 0)):
        change = (asked(view, kind, other) - asked(view, kind, sample)).abs()
        away = change[:, 1:] if len(shape) == 3 else change[..., -1, -1]
        assert (away.max() > 1e-4) == bool(least)


def convolved(query: Tensor, rows: int, columns: int, sigma: float) -> Tensor:
    """Queries blurred as SEG's code does it: one convolution in two dimensions, or the mean."""
    maps = query.transpose(1, 2).reshape(-1, 1, rows, columns)
    if math.isinf(sigma):
        blurred = maps.mean((2, 3), keepdim=True).expand_as(maps)
    else:
        sides = [min(2 * (math.ceil(6 * sigma) // 2) + 1, n - (n % 2 - 1)) for n in (rows, columns)]
        grid = [torch.arange(n) - (n - 1) / 2 for n in sides]
        kernel = torch.exp(-0.5 * (grid[0][:, None] ** 2 + grid[1][None] ** 2) / sigma**2)
        pads = (sides[1] // 2,) * 2 + (sides[0] // 2,) * 2
        padded = nn.functional.pad(maps, pads, mode="reflect")
        blurred = nn.functional.conv2d(padded, (kernel / kernel.sum())[None, None])
    return blurred.reshape(len(query), query.shape[2], -1).transpose(1, 2)


@pytest.mark.parametrize("sigma", [0.6, math.inf])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_blurred_attention_convolves_the_queries(kind, sigma):
    network, theirs = network_of(kind), network_of(kind)
    layer: Any = "mid_block"
    if kind == "UNet2DConditionModel":
        attention, size = theirs.mid_block.attentions[0].transformer_blocks[0].attn1, (4, 6)
    else:
        layer, size = 1, (2, 3)
        block = (getattr(theirs, "blocks", None) or theirs.transformer_blocks)[1]
        attention = getattr(block, "attn1", None) or block.attn
    frames = 2 if kind.startswith("Wan") else 1

    def blur(module: nn.Module, args: Any, query: Tensor) -> Tensor:
        return torch.cat([convolved(part, *size, sigma) for part in query.chunk(frames, 1)], 1)

    before = asked(theirs, kind)
    attention.to_q.register_forward_hook(blur)
    ours = asked(views.blurred_attention(network, layer, sigma), kind)
    torch.testing.assert_close(ours, asked(theirs, kind), rtol=0, atol=1e-6)
    assert (ours - before).abs().max() > 1e-5


@pytest.mark.parametrize("kind", TRANSFORMERS)
@torch.no_grad()
def test_a_view_is_called_as_its_network_is(kind):
    """By `ModelDenoiser`, which knows how by the network's class."""
    network, (_, shape, told) = network_of(kind), KINDS[kind]
    level, sample = NoiseLevel(alpha=0.5, sigma=0.5, timestep=500.0), randn(*shape, seed=3)
    of_view = ModelDenoiser(views.skip_layers(network, 1), "flow_prediction")(sample, level, told).x0
    view_of = views.skip_layers(ModelDenoiser(network, "flow_prediction"), 1)(sample, level, told).x0
    assert torch.equal(of_view, view_of)


@pytest.mark.parametrize(
    ("pipeline", "kind", "theirs", "ours"),
    [
        ("StableDiffusionPAGPipeline", "UNet2DConditionModel", "mid", "mid_block"),
        ("StableDiffusionXLPAGPipeline", "UNet2DConditionModel", "mid", "mid_block"),
        ("StableDiffusion3PAGPipeline", "SD3Transformer2DModel", "blocks.1", 1),
        ("PixArtSigmaPAGPipeline", "PixArtTransformer2DModel", "blocks.1", 1),
        ("SanaPAGPipeline", "SanaTransformer2DModel", "transformer_blocks.0", 0),
    ],
)
def test_the_default_layers_of_attention_are_diffusers(pipeline, kind, theirs, ours):
    parameters = inspect.signature(getattr(diffusers, pipeline).__init__).parameters
    assert parameters["pag_applied_layers"].default == theirs
    assert views._DEFAULT_LAYERS[kind][views._ATTENTION] == (ours,)


def prompts(width: int = 16, **more: Tensor) -> dict[str, Tensor]:
    return {
        "prompt_embeds": randn(1, 5, width, seed=1),
        "negative_prompt_embeds": randn(1, 5, width, seed=4),
        **more,
    }


def condition(call: dict[str, Tensor]) -> Condition:
    names = {"prompt_embeds": "encoder_hidden_states", "pooled_prompt_embeds": "pooled_projections"}
    positive = {names[key]: value for key, value in call.items() if key in names}
    return Condition(positive, {names[key]: call[f"negative_{key}"] for key in names if key in call})


def test_pag_by_a_view_is_stable_diffusions_pag_pipeline():
    unet = network_of("UNet2DConditionModel")
    scheduler = stable_diffusion_schedule(diffusers.DDIMScheduler, clip_sample=False)
    parts = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "vae"))
    pipeline = diffusers.StableDiffusionPAGPipeline(
        **parts, unet=copy.deepcopy(unet), scheduler=scheduler, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    call, noise = prompts(), randn(1, 2, 8, 8, seed=5)
    theirs = pipeline(
        **call,
        latents=noise,
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        pag_scale=3.0,
        output_type="latent",
        height=64,
        width=64,
    ).images
    guidance = ClassifierFreeGuidance(4.0) + AutoGuidance(views.identity_attention(unet), 1 + 3.0)
    ours = sampling_loop(guidance(ModelDenoiser(unet, "epsilon")), scheduler, noise, condition(call), STEPS)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    plain = sampling_loop(
        ClassifierFreeGuidance(4.0)(ModelDenoiser(unet, "epsilon")), scheduler, noise, condition(call), STEPS
    )
    assert (ours - plain).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "StableDiffusion3PAGPipeline"])
def test_stable_diffusion_3_by_a_view_is_its_pipeline(name):
    transformer = network_of("SD3Transformer2DModel")
    parts = {f"{part}{i}": None for part in ("text_encoder", "tokenizer") for i in ("", "_2", "_3")}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = getattr(diffusers, name)(
        **parts, transformer=copy.deepcopy(transformer), scheduler=scheduler, vae=None
    )
    pipeline.set_progress_bar_config(disable=True)
    pooled = {
        "pooled_prompt_embeds": randn(1, 16, seed=6),
        "negative_pooled_prompt_embeds": randn(1, 16, seed=7),
    }
    call, noise = prompts(**pooled), randn(1, 2, 4, 6, seed=5)
    skips = name == "StableDiffusion3Pipeline"
    options = (
        {"skip_guidance_layers": [1], "skip_layer_guidance_start": -1, "skip_layer_guidance_stop": 2}
        if skips
        else {"pag_scale": 2.8}
    )
    size = {"height": 4 * pipeline.vae_scale_factor, "width": 6 * pipeline.vae_scale_factor}
    theirs = pipeline(
        **call,
        **options,
        **size,
        latents=noise,
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        output_type="latent",
    ).images
    view = views.skip_layers(transformer, [1]) if skips else views.identity_attention(transformer)
    guidance = ClassifierFreeGuidance(4.0) + AutoGuidance(view, 1 + 2.8)
    denoiser = guidance(ModelDenoiser(transformer, "flow_prediction"))
    ours = sampling_loop(denoiser, scheduler, noise, condition(call), STEPS)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


LEVEL = NoiseLevel(alpha=0.8, sigma=0.6, timestep=500)
SAMPLE = randn(2, 2, 8, 8, seed=8)
TOLD = {"encoder_hidden_states": randn(2, 5, 16, seed=1)}


class TestAView:
    unet = network_of("UNet2DConditionModel")
    plain = ModelDenoiser(unet, "epsilon")

    def weak(self, *made: Callable[[Any], Any]) -> Tensor:
        """x_0 of views of views."""
        denoiser: Any = self.plain
        for make in made:
            denoiser = make(denoiser)
        return denoiser(SAMPLE, LEVEL, TOLD).x0

    @torch.no_grad()
    def test_is_a_denoiser_and_a_network_and_in_autoguidance_the_guided_one(self):
        view = views.identity_attention(self.unet)
        x0, own = self.weak(views.identity_attention), self.plain(SAMPLE, LEVEL, TOLD).x0
        torch.testing.assert_close(ModelDenoiser(view, "epsilon")(SAMPLE, LEVEL, TOLD).x0, x0)
        for weak in (view, views.identity_attention(self.plain), ModelDenoiser(view, "epsilon")):
            guided = AutoGuidance(weak, 3.0)(self.plain)(SAMPLE, LEVEL, TOLD)
            torch.testing.assert_close(guided, x0 + 3 * (own - x0))

    @torch.no_grad()
    def test_may_be_nested(self):
        both = self.weak(views.identity_attention, lambda net: views.skip_layers(net, "up_blocks"))
        reverse = self.weak(lambda net: views.skip_layers(net, "up_blocks"), views.identity_attention)
        assert torch.equal(both, reverse)
        assert not torch.equal(both, self.weak(views.identity_attention))

    @torch.no_grad()
    @pytest.mark.parametrize("make", [views.skip_layers, views.identity_attention, views.blurred_attention])
    def test_leaves_nothing_behind_when_the_network_raises(self, make):
        before, attributes = self.plain(SAMPLE, LEVEL, TOLD).x0, hooks_of(self.unet)
        block = self.unet.mid_block.attentions[0].transformer_blocks[0]
        handle = block.attn1.to_out[1].register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make(self.plain)(SAMPLE, LEVEL, TOLD)
        handle.remove()
        assert hooks_of(self.unet) == attributes and not torch.overrides._get_current_function_mode_stack()
        assert torch.equal(self.plain(SAMPLE, LEVEL, TOLD).x0, before)

    def test_is_of_the_thread_that_entered_it(self):
        view, answers = views.identity_attention(self.plain), {}

        def ask() -> None:
            with torch.no_grad():
                answers["plain"] = self.plain(SAMPLE, LEVEL, TOLD).x0
                answers["view"] = view(SAMPLE, LEVEL, TOLD).x0

        with torch.no_grad(), views.skip_layers(self.unet).perturbed():
            skipped = self.plain(SAMPLE, LEVEL, TOLD).x0
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()
            assert torch.equal(self.plain(SAMPLE, LEVEL, TOLD).x0, skipped)
        with torch.no_grad():
            assert torch.equal(answers["plain"], self.plain(SAMPLE, LEVEL, TOLD).x0)
        assert torch.equal(answers["view"], self.weak(views.identity_attention).detach())

    def test_of_a_network_that_is_not_asked_is_missed(self):
        term = AutoGuidance(views.skip_layers(network_of("UNet2DConditionModel")), 3.0)
        with pytest.raises(ValueError, match="of a network that was not asked"):
            term(self.plain)(SAMPLE, LEVEL, TOLD)

    @torch.no_grad()
    def test_sees_a_network_that_is_offloaded(self):
        unet = network_of("UNet2DConditionModel")
        unet.enable_group_offload(torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)
        for make in (views.skip_layers, views.identity_attention):
            ours = make(ModelDenoiser(unet, "epsilon"))(SAMPLE, LEVEL, TOLD).x0
            torch.testing.assert_close(ours, self.weak(make))

    @pytest.mark.slow
    @torch.no_grad()
    def test_sees_a_network_that_is_compiled(self):
        from torch._dynamo import eval_frame

        for compile_it in (
            lambda net: net.compile(backend="eager"),
            lambda net: torch.compile(net, backend="eager"),
        ):
            unet = network_of("UNet2DConditionModel")
            compiled = compile_it(unet)
            unet = unet if compiled is None else compiled
            denoiser = ModelDenoiser(unet, "epsilon")
            before = denoiser(SAMPLE, LEVEL, TOLD).x0
            for make in (views.skip_layers, views.identity_attention):
                torch.testing.assert_close(make(denoiser)(SAMPLE, LEVEL, TOLD).x0, self.weak(make))
            assert torch.equal(denoiser(SAMPLE, LEVEL, TOLD).x0, before)
        first, second = (views.skip_layers(unet).perturbed() for _ in range(2))
        first.__enter__()
        second.__enter__()
        denoiser(SAMPLE, LEVEL, TOLD)
        first.__exit__(None, None, None)
        assert eval_frame._stance.stance == "force_eager"
        second.__exit__(None, None, None)
        assert eval_frame._stance.stance == "default"


def hooks_of(network: nn.Module) -> list[tuple[int, int]]:
    return [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in network.modules()]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: views.skip_layers(network_of("PixArtTransformer2DModel"), 3),
            "layers has 3; allowed.*below 3",
        ),
        (lambda: views.skip_layers(network_of("SD3Transformer2DModel")), "layers has 7; allowed.*below 3"),
        (
            lambda: views.skip_layers(tiny_unet(), "middle"),
            "layers has 'middle'; allowed.*names of its modules",
        ),
        (lambda: views.skip_layers(tiny_unet(), []), "layers is empty"),
        (lambda: views.skip_layers(tiny_unet(), "conv_in"), "no transformer block"),
        (lambda: views.identity_attention(tiny_unet(), "conv_in"), "no self-attention"),
        (
            lambda: views.identity_attention(network_of("FluxTransformer2DModel"), "proj_out"),
            "no self-attention",
        ),
        (lambda: views.skip_layers(nn.Linear(1, 1)), "layers is None, and Linear has no defaults; give"),
        (lambda: views.blurred_attention(tiny_unet(), sigma=0), "sigma is 0; allowed"),
        (lambda: views.skip_layers(lambda *_: None, 1), "network is .*; allowed: a network"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@torch.no_grad()
def test_attention_that_is_not_found_is_told():
    unet = network_of("UNet2DConditionModel")
    unet.fuse_qkv_projections()
    with pytest.raises(ValueError, match="does not find the attention of mid_block"):
        asked(views.identity_attention(unet), "UNet2DConditionModel")
    assert not any(part._forward_hooks for part in unet.modules())
