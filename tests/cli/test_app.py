"""`guided-diffusers generate`, in this process, on a tiny pipeline: what it writes, prints and refuses."""

from __future__ import annotations

import json
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
from command_line import Run
from PIL import Image

from guided_diffusers import __version__
from guided_diffusers.cli import main
from guided_diffusers.cli.app import EXAMPLES
from guided_diffusers.cli.drawing import SCHEDULERS
from guided_diffusers.cli.output import answering
from guided_diffusers.evaluation.grid import labelled_grid


def pixels(path: object) -> np.ndarray:
    return np.asarray(Image.open(str(path))).astype(int)


def test_images_and_a_grid_are_written_and_their_paths_printed(run: Run, tiny_folder: Path, tmp_path: Path):
    code, output, _ = run(
        "generate", "a bag", "A RED coat?", "--num-images", 2, "--steps", 2, "--seed", 5,
        "--checkpoint", tiny_folder, "--output", tmp_path / "new" / "folder",
    )  # fmt: skip
    folder = tmp_path / "new" / "folder"
    names = [f"{prompt}-seed5-{index}" for prompt in ("00-a-bag", "01-a-red-coat") for index in ("00", "01")]
    names.append("grid")
    assert code == 0
    assert output.split() == [str(folder / f"{name}.png") for name in names]
    assert sorted(path.stem for path in folder.iterdir()) == names
    drawn = [pixels(folder / f"{name}.png") for name in names[:4]]
    assert all(image.shape[:2] == (16, 16) for image in drawn)
    assert len({image.tobytes() for image in drawn}) == 4


def test_an_image_depends_on_seed_and_index_only(run: Run, tiny_folder: Path, tmp_path: Path):
    common = ("--steps", 2, "--checkpoint", tiny_folder, "--no-grid", "--output")
    assert run("generate", "a cat", "a bag", "--num-images", 3, *common, tmp_path / "many")[0] == 0
    assert run("generate", "a bag", "--num-images", 3, "--batch-size", 1, *common, tmp_path / "one")[0] == 0
    assert run("generate", "a bag", "--num-images", 1, "--seed", 1, *common, tmp_path / "other")[0] == 0
    for index in range(3):
        many = pixels(tmp_path / "many" / f"01-a-bag-seed0-{index:02d}.png")
        one = pixels(tmp_path / "one" / f"00-a-bag-seed0-{index:02d}.png")
        assert np.abs(many - one).max() <= 1
    first = pixels(tmp_path / "one" / "00-a-bag-seed0-00.png")
    assert np.abs(first - pixels(tmp_path / "other" / "00-a-bag-seed1-00.png")).max() > 1


def test_options_reach_the_pipeline(run: Run, tiny_folder: Path, tmp_path: Path):
    common = ("generate", "a bag", "--no-grid", "--checkpoint", tiny_folder, "--output")
    variants = {
        "default": (),  # guidance 2, as the checkpoint says
        "stated": ("--guidance-scale", 2),
        "stronger": ("--guidance-scale", 9),
        "negative": ("--negative-prompt", "a cat"),
        "longer": ("--steps", 4),
    }
    images = {}
    for name, options in variants.items():
        assert run(*common, tmp_path / name, "--steps", 2, *options)[0] == 0
        images[name] = pixels(tmp_path / name / "00-a-bag-seed0-00.png").tobytes()
    assert images["default"] == images["stated"]
    assert len(set(images.values())) == len(variants) - 1


def test_json_names_every_file(run: Run, tiny_folder: Path, tmp_path: Path):
    common = ("--steps", 1, "--checkpoint", tiny_folder, "--output", tmp_path)
    code, output, _ = run("generate", "a bag", "--num-images", 2, "--json", *common)
    summary = json.loads(output)
    assert code == 0
    assert summary["grid"] == str(tmp_path / "grid.png")
    assert [(image["prompt"], image["seed"], image["index"]) for image in summary["images"]] == [
        ("a bag", 0, 0),
        ("a bag", 0, 1),
    ]
    assert all(Path(image["path"]).is_file() for image in summary["images"])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_name_draws(run: Run, tiny_folder: Path, tmp_path: Path, name: str):
    common = ("--steps", 4, "--checkpoint", tiny_folder, "--output", tmp_path)
    code, output, errors = run("generate", "a bag", "--scheduler", name, *common)
    assert code == 0, errors
    assert pixels(output.split()[0]).std() > 0


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        ((), 2, "Missing argument"),
        (("a bag", "--scheduler", "best"), 2, "'best' is none of ddim"),
        (("a bag", "--num-images", 0), 2, "--num-images"),
        (("a bag", "--seed", -1), 2, "--seed"),
        (("a bag", "--checkpoint", "fashion-3200"), 1, "checkpoint is 'fashion-3200'; allowed: a folder"),
        (("a bag", "--checkpoint", "."), 1, "a folder with a model_index.json"),
        (("a bag", "--checkpoint", "no/where"), 1, "no/where"),
        (("a bag", "--checkpoint", "TINY", "--guidance-scale", "nan"), 1, "guidance_scale"),
        (("a bag", "--checkpoint", "TINY", "--output", "FILE"), 1, "FILE"),
        (("a bag", "--checkpoint", "TINY", "--device", "abacus"), 1, "device is 'abacus'"),
        (("a bag", "--checkpoint", "TINY", "--device", "cuda:99"), 1, "device is 'cuda:99', which torch"),
    ],
)
def test_bad_input_is_one_line_that_names_it(
    run: Run, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments, code, reason
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("not a folder")
    arguments = [str(tiny_folder) if item == "TINY" else item for item in arguments]
    got, output, errors = run("generate", *arguments)
    assert (got, output) == (code, "")
    assert "Traceback" not in errors
    assert reason in errors
    if code == 1:
        assert errors.splitlines()[-1].startswith("error: ")
        assert reason in errors.splitlines()[-1]
    assert not (tmp_path / "outputs").exists()


def test_the_traceback_is_there_for_who_asks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GUIDED_DIFFUSERS_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["guided-diffusers", "generate", "x", "--checkpoint", "fashion-3200"])
    with pytest.raises(ValueError, match="fashion-3200"):
        main()


def test_version_and_help(run: Run):
    assert run("--version")[:2] == (0, f"guided-diffusers {__version__}\n")
    code, output, _ = run("generate", "--help")
    assert code == 0
    assert "--guidance-scale" in output


def test_every_command_has_help_with_examples_and_json(run: Run):
    code, output, _ = run("--help")
    assert code == 0 and "Exit codes:" in output
    for command in EXAMPLES:
        name = command.__name__.replace("_", "-")
        code, text, _ = run(name, "--help")
        assert code == 0 and "--json" in text
        assert f"  guided-diffusers {name} " in text
        (row,) = [line for line in output.splitlines() if line.startswith(f"  {name} ")]
        assert text.split("\n\n")[1].strip().startswith(row.split(maxsplit=1)[1].removesuffix("..."))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("nothing",), "No such command"),
        (("info",), "Missing argument"),
        (("pull", "a/b", "c", "--nonsense"), "--nonsense"),
    ],
)
def test_wrong_usage_is_one_line(run: Run, arguments, reason):
    code, output, errors = run(*arguments)
    assert (code, output) == (2, "") and reason in errors and errors.startswith("error: ")
    assert len(errors.splitlines()) == 1


def test_json_is_all_there_is_on_standard_output(capsys: pytest.CaptureFixture[str]):
    def command(json_output: bool) -> dict[str, object]:
        print("a library talks")
        return {"values": [1, float("nan")], "path": ("a", None)}

    answering(command)(json_output=True)
    output, errors = capsys.readouterr()
    assert json.loads(output) == {"values": [1, None], "path": ["a", None]}
    assert errors == "a library talks\n"
    answering(lambda json_output: None)(json_output=True)  # not the main process
    assert capsys.readouterr().out == ""


def test_the_installed_command_is_this_one():
    (command,) = entry_points(group="console_scripts", name="guided-diffusers")
    assert command.load() is main


def test_the_grid_shows_each_image_enlarged_beside_its_label():
    images = [[Image.new("L", (8, 8), 40 * (2 * row + column)) for column in range(2)] for row in range(2)]
    grid = np.asarray(labelled_grid(images, ["first", "a label " * 40], min_pixels=20))
    assert grid.shape[2] == 3
    for value in (0, 40, 80, 120):  # 24x24 each: the smallest multiple of 8 that is at least 20
        assert (grid == value).all(axis=2)[:, 190:].sum() == 24 * 24
    label = grid[:28, :190]
    assert (label < 128).any()
