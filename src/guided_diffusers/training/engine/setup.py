"""What a run is made with: accelerator, optimizers, scheduler, memory options, the background thread."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import diffusers
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import nn

from guided_diffusers import schedulers
from guided_diffusers.core.checks import check_that
from guided_diffusers.store.launch import keep_freed_memory, on_cpu, share_cores, start_processes
from guided_diffusers.training.engine.config import TrainingConfig, check_arguments


def make_optimizer(config: TrainingConfig, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    """AdamW as the configuration says, over parameters or parameter groups.

    Raises:
        ImportError: bitsandbytes, which `optimizer: adamw_8bit` needs, is not installed.
    """
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas}
    settings["weight_decay"] = config.weight_decay
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **settings, fused=True)
    require_bitsandbytes(config)
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(parameters, **settings)


def require_bitsandbytes(config: TrainingConfig) -> None:
    """Say in one line what an 8-bit optimizer needs and is not there.

    Raises:
        ImportError: bitsandbytes is asked for, and not installed.
    """
    if config.optimizer == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(
            "training.optimizer adamw_8bit needs bitsandbytes: pip install 'guided-diffusers[8bit]' brings it"
        )


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """The process group, device, precision and trackers that the configuration asks for.

    Under `accelerate launch --cpu` with several processes, see `launch.start_processes`; on a CPU
    `launch.share_cores` sets the number of threads, and `launch.keep_freed_memory` how glibc keeps memory.

    Raises:
        ValueError: accelerate is set to split networks in a way that is not ours.
        ImportError: the optimizer's package is not installed.
    """
    require_bitsandbytes(config)
    refuse_sharding()
    start_processes()
    if on_cpu():
        share_cores()
        keep_freed_memory()
    return Accelerator(
        cpu=on_cpu(),
        mixed_precision="no" if config.mixed_precision == "auto" else config.mixed_precision,
        log_with=list(config.report_to) or None,
        project_dir=config.output_dir,
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True),  # a loss may need but some
            InitProcessGroupKwargs(timeout=timedelta(minutes=config.timeout_minutes)),
        ],
    )


def asked_of_accelerate(kind: str) -> bool:
    """Whether the environment asks accelerate to use FSDP, DEEPSPEED or the like."""
    return os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() in ("1", "true")


def refuse_sharding(accelerator: Accelerator | None = None) -> None:
    """Refuse the ways to split networks over processes that are not ours.

    Args:
        accelerator: a given one; None: what the environment asks for, as `accelerate launch` sets it.

    Raises:
        ValueError: naming it.
    """

    def asked(kind: str) -> bool:
        given = accelerator is not None and accelerator.distributed_type == kind
        return given or asked_of_accelerate(kind)

    instead = (
        "networks are split by torch's fully_shard here: accelerate's FSDP with fsdp_version 2, or "
        "training.sharding: gradients (as ZeRO 2 does) or parameters (as ZeRO 3 does)"
    )
    for kind in ("DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if asked(kind):
            raise ValueError(f"accelerate is set to use {kind}; {instead}, and ACCELERATE_USE_{kind}=false")
    plugin = getattr(getattr(accelerator, "state", None), "fsdp_plugin", None)
    version = os.environ.get("FSDP_VERSION", "1") if plugin is None else plugin.fsdp_version
    if asked("FSDP") and int(version) != 2:
        raise ValueError(f"accelerate is set to use FSDP of version {version}; {instead}")


def make_scheduler(
    name: str, arguments: Mapping[str, Any], keys: tuple[str, str] = ("scheduler", "scheduler_arguments")
) -> Any:
    """A scheduler of ours or of diffusers, by its class's name.

    Args:
        name: of the class.
        arguments: its own.
        keys: what the configuration calls the two.

    Raises:
        ValueError: there is no such scheduler, or it has no such argument.
    """
    cls = getattr(schedulers, name, None) or getattr(diffusers, name, None)
    check_that(hasattr(cls, "set_timesteps"), keys[0], name, "a scheduler of ours or of diffusers")
    check_arguments(arguments, keys[1], [cls])
    return cls(**arguments)


def recompute_activations(module: nn.Module) -> None:
    """Gradient checkpointing, where the module can."""
    for name in ("enable_gradient_checkpointing", "gradient_checkpointing_enable"):  # diffusers, transformers
        if hasattr(module, name):
            getattr(module, name)()


def single_threaded_executor() -> ThreadPoolExecutor:
    """A background thread whose tensor operations start no threads of their own.

    OpenMP gives every thread that computes a team of its own, which waits for more work by spinning: on a
    machine with as many cores as threads the two teams then take the cores from one another, and training
    on a CPU takes 2.4 times as long.
    """
    threads = torch.get_num_threads()
    executor = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
    executor.submit(torch.get_num_threads).result()  # the initializer has run, and set what is shared too
    torch.set_num_threads(threads)
    return executor
