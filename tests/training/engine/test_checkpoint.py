"""Checkpoints: complete or absent, the newest K kept, optimizer state without pickle."""

import json

import pytest
import torch
from torch import nn

from guided_diffusers.training.engine.checkpoint import (
    atomic_folder,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from guided_diffusers.training.engine.state import load_optimizer, optimizer_state, room_for_state


def save(folder, images, keep=2, value=0.0):
    return save_checkpoint(
        folder, images, {"modules/net": {"w": torch.full((2,), value)}}, {"note": "x"}, keep
    )


def test_what_is_saved_is_loaded(tmp_path):
    path = save(tmp_path, 1000, value=3.0)
    tensors, state = load_checkpoint(path)
    assert torch.equal(tensors["modules/net"]["w"], torch.full((2,), 3.0))
    assert (state["note"], state["images_seen"]) == ("x", 1000)
    assert {file.suffix for file in path.rglob("*") if file.is_file()} == {".safetensors", ".json"}


def test_the_newest_are_kept_in_the_order_of_positions(tmp_path):
    for images in (900, 1000, 10_000, 9_000_000):
        save(tmp_path, images, keep=2)
    assert [int(path.name) for path in sorted(tmp_path.iterdir())] == [10_000, 9_000_000]
    assert int(latest_checkpoint(tmp_path).name) == 9_000_000


def test_half_written_checkpoints_are_not_picked_up_and_are_removed(tmp_path):
    save(tmp_path, 1000)
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / f"{2000:012d}") as folder:
        (folder / "state.json").write_text("{}")
        raise KeyboardInterrupt  # the process ends in the middle of writing
    assert len(list(tmp_path.iterdir())) == 2  # it did leave half of one
    assert int(latest_checkpoint(tmp_path).name) == 1000
    save(tmp_path, 3000)
    assert [int(path.name) for path in sorted(tmp_path.iterdir())] == [1000, 3000]


def test_no_checkpoint_is_none(tmp_path):
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_replacing_a_folder_leaves_only_the_new_one(tmp_path):
    for word in ("old", "new"):
        with atomic_folder(tmp_path / "final") as folder:
            (folder / word).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["final", "final/new"]


@pytest.mark.parametrize("missing", ["state.json", "modules/net.safetensors"])
def test_a_damaged_checkpoint_names_the_missing_file(tmp_path, missing):
    path = save(tmp_path, 1000)
    (path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        load_checkpoint(path)


@pytest.mark.parametrize("kind", ["adamw", "fused adamw", "sgd"])
def test_an_optimizer_goes_on_as_if_never_stopped(kind):
    def make():
        torch.manual_seed(0)
        net = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
        if kind == "sgd":
            return net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        groups = [{"params": [net.weight], "betas": (0.5, 0.9)}, {"params": [net.bias], "lr": 0.3}]
        return net, torch.optim.AdamW(groups, lr=0.1, fused=kind.startswith("fused"))

    def step(net, optimizer):
        net(torch.randn(1, 2, 5, 5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    torch.manual_seed(1)
    net, optimizer = make()
    step(net, optimizer)
    tensors, state = optimizer_state(optimizer)
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    restored_net, restored = make()
    restored_net.load_state_dict(weights)
    contiguous = {name: value.clone().contiguous() for name, value in tensors.items()}
    room = room_for_state(restored, contiguous)
    for name, value in room.items():
        value.copy_(contiguous[name])
    load_optimizer(restored, room, json.loads(json.dumps(state)))
    assert all(
        one.stride() == other.stride()
        for one, other in zip(optimizer_state(restored)[0].values(), tensors.values(), strict=True)
    )
    for pair in ((net, optimizer), (restored_net, restored)):
        torch.manual_seed(2)
        step(*pair)
    assert all(torch.equal(v, restored_net.state_dict()[name]) for name, v in net.state_dict().items())
    assert restored.param_groups[0].get("betas") == optimizer.param_groups[0].get("betas")
