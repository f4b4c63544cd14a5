"""Pipelines of diffusers by families: each with tiny random networks, and what a call of it is given.

No text encoders: prompts are embeddings. A family's `build` gives the pipeline, its `arguments` what a call
takes beside the number of steps; `gamma` is the pipeline's own scale in our terms.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from tiny import tiny_tokenizer

from guided_diffusers.guidance import AutoGuidance, views

STEPS = 5
GAMMA = 4.0


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stable_diffusion(cls: type, **overrides: Any) -> Any:
    """A scheduler with Stable Diffusion's betas."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    return cls(**betas, **overrides)


def tiny_vae(**overrides: Any) -> diffusers.AutoencoderKL:
    config = {
        "block_out_channels": (4,),
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
        "latent_channels": 4,
        "norm_num_groups": 2,
        "sample_size": 16,
    }
    return diffusers.AutoencoderKL(**{**config, **overrides}).eval()


def tiny_unet(**overrides: Any) -> diffusers.UNet2DConditionModel:
    config = {
        "sample_size": 16,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 8,
        "norm_num_groups": 4,
    }
    return diffusers.UNet2DConditionModel(**{**config, **overrides}).eval()


def embeds(width: int = 16, tokens: int = 6, batch: int = 1, **names: int) -> dict[str, torch.Tensor]:
    """Embeddings of a prompt and a negative one, and pooled ones of the widths in `names`."""
    given = {
        "prompt_embeds": draw(batch, tokens, width, seed=1),
        "negative_prompt_embeds": draw(batch, tokens, width, seed=2),
    }
    for seed, (name, size) in enumerate(names.items(), 3):
        given[name] = draw(batch, size, seed=seed)
        given[f"negative_{name}"] = draw(batch, size, seed=seed + 10)
    return given


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of pipelines.

    Attributes:
        build: Makes the pipeline.
        arguments: Of a call, beside the steps, the latents and the output type.
        latents: The shape of the latents as a call takes them; None where it takes none.
        scale: The name of the argument that switches the null on.
        gamma: The value given to it.
        ours: The same in our terms.
        network: The name of the network.
        view: The kind of view, and of which layers; `()` where no layer has one.
        alone: The network is told the same at each step, and nothing but the scheduler changes the sample.
    """

    build: Callable[[], Any]
    arguments: Callable[[], dict[str, Any]]
    latents: tuple[int, ...] | None = (1, 4, 16, 16)
    scale: str = "guidance_scale"
    gamma: float = GAMMA
    ours: float = GAMMA
    network: str = "unet"
    view: tuple[Any, ...] | None = None
    alone: bool = True
    images: Callable[[Any], Any] = field(default=lambda output: output[0])

    def viewed(self, pipeline: Any, scale: float) -> Any:
        """Autoguidance by a view of the pipeline's network, or of each of its networks."""
        kind, layers = self.view or ("skip_layers", "mid_block" if self.network == "unet" else 0)
        names = [
            name for name in (self.network, "transformer_2") if getattr(pipeline, name, None) is not None
        ]
        each = {
            name: AutoGuidance(getattr(views, kind)(getattr(pipeline, name), layers), scale) for name in names
        }
        return each if len(each) > 1 else each[self.network]

    def call(self, pipeline: Any, steps: int = STEPS, **overrides: Any) -> torch.Tensor:
        given = {self.scale: self.gamma, **self.arguments(), "num_inference_steps": steps}
        given |= {"output_type": "latent", "generator": torch.Generator().manual_seed(0)}
        if self.latents is not None:
            given["latents"] = draw(*self.latents, seed=9)
        return torch.as_tensor(self.images(pipeline(**{**given, **overrides})))


def _sd(scheduler: Any, unet: Any = None, cls: Any = diffusers.StableDiffusionPipeline, **more: Any) -> Any:
    parts = {"vae": tiny_vae(), "text_encoder": None, "tokenizer": None, "unet": unet or tiny_unet()}
    parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return cls(**parts, scheduler=scheduler, **more)


def _sdxl(**overrides: Any) -> Any:
    unet = tiny_unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=overrides.pop("ids", 6) * 4 + 8,
    )
    parts = {name: None for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")}
    scheduler = stable_diffusion(diffusers.EulerDiscreteScheduler)
    cls = overrides.pop("cls", diffusers.StableDiffusionXLPipeline)
    return cls(vae=tiny_vae(), unet=unet, scheduler=scheduler, add_watermarker=False, **parts, **overrides)


def _sd3(**overrides: Any) -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        out_channels=4,
        pos_embed_max_size=16,
    ).eval()
    names = [name + end for end in ("", "_2", "_3") for name in ("text_encoder", "tokenizer")]
    parts = {**{name: None for name in names}, "vae": tiny_vae(shift_factor=0.1), "transformer": transformer}
    parts["scheduler"] = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    cls = overrides.pop("cls", diffusers.StableDiffusion3Pipeline)
    return cls(**parts, **overrides)


def _flux(guidance_embeds: bool = False) -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    ).eval()
    parts = {name: None for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return diffusers.FluxPipeline(
        vae=tiny_vae(shift_factor=0.1), transformer=transformer, scheduler=scheduler, **parts
    )


def _dit() -> Any:
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=16,
        num_embeds_ada_norm=1000,
    ).eval()
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    return diffusers.DiTPipeline(transformer, tiny_vae(), scheduler)


def _bare(cls: type, network: Any, scheduler: Any, vae: Any = None, **more: Any) -> Any:
    """A pipeline of a transformer, without tokenizers and text encoders."""
    names = inspect.signature(cls.__init__).parameters
    texts = {name: None for name in names if name.startswith(("tokenizer", "text_encoder"))}
    return cls(**texts, transformer=network.eval(), scheduler=scheduler, vae=vae, **more)


def _flow(**config: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


def _pixart(cls: type, sample_size: int) -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        cross_attention_dim=24,
        caption_channels=12,
        sample_size=sample_size,
    )
    return _bare(cls, transformer, stable_diffusion(diffusers.DPMSolverMultistepScheduler), tiny_vae())


def _sana() -> Any:
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=12,
        sample_size=16,
    )
    return _bare(diffusers.SanaPipeline, transformer, _flow(shift=3.0))


def _lumina2() -> Any:
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=16,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=2,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(64, 64, 64),
        cap_feat_dim=12,
    )
    return _bare(diffusers.Lumina2Pipeline, transformer, _flow(shift=6.0), tiny_vae(shift_factor=0.1))


def _auraflow() -> Any:
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=16,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    )
    return _bare(diffusers.AuraFlowPipeline, transformer, _flow(shift=1.73), tiny_vae())


def _hunyuandit() -> Any:
    transformer = diffusers.HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        sample_size=16,
        hidden_size=16,
        num_layers=2,
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        pooled_projection_dim=8,
        text_len=6,
        text_len_t5=7,
        activation_fn="gelu-approximate",
    )
    parts = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=False)
    return _bare(diffusers.HunyuanDiTPipeline, transformer, scheduler, tiny_vae(), **parts)


def _hunyuandit_arguments() -> dict[str, Any]:
    first, second = embeds(), embeds(tokens=7)
    given = {**first, **{f"{name}_2": value.flip(0) for name, value in second.items()}}
    for name in list(given):
        mask = name.replace("prompt_embeds", "prompt_attention_mask")
        given[mask] = torch.ones(1, given[name].shape[1], dtype=torch.long)
    return {**given, "height": 128, "width": 128, "use_resolution_binning": False}


def _kolors() -> Any:
    from diffusers.pipelines.kolors.pipeline_kolors import KolorsPipeline

    unet = tiny_unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 8,
    )
    scheduler = stable_diffusion(diffusers.EulerDiscreteScheduler)
    return KolorsPipeline(vae=tiny_vae(), text_encoder=None, tokenizer=None, unet=unet, scheduler=scheduler)


def _cogview4() -> Any:
    transformer = diffusers.CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=12,
        time_embed_dim=8,
        condition_dim=4,
        sample_size=16,
        rope_axes_dim=(16, 16),
    )
    scheduler = _flow(base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear")
    return _bare(diffusers.CogView4Pipeline, transformer, scheduler, tiny_vae())


def _qwen() -> Any:
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=(8, 4, 4),
    )
    return _bare(diffusers.QwenImagePipeline, transformer, _flow(use_dynamic_shifting=True))


def _z_image() -> Any:
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=12,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    return _bare(diffusers.ZImagePipeline, transformer, _flow(shift=3.0), tiny_vae(shift_factor=0.1))


def _wan_network(**overrides: Any) -> Any:
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 12,
        "freq_dim": 16,
        "ffn_dim": 16,
        "num_layers": 2,
        "rope_max_seq_len": 32,
    }
    return diffusers.WanTransformer3DModel(**{**config, **overrides}).eval()


def _wan(**more: Any) -> Any:
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return _bare(diffusers.WanPipeline, _wan_network(), scheduler, **more)


def _ltx() -> Any:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=12,
    )
    return _bare(diffusers.LTXPipeline, transformer, _flow(use_dynamic_shifting=True))


def _cogvideox(scheduler: Any) -> Any:
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=12,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=6,
        use_rotary_positional_embeddings=True,
    )
    return _bare(diffusers.CogVideoXPipeline, transformer, scheduler)


def _flux2_network(guidance_embeds: bool) -> Any:
    return diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )


def _flux2(cls: type, guidance_embeds: bool) -> Any:
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(4,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        latent_channels=4,
        norm_num_groups=2,
        sample_size=16,
    )
    return _bare(cls, _flux2_network(guidance_embeds), _flow(use_dynamic_shifting=True), vae)


def _animatediff() -> Any:
    adapter = diffusers.MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
    )
    scheduler = stable_diffusion(diffusers.DDIMScheduler, clip_sample=False)
    parts = {"vae": tiny_vae(), "text_encoder": None, "tokenizer": None, "motion_adapter": adapter}
    pipeline = diffusers.AnimateDiffPipeline(**parts, unet=tiny_unet(), scheduler=scheduler)
    pipeline.unet.eval()
    return pipeline


def _kandinsky() -> Any:
    unet = tiny_unet(
        in_channels=4,
        out_channels=8,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="image",
        encoder_hid_dim=12,
        encoder_hid_dim_type="image_proj",
    )
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False)
    movq = diffusers.VQModel(
        block_out_channels=(4, 8),
        latent_channels=4,
        norm_num_groups=2,
        num_vq_embeddings=8,
        vq_embed_dim=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    return diffusers.KandinskyV22Pipeline(unet=unet, scheduler=scheduler, movq=movq)


def _ldm() -> Any:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    bert = LDMBertModel(
        LDMBertConfig(
            vocab_size=64,
            d_model=16,
            encoder_layers=1,
            encoder_ffn_dim=16,
            encoder_attention_heads=2,
            head_dim=8,
        )
    ).eval()
    return diffusers.LDMTextToImagePipeline(
        vqvae=tiny_vae(),
        bert=bert,
        tokenizer=tiny_tokenizer(),
        unet=tiny_unet(),
        scheduler=stable_diffusion(diffusers.DDIMScheduler, clip_sample=False),
    )


def _stable_audio() -> Any:
    from diffusers import StableAudioDiTModel, StableAudioPipeline, StableAudioProjectionModel

    transformer = StableAudioDiTModel(
        sample_size=16,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        out_channels=4,
        cross_attention_dim=16,
        time_proj_dim=16,
        global_states_input_dim=24,
        cross_attention_input_dim=12,
    )
    vae = diffusers.AutoencoderOobleck(
        encoder_hidden_size=4,
        downsampling_ratios=[2],
        decoder_channels=4,
        decoder_input_channels=4,
        audio_channels=2,
        channel_multiples=[2],
        sampling_rate=8,
    )
    projection = StableAudioProjectionModel(
        text_encoder_dim=12, conditioning_dim=12, min_value=0, max_value=8
    )
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(sigma_data=1.0, prediction_type="v_prediction")
    return StableAudioPipeline(
        vae=vae,
        text_encoder=None,
        projection_model=projection,
        tokenizer=None,
        transformer=transformer.eval(),
        scheduler=scheduler,
    )


def _image(channels: int = 3, size: int = 16, seed: int = 5) -> torch.Tensor:
    return draw(1, channels, size, size, seed=seed).sigmoid()


def _pictured(**more: Any) -> dict[str, Any]:
    """Embeddings and a picture of 16 pixels."""
    return {**embeds(), "image": _image(), "height": 16, "width": 16, **more}


def _refiner_arguments() -> dict[str, Any]:
    return {**embeds(pooled_prompt_embeds=8), "image": _image(), "strength": 0.8}


def _controlnet() -> Any:
    unet = tiny_unet()
    network = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4,))
    torch.nn.init.normal_(network.controlnet_mid_block.weight)
    scheduler = stable_diffusion(diffusers.DDIMScheduler, clip_sample=False)
    return _sd(scheduler, unet, diffusers.StableDiffusionControlNetPipeline, controlnet=network.eval())


def _adapter() -> Any:
    adapter = diffusers.T2IAdapter(
        in_channels=3, channels=[8, 16], num_res_blocks=1, downscale_factor=1, adapter_type="full_adapter"
    )
    scheduler = stable_diffusion(diffusers.DDIMScheduler, clip_sample=False)
    unet = tiny_unet(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    return _sd(scheduler, unet, diffusers.StableDiffusionAdapterPipeline, adapter=adapter.eval())


def _ip_adapter() -> Any:
    """The cross-attention of each block to an image's embeddings too."""
    from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0
    from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

    unet = tiny_unet()
    unet.set_attn_processor(
        {
            name: AttnProcessor2_0()
            if "attn1" in name
            else IPAdapterAttnProcessor2_0(hidden_size=16, cross_attention_dim=16, num_tokens=(4,))
            for name in unet.attn_processors
        }
    )
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(8, 16, 4)])
    unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    return _sd(_ddim(), unet)


def _lora() -> Any:
    from peft import LoraConfig

    unet = tiny_unet()
    unet.add_adapter(LoraConfig(target_modules=["to_q", "to_v"], init_lora_weights=False))
    return _sd(_ddim(), unet)


def _ddim(**config: Any) -> Any:
    return stable_diffusion(diffusers.DDIMScheduler, clip_sample=False, **config)


def _masked(features: int = 12, tokens: int = 6, **names: Any) -> dict[str, Any]:
    """Embeddings with their masks."""
    given = embeds(features, tokens)
    mask = torch.ones(1, tokens, dtype=torch.long)
    return {**given, "prompt_attention_mask": mask, "negative_prompt_attention_mask": mask, **names}


_UNBINNED = {"use_resolution_binning": False, "negative_prompt": None}
_TRANSFORMER = {"network": "transformer"}
_ZERO_SNR = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


WITHOUT_A_NULL = {
    "flux2": Family(
        build=lambda: _flux2(diffusers.Flux2Pipeline, True),
        arguments=lambda: {"prompt_embeds": draw(1, 6, 12, seed=1), "height": 16, "width": 16},
        latents=(1, 16, 8, 8),
        network="transformer",
    ),
}
"""Pipelines that take no negative prompt."""

UNGUIDED: dict[str, Callable[[], Any]] = {
    "three conditions": lambda: _sd(
        _ddim(), tiny_unet(in_channels=8), diffusers.StableDiffusionInstructPix2PixPipeline
    ),
    "sound": lambda: _bare(
        diffusers.LTX2Pipeline,
        diffusers.LTX2VideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=1,
            attention_head_dim=8,
            cross_attention_dim=8,
            audio_in_channels=4,
            audio_out_channels=4,
            audio_num_attention_heads=1,
            audio_attention_head_dim=8,
            audio_cross_attention_dim=8,
            num_layers=1,
            caption_channels=8,
        ),
        _flow(use_dynamic_shifting=True),
        **dict.fromkeys(("audio_vae", "connectors", "vocoder")),
    ),
}
"""Pipelines that `guide` refuses."""


def made(name: str) -> Any:
    """The pipeline of a family, of weights that are its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = (FAMILIES | WITHOUT_A_NULL)[name].build()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


FAMILIES: dict[str, Family] = {
    "sd1": Family(
        build=lambda: _sd(stable_diffusion(diffusers.PNDMScheduler, skip_prk_steps=True)), arguments=embeds
    ),
    "sd2 v": Family(build=lambda: _sd(_ddim(prediction_type="v_prediction")), arguments=embeds),
    "sd2 zero-snr": Family(
        build=lambda: _sd(_ddim(**_ZERO_SNR)), arguments=lambda: {**embeds(), "guidance_rescale": 0.0}
    ),
    "sdxl": Family(build=_sdxl, arguments=lambda: embeds(pooled_prompt_embeds=8)),
    "sdxl refiner": Family(
        alone=False,
        build=lambda: _sdxl(
            cls=diffusers.StableDiffusionXLImg2ImgPipeline, ids=5, requires_aesthetics_score=True
        ),
        arguments=_refiner_arguments,
        latents=None,
    ),
    "sd3": Family(build=_sd3, arguments=lambda: embeds(pooled_prompt_embeds=8), **_TRANSFORMER),
    "flux": Family(
        build=_flux,
        arguments=lambda: {**embeds(pooled_prompt_embeds=8), "height": 16, "width": 16},
        latents=(1, 64, 16),
        scale="true_cfg_scale",
        **_TRANSFORMER,
    ),
    "flux distilled": Family(
        build=lambda: _flux(guidance_embeds=True),
        arguments=lambda: {**embeds(pooled_prompt_embeds=8), "height": 16, "width": 16},
        latents=(1, 64, 16),
        scale="true_cfg_scale",
        **_TRANSFORMER,
    ),
    "flux2 klein": Family(
        build=lambda: _flux2(diffusers.Flux2KleinPipeline, False),
        arguments=lambda: {**embeds(12), "height": 16, "width": 16},
        latents=(1, 16, 8, 8),
        **_TRANSFORMER,
    ),
    "pixart-alpha": Family(
        build=lambda: _pixart(diffusers.PixArtAlphaPipeline, 128),
        arguments=lambda: _masked(height=16, width=16, **_UNBINNED),
        **_TRANSFORMER,
    ),
    "pixart-sigma": Family(
        build=lambda: _pixart(diffusers.PixArtSigmaPipeline, 16),
        arguments=lambda: _masked(height=16, width=16, **_UNBINNED),
        **_TRANSFORMER,
    ),
    "sana": Family(
        build=_sana,
        arguments=lambda: _masked(height=512, width=512, **_UNBINNED),
        **_TRANSFORMER,
    ),
    "lumina2": Family(
        build=_lumina2,
        arguments=lambda: _masked(height=16, width=16, cfg_normalization=False),
        **_TRANSFORMER,
    ),
    "auraflow": Family(
        build=_auraflow,
        arguments=lambda: _masked(height=16, width=16),
        view=("skip_layers", "single_transformer_blocks.0"),
        **_TRANSFORMER,
    ),
    "hunyuandit": Family(
        build=_hunyuandit, arguments=_hunyuandit_arguments, view=("identity_attention", 0), **_TRANSFORMER
    ),
    "kolors": Family(build=_kolors, arguments=lambda: embeds(pooled_prompt_embeds=8)),
    "cogview4": Family(
        build=_cogview4, arguments=lambda: {**embeds(12, 16), "height": 16, "width": 16}, **_TRANSFORMER
    ),
    "qwen-image": Family(
        build=_qwen,
        arguments=lambda: {**embeds(12), "height": 128, "width": 128},
        latents=(1, 64, 16),
        scale="true_cfg_scale",
        **_TRANSFORMER,
    ),
    "z-image": Family(
        build=_z_image,
        arguments=lambda: {
            **{name: list(value) for name, value in embeds(12).items()},
            "height": 16,
            "width": 16,
        },
        ours=GAMMA + 1,
        **_TRANSFORMER,
    ),
    "dit": Family(build=_dit, arguments=lambda: {"class_labels": [3]}, latents=None, **_TRANSFORMER),
    "kandinsky 2.2": Family(
        view=(),
        build=_kandinsky,
        arguments=lambda: {
            "image_embeds": draw(1, 12, seed=1),
            "negative_image_embeds": draw(1, 12, seed=2),
            "height": 32,
            "width": 32,
        },
    ),
    "ldm": Family(build=_ldm, arguments=lambda: {"prompt": "a dress", "height": 128, "width": 128}),
    "animatediff": Family(
        build=_animatediff, arguments=lambda: {**embeds(), "num_frames": 3}, latents=(1, 4, 3, 16, 16)
    ),
    "wan": Family(
        build=_wan,
        arguments=lambda: {**embeds(12), "height": 64, "width": 64, "num_frames": 9},
        latents=(1, 4, 3, 8, 8),
        **_TRANSFORMER,
    ),
    "wan 2.2": Family(
        build=lambda: _wan(transformer_2=_wan_network(), boundary_ratio=0.875),
        arguments=lambda: {
            **embeds(12),
            "height": 64,
            "width": 64,
            "num_frames": 9,
            "guidance_scale_2": GAMMA,
        },
        latents=(1, 4, 3, 8, 8),
        **_TRANSFORMER,
    ),
    "ltx": Family(
        build=_ltx,
        arguments=lambda: _masked(height=64, width=64, num_frames=9),
        latents=(1, 8, 8),
        **_TRANSFORMER,
    ),
    "cogvideox": Family(
        build=lambda: _cogvideox(diffusers.CogVideoXDDIMScheduler(clip_sample=False)),
        arguments=lambda: {**embeds(12), "height": 64, "width": 64, "num_frames": 9},
        latents=(1, 3, 4, 8, 8),
        **_TRANSFORMER,
    ),
    "cogvideox dpm": Family(
        build=lambda: _cogvideox(diffusers.CogVideoXDPMScheduler(clip_sample=False)),
        arguments=lambda: {**embeds(12), "height": 64, "width": 64, "num_frames": 9},
        latents=(1, 3, 4, 8, 8),
        **_TRANSFORMER,
    ),
    "stable audio": Family(
        build=_stable_audio,
        arguments=lambda: {
            **embeds(12),
            "audio_end_in_s": 4.0,
            "attention_mask": torch.ones(1, 6),
            "negative_attention_mask": torch.ones(1, 6),
        },
        view=("identity_attention", 0),
        latents=(1, 4, 16),
        **_TRANSFORMER,
    ),
    "sd1 img2img": Family(
        alone=False,
        build=lambda: _sd(_ddim(), cls=diffusers.StableDiffusionImg2ImgPipeline),
        arguments=lambda: {**embeds(), "image": _image(), "strength": 0.7},
        latents=None,
    ),
    "sd3 img2img": Family(
        alone=False,
        build=lambda: _sd3(cls=diffusers.StableDiffusion3Img2ImgPipeline),
        arguments=lambda: {
            **embeds(pooled_prompt_embeds=8),
            "image": _image(),
            "strength": 0.7,
            "height": 16,
            "width": 16,
        },
        latents=None,
        **_TRANSFORMER,
    ),
    "sd1 inpaint": Family(
        alone=False,
        build=lambda: _sd(_ddim(), cls=diffusers.StableDiffusionInpaintPipeline),
        arguments=lambda: _pictured(mask_image=_image(1).round()),
        latents=None,
    ),
    "inpaint of 9 channels": Family(
        alone=False,
        build=lambda: _sd(_ddim(), tiny_unet(in_channels=9), diffusers.StableDiffusionInpaintPipeline),
        arguments=lambda: _pictured(mask_image=_image(1).round()),
        latents=None,
    ),
    "controlnet": Family(
        alone=False,
        build=_controlnet,
        arguments=_pictured,
        latents=None,
    ),
    "t2i-adapter": Family(
        alone=False,
        build=_adapter,
        arguments=_pictured,
        latents=None,
    ),
    "ip-adapter": Family(
        build=_ip_adapter,
        arguments=lambda: {**embeds(), "ip_adapter_image_embeds": [draw(2, 1, 8, seed=6)]},
    ),
    "lora": Family(build=_lora, arguments=embeds),
}
