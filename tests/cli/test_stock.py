"""Folders of diffusers' transformers, measured: each image is the stock pipeline's own, and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import Run
from diffusers import DiffusionPipeline
from PIL import Image
from tiny import CONTEXT
from tiny_data import small_slice
from tiny_stock import stock_by_class, stock_by_text

from guided_diffusers.core.randomness import generator_for
from guided_diffusers.evaluation import Judge, JudgeConfig, read_images, save_judge
from guided_diffusers.evaluation.prompts import stratified_prompts

STEPS = 3
FREE = {"term": "ClassifierFreeGuidance"}

pytestmark = pytest.mark.filterwarnings("ignore:.*biased upwards")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved pipelines, whose default guidance has scale 2, features and real images; read them only."""
    folder = tmp_path_factory.mktemp("stock")
    with torch.random.fork_rng(devices=[]):
        for name, pipeline in {"text": stock_by_text(), "class": stock_by_class()}.items():
            pipeline.save_pretrained(folder / name)
        save_judge(Judge(JudgeConfig(image_size=16, width=4)).eval(), folder / "judge.safetensors")
    small_slice(folder / "real.parquet")
    return {name: folder / name for name in ("text", "class", "judge.safetensors", "real.parquet")}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUIDED_DIFFUSERS_CACHE", str(tmp_path / "cache"))


def stock(folder: Path) -> DiffusionPipeline:
    lacking = {"text_encoder_3": None, "tokenizer_3": None} if folder.name == "text" else {}
    pipeline = DiffusionPipeline.from_pretrained(folder, **lacking)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn_by_stock(folder: Path, scale: float) -> np.ndarray:
    """What the pipeline itself draws for four captions or classes of the data, in one batch."""
    data, text = read_images(folder.parent / "real.parquet"), folder.name == "text"
    prompts = stratified_prompts(data, 4, texts=text, classes=not text)
    call: dict[str, Any] = {"class_labels": prompts.labels.tolist()}
    if text:
        call = {"prompt": prompts.texts, "negative_prompt": [""] * 4, "max_sequence_length": CONTEXT}
    generators = [generator_for(7, index) for index in range(4)]
    call |= {"generator": generators, "num_inference_steps": STEPS, "guidance_scale": scale}
    return np.stack([np.asarray(image.convert("L"), int) for image in stock(folder)(**call).images])


def evaluated(run: Run, folders: dict[str, Path], kind: str, output: Path, *options: Any) -> Any:
    words = (
        "--real",
        folders["real.parquet"],
        "--checkpoint",
        folders[kind],
        "--num-images",
        4,
        "--steps",
        STEPS,
    )
    words += ("--features", folders["judge.safetensors"], "--device", "cpu", "--format", "png", "--json")
    return run("evaluate", output, *words, "--seed", 7, *options)


@pytest.mark.parametrize("kind", ["text", "class"])
@pytest.mark.parametrize("scale", [None, 1.0, 4.0])
def test_what_is_measured_is_what_the_stock_pipeline_draws(
    run: Run, folders: dict[str, Path], tmp_path: Path, kind: str, scale: float | None
):
    options = () if scale is None else ("--guidance-scale", scale)
    code, output, errors = evaluated(run, folders, kind, tmp_path / "drawn", *options)
    assert code == 0, errors
    results = json.loads(output)
    assert results["images"] == 4 and "KD-judge" in results["figures"]
    images = [Image.open(path).convert("L") for path in sorted((tmp_path / "drawn").glob("*.png"))]
    pixels = np.stack([np.asarray(image, int) for image in images])
    own = drawn_by_stock(folders[kind], 2.0 if scale is None else scale)
    assert own.std() > 0 and abs(pixels - own).max() <= 1
    other = drawn_by_stock(folders[kind], 3.0)
    assert abs(pixels - other).max() > 1  # a scale that is ignored would be seen
    forwards = results["compute"]["forwards"]
    assert forwards["transformer"] == (STEPS if scale == 1 else 2 * STEPS)
    assert forwards["vae.decoder"] == 1


def swept(
    folders: dict[str, Path], kind: str, tmp_path: Path, checkpoint: Path | None = None, **more: Any
) -> Path:
    """The file of a sweep of plain guidance at two scales, and of what else is told."""
    spec = {
        "checkpoint": str(checkpoint or folders[kind]),
        "data": str(folders["real.parquet"]),
        "images": 8,
        "steps": [STEPS],
    }
    spec |= {"features": str(folders["judge.safetensors"]), "schedulers": ["own"], "resamples": 10}
    spec |= {"arms": {"plain": {"guidance": [FREE], "scales": [1, 4]}}, "seed": 7, **more}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    return tmp_path / "sweep.yaml"


@pytest.mark.parametrize("kind", ["text", "class"])
def test_a_sweep_and_its_winner(run: Run, folders: dict[str, Path], tmp_path: Path, kind: str):
    checkpoint = shutil.copytree(folders[kind], tmp_path / kind)
    arms = {
        "plain": {"guidance": [FREE], "scales": [1, 4]},
        "nowhere": {"guidance": [FREE], "scales": [4], "intervals": [[1e6, 1e7]]},
        "unguided": {},
    }
    finals = {"baseline": "plain", "arms": 1, "steps": [STEPS], "images": 8}
    file = swept(folders, kind, tmp_path, checkpoint, arms=arms, finals=finals, seed_sets=2)
    options = ("--output", tmp_path / "sweep", "--device", "cpu", "--adopt", checkpoint)
    code, _, errors = run("sweep", file, *options)
    assert code == 0, errors
    results = json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert results["drawer"]["pipeline"] == type(stock(checkpoint)).__name__
    forwards = [each["compute"]["forwards"]["transformer"] for each in results["points"]]
    assert forwards == [STEPS, 2 * STEPS, STEPS, STEPS]
    distances = [each["figures"]["KD-judge"]["value"] for each in results["points"]]
    assert distances[2] == pytest.approx(distances[3], abs=1e-6) != distances[1]
    winner = results["verdict"]["winner"]["guidance"]
    content = json.loads(run("info", checkpoint, "--json")[1])
    assert content["default_guidance"] == winner and content["image_size"] == 16
    stock(checkpoint)  # it loads as before, and `evaluate` draws by the winner
    code, output, errors = evaluated(run, {**folders, kind: checkpoint}, kind, tmp_path / "again")
    expected = STEPS if winner[0]["scale"] == 1 else 2 * STEPS
    assert json.loads(output)["compute"]["forwards"]["transformer"] == expected, errors


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        ("text", "ddim", "scheduler is 'ddim'; allowed: the checkpoint's own, FlowMatchEulerDiscreteSch"),
        ("class", "euler", "allowed: one whose init_noise_sigma is 1: DiTPipeline does not scale its noise"),
        ("class", "dimm", "'dimm' is none of ddim"),
    ],
)
def test_a_scheduler_that_it_cannot_be_drawn_with_is_named_before_anything_is_drawn(
    run: Run, folders: dict[str, Path], tmp_path: Path, kind: str, name: str, reason: str
):
    code, output, errors = evaluated(run, folders, kind, tmp_path / "drawn", "--scheduler", name)
    assert code and not output and reason in errors and not (tmp_path / "drawn").exists()
    code, output, errors = run("generate", "2", "--checkpoint", folders[kind], "--scheduler", name)
    assert code and not output and reason in errors


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"schedulers": ["own", "euler"]}, "init_noise_sigma is 1"),
        ({"schedulers": ["dimm"]}, "scheduler is 'dimm'; allowed: 'ddim'"),
        (
            {"weak": "early"},
            "weak is 'early'; allowed: none, for a DiTPipeline is guided by no second network",
        ),
        (
            {"arms": {"a": {"guidance": [{"term": "AutoGuidance"}], "scales": [2]}}},
            "AutoGuidance needs a weak network",
        ),
        (
            {"arms": {"a": {"guidance": [{"term": "ClassifierGuidance"}], "scales": [2]}}},
            "ClassifierGuidance needs log_prob=",
        ),
    ],
    ids=str,
)
def test_what_a_sweep_of_it_cannot_have_is_named_before_anything_is_drawn(
    run: Run, folders: dict[str, Path], tmp_path: Path, more: dict, reason: str
):
    file = swept(folders, "class", tmp_path, **more)
    code, output, errors = run("sweep", file, "--output", tmp_path / "sweep", "--device", "cpu")
    assert code == 1 and not output and reason in errors and not (tmp_path / "sweep").exists()
