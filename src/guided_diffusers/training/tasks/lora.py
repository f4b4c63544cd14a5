"""Low-rank adaptation: small matrices beside frozen weights are all that is trained, averaged and saved.

A linear map W x becomes W x + (alpha / rank) B A x, with A (rank x inputs) random and B (outputs x rank)
zero: training starts from what the pretrained networks do. The run's `final/` and its snapshots hold one
file, which `load_lora_weights` of the pipeline's class reads.

References:
    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685), equation 3.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from guided_diffusers.core.checks import check_that
from guided_diffusers.core.declared import Declared, Positive, Share, Whole
from guided_diffusers.core.randomness import seed_for
from guided_diffusers.store.config_safety import read_json
from guided_diffusers.store.files import write_json_atomically
from guided_diffusers.training.data.cache import fingerprint
from guided_diffusers.training.engine.config import TrainingConfig, option
from guided_diffusers.training.tasks.conditioning import Conditioning
from guided_diffusers.training.tasks.denoiser import DenoisingTask
from guided_diffusers.training.tasks.kept import images_seen
from guided_diffusers.training.tasks.network import component_of
from guided_diffusers.training.tasks.objective import Objective

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""The projections of attention in the networks of diffusers; "add" are those of a text's stream."""
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj", "q", "k", "v", "o")
"""Those of the text encoders of transformers: CLIP's, T5's."""
FILE = "frozen.json"
"""In the run's folder: hashes of the networks that the LoRA lies beside."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig(Declared):
    """Matrices of low rank that are trained in the place of the networks; of rank 0 the networks are."""

    rank: Whole = option(0, "of the matrices; 0: train the whole networks")
    alpha: Positive | None = option(None, "they count alpha / rank times; null: once, alpha = rank")
    dropout: Share = option(0.0, "share of the inputs that they do not see in training")
    targets: tuple[str, ...] = option((), "layers of the denoiser by the end of their names; none: attention")
    merged: bool = option(False, "write the whole pipeline with the LoRA in its weights too: final/merged")


def make_denoising_task(
    lora: LoraConfig,
    unet: nn.Module,
    images: Any,
    condition: Conditioning,
    objective: Objective,
    training: TrainingConfig,
    *more: Any,
) -> DenoisingTask:
    """A DenoisingTask of networks, or of LoRA in them.

    Args:
        lora: Its rank says which.
        unet: The denoiser, pretrained where it gets a LoRA.
        images: As of the task.
        condition: As of the task; what of it would be trained with the denoiser gets a LoRA too.
        objective: As of the task.
        training: The engine's configuration; its seed is that of the matrices A.
        more: Further arguments of the task.

    Raises:
        ValueError: A target that no layer's name ends with, or the run was begun beside other weights.
        ImportError: peft is not installed.
    """
    parts = (unet, images, condition, objective, training, *more)
    if lora.rank == 0:
        return DenoisingTask(*parts)
    networks = {component_of(unet): unet, **condition.trained}
    frozen = {name: fingerprint(network) for name, network in networks.items()}
    check_frozen_weights(frozen, training.output_dir)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(training.seed, 0))
        add_lora(unet, lora, lora.targets or ATTENTION, named=bool(lora.targets))
        for network in condition.trained.values():
            add_lora(network, lora, TEXT_ATTENTION)
    return LoraTask(lora, frozen, *parts)


def check_frozen_weights(frozen: Mapping[str, str], folder: str | Path) -> None:
    """Raise ValueError where a run that goes on was begun beside other frozen weights.

    Args:
        frozen: A hash of each network, by its name.
        folder: The run's.
    """
    file = Path(folder) / FILE
    kept = read_json(file) if images_seen(folder) and file.is_file() else frozen
    for name, weights in frozen.items():
        if kept.get(name) != weights:
            raise ValueError(
                f"the frozen weights of {name} are not those that the run in {folder} was begun with, whose "
                "checkpoints hold the LoRA alone: name that pipeline, or begin in another output_dir"
            )


def add_lora(network: nn.Module, lora: LoraConfig, targets: tuple[str, ...], named: bool = False) -> None:
    """Freeze a network of diffusers or transformers and put trainable matrices beside some of its layers."""
    import peft

    layers = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    found = [end for end in targets if any(f".{name}".endswith(f".{end}") for name in layers)]
    ends = sorted({name.rpartition(".")[2] for name in layers} - {"0", "1", "2"})
    lacking = [end for end in targets if end not in found] if named or not found else []
    check_that(
        not lacking, "lora.targets", list(targets), f"ends of layers' names, such as {', '.join(ends)}"
    )
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.rank if lora.alpha is None else lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=found,
        init_lora_weights=True,
    )
    network.requires_grad_(False)
    network.add_adapter(config)


class LoraTask(DenoisingTask):
    """Trains the LoRA of a denoiser and, where the condition trains some, of its text encoders.

    Args:
        lora: What `add_lora` was told.
        frozen: A hash of each network without its LoRA, which the run's folder keeps.
        parts: Those of DenoisingTask.
    """

    def __init__(self, lora: LoraConfig, frozen: Mapping[str, str], *parts: Any) -> None:
        super().__init__(*parts)
        self._frozen = frozen
        self.lora, self.kind = lora, type(self.pipeline(self.modules))
        write = getattr(self.kind, "save_lora_weights", None)
        known = () if write is None else inspect.signature(write).parameters
        lacking = [name for name in self.averaged if f"{name}_lora_layers" not in known]
        if lacking:
            remedy = "text.encoder: frozen" if self.name not in lacking else "lora.rank: 0"
            told = f"{self.kind.__name__} reads no LoRA of {' and '.join(lacking)}"
            raise ValueError(f"lora.rank is {lora.rank}, and {told}: use {remedy}")

    def begin(self, folder: Path) -> None:
        """Write what the task writes, and what its LoRA lies beside."""
        super().begin(folder)
        write_json_atomically(folder / FILE, dict(self._frozen))

    def snapshot(self, folder: Path, modules: Mapping[str, nn.Module]) -> None:
        """Write the LoRA of averaged networks as `load_lora_weights` reads it."""
        from peft import get_peft_model_state_dict

        networks = {name: modules[name] for name in self.averaged}
        half = self.condition.export_dtype == "float16"
        layers = {
            f"{name}_lora_layers": {
                key: value.half() if half else value
                for key, value in get_peft_model_state_dict(network).items()
            }
            for name, network in networks.items()
        }
        # whoever loads it makes layers that are in training mode, and would draw with dropout
        told = {"lora_dropout": 0.0, "base_model_name_or_path": None, "inference_mode": True}
        for name, network in networks.items():
            layers[f"{name}_lora_adapter_metadata"] = {**network.peft_config["default"].to_dict(), **told}
        self.kind.save_lora_weights(folder, **layers)

    def save(self, folder: Path, modules: Mapping[str, nn.Module]) -> None:
        """Write the LoRA and, where asked for, the pipeline that it makes."""
        self.snapshot(folder, modules)
        if self.lora.merged:
            super().save(folder / "merged", {name: merged(module) for name, module in modules.items()})


def merged(network: nn.Module) -> nn.Module:
    """A copy of a network with its LoRA in its weights; of one without, the network."""
    from diffusers.utils.peft_utils import recurse_remove_peft_layers
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not getattr(network, "_hf_peft_config_loaded", False):
        return network
    network = copy.deepcopy(network)
    for layer in [layer for layer in network.modules() if isinstance(layer, BaseTunerLayer)]:
        layer.merge()
    recurse_remove_peft_layers(network)
    network._hf_peft_config_loaded = False
    del network.peft_config
    return network
