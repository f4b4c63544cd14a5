"""The ADM denoisers that `UNet2DModel` cannot say: head width by level, a wider timestep embedding.

`UNet2DModel(attention_head_dim=int)` has one head width; a denoiser of `num_heads=4` has a fourth of the
channels at each level. And its sinusoids of the timestep are as wide as `block_out_channels[0]`; the denoiser
of 512x512 images has half of its base channels there. Blocks, names of weights and forward are UNet2DModel's.

References:
    Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (arXiv:2105.05233), section 3.
"""

from __future__ import annotations

from diffusers import UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps

from guided_diffusers.core.checks import check_choice
from guided_diffusers.models.levels import head_widths, set_head_widths
from guided_diffusers.models.safe import SafeWeightsMixin


class ADMUNet2DModel(SafeWeightsMixin, UNet2DModel):
    """UNet2DModel with head widths by level and its own width of the timestep's sinusoids.

    Args:
        attention_head_dim: Channels of an attention head: one number, or one for each level, the first
            resolution first; the middle block has the last level's.
        timestep_channels: Channels of the timestep's sinusoids; None is `block_out_channels[0]`.

    Every other argument is UNet2DModel's.

    Raises:
        ValueError: Head widths that do not fit the levels.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: tuple[int, ...] = (224, 448),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | tuple[int, ...] = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
        timestep_channels: int | None = None,
    ) -> None:
        widths = head_widths(attention_head_dim, block_out_channels, down_block_types)
        if timestep_channels is not None:
            check_choice("time_embedding_type, with timestep_channels,", time_embedding_type, ("positional",))
        super().__init__(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            center_input_sample=center_input_sample,
            time_embedding_type=time_embedding_type,
            time_embedding_dim=time_embedding_dim,
            freq_shift=freq_shift,
            flip_sin_to_cos=flip_sin_to_cos,
            down_block_types=down_block_types,
            mid_block_type=mid_block_type,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            mid_block_scale_factor=mid_block_scale_factor,
            downsample_padding=downsample_padding,
            downsample_type=downsample_type,
            upsample_type=upsample_type,
            dropout=dropout,
            act_fn=act_fn,
            attention_head_dim=None,  # one head a block; set by level below
            norm_num_groups=norm_num_groups,
            attn_norm_num_groups=attn_norm_num_groups,
            norm_eps=norm_eps,
            resnet_time_scale_shift=resnet_time_scale_shift,
            add_attention=add_attention,
            class_embed_type=class_embed_type,
            num_class_embeds=num_class_embeds,
            num_train_timesteps=num_train_timesteps,
        )
        # The parent's call wrote its own argument into the configuration.
        self.register_to_config(attention_head_dim=attention_head_dim)
        set_head_widths(self.down_blocks, widths)
        set_head_widths(self.up_blocks, widths[::-1])
        if self.mid_block is not None:
            set_head_widths([self.mid_block], widths[-1:])
        if timestep_channels is not None:
            embedded = time_embedding_dim or 4 * block_out_channels[0]
            self.time_proj = Timesteps(timestep_channels, flip_sin_to_cos, freq_shift)
            self.time_embedding = TimestepEmbedding(timestep_channels, embedded)
