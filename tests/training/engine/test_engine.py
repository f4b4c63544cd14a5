"""The engine: resuming to the bit, accumulation, the order of data, what a run leaves behind."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from accelerate.utils import DistributedType
from diffusers import UNet2DModel
from training_scripts import of_task as weights
from training_scripts import records as logged_in
from training_scripts import same

from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.engine.order import data_order, uniform_for
from guided_diffusers.training.engine.schedule import learning_rate_factor
from guided_diffusers.training.engine.setup import single_threaded_executor
from guided_diffusers.training.engine.trainer import make_accelerator, train


def records(folder):
    clock = ("seconds", "images_per_second")
    return [{k: v for k, v in record.items() if k not in clock} for record in logged_in(folder)]


def final(folder):
    return UNet2DModel.from_pretrained(folder / "final" / "unet").state_dict()


def test_stopping_and_resuming_is_bit_equal_to_never_having_stopped(run):
    whole, whole_folder = run("whole")
    run("parts", stop_at_images=104)
    parts, parts_folder = run("parts")
    assert same(weights(whole), weights(parts))
    assert same(final(whole_folder), final(parts_folder))  # the averaged weights
    assert parts.seen[0][1][0] == 104  # it did go on, and did not start anew


def test_a_crash_between_checkpoints_loses_no_bit(run):
    whole, whole_folder = run("whole", prefetch_batches=0)
    with pytest.raises(RuntimeError, match="a crash"):
        run("crashed", crash_at=150)
    resumed, resumed_folder = run("crashed")
    assert resumed.seen[0][1][0] == 128  # the newest multiple of 64 before the crash
    assert same(weights(whole), weights(resumed))
    validations = [r for r in records(resumed_folder) if "validation" in r]
    assert [r["images"] for r in validations] == [80, 160]  # neither lost nor written twice
    assert records(whole_folder)[-2:] == records(resumed_folder)[-2:]


def test_a_different_seed_gives_other_weights(run):
    assert not torch.equal(
        *(weights(run(str(s), seed=s, num_images=16)[0])["unet.conv_in.weight"] for s in (0, 1))
    )


def test_accumulating_gradients_equals_the_big_batch(run):
    settings = {"dropout": 0.0, "num_images": 80, "learning_rate_schedule": "constant"}
    whole = weights(run("whole", **settings)[0])
    parts = weights(run("parts", gradient_accumulation=4, **settings)[0])
    # Adam divides by the gradient's own size, which amplifies the rounding of its smallest entries up to the
    # learning rate; the mean difference is what accumulation owes.
    difference = torch.cat([(whole[name] - parts[name]).abs().flatten() for name in whole])
    assert difference.mean() < 1e-6 and difference.max() < 1e-4


def test_the_loss_goes_down(run):
    _, folder = run(num_images=400, dropout=0.0, learning_rate=1e-2, warmup_images=0)
    losses = [record["unet"] for record in records(folder) if "unet" in record]
    assert losses[-1] < 0.75 * losses[0]


def test_a_run_leaves_log_snapshots_validation_checkpoints_and_the_averaged_model(run):
    task, folder = run()
    logged = [record for record in records(folder) if "unet" in record]
    assert [record["images"] for record in logged] == [40, 80, 120, 160]
    assert all(len(record["parity"]) == 2 and record["unet_gradient_norm"] > 0 for record in logged)
    assert logged[0]["unet"] == pytest.approx(sum(logged[0]["parity"]) / 2)
    assert {r["images"]: r["validation"] for r in records(folder) if "validation" in r}[160] == {
        "answer": 42.0
    }
    assert sorted(int(path.name) for path in (folder / "snapshots").iterdir()) == [16, 24, 40, 80]
    weak = UNet2DModel.from_pretrained(folder / "snapshots" / "80" / "unet").state_dict()
    exported, raw = final(folder), task.modules["unet"].state_dict()
    assert not torch.equal(exported["conv_in.weight"], raw["conv_in.weight"])
    assert not torch.equal(exported["conv_in.weight"], weak["conv_in.weight"])
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == [
        "000000000128",
        "000000000160",
    ]
    assert json.loads((folder / "config.json").read_text())["num_images"] == 160
    assert [path.suffix for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".pth")] == []


def test_running_again_after_the_end_only_writes_the_model_again(run):
    before, folder = run(num_images=40)
    after, _ = run(num_images=40)
    assert after.seen == []
    assert same(weights(before), weights(after))


def test_channels_last_and_checkpointed_activations_change_nothing_but_rounding(run):
    settings = {"dropout": 0.0, "num_images": 8, "learning_rate_schedule": "constant"}
    plain = weights(run("plain", **settings)[0])
    task, folder = run("other", channels_last=True, gradient_checkpointing=True, **settings)
    assert task.modules["unet"].conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    difference = torch.cat([(plain[name] - v).abs().flatten() for name, v in weights(task).items()])
    assert difference.mean() < 1e-6
    resumed, _ = run("other", channels_last=True, **{**settings, "num_images": 16})
    unbroken, _ = run("unbroken", channels_last=True, **{**settings, "num_images": 16})
    assert same(weights(resumed), weights(unbroken))


class TwoPlayers:
    """Each loss is a function of both numbers, and each optimizer must move its own alone."""

    num_samples, averaged = 8, ()

    def __init__(self):
        self.modules = {name: torch.nn.Linear(1, 1, bias=False) for name in "xy"}
        for module, value in zip(self.modules.values(), (1.0, 3.0), strict=True):
            torch.nn.init.constant_(module.weight, value)
        self.optimizers = {name: torch.optim.SGD(m.parameters(), lr=0.25) for name, m in self.modules.items()}

    def batch(self, indices, positions):
        return torch.zeros(len(indices))

    def losses(self, batch):
        for name in "xy":
            yield name, (self.modules["x"].weight - self.modules["y"].weight).square().sum(), {}

    def validate(self, images_seen, modules, folder):
        return {}

    def save(self, folder, modules):
        (folder / "done").touch()


@pytest.mark.parametrize("gradient_accumulation", [1, 2])
def test_a_loss_moves_its_own_optimizers_parameters_and_the_next_loss_sees_it(
    tmp_path, gradient_accumulation
):
    task = TwoPlayers()
    config = TrainingConfig(
        output_dir=str(tmp_path),
        num_images=4,
        batch_size=4,
        gradient_accumulation=gradient_accumulation,
        warmup_images=0,
        max_grad_norm=0.0,
        learning_rate_schedule="constant",
    )
    train(task, config)
    x, y = (task.modules[name].weight.item() for name in "xy")
    assert x == pytest.approx(1 + 0.25 * 2 * 2)  # from 1 half-way to 3
    seen = x if gradient_accumulation == 1 else (1 + x) / 2  # the earlier part's loss came before x moved
    assert y == pytest.approx(3 - 0.25 * 2 * (3 - seen))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    task = TwoPlayers()
    torch.nn.init.constant_(task.modules["x"].weight, float("inf"))
    with pytest.raises(FloatingPointError, match="loss of 'x' is nan after 8 images"):
        train(task, TrainingConfig(output_dir=str(tmp_path), num_images=80, batch_size=4, log_every_images=8))


def test_a_batch_that_does_not_split_is_named(tmp_path):
    class ThreeProcesses:
        num_processes, process_index, device = 3, 0, torch.device("cpu")

    config = TrainingConfig(output_dir=str(tmp_path), batch_size=8)
    with pytest.raises(ValueError, match="batch_size is 8; allowed: a multiple of .*3 x 1"):
        train(TwoPlayers(), config, accelerator=ThreeProcesses())


def test_resuming_with_another_configuration_says_what_changed(run, caplog):
    run(stop_at_images=16)
    assert "another configuration" not in caplog.text
    task, _ = run(stop_at_images=24, learning_rate=1e-4)
    assert "learning_rate: 0.001 -> 0.0001" in caplog.text
    assert task.optimizers["unet"].param_groups[0]["initial_lr"] == 1e-4  # and the new one counts
    assert "seed" not in caplog.text


class Remembering(GeneralTracker):
    """A tracker of accelerate that keeps what it is told."""

    name, requires_logging_directory = "remembering", False

    def __init__(self):
        super().__init__()
        self.config, self.logged = None, []

    tracker = property(lambda self: self)

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **kwargs):
        self.logged.append((step, values))


def test_trackers_get_the_same_records(denoising, tmp_path):
    tracker = Remembering()
    config = TrainingConfig(output_dir=str(tmp_path), num_images=16, batch_size=8, log_every_images=8)
    train(denoising(config), config, accelerator=Accelerator(log_with=tracker))
    assert [step for step, _ in tracker.logged] == [8, 16]
    assert tracker.logged[1][1]["unet"] == records(tmp_path)[1]["unet"]
    assert tracker.logged[1][1]["parity/1"] == records(tmp_path)[1]["parity"][1]
    assert tracker.config["num_images"] == "16"


def test_every_epoch_is_another_permutation():
    epochs = [data_order(7, list(range(start, start + 36)), 36) for start in (0, 36, 72)]
    assert all(sorted(epoch) == list(range(36)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert data_order(7, [35, 36], 36) == [epochs[0][35], epochs[1][0]]  # a batch may straddle two
    assert data_order(8, list(range(36)), 36) != epochs[0]


def test_uniform_numbers_are_uniform_and_depend_on_seed_and_position_alone():
    u = uniform_for(0, list(range(10_000)))
    assert u.min() >= 0 and u.max() <= 1
    assert u.mean() == pytest.approx(0.5, abs=0.01) and u.var() == pytest.approx(1 / 12, abs=0.003)
    assert torch.equal(uniform_for(0, [5, 3]), u[[5, 3]])
    assert not torch.equal(uniform_for(1, [5, 3]), u[[5, 3]])


def test_learning_rate_schedules():
    def factor(schedule, images):
        return learning_rate_factor(schedule, images, 100, 1100)

    for schedule in ("constant", "cosine", "linear", "inverse_sqrt"):
        assert factor(schedule, 50) == pytest.approx(0.5) and factor(schedule, 100) == 1
    assert factor("constant", 1100) == 1
    assert factor("cosine", 600) == pytest.approx(0.5) and factor("cosine", 1100) == pytest.approx(
        0, abs=1e-12
    )
    assert factor("linear", 350) == pytest.approx(0.75) and factor("linear", 1100) == 0
    assert factor("inverse_sqrt", 1000) == 1 and factor("inverse_sqrt", 4000) == pytest.approx(0.5)


def test_an_accelerator_follows_the_configuration(tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)  # the other tests' is shared by the process
    try:
        accelerator = make_accelerator(TrainingConfig(output_dir=str(tmp_path), mixed_precision="bf16"))
        assert accelerator.mixed_precision == "bf16"
        assert Path(accelerator.project_dir) == tmp_path
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_other_ways_to_split_networks_are_refused_by_name(tmp_path, monkeypatch, kind):
    """FSDP too, where it is of version 1, as without a word."""
    config = TrainingConfig(output_dir=str(tmp_path / "run"), batch_size=4)
    match, given = f"accelerate is set to use {kind}.*training.sharding: gradients", Accelerator()
    with monkeypatch.context() as patch:
        patch.setattr(type(given), "distributed_type", property(lambda self: DistributedType(kind)))
        with pytest.raises(ValueError, match=match):
            train(TwoPlayers(), config, accelerator=given)
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(ValueError, match=match):
        make_accelerator(config)
    assert not (tmp_path / "run").exists()


def test_the_prefetching_thread_computes_with_one_thread_and_leaves_the_others_theirs():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with single_threaded_executor() as executor:
            assert executor.submit(torch.get_num_threads).result() == 1
            assert torch.get_num_threads() == 2
            with ThreadPoolExecutor(1) as other:
                assert other.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)
