"""The newest checkpoint is damaged or another run's: one sentence says so, and nothing is touched."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_scripts import records

from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.engine.trainer import make_optimizer, train

NEWEST = "checkpoints/000000000032"


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without(name):
    def change(path):
        tensors = load_file(path)
        del tensors[name]
        save_file(tensors, path)

    return change


def rename(path):
    path.rename(path.with_name("000000000064"))


def only_a_stranger(path):
    shutil.rmtree(path.parent)
    (path.parent / "checkpoint-500").mkdir(parents=True)


def stranger(name):
    return lambda path: (path.parent / name).mkdir()


def a_file(path):
    shutil.rmtree(path)
    path.touch()


def write(text):
    return lambda path: path.write_text(text)


DAMAGES = {
    "weights cut short": ("modules/unet.safetensors", half, "modules/unet.safetensors cannot be read"),
    "averaged weights empty": ("averaged/unet.safetensors", write(""), "averaged/unet.safetensors cannot be"),
    "weights gone": ("modules/unet.safetensors", Path.unlink, "lacks modules/unet.safetensors"),
    "optimizer cut short": ("optimizers/unet.safetensors", half, "optimizers/unet.safetensors cannot be"),
    "meter cut short": ("meter.safetensors", half, "meter.safetensors cannot be read"),
    "state cut short": ("state.json", half, "state.json cannot be read"),
    "state of nothing": ("state.json", write("{}"), "state.json cannot be read .parts is None"),
    "state a list": ("state.json", write("[]"), "state.json cannot be read"),
    "state gone": ("state.json", Path.unlink, "lacks state.json: remove .* go on from 000000000016"),
    "a weight gone": ("modules/unet.safetensors", without("conv_in.bias"), "unet.safetensors lacks conv_in"),
    "renamed": ("", rename, "000000000064 is damaged: state.json .*images_seen is 32"),
    "a file": ("", a_file, "000000000032 is damaged: state.json cannot be read"),
    "a moment gone": ("optimizers/unet.safetensors", without("0.exp_avg"), "safetensors lacks 0.exp_avg"),
    "named like one": ("", stranger("000000000099"), "000000000099 lacks state.json"),
    "named like one, short": ("", stranger("99"), "checkpoints/99 lacks state.json"),
    "named otherwise": ("", only_a_stranger, "checkpoint-500 is no checkpoint"),
}


def state_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.fixture
def stopped(run):
    """A folder with two checkpoints of a run that was stopped, and its final model of before."""
    _, folder = run(stop_at_images=32, checkpoint_every_images=16, export_every_images=16)
    assert (folder / "final").is_dir()
    return folder


def refused(run, folder, match, **settings):
    before = state_of(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=match) as error:
        run(checkpoint_every_images=16, **settings)
    assert str(folder / "checkpoints") in str(error.value) and "output_dir" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert state_of(folder) == before


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_nothing_is_overwritten(run, stopped, name):
    part, damage, match = DAMAGES[name]
    damage(stopped / NEWEST / part)
    refused(run, stopped, match)


def test_what_the_sentence_says_to_do_helps(run, stopped):
    half(stopped / NEWEST / "modules" / "unet.safetensors")
    shutil.rmtree(stopped / NEWEST)
    task, folder = run()
    assert task.seen[0][1][0] == 16
    assert (folder / "final").is_dir()


def test_a_folder_beside_the_checkpoints_is_left_alone(run, stopped):
    for name in ("kept", "7"):
        stranger(name)(stopped / NEWEST)
    task, folder = run(checkpoint_every_images=16)
    assert task.seen[0][1][0] == 32
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "000000000144",
        "000000000160",
        "7",
        "kept",
    ]


OTHERS = {
    "a wider network": (lambda d: d.widen(), "modules/unet.safetensors has .* of shape .* this run's is"),
    "a network of other layers": (lambda d: d.deepen(), "modules/unet.safetensors lacks"),
    "fewer parameters trained": (lambda d: d.freeze(), "optimizers/unet.safetensors is of AdamW of"),
    "another optimizer": (lambda d: d.descend(), "is of AdamW of .* parameters, this run's is SGD"),
    "one more network": (lambda d: d.add(), "it has no modules/second"),
}


@pytest.fixture
def other(denoising):
    """A class of the same name, whose networks and optimizers can be made others."""

    class Changed(denoising):
        def remake(self, optimizer=None, **settings):
            self.modules["unet"] = type(self.modules["unet"]).from_config(
                {**self.modules["unet"].config, **settings}
            )
            self.optimizers["unet"] = make_optimizer(self.config, self.modules["unet"].parameters())

        def widen(self):
            self.remake(block_out_channels=(16,))

        def deepen(self):
            self.remake(layers_per_block=2)

        def freeze(self):
            head = self.modules["unet"].conv_out.parameters()
            self.optimizers["unet"] = make_optimizer(self.config, head)

        def descend(self):
            self.optimizers["unet"] = torch.optim.SGD(self.modules["unet"].parameters(), lr=0.1)

        def add(self):
            self.modules["second"] = torch.nn.Linear(2, 2)

    Changed.__name__ = denoising.__name__
    return Changed


def run_changed(task_class, change, folder):
    config = TrainingConfig(output_dir=str(folder), num_images=160, batch_size=8)
    task = task_class(config)
    task.config = config
    change(task)
    train(task, config)


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_another_network_or_optimizer_is_refused(stopped, other, name):
    change, match = OTHERS[name]
    refused(lambda **_: run_changed(other, change, stopped), stopped, match)


def test_a_checkpoint_of_another_kind_of_run_is_refused(stopped, other):
    other.__name__ = "Upsampling"
    refused(
        lambda **_: run_changed(other, lambda task: None, stopped),
        stopped,
        "another kind of run, a Denoising, where this is a Upsampling",
    )


def test_a_probes_checkpoint_is_refused_without_its_count(stopped, other):
    """As versions before wrote it: by the shapes of what the optimizer gathered."""
    file = stopped / NEWEST / "state.json"
    state = json.loads(file.read_text())
    del state["optimizers"]["unet"]["kind"], state["task"]
    file.write_text(json.dumps(state))
    refused(
        lambda **_: run_changed(other, lambda task: task.freeze(), stopped),
        stopped,
        "optimizers/unet.safetensors is of",
    )


def test_a_damaged_log_and_configuration_do_not_stop_a_run(run, stopped):
    (stopped / "config.json").write_text('{"seed": ')
    with (stopped / "log.jsonl").open("ab") as log:
        log.write(b'{"note": "by hand"}\n[1]\n\xff\n{"images": 8')
    task, folder = run()
    assert task.seen[0][1][0] == 32
    assert json.loads((folder / "config.json").read_text())["num_images"] == 160
    logged = [record["images"] for record in records(folder) if "unet" in record]
    assert logged == [32, 40, 80, 120, 160]
