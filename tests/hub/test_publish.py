"""Training that pushes: the Hub may go and come back, and the weights are as without it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hub.loopback import Hub, check_store
from hub.processes import result_of, start_client

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def until(condition, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


@pytest.mark.slow
def test_training_survives_the_hub(tmp_path: Path):
    """It pushes, loses the Hub in the middle, gets it back; the last push is whole."""
    hub = Hub(tmp_path / "hub")
    process = start_client(hub, tmp_path / "home", "train_and_push", tmp_path / "run", "alice/run", 0.7)
    until(lambda: hub.names("alice/run").get(WEIGHTS))
    hub.kill()
    time.sleep(3)
    hub.start()
    lines = result_of(process)["lines"]
    failed = [line for line in lines if "failed" in line]
    pushed = [line for line in lines if line.startswith("pushed")]
    assert failed and all("\n" not in line and len(line) < 300 for line in lines)
    assert len(pushed) >= 2 and "160 images" in pushed[-1]
    local = (tmp_path / "run" / "final" / WEIGHTS).read_bytes()
    assert hub.tree("alice/run")[WEIGHTS] == local
    card = hub.tree("alice/run")["README.md"].decode()
    assert "Images seen: 160." in card and "batches of 8" in card and str(tmp_path) not in card
    assert not (tmp_path / "run" / ".publishing").exists()
    result_of(start_client(hub, tmp_path / "home", "train_and_push", tmp_path / "quiet", "none", 0))
    assert (tmp_path / "quiet" / "final" / WEIGHTS).read_bytes() == local
    hub.kill()
    check_store(tmp_path / "hub")
