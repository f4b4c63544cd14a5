"""What is in a checkpoint: components, parameters, sizes, schedule, default guidance; without loading it.

Numbers of parameters come from the headers of the safetensors files, so a checkpoint of any size takes no
memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guided_diffusers.hub.entry_point import plain_class_name
from guided_diffusers.store.config_safety import components_of, read_json
from guided_diffusers.store.weight_files import safetensors_header, weights_kind

INDEX = "model_index.json"
WAY_OF_DRAWING = "_way_of_drawing"
"""The key of model_index.json under which a pipeline of diffusers says how it is to be called."""
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_SCHEDULE = (
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "prediction_type",
    "variance_type",
)
_SIZES = (
    "sample_size",
    "in_channels",
    "out_channels",
    "latent_channels",
    "cross_attention_dim",
    "block_out_channels",
    "num_class_embeds",
)


def inventory(folder: str | Path) -> dict[str, Any]:
    """What is in a checkpoint's folder, a pipeline's or a model's, as JSON values.

    Returns:
        class, components (each with name, library, class, parameters, bytes, dtypes, variants, files and
        sizes of its configuration), parameters, bytes, schedule, default_guidance, image_size. What a
        checkpoint does not say is None. Of a cascade the components are those of all stages ("base/unet"),
        and `stages` has the class of each.

    Raises:
        OSError: It is no checkpoint, or a file of weights is cut short.
    """
    folder = Path(folder)
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        if stages := [name for name in _pairs(index, folder) if (folder / name / INDEX).is_file()]:
            return _of_stages({name: inventory(folder / name) for name in stages}, plain_class_name(index))
        components = [_component(folder / name, name, *pair) for name, pair in _pairs(index, folder).items()]
        name, guidance = plain_class_name(index), index.get(WAY_OF_DRAWING, index).get("default_guidance")
    elif (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        name, guidance = config.get("_class_name") or (config.get("architectures") or [None])[0], None
        components = [_component(folder, "", None, name)]
    else:
        raise OSError(f"{folder} holds no checkpoint: no model_index.json and no config.json")
    return _content(name, components, _schedule(folder), guidance, _image_size(folder))


def _content(
    name: Any, components: list[dict[str, Any]], schedule: Any, guidance: Any, size: Any
) -> dict[str, Any]:
    return {
        "class": name,
        "components": components,
        "parameters": sum(component["parameters"] for component in components),
        "bytes": sum(component["bytes"] for component in components),
        "schedule": schedule,
        "default_guidance": guidance,
        "image_size": size,
    }


def _of_stages(stages: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Of a cascade: all components, the first stage's schedule and guidance, the last one's size."""
    first, last = next(iter(stages.values())), list(stages.values())[-1]
    components = [
        {**component, "name": f"{stage}/{component['name']}"}
        for stage, content in stages.items()
        for component in content["components"]
    ]
    content = _content(name, components, first["schedule"], first["default_guidance"], last["image_size"])
    return {**content, "stages": {stage: content["class"] for stage, content in stages.items()}}


def _pairs(index: Mapping[str, Any], folder: Path) -> dict[str, tuple[str | None, str | None]]:
    """Library and class by component, and further folders with weights that lie beside the pipeline."""
    found: dict[str, tuple[str | None, str | None]] = dict(components_of(index))
    for path in sorted(folder.glob("*/*.safetensors")):
        name = path.parent.name
        if name not in found:
            config = path.parent / "config.json"
            found[name] = (None, read_json(config).get("_class_name") if config.is_file() else None)
    return found


def _component(folder: Path, name: str, library: str | None, class_name: str | None) -> dict[str, Any]:
    files = sorted(folder.glob("*.safetensors"))
    variants: dict[str, list[Path]] = {}
    for path in files:
        kind = weights_kind(path.name)
        variants.setdefault(kind[1] if kind else "", []).append(path)
    dtypes: dict[str, int] = {}
    main = variants.get("", next(iter(variants.values()), []))
    for path in main:
        for tensor, value in safetensors_header(path).items():
            if tensor != "__metadata__":
                dtype = _DTYPES.get(value["dtype"], value["dtype"])
                size = value["data_offsets"][1] - value["data_offsets"][0]
                dtypes[dtype] = dtypes.get(dtype, 0) + size // _BYTES.get(value["dtype"], 1)
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return {
        "name": name,
        "library": library,
        "class": class_name,
        "parameters": sum(dtypes.values()),
        "bytes": sum(path.stat().st_size for path in files),
        "dtypes": sorted(dtypes),
        "variants": sorted(variant for variant in variants if variant),
        "files": len(files),
        "config": {key: config[key] for key in _SIZES if config.get(key) is not None},
    }


def _schedule(folder: Path) -> dict[str, Any] | None:
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return None
    config = read_json(path)
    known = {key: config[key] for key in _SCHEDULE if config.get(key) is not None}
    return {"class": config.get("_class_name"), **known}


def _image_size(folder: Path) -> int | list[int] | None:
    """Pixels of a side (or of height and width) of what the pipeline draws by default."""
    configs = [folder / part / "config.json" for part in ("unet", "transformer")]
    sizes = [read_json(config).get("sample_size") for config in configs if config.is_file()]
    size, vae = sizes[0] if sizes else None, folder / "vae" / "config.json"
    if size is None or not vae.is_file():
        return size
    read = read_json(vae)
    blocks = read.get("block_out_channels") or read.get("encoder_block_out_channels", [0])
    factor = 2 ** (len(blocks) - 1)
    return [side * factor for side in size] if isinstance(size, list) else size * factor


def guidance_text(config: Any) -> str:
    """A guidance's configuration in words, such as `AutoGuidance, scale 2, null=True`; "none" for none."""
    texts = []
    for term in config or []:
        text = f"{term['term']}, scale {term['scale']}" if "scale" in term else str(term["term"])
        rest = {key: term[key] for key in term if key not in ("term", "scale", "interval")}
        text += "".join(f", {key}={value}" for key, value in rest.items() if value not in (None, False))
        if term.get("interval"):
            low, high = term["interval"]
            text += f" for σ/α in ({low:g}, {'∞' if high is None else format(high, 'g')}]"
        texts.append(text)
    return " + ".join(texts) or "none"
