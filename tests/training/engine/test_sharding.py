"""Networks split over two processes: the losses of one process, half of the bytes each, any resume."""

from __future__ import annotations

import json
import os
import weakref
from pathlib import Path

import pytest
import torch
from processes import forked
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from training_scripts import records, weights

from guided_diffusers.training.engine import sharding
from guided_diffusers.training.engine.checkpoint import load_checkpoint
from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.engine.sharding import blocks, hollow, with_parameters
from guided_diffusers.training.engine.trainer import Trainer, make_accelerator

SETTINGS = {"num_images": 80, "batch_size": 8, "warmup_images": 16, "ema_half_life_images": 40.0}
SETTINGS |= {"validate_every_images": 40, "log_every_images": 8, "snapshot_fractions": (0.5,)}
SETTINGS |= {"mixed_precision": "no", "channels_last": False, "checkpoint_every_images": 32}


@pytest.fixture
def train(denoising, tmp_path):
    """Train by some processes in a folder of the test's; gives the folder, with the bytes of each process."""

    def by(processes: int, name: str, by_accelerate: bool = False, **overrides) -> Path:
        config = TrainingConfig(**{**SETTINGS, "output_dir": str(tmp_path / name), **overrides})

        def deed(rank: int) -> None:
            sharding.SMALLEST = 100  # so that the tiny network has blocks
            if by_accelerate:
                os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
            task = denoising(config, dropout=0.0)
            trainer = Trainer(task, config, config, make_accelerator(config))
            assert trainer.devices.sharded == (by_accelerate or config.sharding != "none")
            modules = (*task.modules.values(), *trainer.ema.modules.values())
            gates = [weakref.ref(gate) for gate in trainer.devices.gates.values()]
            assert len(gates) == (processes > 1 and not trainer.devices.sharded)
            trainer.run()
            assert not any(gate() for gate in gates)  # else the process may never end
            parameters = [[p for module in modules for p in module.parameters()]]
            parameters += [[s for s in v.values() if s.dim()] for v in task.optimizers["unet"].state.values()]
            local = [p.to_local() if isinstance(p, DTensor) else p for part in parameters for p in part]
            found = {"bytes": sum(part.nbytes for part in local)}
            found["blocks"] = sum(isinstance(m, FSDPModule) for m in task.modules["unet"].modules())
            (tmp_path / f"{name}.{rank}.json").write_text(json.dumps(found))

        assert forked(processes, deed) == [0] * processes
        return tmp_path / name

    return by


def told(folder: Path) -> list[dict]:
    return [json.loads(file.read_text()) for file in sorted(folder.parent.glob(f"{folder.name}.*.json"))]


def assert_alike(one: Path, other: Path) -> None:
    """Losses, gradients and averaged weights, to 1e-4 and far less."""
    pairs = list(zip(records(one), records(other), strict=True))
    assert len(pairs) == 12  # ten of losses, two of validations
    for name in ("unet", "unet_gradient_norm"):
        assert max(abs(a[name] - b[name]) for a, b in pairs if name in a) < 1e-5
    for part in ("final", "snapshots"):
        ours, theirs = weights(one / part), weights(other / part)
        assert ours.keys() == theirs.keys() and len(ours) > 20
        assert max((ours[name] - theirs[name]).abs().max() for name in ours) < 1e-5


def test_two_halves_train_as_one_whole_and_one_process_goes_on_from_them(train):
    one = train(1, "one")
    two = train(2, "two", sharding="parameters", stop_at_images=40)
    (whole,), halves = told(one), told(two)
    assert all(half["blocks"] >= 4 and half["bytes"] < 0.53 * whole["bytes"] for half in halves)
    assert sum(half["bytes"] for half in halves) == whole["bytes"]
    newest = two / "checkpoints" / f"{40:012d}"
    assert len(list((newest / "shards").glob("*.safetensors"))) == 2
    assert {file.suffix for file in newest.rglob("*") if file.is_file()} == {".safetensors", ".json"}
    tensors, _ = load_checkpoint(newest)
    assert {name.split("/")[0] for name in tensors} == {"modules", "averaged", "optimizers", "meter"}
    assert_alike(one, train(1, "two"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((1, {}), (2, {"by_accelerate": True})),
        ((2, {"sharding": "parameters"}), (2, {})),
        ((2, {}), (2, {"sharding": "gradients"})),
        ((2, {"sharding": "gradients"}), (1, {"sharding": "parameters"})),
        ((3, {"sharding": "parameters"}), (2, {"sharding": "parameters"})),
    ],
    ids=str,
)
def test_any_number_of_processes_goes_on_from_any(train, first, second):
    batch = 12 if 3 in (first[0], second[0]) else 8
    settings = {"batch_size": batch, "log_every_images": batch, "num_images": 96}
    settings |= {"gradient_accumulation": 2, "posthoc_ema": 2, "posthoc_dtype": "float32"}
    one = train(1, "one", **settings)
    train(first[0], "two", **settings, **first[1], stop_at_images=48)
    two = train(second[0], "two", **settings, **second[1])
    pairs = [(a["unet"], b["unet"]) for a, b in zip(records(one), records(two), strict=True) if "unet" in a]
    assert len(pairs) >= 8 and max(abs(a - b) for a, b in pairs) < 1e-5
    for part in ("final", "averages"):
        ours, theirs = weights(one / part), weights(two / part)
        assert ours.keys() == theirs.keys()
        assert max((ours[name] - theirs[name]).abs().max() for name in ours) < 1e-5


def test_what_averages_gradients_does_not_outlive_the_group_of_processes(train):
    train(2, "run", num_images=8)


def test_a_shard_that_is_gone_is_named(train):
    folder = train(1, "run", sharding="parameters", num_images=8, checkpoint_every_images=0)
    newest = folder / "checkpoints" / f"{8:012d}"
    next((newest / "shards").iterdir()).unlink()
    with pytest.raises(FileNotFoundError, match=f"checkpoint {newest} lacks shards/shard-00001.*: remove"):
        load_checkpoint(newest)


def test_blocks_are_the_items_of_lists_the_inner_before_the_outer(monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST", 20)
    inner = [nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(1, 1)]
    outer = nn.Sequential(nn.ModuleList(inner), nn.Linear(5, 5))
    module = nn.Module()
    module.apart, module.outer = (
        nn.Linear(9, 9),
        nn.ModuleList([outer, None, nn.ModuleList([nn.Linear(6, 6)])]),
    )
    found = blocks(module, set())
    assert found == [inner[0], inner[1], module.outer[2][0], outer]
    assert blocks(module, set(inner[0].parameters())) == [inner[1], module.outer[2][0], outer]


def test_a_hollow_copy_holds_no_values_until_it_is_given_some():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2, bias=False))
    module.append(module[2])  # tied
    empty = hollow(module)
    assert all(parameter.is_meta for parameter in empty.parameters()) and not empty.training
    filled = with_parameters(empty, module, torch.clone)
    assert filled[2] is filled[3] and filled[2].weight is not module[2].weight
    assert all(torch.equal(value, filled.state_dict()[name]) for name, value in module.state_dict().items())
