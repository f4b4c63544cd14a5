"""`auto`: the fastest precision and layout is found, said and kept, and looking for it leaves no trace."""

import json
import time

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny import shallow_unet
from torch import nn
from training_scripts import of_task, same

from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.engine.trainer import make_optimizer, train

LONG = {"num_images": 10_000, "stop_at_images": 16, "batch_size": 8, "warmup_images": 0}
WAYS = {("no", False): "float32", ("no", True): "float32, channels last"}
WAYS |= {("bf16", False): "bfloat16", ("bf16", True): "bfloat16, channels last"}


@pytest.fixture
def timed(denoising):
    """The task of the other tests with running statistics, slow in all ways but one."""

    class Timed(denoising):
        allows_bfloat16 = True

        def __init__(self, config, fast=None):
            super().__init__(config)
            self.modules["statistics"] = nn.BatchNorm1d(1)
            self.fast, self.ways = fast, []

        def losses(self, batch):
            last = not self.modules["unet"].conv_out.weight.is_contiguous()
            way = ("bf16" if torch.is_autocast_enabled("cpu") else "no", last)
            self.ways.append(way)
            if self.fast not in (None, way):
                time.sleep(0.1)
            for name, loss, metrics in super().losses(batch):
                self.modules["statistics"](metrics["parity"].values[:, None].float())
                yield name, loss, metrics

    return Timed


@pytest.fixture(autouse=True)
def accelerator_of_ones_own():
    """The others' is shared by the process, and has one precision."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def trained(task_class, folder, *arguments, **settings):
    config = TrainingConfig(**{**LONG, "output_dir": str(folder), **settings})
    task = task_class(config, *arguments)
    train(task, config)
    return task, json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    "way", [pytest.param(("no", True), marks=pytest.mark.slow), ("bf16", False)], ids=WAYS.get
)
def test_the_fastest_way_is_taken_said_kept_and_computes_as_if_named(timed, tmp_path, caplog, way):
    caplog.set_level("INFO")
    task, config = trained(timed, tmp_path / "auto", way)
    assert (config["mixed_precision"], config["channels_last"]) == way
    assert set(task.ways[:-2]) == set(WAYS) and task.ways[-2:] == [way] * 2  # timed, then trained on
    (line,) = [text for text in caplog.messages if "the fastest here, of so many images a second" in text]
    layout = str(way[1]).lower()
    keys = f"training.mixed_precision is {way[0]}, training.channels_last {layout}"
    assert line.startswith(f"computing in {WAYS[way]} ({keys}): the fastest")
    assert all(f"{other} " in line for other in WAYS.values())  # with its figure

    AcceleratorState._reset_state(reset_partial_state=True)
    named = dict(zip(("mixed_precision", "channels_last"), way, strict=True))
    assert same(of_task(task), of_task(trained(timed, tmp_path / "named", **named)[0]))

    AcceleratorState._reset_state(reset_partial_state=True)
    slow = next(other for other in WAYS if other != way)
    caplog.clear()
    resumed, config = trained(timed, tmp_path / "auto", slow, stop_at_images=24)
    assert resumed.ways == [way]  # not timed again
    assert (config["mixed_precision"], config["channels_last"]) == way
    assert [text for text in caplog.messages if "another configuration" in text] == [
        "resuming with another configuration: stop_at_images: 16 -> 24"
    ]


def test_what_is_said_is_not_timed(timed, tmp_path, caplog):
    caplog.set_level("INFO")
    task, _ = trained(timed, tmp_path / "both", mixed_precision="no", channels_last=False)
    assert task.ways == [("no", False)] * 2 and "computing" not in caplog.text
    task, config = trained(timed, tmp_path / "one", ("bf16", True), mixed_precision="no")
    assert {way[0] for way in task.ways} == {"no"}
    assert config["mixed_precision"] == "no"


def test_short_runs_are_not_timed(timed, tmp_path, caplog):
    caplog.set_level("INFO")
    task, config = trained(timed, tmp_path, num_images=16)
    assert task.ways == [("no", False)] * 2
    assert (config["mixed_precision"], config["channels_last"]) == ("no", False)
    assert "channels_last false): runs of fewer than 10,000 images are not timed" in caplog.text


def test_bfloat16_is_for_tasks_that_allow_it(timed, tmp_path):
    timed.allows_bfloat16 = False
    task, config = trained(timed, tmp_path, ("bf16", False))
    assert {way[0] for way in task.ways} == {"no"} and config["mixed_precision"] == "no"


def test_bfloat16_that_moves_the_loss_is_not_taken(timed, tmp_path, caplog):
    class Rough(timed):
        def losses(self, batch):
            for name, loss, metrics in super().losses(batch):
                yield name, loss * (1.05 if self.ways[-1][0] == "bf16" else 1), metrics

    caplog.set_level("INFO")
    _, config = trained(Rough, tmp_path, ("bf16", False), channels_last=False)
    assert config["mixed_precision"] == "no"


@pytest.mark.parametrize(
    ("fails", "chosen"), [(("no", False), ("no", True)), (None, ("no", False))], ids=["the plain way", "all"]
)
def test_ways_that_do_not_run_are_left_out(timed, tmp_path, caplog, fails, chosen):
    class Scarce(timed):
        def losses(self, batch):
            for item in super().losses(batch):
                if fails == self.ways[-1] or (fails is None and len(self.ways) <= 4):
                    raise torch.OutOfMemoryError("out of memory")
                yield item

    caplog.set_level("INFO")
    _, config = trained(Scarce, tmp_path, ("no", True), mixed_precision="no")
    assert (config["mixed_precision"], config["channels_last"]) == chosen
    assert "float32 does not run here: out of memory" in caplog.text


def test_a_run_of_before_goes_on_as_it_was(timed, tmp_path):
    trained(timed, tmp_path, mixed_precision="no", channels_last=True)
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    state = json.loads((checkpoint / "state.json").read_text())
    del state["precision"]
    (checkpoint / "state.json").write_text(json.dumps(state))
    task, config = trained(timed, tmp_path, ("bf16", False), stop_at_images=24)
    assert task.ways == [("no", True)] and config["channels_last"] is True


def test_plain_attention_is_tried_on_a_cpu_taken_when_named_and_computes_the_same(
    denoising, tmp_path, caplog
):
    class Attending(denoising):
        def __init__(self, config):
            super().__init__(config)
            unet = shallow_unet(down_block_types=("AttnDownBlock2D",), up_block_types=("AttnUpBlock2D",))
            self.modules["unet"] = unet
            self.optimizers = {"unet": make_optimizer(config, unet.parameters())}

    caplog.set_level("INFO")
    settings = {"mixed_precision": "no", "channels_last": False}
    trained(Attending, tmp_path / "auto", **settings)
    assert "float32, plain attention " in caplog.text  # its figure
    found = {}
    for attention in ("plain", "fused"):
        AcceleratorState._reset_state(reset_partial_state=True)
        task, config = trained(Attending, tmp_path / attention, attention=attention, **settings)
        assert config["attention"] == attention
        processors = {
            type(m.processor).__name__ for m in task.modules["unet"].modules() if hasattr(m, "processor")
        }
        assert processors == {"AttnProcessor" if attention == "plain" else "AttnProcessor2_0"}
        found[attention] = torch.cat([value.flatten() for value in of_task(task).values()])
    assert (found["plain"] - found["fused"]).abs().mean() < 1e-6


@pytest.mark.slow
def test_a_compiled_run_learns_what_a_plain_one_does(denoising, tmp_path):
    found = {}
    for compiled in (True, False):
        AcceleratorState._reset_state(reset_partial_state=True)
        settings = {"mixed_precision": "no", "channels_last": False, "attention": "fused"}
        task, _ = trained(denoising, tmp_path / str(compiled), 0.0, compile=compiled, **settings)
        assert (task.modules["unet"]._compiled_call_impl is not None) == compiled
        found[compiled] = of_task(task)
    assert found[True].keys() == found[False].keys()
    difference = torch.cat([(found[True][name] - value).flatten() for name, value in found[False].items()])
    assert difference.abs().mean() < 1e-5
