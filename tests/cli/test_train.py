"""`guided-diffusers train`: what it finds, what it starts, and how the run's end becomes its own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from command_line import Run, runner
from tiny_data import SLICE

from guided_diffusers.cli import train as train_module

ROOT = Path(__file__).parents[2]
SMALL = (
    *("--data.path", SLICE, "--export.validation_split", "train", "--export.validation_rows", 16),
    *("--autoencoder.block_out_channels", "[4, 4, 8]", "--autoencoder.norm_num_groups", 4),
    *("--training.num_images", 32, "--batch_size=16", "--validate_every_images", 0),
)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """What a training run itself says is captured too."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    return runner(monkeypatch, capfd, "train")


def test_every_script_and_configuration_is_listed(run: Run):
    code, output, _ = run("--list")
    assert code == 0
    listed = {line.split()[0]: line.split()[1:2] for line in output.splitlines() if line}
    scripts = {path.stem.removeprefix("train_") for path in (ROOT / "training").glob("train_*.py")}
    assert {name.replace("_", "-") for name in scripts} <= set(listed)
    for path in (ROOT / "training" / "configs").glob("*.yaml"):  # each says which script it is of
        assert listed[path.stem][0].replace("-", "_") in scripts
    assert set(json.loads(run("--list", "--json")[1])) == {"scripts", "configs"}


def test_a_configuration_is_a_file_or_the_name_of_one_that_ships(tmp_path: Path, monkeypatch):
    shipped = ROOT / "training" / "configs" / "fashion_autoencoder.yaml"
    assert train_module.find_config("fashion_autoencoder") == shipped
    assert train_module.find_config("fashion_autoencoder.yaml") == shipped
    assert train_module.find_config(str(shipped)) == shipped
    monkeypatch.chdir(tmp_path)
    own = Path("fashion_autoencoder.yaml")
    own.write_text("{}")
    assert train_module.find_config("fashion_autoencoder.yaml") == own  # a file goes first
    assert train_module.find_script("text_to_image") == train_module.find_script("text-to-image")


def test_an_installed_package_brings_the_scripts(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(train_module, "_PACKAGE", tmp_path / "site-packages" / "guided_diffusers")
    assert train_module.training_folder() == tmp_path / "site-packages" / "guided_diffusers" / "_training"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "Missing argument SCRIPT; allowed, in the first place: autoencoder, classifier"),
        (("diffusion",), "'diffusion' is no training script"),
        (("clip", "--config", "fashion_noise_aware_klip"), "did you mean fashion_noise_aware_clip?"),
        (("clip", "--processes", 0), "--processes"),
    ],
)
def test_wrong_usage_is_one_line(run: Run, arguments, reason):
    code, output, errors = run(*arguments)
    assert (code, output) == (2, "") and reason in errors and len(errors.splitlines()) == 1


def test_what_is_not_installed_is_one_line(run: Run, monkeypatch):
    monkeypatch.setattr(train_module, "_NEEDED", {"datasets": "datasets", "no_such_module": "pyyaml"})
    code, output, errors = run("clip", "--config", "fashion_noise_aware_clip", "--dry_run")
    assert (code, output) == (1, "")
    assert errors == ("error: training needs pyyaml: pip install 'guided-diffusers[train]' brings them\n")


def test_the_launcher_is_chosen_by_processes(monkeypatch):
    def command(processes: int | None, cpu: bool) -> list[str]:
        return train_module.launch_command(Path("s.py"), ["--x", "1"], processes, cpu)[0][1:]

    monkeypatch.setattr(train_module, "_accelerate_is_configured", lambda: False)
    monkeypatch.setattr(train_module, "_gpus", lambda: 0)
    assert command(None, False) == command(1, False) == command(None, True) == ["s.py", "--x", "1"]
    assert command(2, False)[:2] == ["-m", "guided_diffusers.store.launch"] and "2" in command(2, False)
    monkeypatch.setattr(train_module, "_gpus", lambda: 4)
    assert command(None, False)[:2] == ["-m", "accelerate.commands.launch"] and "4" in command(None, False)
    assert command(1, False) == command(None, True) == ["s.py", "--x", "1"]
    monkeypatch.setattr(train_module, "_accelerate_is_configured", lambda: True)
    assert command(None, False)[-4:] == ["--quiet", "s.py", "--x", "1"]
    environment = train_module.launch_command(Path("s.py"), [], None, True)[1]
    assert environment["ACCELERATE_USE_CPU"] == "true"


def test_an_exit_code_or_a_signal_of_the_run_is_passed_on():
    def ended(code: str) -> int:
        return train_module.run([sys.executable, "-c", code], dict(os.environ))

    assert ended("raise SystemExit(7)") == 7
    assert ended("import os; os.kill(os.getpid(), 15)") == 128 + 15


@pytest.mark.parametrize("itself", [True, False])
def test_ctrl_c_waits_for_the_run_and_has_its_code(monkeypatch, itself: bool):
    """A terminal's Ctrl-C reaches the run itself; one that reached this process alone is passed on."""
    monkeypatch.setattr(train_module, "_SECONDS_TO_STOP", 0.1 if not itself else 60)
    code = f"""
import os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
try:
    os.kill(os.getppid(), signal.SIGINT)
    if {itself}:
        os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
except KeyboardInterrupt:
    raise SystemExit(99)
"""
    assert train_module.run([sys.executable, "-c", code], dict(os.environ)) == 99


@pytest.mark.slow  # test_config has the overrides, the launcher's test the command
def test_the_script_sees_configuration_and_overrides(run: Run):
    words = ("--training.num_images", 1000, "--learning_rate=1e-4", "--dry_run", "--cpu", "--json")
    code, output, _ = run("autoencoder", "--config", "fashion_autoencoder", *words)
    config = json.loads(output)
    assert code == 0
    assert config["training"]["num_images"] == 1000 and config["training"]["learning_rate"] == 1e-4
    assert config["training"]["output_dir"] == "runs/fashion_autoencoder"


@pytest.mark.slow
def test_a_run_trains_and_says_in_json_what(run: Run, tmp_path: Path):
    words = (*SMALL, "--output_dir", tmp_path / "run", "--data.cache_dir", tmp_path / "cache")
    code, output, errors = run("autoencoder", "--config", "fashion_vae_vector", "--cpu", "--json", *words)
    assert code == 0, errors
    answer = json.loads(output)
    assert answer["final"] == str(tmp_path / "run" / "final") and Path(answer["final"]).is_dir()
    assert answer["class"] == "VariationalAutoencoder" and answer["parameters"] > 0
    assert answer["log"]["images"] == 32 and "32 images" in errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("--autoencoder.latent_channel", 4), 2, "did you mean 'autoencoder.latent_channels'?"),
        (("--data.path", "nowhere"), 1, "nowhere"),
    ],
)
def test_a_mistake_of_the_run_is_one_line(run: Run, tmp_path: Path, arguments, code, reason):
    words = ("--output_dir", tmp_path / "run", "--config", "fashion_autoencoder", "--cpu", "--json")
    got, output, errors = run("autoencoder", *words, *arguments)
    assert (got, output) == (code, "") and "Traceback" not in errors
    assert reason in errors.splitlines()[-1]


@pytest.mark.parametrize(("found", "set_to"), [(True, None), (True, ""), (False, None)])
def test_a_run_on_a_cpu_gets_a_faster_allocator_where_there_is_one(
    monkeypatch, tmp_path, capsys, found, set_to
):
    (tmp_path / "x86_64-linux-gnu").mkdir()
    library = tmp_path / "x86_64-linux-gnu" / "libtcmalloc_minimal.so.4"
    if found:
        library.touch()
    places = {"/usr/lib": tmp_path, "/usr/lib64": tmp_path / "none"}
    monkeypatch.setattr(train_module, "Path", lambda name: places[name])
    monkeypatch.setattr(train_module.sys, "platform", "linux")
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    if set_to is not None:
        monkeypatch.setenv("LD_PRELOAD", set_to)
    taken = found and set_to is None
    assert train_module.allocator() == ({"LD_PRELOAD": str(library)} if taken else {})
    assert (library.name in capsys.readouterr().err) == taken
