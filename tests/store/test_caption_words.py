"""A checkpoint knows the words of its training captions, and a prompt with others is told."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from tiny import tiny_tokenizer
from tiny_pipelines import clip_guided, text_to_image
from tiny_text_encoders import fast_tokenizer, t5_tokenizer
from transformers import AutoTokenizer

from guided_diffusers import TextToImagePipeline, pretrained
from guided_diffusers.store import caption_words
from guided_diffusers.store.caption_words import KEY, keep_words, known_words, unseen_words, words_of
from guided_diffusers.store.checkpoints import fingerprint

ROOT = Path(__file__).parents[2]
CAPTIONS = ["a photo of trousers", "a T-shirt", "an ankle boot"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A photo of a T-shirt, don't!", ["a", "photo", "of", "a", "t", "shirt", "don", "t"]),
        ("ankle_boot 12", ["ankle", "boot", "12"]),
        ("ﬁsh CAFÉ cafe\u0301", ["fish", "café", "café"]),
        ("赤い靴", ["赤", "い", "靴"]),
        ("Красные туфли", ["красные", "туфли"]),
        ("नमस्ते दुनिया।", ["नमस्ते", "दुनिया"]),
        ("שָׁלוֹם, İstanbul", ["שָׁלוֹם", "i\u0307stanbul"]),
        ("👢 ...", []),
        ("", []),
    ],
)
def test_words_are_runs_of_letters_whatever_their_case(text: str, words: list[str]):
    assert words_of(text) == words


@pytest.mark.parametrize("make", [tiny_tokenizer, t5_tokenizer, fast_tokenizer])
def test_the_words_stay_with_any_tokenizer(make: Any, tmp_path: Path):
    tokenizer = make()
    assert known_words(tokenizer) is None and unseen_words(tokenizer, ["a zebra"]) == ""
    keep_words(tokenizer, CAPTIONS)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert known_words(again) == set("a photo of trousers t shirt an ankle boot".split())
    assert again("a boot").input_ids == make()("a boot").input_ids


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("a photo of a trouser", "'trouser' (nearest: 'trousers')"),
        ("A T-SHIRT of ankle", ""),
        ("(a boot:1.2), ((ankle)) <|endoftext|> <|pad|>", ""),
        ("(boot:zzz)", "'zzz'"),
        ("zzz", "has these words: 'zzz'"),
        ("one two three four five", "'three' and 2 more"),
        ("", ""),
    ],
)
def test_a_word_that_no_caption_has_is_told_with_the_nearest(prompt: str, told: str):
    tokenizer = tiny_tokenizer()
    keep_words(tokenizer, CAPTIONS)
    sentence = unseen_words(tokenizer, ["a boot", prompt])
    assert told in sentence and bool(sentence) == bool(told) and "\n" not in sentence


def test_tokens_of_ones_own_and_words_of_older_checkpoints_are_known():
    tokenizer = tiny_tokenizer()
    tokenizer.init_kwargs[KEY] = "a नमस त"  # what lies between the marks of नमस्ते
    tokenizer.add_tokens(["<cat-toy>", "<cat-toy>_1", "dog"])
    assert unseen_words(tokenizer, ["a नमस्ते <cat-toy> <cat-toy>_1 dog"]) == ""
    assert "'dogma'" in unseen_words(tokenizer, ["a dogma"])


def test_of_too_many_words_the_frequent_ones_are_kept_and_the_sentence_says_so(monkeypatch):
    monkeypatch.setattr(caption_words, "MOST", 3)
    tokenizer = tiny_tokenizer()
    keep_words(tokenizer, ["rare", "a boot", "a bag boot"], known=["old"])
    assert known_words(tokenizer) == {"old", "a", "boot"}
    assert "not among the 3 most frequent of this checkpoint's training captions: 'bag'" in unseen_words(
        tokenizer, ["a bag"]
    )


def told_by(pipeline: Any, caplog: pytest.LogCaptureFixture, *prompts: str, **more: Any) -> list[str]:
    caplog.clear()
    pipeline.set_progress_bar_config(disable=True)
    pipeline(*prompts, num_inference_steps=1, output_type="latent", **more)
    return [record.getMessage() for record in caplog.records if "no training caption" in record.getMessage()]


def test_pipelines_tell_of_positive_and_negative_prompts(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    pipeline = text_to_image()
    assert not told_by(pipeline, caplog, "a trouser")  # from elsewhere: nothing is known
    keep_words(pipeline.tokenizer, CAPTIONS)
    pipeline.save_pretrained(tmp_path / "ours")
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "ours", safety_checker=None)
    stock.save_pretrained(tmp_path / "stock")
    for folder in ("ours", "stock"):
        loaded = TextToImagePipeline.from_pretrained(tmp_path / folder)
        assert not told_by(loaded, caplog, "a boot", negative_prompt="a photo")
        assert len(told_by(loaded, caplog, "a trouser")) == 1
        assert len(told_by(loaded, caplog, "a boot", negative_prompt="a trouser")) == 1
        embeds = loaded.encode_prompt("a boot", torch.device("cpu"))
        assert torch.equal(embeds[0], pipeline.encode_prompt("a boot", torch.device("cpu"))[0])
    steered = clip_guided()
    keep_words(steered.tokenizer, CAPTIONS)
    assert len(told_by(steered, caplog, "a boot", contrast_prompts=["a trouser"])) == 1


def test_the_shipped_checkpoint_knows_its_captions_and_is_what_it_was():
    folder = pretrained("fashion-32")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    data = runpy.run_path(str(ROOT / "training" / "data" / "fashion_mnist.py"))
    captions = [text for name in data["CLASSES"] for text in data["captions"](name)]
    fresh = tiny_tokenizer()
    keep_words(fresh, captions)
    assert known_words(tokenizer) == known_words(fresh)
    before_it_had_words = "sha256:84d3079e75c7f459a78ee1b7426862ecbbe7c0f4827355cbc3eb95f1cac3ff71"
    assert fingerprint(folder) == before_it_had_words  # in the pictures that it drew


def test_a_fingerprint_leaves_the_words_out_and_nothing_else(tiny_folder: Path, tmp_path: Path):
    def changed(**values: Any) -> str:
        config = json.loads((tiny_folder / "tokenizer" / "tokenizer_config.json").read_text())
        pipeline = TextToImagePipeline.from_pretrained(tiny_folder)
        pipeline.save_pretrained(tmp_path)
        path = tmp_path / "tokenizer" / "tokenizer_config.json"
        path.write_text(json.dumps({**config, **values}, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        return fingerprint(tmp_path)

    plain = changed()
    assert changed(**{KEY: "a boot"}) == changed(**{KEY: "a bag é"}) == plain
    assert changed(**{KEY: "a boot"}, model_max_length=8) == changed(model_max_length=8) != plain


def test_the_command_tells_it_in_one_line(run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    more = ("--steps", 1, "--num-images", 3, "--batch-size", 1, "--output", tmp_path)
    run("generate", "a photo of a trouser", *more)
    (told,) = [record.getMessage() for record in caplog.records]
    assert "'trouser' (nearest: 'trousers')" in told and "\n" not in told
    caplog.clear()
    run("generate", "a photo of a coat", *more)
    assert not caplog.records
