"""A tiny noise-aware CLIP of the tiny tokenizer's words."""

from __future__ import annotations

import math
from typing import Any

import torch
from tiny import tiny_tokenizer

from guided_diffusers import NoiseAwareCLIP
from guided_diffusers.training.data.captions import text_config_for

WORDS = ["boot", "bag", "coat"]
IMAGE = {
    "sample_size": 8,
    "in_channels": 1,
    "block_out_channels": (8, 8),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
    "pool": "adaptive",
}


def tiny_clip(seed: int = 0, image: dict[str, Any] | None = None, **overrides: Any) -> NoiseAwareCLIP:
    """In evaluation mode; tau is 20, so that its gradient is seen."""
    config = text_config_for(tiny_tokenizer(), 16, 1, 2).to_diff_dict()
    arguments = {"projection_dim": 6, "logit_scale_init_value": math.log(20), **overrides}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NoiseAwareCLIP(config, {**IMAGE, **(image or {})}, **arguments).eval()
