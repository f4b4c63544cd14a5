"""The published flags of the checkpoints that go with the ADM paper, by name."""

from __future__ import annotations

from typing import Any

_COMMON: dict[str, Any] = {
    "diffusion_steps": 1000,
    "learn_sigma": True,
    "noise_schedule": "linear",
    "num_res_blocks": 2,
    "resblock_updown": True,
    "use_scale_shift_norm": True,
    "attention_resolutions": "32,16,8",
}

UNET_PRESETS: dict[str, dict[str, Any]] = {
    "64": {
        **_COMMON,
        "image_size": 64,
        "class_cond": True,
        "noise_schedule": "cosine",
        "num_channels": 192,
        "num_head_channels": 64,
        "num_res_blocks": 3,
        "dropout": 0.1,
        "use_new_attention_order": True,
    },
    "128": {**_COMMON, "image_size": 128, "class_cond": True, "num_channels": 256, "num_heads": 4},
    "256": {**_COMMON, "image_size": 256, "class_cond": True, "num_channels": 256, "num_head_channels": 64},
    "256-unconditional": {
        **_COMMON,
        "image_size": 256,
        "class_cond": False,
        "num_channels": 256,
        "num_head_channels": 64,
    },
    "512": {**_COMMON, "image_size": 512, "class_cond": True, "num_channels": 256, "num_head_channels": 64},
    "64-to-256": {
        **_COMMON,
        "large_size": 256,
        "small_size": 64,
        "class_cond": True,
        "num_channels": 192,
        "num_heads": 4,
    },
    "128-to-512": {
        **_COMMON,
        "large_size": 512,
        "small_size": 128,
        "class_cond": True,
        "num_channels": 192,
        "num_head_channels": 64,
        "attention_resolutions": "32,16",
    },
}
"""Denoisers of ImageNet at 64 to 512 pixels ("256-unconditional" is also that of LSUN), and upsamplers."""

_CLASSIFIER: dict[str, Any] = {
    "classifier_attention_resolutions": "32,16,8",
    "classifier_depth": 2,
    "classifier_width": 128,
    "classifier_pool": "attention",
    "classifier_resblock_updown": True,
    "classifier_use_scale_shift_norm": True,
}

CLASSIFIER_PRESETS: dict[str, dict[str, Any]] = {
    "64": {**_CLASSIFIER, "image_size": 64, "classifier_depth": 4, "noise_schedule": "cosine"},
    "128": {**_CLASSIFIER, "image_size": 128},
    "256": {**_CLASSIFIER, "image_size": 256},
    "512": {**_CLASSIFIER, "image_size": 512},
}
"""Noise-aware classifiers of ImageNet."""
