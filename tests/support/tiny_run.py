"""What a training script leaves in its run's folder beside `final`, for scripts that read it."""

from __future__ import annotations

import json
from pathlib import Path


def write_run(folder: Path, name: str, seed: int = 0) -> None:
    """Configuration and log of a run called `fashion_<name>` that saw 80 + seed images in a minute."""
    training = {"output_dir": f"/somewhere/fashion_{name}", "seed": seed, "num_images": 80}
    training |= {"batch_size": 8, "learning_rate": 1e-3, "learning_rate_schedule": "cosine"}
    training |= {"mixed_precision": "no", "ema_half_life_images": 8.0}
    config = {"training": training, "data": {"path": "/somewhere/fashion"}}
    (folder / "config.json").write_text(json.dumps(config))
    log = f'{{"images": 50, "seconds": 1}}\n{{"images": {80 + seed}, "seconds": 60.0}}\n'
    (folder / "log.jsonl").write_text(log)
