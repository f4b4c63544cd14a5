"""Transformers of diffusers as denoisers: what their own pipelines draw, the sampling loop draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
)
from tiny import tiny_unet
from torch import Tensor

from guided_diffusers import Condition, ModelDenoiser, NoiseLevel, sampling_loop
from guided_diffusers.core.networks import CALLING, Network, needed_arguments, unwrapped
from guided_diffusers.guidance import ClassifierFreeGuidance

STEPS = 3


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(kw_only=True)
class Case:
    """A tiny transformer, what its pipeline is called with, and what a Condition tells the network."""

    network: str
    config: Mapping[str, Any]
    pipeline: str
    parts: Mapping[str, Any] = field(default_factory=dict)
    scheduler: Callable[[], Any] = lambda: FlowMatchEulerDiscreteScheduler(shift=3.0)
    kind: str = "flow_prediction"
    noise: tuple[int, ...] = (1, 4, 8, 8)
    told: Mapping[str, Tensor] = field(default_factory=dict)
    null: Mapping[str, Tensor] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    further: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    sigmas: list[float] | None = None
    given: Callable[[Tensor], Tensor] = lambda noise: noise
    scale: str = "guidance_scale"
    gamma: float = 3.0


def vae(**overrides: Any) -> AutoencoderKL:
    config = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4, "sample_size": 16}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(**config, **blocks, **overrides).eval()


def text(name: str, width: int, seed: int, length: int = 5) -> dict[str, Tensor]:
    return {name: randn(1, length, width, seed=seed)}


def masked(length: int = 5, end: int = 5) -> Tensor:
    return (torch.arange(length) < end)[None].long()


SIZE = {"height": 16, "width": 16}
ATTENTION = {"num_attention_heads": 2, "num_layers": 1}
LINEAR = list(np.linspace(1, 1 / STEPS, STEPS))

CASES = [
    Case(
        network="SD3Transformer2DModel",
        config={
            **ATTENTION,
            "sample_size": 8,
            "patch_size": 1,
            "in_channels": 4,
            "out_channels": 4,
            "attention_head_dim": 8,
            "joint_attention_dim": 32,
            "caption_projection_dim": 16,
            "pooled_projection_dim": 32,
        },
        pipeline="StableDiffusion3Pipeline",
        parts={f"{part}{i}": None for part in ("text_encoder", "tokenizer") for i in ("", "_2", "_3")},
        told={**text("encoder_hidden_states", 32, 1), "pooled_projections": randn(1, 32, seed=2)},
        null={**text("encoder_hidden_states", 32, 3), "pooled_projections": randn(1, 32, seed=4)},
        names={"encoder_hidden_states": "prompt_embeds", "pooled_projections": "pooled_prompt_embeds"},
        call=SIZE,
    ),
    Case(
        network="PixArtTransformer2DModel",
        config={
            **ATTENTION,
            "attention_head_dim": 8,
            "in_channels": 4,
            "out_channels": 8,
            "cross_attention_dim": 16,
            "sample_size": 8,
            "caption_channels": 16,
            "norm_num_groups": 4,
            "use_additional_conditions": False,
        },
        pipeline="PixArtSigmaPipeline",
        parts={"text_encoder": None, "tokenizer": None},
        scheduler=DPMSolverMultistepScheduler,
        kind="epsilon",
        told={**text("encoder_hidden_states", 16, 1), "encoder_attention_mask": masked(end=4)},
        null={**text("encoder_hidden_states", 16, 3), "encoder_attention_mask": masked(end=3)},
        names={"encoder_hidden_states": "prompt_embeds", "encoder_attention_mask": "prompt_attention_mask"},
        call={**SIZE, "use_resolution_binning": False, "negative_prompt": None},
    ),
    Case(
        network="SanaTransformer2DModel",
        config={
            **ATTENTION,
            "in_channels": 4,
            "out_channels": 4,
            "attention_head_dim": 8,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 8,
            "cross_attention_dim": 16,
            "caption_channels": 16,
            "sample_size": 8,
            "timestep_scale": 0.5,
        },
        pipeline="SanaPipeline",
        parts={"text_encoder": None, "tokenizer": None, "vae": None},
        scheduler=lambda: DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        told={**text("encoder_hidden_states", 16, 1), "encoder_attention_mask": masked(end=4)},
        null={**text("encoder_hidden_states", 16, 3), "encoder_attention_mask": masked(end=3)},
        names={"encoder_hidden_states": "prompt_embeds", "encoder_attention_mask": "prompt_attention_mask"},
        call={"height": 256, "width": 256, "use_resolution_binning": False, "negative_prompt": None},
    ),
    Case(
        network="WanTransformer3DModel",
        config={
            **ATTENTION,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 16,
            "freq_dim": 16,
            "ffn_dim": 24,
            "rope_max_seq_len": 32,
        },
        pipeline="WanPipeline",
        parts={
            "text_encoder": None,
            "tokenizer": None,
            "vae": AutoencoderKLWan(base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        },
        noise=(1, 4, 2, 4, 4),
        told=text("encoder_hidden_states", 16, 1),
        null=text("encoder_hidden_states", 16, 3),
        names={"encoder_hidden_states": "prompt_embeds"},
        call={"height": 32, "width": 32, "num_frames": 5},
    ),
    Case(
        network="AuraFlowTransformer2DModel",
        config={
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 4,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "caption_projection_dim": 16,
            "out_channels": 4,
            "pos_embed_max_size": 64,
        },
        pipeline="AuraFlowPipeline",
        parts={"text_encoder": None, "tokenizer": None},
        told=text("encoder_hidden_states", 16, 1),
        null=text("encoder_hidden_states", 16, 3),
        names={"encoder_hidden_states": "prompt_embeds"},
        call={
            **SIZE,
            "prompt_attention_mask": masked(),
            "negative_prompt_attention_mask": masked(),
        },
    ),
    Case(
        network="Lumina2Transformer2DModel",
        config={
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 4,
            "hidden_size": 24,
            "num_layers": 1,
            "num_refiner_layers": 1,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 2,
            "scaling_factor": 1.0,
            "axes_dim_rope": (4, 4, 4),
            "axes_lens": (64, 16, 16),
            "cap_feat_dim": 16,
        },
        pipeline="Lumina2Pipeline",
        parts={"text_encoder": None, "tokenizer": None},
        told={**text("encoder_hidden_states", 16, 1), "encoder_attention_mask": masked().bool()},
        null={**text("encoder_hidden_states", 16, 3), "encoder_attention_mask": masked().bool()},
        names={"encoder_hidden_states": "prompt_embeds", "encoder_attention_mask": "prompt_attention_mask"},
        call={**SIZE, "cfg_normalization": False},
        sigmas=LINEAR,
    ),
    Case(
        network="CogView4Transformer2DModel",
        config={
            **ATTENTION,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "attention_head_dim": 8,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
            "condition_dim": 4,
            "sample_size": 8,
            "rope_axes_dim": (8, 8),
        },
        pipeline="CogView4Pipeline",
        parts={"text_encoder": None, "tokenizer": None},
        told=text("encoder_hidden_states", 16, 1, 16),
        null=text("encoder_hidden_states", 16, 3, 16),
        names={"encoder_hidden_states": "prompt_embeds"},
        further={
            "original_size": torch.tensor([[16.0, 16.0]]),
            "target_size": torch.tensor([[16.0, 16.0]]),
            "crop_coords": torch.tensor([[0.0, 0.0]]),
        },
        scheduler=FlowMatchEulerDiscreteScheduler,
        sigmas=[1.0, 0.5, 0.001],
        call=SIZE,
    ),
    Case(
        network="FluxTransformer2DModel",
        config={
            **ATTENTION,
            "in_channels": 16,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "joint_attention_dim": 16,
            "pooled_projection_dim": 16,
            "axes_dims_rope": (4, 4, 8),
            "guidance_embeds": True,
        },
        pipeline="FluxPipeline",
        parts={f"{part}{i}": None for part in ("text_encoder", "tokenizer") for i in ("", "_2")},
        told={**text("encoder_hidden_states", 16, 1), "pooled_projections": randn(1, 16, seed=2)},
        null={**text("encoder_hidden_states", 16, 3), "pooled_projections": randn(1, 16, seed=4)},
        names={"encoder_hidden_states": "prompt_embeds", "pooled_projections": "pooled_prompt_embeds"},
        further={"guidance": torch.tensor([2.5])},
        call={**SIZE, "guidance_scale": 2.5},
        sigmas=LINEAR,
        given=lambda noise: diffusers.FluxPipeline._pack_latents(noise, 1, 4, 8, 8),
        scale="true_cfg_scale",
    ),
    Case(
        network="QwenImageTransformer2DModel",
        config={
            **ATTENTION,
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 4,
            "attention_head_dim": 16,
            "joint_attention_dim": 16,
            "axes_dims_rope": (4, 4, 8),
        },
        pipeline="QwenImagePipeline",
        parts={"text_encoder": None, "tokenizer": None, "vae": None},
        told={**text("encoder_hidden_states", 16, 1), "encoder_hidden_states_mask": masked()},
        null={**text("encoder_hidden_states", 16, 3), "encoder_hidden_states_mask": masked()},
        names={"encoder_hidden_states": "prompt_embeds", "encoder_hidden_states_mask": "prompt_embeds_mask"},
        call={"height": 64, "width": 64},
        gamma=1.0,  # this pipeline rescales what it guides
        sigmas=LINEAR,
        given=lambda noise: diffusers.QwenImagePipeline._pack_latents(noise, 1, 4, 8, 8),
        scale="true_cfg_scale",
    ),
    Case(
        network="LTXVideoTransformer3DModel",
        config={
            **ATTENTION,
            "in_channels": 4,
            "out_channels": 4,
            "attention_head_dim": 8,
            "cross_attention_dim": 16,
            "caption_channels": 16,
        },
        pipeline="LTXPipeline",
        parts={"text_encoder": None, "tokenizer": None, "vae": None},
        noise=(1, 4, 2, 2, 3),
        told={**text("encoder_hidden_states", 16, 1), "encoder_attention_mask": masked(end=4)},
        null={**text("encoder_hidden_states", 16, 3), "encoder_attention_mask": masked(end=3)},
        names={"encoder_hidden_states": "prompt_embeds", "encoder_attention_mask": "prompt_attention_mask"},
        further={"rope_interpolation_scale": (8 / 25, 32, 32)},
        call={"height": 64, "width": 96, "num_frames": 9},
        sigmas=LINEAR,
        given=lambda noise: diffusers.LTXPipeline._pack_latents(noise),
    ),
]


def network_of(case: Case) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(diffusers, case.network)(**case.config).eval()


def drawn_by_its_pipeline(case: Case, network: Any, noise: Tensor) -> Tensor:
    parts = {"transformer": network, "scheduler": case.scheduler(), "vae": vae(), **case.parts}
    pipe = getattr(diffusers, case.pipeline)(**parts)
    pipe.set_progress_bar_config(disable=True)
    embeds = {name: case.told[key] for key, name in case.names.items()}
    embeds |= {f"negative_{name}": case.null[key] for key, name in case.names.items()}
    call = {
        "num_inference_steps": STEPS,
        "output_type": "latent",
        case.scale: case.gamma,
        **embeds,
        **case.call,
    }
    return pipe(latents=case.given(noise.clone()), **call)[0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.network)
def test_equal_to_its_own_pipeline(case: Case) -> None:
    network, noise = network_of(case), randn(*case.noise, seed=7)
    stock = drawn_by_its_pipeline(case, network, noise)
    condition = Condition({**case.told, **case.further}, {**case.null, **case.further})
    guided = ClassifierFreeGuidance(case.gamma)(ModelDenoiser(network, case.kind))
    steps = {"num_inference_steps": STEPS, "sigmas": case.sigmas}
    ours = sampling_loop(guided, case.scheduler(), noise, condition, **steps)
    torch.testing.assert_close(case.given(ours), stock, rtol=1e-5, atol=2e-5)


DIT = {"attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "sample_size": 8, "norm_num_groups": 4}
CHROMA = {"in_channels": 16, "num_single_layers": 1, "attention_head_dim": 16, "joint_attention_dim": 16}
CHROMA |= {"axes_dims_rope": (4, 4, 8), "approximator_num_channels": 8, "approximator_layers": 1}


class TestHowItIsCalled:
    level = NoiseLevel(alpha=0.6, sigma=0.8, timestep=torch.tensor(400))
    sample = randn(2, 4, 8, 8, seed=1)

    def test_a_class_and_a_learned_variance(self) -> None:
        network = diffusers.DiTTransformer2DModel(**ATTENTION, **DIT).eval()
        with torch.no_grad():
            told = {"class_labels": torch.tensor([3, 5])}
            x0, extra = ModelDenoiser(network, "sample")(self.sample, self.level, Condition(told))
            answer = network(self.sample, torch.tensor([400, 400]), **told).sample
        torch.testing.assert_close(torch.cat([x0, extra], dim=1), answer)

    def test_a_timestep_a_sample(self) -> None:
        network = diffusers.DiTTransformer2DModel(**ATTENTION, **DIT).eval()
        levels = NoiseLevel(alpha=[0.6, 0.8], sigma=[0.8, 0.6], timestep=torch.tensor([400, 100]))
        told = {"class_labels": torch.tensor([3, 5])}
        with torch.no_grad():
            x0 = ModelDenoiser(network, "sample")(self.sample, levels, Condition(told)).x0
            answer = network(self.sample, torch.tensor([400, 100]), **told).sample
        torch.testing.assert_close(x0, answer[:, :4])

    def test_places_that_are_given_are_one_for_all(self) -> None:
        case = next(case for case in CASES if case.network == "FluxTransformer2DModel")
        ids = {
            "img_ids": diffusers.FluxPipeline._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32),
            "txt_ids": torch.zeros(5, 3),
        }
        denoiser = ClassifierFreeGuidance(2.0)(ModelDenoiser(network_of(case), "sample"))
        sample = randn(1, 4, 8, 8, seed=1)
        plain, placed = (
            Condition({**case.told, **case.further, **more}, {**case.null, **case.further, **more})
            for more in ({}, {name: value.clone() for name, value in ids.items()})
        )
        with torch.no_grad():
            expected = denoiser(sample, self.level, plain)
            torch.testing.assert_close(denoiser(sample, self.level, placed), expected)
            tokens = denoiser(case.given(sample), self.level, placed)
        torch.testing.assert_close(tokens, case.given(expected))

    def test_a_compiled_network_is_known_by_what_is_in_it(self) -> None:
        network = network_of(CASES[0])
        compiled = torch.compile(network, backend="eager")
        assert unwrapped(compiled) is network
        assert Network(compiled).calling is CALLING["SD3Transformer2DModel"]

    def test_chroma_has_places_and_a_mask(self) -> None:
        network = diffusers.ChromaTransformer2DModel(**ATTENTION, **CHROMA).eval()
        told = {"encoder_hidden_states": randn(2, 5, 16, seed=2), "attention_mask": torch.ones(2, 21).bool()}
        with torch.no_grad():
            x0 = ModelDenoiser(network, "sample")(self.sample, self.level, Condition(told)).x0
            answer = network(
                hidden_states=diffusers.FluxPipeline._pack_latents(self.sample, 2, 4, 8, 8),
                timestep=torch.tensor([0.4, 0.4]),
                img_ids=diffusers.FluxPipeline._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32),
                txt_ids=torch.zeros(5, 3),
                **told,
            ).sample
        torch.testing.assert_close(diffusers.FluxPipeline._pack_latents(x0, 2, 4, 8, 8), answer)

    def test_a_network_of_ones_own_is_called_by_position(self) -> None:
        class Own(torch.nn.Module):
            def forward(self, hidden_states: Tensor, when: Tensor) -> Tensor:
                return hidden_states * when

        x0 = ModelDenoiser(Own(), "sample")(self.sample, self.level).x0
        torch.testing.assert_close(x0, 400 * self.sample)


def test_what_nobody_knows_how_to_call_is_refused() -> None:
    network = diffusers.Transformer2DModel(2, 8, 4, num_layers=1, norm_num_groups=4)
    with pytest.raises(
        ValueError, match="model is a Transformer2DModel.*SD3Transformer2DModel.*or a function"
    ):
        ModelDenoiser(network, "epsilon")


SDXL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
SDXL |= {"projection_class_embeddings_input_dim": 64}


@pytest.mark.parametrize(
    ("network", "told", "words"),
    [
        (tiny_unet(time_cond_proj_dim=8), {}, "no timestep_cond, .*time_cond_proj_dim is 8"),
        (tiny_unet(**SDXL), {}, "no added_cond_kwargs.text_embeds.*addition_embed_type is 'text_time'"),
        (tiny_unet(**SDXL), {"added_cond_kwargs": {"text_embeds": 0}}, "no added_cond_kwargs.time_ids"),
        (tiny_unet(num_class_embeds=3), {}, "no class_labels, .*num_class_embeds is 3"),
        (tiny_unet(in_channels=7), {}, "sample has 2 channels; allowed: 7"),
    ],
    ids=["distilled", "sdxl", "sdxl-half", "class", "inpainting"],
)
def test_what_a_unet_is_not_told_is_named(network: UNet2DConditionModel, told: dict, words: str) -> None:
    called: list[int] = []
    network.conv_in.register_forward_pre_hook(lambda module, args: called.append(1))
    condition = Condition({"encoder_hidden_states": randn(1, 5, 16, seed=2), **told})
    with pytest.raises(ValueError, match=words):
        ModelDenoiser(network, "epsilon")(randn(1, 2, 8, 8, seed=1), TestHowItIsCalled.level, condition)
    assert not called


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("SD3Transformer2DModel", "pooled_projections"),
        ("FluxTransformer2DModel", "guidance"),
        ("LTXVideoTransformer3DModel", "encoder_attention_mask"),
        ("CogView4Transformer2DModel", "crop_coords"),
    ],
)
def test_what_a_transformer_is_not_told_is_named(name: str, left_out: str) -> None:
    case = next(case for case in CASES if case.network == name)
    told = {key: value for key, value in {**case.told, **case.further}.items() if key != left_out}
    with pytest.raises(ValueError, match=f"condition has no {left_out}, which {name} has to be told"):
        ModelDenoiser(network_of(case), case.kind)(
            randn(*case.noise, seed=1), TestHowItIsCalled.level, Condition(told)
        )


def test_a_stable_diffusion_unet_is_told_its_text_alone() -> None:
    assert list(needed_arguments(tiny_unet())) == ["encoder_hidden_states"]
    ddim = DDIMScheduler(clip_sample=False)
    told = {"encoder_hidden_states": randn(2, 5, 16, seed=2)}
    denoiser = ModelDenoiser(tiny_unet(), "epsilon")
    assert sampling_loop(denoiser, ddim, randn(2, 2, 8, 8, seed=1), Condition(told), 2).isfinite().all()


def test_every_class_that_is_known_is_one_of_diffusers() -> None:
    assert all(hasattr(diffusers, name) for name in CALLING)
