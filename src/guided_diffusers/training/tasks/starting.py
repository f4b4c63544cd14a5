"""Training that starts from a trained pipeline: which of its parts stand in the place of which keys.

`pretrained` names a folder, a shipped checkpoint or a Hub repository of a pipeline: ours, Stable Diffusion's,
or that of a transformer that is trained. Its denoiser, autoencoder, text encoders and tokenizers are taken
over, and its scheduler with its whole configuration: a network that predicts v on another table of betas goes
on to do so.
"""

from __future__ import annotations

import logging
import re
from dataclasses import MISSING, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import diffusers

from guided_diffusers import schedulers
from guided_diffusers.core.checks import check_that, shown
from guided_diffusers.hub.errors import hub_errors
from guided_diffusers.stock.prompted import PROMPTED
from guided_diffusers.store.checkpoints import pipeline_source
from guided_diffusers.store.config_safety import components_of
from guided_diffusers.store.safety import refused_in_one_line
from guided_diffusers.training.engine.setup import make_scheduler
from guided_diffusers.training.tasks.text import check_frozen

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

logger = logging.getLogger(__name__)

Config = TypeVar("Config", bound="DataclassInstance")
REPLACED = ("autoencoder", "unet", "denoiser", "unet_pretrained", "scheduler", "scheduler_arguments")
"""The keys whose parts come from the pipeline."""
TAKEN = ("unet", "transformer", "vae", "text_encoder", "tokenizer", "scheduler")
"""The pipeline's components that training takes over, and those whose names go on with a number."""


def check_start(config: Any) -> None:
    """Check what training starts from: a pipeline, or parts and what is trained anew.

    Args:
        config: a script's, with `pretrained`, those of REPLACED, and `text`.

    Raises:
        ValueError: an adapter without what it adapts, or a key beside `pretrained` that the pipeline has the
            part of.
    """
    if config.pretrained is None:
        check_frozen(config.text)
        whole = config.unet_pretrained is not None and config.text.pretrained is not None
        allowed = "0 without `pretrained`: there is nothing to adapt"
        check_that(whole or not config.lora.rank, "lora.rank", config.lora.rank, allowed)
        return
    given = {item.name: getattr(config, item.name) for item in fields(config) if item.name in REPLACED}
    given = {name: value for name, value in given.items() if value != _default(config, name)}
    given |= {
        f"text.{name}": value for name in ("pretrained", "model") if (value := getattr(config.text, name))
    }
    for name, value in given.items():
        raise ValueError(
            f"{name} is {shown(value)} and pretrained {config.pretrained!r}, a pipeline that has its own: "
            f"leave out {name}, or name the parts one by one without pretrained"
        )


def _default(config: Any, name: str) -> Any:
    item = next(item for item in fields(config) if item.name == name)
    return item.default if item.default_factory is MISSING else item.default_factory()


def parts_of(config: Config) -> Config:
    """A configuration with its `pretrained` in the keys that name parts; without one, as it is."""
    name = config.pretrained
    if name is None:
        return config
    index = _index(pipeline_source(name))
    kind, vae = (index.get(part, (None, None))[1] for part in ("transformer", "vae"))
    allowed = f"a UNet2DConditionModel, {', '.join(PROMPTED)}"
    check_that(kind is None or kind in PROMPTED, f"the transformer of {name}", kind, allowed)
    network = {} if kind is None else {"denoiser": {"class": kind}}
    text = replace(config.text, pretrained=name, subfolders=True)
    parts = {"autoencoder": vae and name, "unet_pretrained": name, "text": text, **network}
    return replace(config, pretrained=None, **parts)


def starting_scheduler(config: Any) -> Any:
    """The scheduler of `pretrained` with its configuration, or a new one.

    Raises:
        OSError: the pipeline has none; in one line.
        ValueError: it is of no class of ours or of diffusers.
    """
    if config.pretrained is None:
        return make_scheduler(config.scheduler, config.scheduler_arguments)
    where = pipeline_source(config.pretrained)
    with hub_errors(where), refused_in_one_line(f"{where}/scheduler"):
        found = diffusers.DDPMScheduler.load_config(where, subfolder="scheduler")
    kind = str(found.get("_class_name"))
    cls = getattr(schedulers, kind, None) or getattr(diffusers, kind, None)
    check_that(
        hasattr(cls, "set_timesteps"), f"scheduler of {where}", kind, "a scheduler of ours or of diffusers"
    )
    scheduler = cls.from_config(found)
    logger.info("starting from %s, with its %s", where, kind)
    _tell_left_out(where)
    return scheduler


def _index(where: str) -> dict[str, tuple[str, str]]:
    """Library and class of each component of a pipeline's folder or repository."""
    with hub_errors(where), refused_in_one_line(where):
        return components_of(diffusers.DiffusionPipeline.load_config(where))


def _tell_left_out(where: str) -> None:
    """Warn of components of a pipeline that what comes of training will not have."""
    parts = [name for name in _index(where) if re.sub(r"_\d$", "", name) not in TAKEN]
    if parts:
        logger.warning("%s has %s, which the trained pipeline will not have", where, " and ".join(parts))
