"""Prompts of any kind, positive and negative: they work, or are refused in one line that names them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from subjects import made

from guided_diffusers import TextToImagePipeline, pretrained
from guided_diffusers.cli import main

TEXTS = {
    "10,000 letters": "a" * 10_000,
    "10,000 letters in words": "boot " * 2_000,
    "emoji": "\U0001f45f \U0001f469\u200d\U0001f467 \U0001f1f3\U0001f1f1",
    "10,000 emoji": "\U0001f45f" * 10_000,
    "right to left": "שלום عالم \u202e",
    "empty": "",
    "only whitespace": " \t\n \u3000",
    "control characters": "\x01\x07\x1b[31m\x7f",
    "NUL": "\0a\0",
    "combining": "e\u0301" * 50 + "\ufb01",
    "special tokens": "<|startoftext|>a<|endoftext|><|pad|>",
}
REFUSED: dict[str, tuple[Any, str]] = {
    "a lone surrogate": ("a\ud800", "allowed: Unicode text without a lone surrogate"),
    "the other half": (
        ["a", "\udfff"],
        r"\[1\] is '\\udfff'; allowed: Unicode text without a lone surrogate",
    ),
    "a list of mixed types": (["a", 3, None], r"\[1\] is an int; allowed: a string"),
    "a list in a list": ([["a"]], r"\[0\] is a list; allowed: a string"),
    "an empty list": ([], " is an empty list"),
    "bytes": (b"a bag", " is a bytes; allowed: a string or a list of strings"),
    "a number": (3, " is an int; allowed: a string or a list of strings"),
    "a mapping": ({"a": 1}, " is a dict; allowed: a string or a list of strings"),
    "an iterator": (iter(["a"]), " is a list_iterator; allowed: a string or a list of strings"),
    "too many": (["a"] * 65_537, " has 65537 prompts; allowed: up to 65,536"),
}


@pytest.fixture(scope="module")
def fashion() -> TextToImagePipeline:
    """The checkpoint that ships with the package."""
    pipeline = TextToImagePipeline.from_pretrained(pretrained("fashion-32"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module", params=["fashion-32", "tiny", "noise-aware CLIP"])
def pipeline(request: pytest.FixtureRequest, fashion: TextToImagePipeline) -> Any:
    if request.param == "fashion-32":
        return fashion
    tiny = request.param == "tiny"
    return made("TextToImagePipeline" if tiny else "ClassifierGuidedTextToImagePipeline")


def other(pipeline: Any) -> str:
    """The second argument of a pipeline that takes prompts."""
    return "negative_prompt" if isinstance(pipeline, TextToImagePipeline) else "contrast_prompts"


@pytest.mark.parametrize("kind", TEXTS)
def test_any_text_works(pipeline: Any, kind: str):
    given = {"prompt": TEXTS[kind], other(pipeline): [TEXTS[kind]]}
    images = pipeline(**given, num_inference_steps=2, output_type="np").images
    assert len(images) == 1 and np.isfinite(images).all()


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_text_is_named(pipeline: Any, kind: str):
    value, words = REFUSED[kind]
    for name in ("prompt", other(pipeline)):
        with pytest.raises(ValueError, match=f"^{name}.*{words}") as refused:
            pipeline(**{"prompt": "a bag", name: value})
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 200


def test_no_prompt_at_all_is_named(fashion: TextToImagePipeline):
    with pytest.raises(ValueError, match="neither prompt nor prompt_embeds was given"):
        fashion(None)


def test_a_long_prompt_is_told_in_a_short_warning(tiny_pipeline: Any, caplog: pytest.LogCaptureFixture):
    tiny_pipeline("a" * 10_000, num_inference_steps=1)
    told = [record.getMessage() for record in caplog.records if "does not see" in record.getMessage()]
    assert len(told) == 1 and len(told[0]) < 300


@pytest.mark.parametrize(("scale", "told"), [(1.0, 1), (2.0, 0)])
def test_a_negative_prompt_that_does_nothing_is_told(tiny_pipeline: Any, caplog, scale: float, told: int):
    tiny_pipeline("a bag", negative_prompt="a coat", guidance_scale=scale, num_inference_steps=1)
    assert sum("negative_prompt has no part" in record.getMessage() for record in caplog.records) == told


@pytest.mark.parametrize("length", [0, 1, -5, 2**40, "x", 1e30])
def test_a_tokenizer_without_a_context_is_named(length: Any):
    pipeline = made("TextToImagePipeline")
    pipeline.tokenizer.model_max_length = length
    with pytest.raises(ValueError, match="model_max_length is .*; allowed: an integer (of at least|from) 2"):
        pipeline("a bag")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The command line in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["guided-diffusers", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


def test_any_text_goes_through_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    texts, folder = list(TEXTS.values()), tmp_path / "drawn"
    options = ("--steps", 2, "--output", folder, "--json", "--negative-prompt", TEXTS["emoji"])
    assert run(monkeypatch, "generate", *options, "--", *texts) == 0
    records = json.loads(capsys.readouterr().out)["images"]
    assert [record["prompt"] for record in records] == texts
    assert len(list(folder.glob("*.png"))) == len(texts) + 1  # and the grid


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_what_is_no_text_ends_the_command_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
):
    """Bytes that are no UTF-8 reach Python as lone surrogates."""
    broken = b"\xff".decode("utf-8", "surrogateescape")
    prompt, negative = (broken, "a") if name == "prompt" else ("a", broken)
    code = run(monkeypatch, "generate", prompt, "--negative-prompt", negative, "--output", tmp_path)
    errors = capsys.readouterr().err
    assert code == 1 and errors.startswith(f"error: {name}[0] is ") and errors.count("\n") == 1
    assert not list(tmp_path.iterdir())
