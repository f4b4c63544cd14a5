"""What results say of how they came about: the machine, the training run, the size of a network."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the figures were taken on; of a GPU its name too."""
    gpu = {"gpu": torch.cuda.get_device_name(device)} if torch.device(device).type == "cuda" else {}
    return {
        **gpu,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "transformers", "accelerate")},
    }


def training_run(folder: Path) -> dict[str, Any]:
    """A run's configuration, the last record of its log, and the figures that it wrote beside its weights."""
    records = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    run = {
        "config": _without_folders(json.loads((folder / "config.json").read_text())),
        "images_seen": records[-1]["images"],
        "seconds": records[-1]["seconds"],
    }
    metrics = folder / "final" / "metrics.json"
    return {**run, "metrics": json.loads(metrics.read_text())} if metrics.is_file() else run


def _without_folders(value: Any) -> Any:
    """The same JSON value with absolute paths cut to their last part: nobody else has those folders."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def parameters_millions(module: torch.nn.Module) -> float:
    """Number of parameters in millions, to two places."""
    return round(sum(parameter.numel() for parameter in module.parameters()) / 1e6, 2)


def write_json(path: Path | None, results: dict[str, Any]) -> None:
    """Writes the results to a file, or prints them where there is none."""
    text = json.dumps(results, indent=2)
    if path is None:
        print(text)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((text.split(":", 1)[1].strip() for text in lines if text.startswith("model name")), "unknown")
