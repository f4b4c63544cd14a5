"""What a PNG says of how it was made, and `generate --from-image`, which makes it again, in this process."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run
from PIL import Image, PngImagePlugin

from guided_diffusers import __version__, pretrained
from guided_diffusers.cli import main
from guided_diffusers.pipelines.record import KEY, ImageRecord, read_record
from guided_diffusers.store.checkpoints import fingerprint


def pixels(path: Path) -> bytes:
    return np.asarray(Image.open(path)).tobytes()


def document(path: Path) -> dict[str, Any]:
    return json.loads(Image.open(path).info[KEY])


@pytest.fixture(scope="module")
def drawn(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of six images, drawn in batches of four, and their grid; read it only."""
    folder = tmp_path_factory.mktemp("drawn")
    options = ("--num-images", 3, "--seed", 5, "--steps", 2, "--batch-size", 4, "--output", folder)
    words = ("generate", "a bag", "a \N{SNOWMAN} coat", *options, "--checkpoint", tiny_folder)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["guided-diffusers", *map(str, words)])
        main()
    assert not ended.value.code
    return folder


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--scheduler", "euler", "--seed", 3),
        ("--scheduler", "dpmsolver++", "--negative-prompt", "a photo of a bag", "--guidance-scale", 3),
    ],
)
def test_the_shipped_checkpoint_draws_the_same_pixels_again(run: Run, tmp_path: Path, options):
    prompts = ("a photo of a coat", "a photo of a bag")
    code, output, _ = run("generate", *prompts, "--steps", 3, "--output", tmp_path, *options)
    paths = [Path(line) for line in output.split()]
    assert code == 0 and len(paths) == 3
    for path in paths[1:]:  # the second image, and the grid
        code, output, errors = run("generate", "--from-image", path, "--output", tmp_path / "again", "--json")
        assert (code, errors) == (0, "")
        again = tmp_path / "again" / f"{path.stem}-again.png"
        assert json.loads(output)["identical"] is True
        assert again.is_file() and pixels(again) == pixels(path)
        assert document(again) == document(path)


def test_a_png_says_how_it_was_made(run: Run, drawn: Path, tiny_folder: Path, tmp_path: Path):
    path = drawn / "01-a-coat-seed5-01.png"
    found = document(path)
    assert (found["prompt"], found["seed"], found["index"]) == ("a \N{SNOWMAN} coat", 5, 1)
    assert found["steps"] == 2 and found["negative_prompt"] is None
    assert found["guidance"] == [{"term": "ClassifierFreeGuidance", "scale": 2.0, "interval": None}]
    assert found["scheduler"]["name"] is None and found["scheduler"]["class"] == "GuidedDDIMScheduler"
    assert found["scheduler"]["config"]["beta_schedule"] == "scaled_linear"
    assert found["checkpoint"] == {"name": str(tiny_folder), "fingerprint": fingerprint(tiny_folder)}
    assert found["batch"]["jobs"] == [[0, 1], [0, 2]]  # the second batch of four, of its own prompt alone
    assert found["made_with"]["guided_diffusers"] == __version__
    text = Image.open(path).info
    assert text["Description"] == "a \N{SNOWMAN} coat" and text["Software"].startswith("guided-diffusers ")
    assert read_record(path).to_dict() == found
    assert len(document(drawn / "grid.png")["batch"]["jobs"]) == 6
    code, output, _ = run("generate", "--from-image", path, "--output", tmp_path)
    assert (code, output) == (0, f"{tmp_path / '01-a-coat-seed5-01-again.png'}\n")
    assert pixels(tmp_path / "01-a-coat-seed5-01-again.png") == pixels(path)


def test_an_own_batch_size_draws_less_beside_it(run: Run, drawn: Path, tmp_path: Path):
    path = drawn / "00-a-bag-seed5-02.png"
    options = ("--batch-size", 1, "--output", tmp_path, "--json")
    assert run("generate", "--from-image", path, *options)[0] == 0
    again = tmp_path / "00-a-bag-seed5-02-again.png"
    assert document(again)["batch"]["jobs"] == [[0, 2]]
    difference = np.asarray(Image.open(path)).astype(int) - np.asarray(Image.open(again))
    assert np.abs(difference).max() <= 1


def test_a_checkpoint_that_moved_is_named_and_one_that_changed_is_refused(
    run: Run, tiny_folder: Path, tmp_path: Path
):
    home = shutil.copytree(tiny_folder, tmp_path / "home")
    common = ("--steps", 1, "--no-grid", "--output", tmp_path)
    assert run("generate", "a bag", *common, "--checkpoint", home)[0] == 0
    path = tmp_path / "00-a-bag-seed0-00.png"
    moved = home.rename(tmp_path / "moved")
    code, _, errors = run("generate", "--from-image", path, "--output", tmp_path)
    assert code == 1 and "is not here: say where it is with --checkpoint" in errors
    again = ("generate", "--from-image", path, "--output", tmp_path, "--checkpoint", moved)
    index = moved / "model_index.json"
    index.write_text(index.read_text().replace("2.0", "3.0"))  # the default guidance: not the image's
    assert run(*again)[0] == 0
    assert pixels(tmp_path / "00-a-bag-seed0-00-again.png") == pixels(path)
    config = moved / "scheduler" / "scheduler_config.json"
    before = config.read_text()
    config.write_text(before.replace("scaled_linear", "linear"))
    code, _, errors = run(*again)
    assert code == 1 and "beta_schedule was 'scaled_linear' and is 'linear'" in errors
    config.write_text(before)
    shutil.copytree(pretrained("fashion-32"), moved, dirs_exist_ok=True)
    code, output, errors = run(*again)
    assert (code, output) == (1, "") and len(errors.splitlines()) == 1
    assert "is not the one that drew" in errors


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("a cat",), "a prompt is in the image already"),
        (("--seed", 5), "--seed is in the image already"),
        (("--guidance-scale", 2), "--guidance-scale is in the image"),
        (("--no-grid",), "--grid is in the image"),
    ],
)
def test_what_is_in_the_image_is_not_given_beside_it(run: Run, drawn: Path, arguments, reason):
    path = drawn / "00-a-bag-seed5-00.png"
    code, output, errors = run("generate", *arguments, "--from-image", path)
    assert (code, output) == (2, "") and reason in errors and len(errors.splitlines()) == 1


def changed(**changes: Any) -> Callable[[dict[str, Any]], str]:
    """The document with other values; `a__b` is b in a."""

    def change(found: dict[str, Any]) -> str:
        for name, value in changes.items():
            *parents, last = name.split("__")
            node = found
            for parent in parents:
                node = node[parent]
            node[last] = value
        return json.dumps(found)

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda found: "{", "cannot be used"),
        (lambda found: "[" * 100_000, "cannot be used"),
        (lambda found: " " * 4_000_001, "4,000,001 characters"),
        (lambda found: "[]", "allowed: a JSON object"),
        (lambda found: json.dumps({**found, "code": "x"}), "unknown key 'code'"),
        (lambda found: json.dumps({k: v for k, v in found.items() if k != "seed"}), "lacks 'seed'"),
        (changed(format=2), "format is 2"),
        (changed(prompt="a cat"), "prompt is 'a cat'"),
        (changed(seed=-1), "seed is -1"),
        (changed(seed="1"), "seed is '1'"),
        (changed(steps=10**9), "steps is 1000000000"),
        (changed(steps=float("nan")), "NaN is no number"),
        (changed(batch__size=10**6), "batch.size"),
        (changed(batch__position=2), "batch.position"),
        (changed(batch__jobs=[[7, 0]]), "batch.jobs"),
        (changed(batch__jobs=[]), "at least one"),
        (changed(batch__prompts=[["a bag"]]), "each item a text"),
        (changed(guidance=[{"term": "subprocess.Popen"}]), "known terms"),
        (changed(guidance=[{"term": ["x"]}]), "guidance: term"),
        (changed(guidance=[{"term": "ClassifierFreeGuidance", "scale": "high"}]), "scale is 'high'"),
        (changed(guidance=[{"term": "ClassifierFreeGuidance", "scale": 1e999}]), "Infinity"),
        (changed(guidance=[{"term": "AutoGuidance", "scale": 2.0}]), "needs a weak network"),
        (changed(guidance=[{"term": "ClassifierGuidance", "scale": 2.0}]), "needs log_prob"),
        (changed(scheduler__name="os.system"), "'os.system', which is none of"),
        (changed(scheduler__class="Popen"), "scheduler was 'Popen' and is"),
        (changed(scheduler__config={"beta_end": 1}), "beta_end was 1"),
        (changed(checkpoint__name="/nowhere"), "is not here"),
        (changed(checkpoint__name="some/where"), "is not here"),  # a folder then: no repository now
        (changed(checkpoint__name=7), "checkpoint.name"),
        (changed(checkpoint__fingerprint="sha256:0"), "fingerprint is"),
        (changed(checkpoint__fingerprint="commit:../../x"), "fingerprint is"),
    ],
)
def test_a_document_that_cannot_be_is_one_line(run: Run, drawn: Path, tmp_path: Path, change, reason):
    source, path = drawn / "01-a-coat-seed5-01.png", tmp_path / "garbled.png"
    info = PngImagePlugin.PngInfo()
    info.add_text(KEY, change(document(source)))
    Image.open(source).save(path, pnginfo=info)
    code, output, errors = run("generate", "--from-image", path, "--output", tmp_path / "new")
    assert (code, output) == (1, ""), errors
    (line,) = errors.splitlines()
    assert line.startswith("error: ") and reason in line and len(line) < 1000
    assert not (tmp_path / "new").exists()


def test_a_file_without_a_record_is_one_line(run: Run, tmp_path: Path):
    Image.new("L", (8, 8)).save(tmp_path / "plain.png")
    Image.new("L", (8, 8)).save(tmp_path / "picture.jpg")
    (tmp_path / "text.png").write_text("no picture")
    compressed = PngImagePlugin.PngInfo()
    compressed.add_text(KEY, "x" * 5_000_000, zip=True)  # 5 MB that are 5 kB in the file
    Image.new("L", (8, 8)).save(tmp_path / "bomb.png", pnginfo=compressed)
    reasons = {
        "plain.png": "no metadata",
        "picture.jpg": "no PNG",
        "text.png": "no PNG",
        "bomb.png": "no PNG that can be read",
        "nowhere.png": "nowhere.png",
    }
    for name, reason in reasons.items():
        code, output, errors = run("generate", "--from-image", tmp_path / name, "--output", tmp_path / "new")
        assert (code, output) == (1, "") and reason in errors and len(errors.splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_a_fingerprint_is_of_what_decides_pixels(tiny_folder: Path, tmp_path: Path):
    copy = shutil.copytree(tiny_folder, tmp_path / "copy")
    before = fingerprint(tiny_folder)
    (copy / "README.md").write_text("a card")
    (copy / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"a variant")
    assert fingerprint(copy) == before
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert fingerprint(copy) != before


def test_the_record_of_one_image_has_its_batch_alone():
    jobs = tuple((row, index) for row in range(2) for index in range(3))
    values: dict[str, Any] = dict.fromkeys(ImageRecord.__dataclass_fields__)
    call = ImageRecord(**{**values, "prompts": ("a", "b"), "jobs": jobs, "batch_size": 4})
    third, last = call.image(2), call.image(5)
    assert (third.prompts, third.jobs, third.position) == (("a", "b"), jobs[:4], 2)
    assert (last.prompts, last.jobs, last.position) == (("b",), ((0, 1), (0, 2)), 1)
    assert last.image(1) == last
