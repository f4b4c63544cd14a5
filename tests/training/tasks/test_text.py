"""Text encoders of any class of transformers: trained on, saved, and drawn with by the same embeddings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from tiny_pipelines import text_to_image
from tiny_text_encoders import CONTEXT, WIDTH, saved, text_encoder
from training_scripts import assert_goes_on_to_the_same_bits, read, train
from transformers import CLIPModel, PreTrainedModel

from guided_diffusers import TextToImagePipeline
from guided_diffusers.evaluation import ClipScorer
from guided_diffusers.models.transformers_models import load_fitting
from guided_diffusers.training.tasks.text import TextConfig, load_text, load_text_encoder

PROMPTS = ["a dark square", "", "square"]


@pytest.fixture
def run(script: Any, arguments: Any, tmp_path: Path) -> Any:
    def run_script(name: str, *more: str) -> Path:
        short = ("--num_images", "16", "--validate_every_images", "0", "--snapshot_fractions", "[]")
        train(script, *arguments(tmp_path / name, *short, *more))
        return tmp_path / name

    return run_script


def last_hidden_states(encoder: PreTrainedModel, tokenizer: Any, texts: list[str], masked: bool) -> Any:
    """By transformers alone."""
    length = tokenizer.model_max_length
    tokens = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    mask = {"attention_mask": tokens.attention_mask} if masked else {}
    with torch.no_grad():
        return encoder(input_ids=tokens.input_ids, **mask).last_hidden_state


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "joint"])
@pytest.mark.parametrize(
    ("name", "masked", "context", "pipeline"),
    [
        ("T5EncoderModel", True, CONTEXT, True),
        ("T5ForConditionalGeneration", True, int(1e30), False),
        ("BertModel", True, 8, False),
        ("CLIPTextModelWithProjection", False, CONTEXT, True),
        ("Gemma2Model", True, int(1e30), True),
    ],
)
def test_a_run_draws_with_the_embeddings_that_it_trained_on(
    run: Any, tmp_path: Path, name: str, masked: bool, context: int, pipeline: bool, frozen: bool
):
    folder = saved(name, tmp_path / "pretrained", context, pipeline)
    given = ("--text.pretrained", str(folder), "--text.subfolders", str(pipeline).lower())
    final = run("run", *given, "--text.encoder", "frozen" if frozen else "joint") / "final"
    index = json.loads((final / "model_index.json").read_text())
    expected_class = "T5EncoderModel" if name.startswith("T5") else name
    assert index["text_encoder"] == ["transformers", expected_class]
    drawing = TextToImagePipeline.from_pretrained(final)
    length = context if context <= CONTEXT else 8  # else text.context_length of the configuration
    encoder = text_encoder(name)[0] if frozen else drawing.text_encoder
    if name == "T5ForConditionalGeneration" and frozen:
        encoder = encoder.get_encoder()
    tokenizer = text_encoder(name)[1]
    tokenizer.model_max_length = length
    expected = last_hidden_states(encoder, tokenizer, PROMPTS, masked)
    cpu = torch.device("cpu")
    ours = drawing.encode_prompt(PROMPTS, cpu, 1, False)[0]
    assert ours.shape == (3, length, WIDTH)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    if name != "CLIPTextModelWithProjection":  # whose first output StableDiffusionPipeline takes, the pooled
        theirs = StableDiffusionPipeline.from_pretrained(final, safety_checker=None)
        stock = theirs.encode_prompt(PROMPTS, cpu, 1, False)[0]
        torch.testing.assert_close(ours, stock, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["frozen", "joint"])
def test_training_is_told_the_same(script: Any, arguments: Any, tmp_path: Path, kind: str):
    folder = saved("T5EncoderModel", tmp_path / "pretrained")
    more = ("--text.pretrained", str(folder), "--text.subfolders", "false", "--text.encoder", kind)
    config = read(script, *arguments(tmp_path / "run", *more))
    told = script.make_task(config, torch.device("cpu")).condition
    texts = ["a dark square", "", "a dark square"]
    rows = told.text.rows(texts)
    encoder, tokenizer = text_encoder("T5EncoderModel")
    with torch.no_grad():
        embeds = told.text.embed(rows, told.components["text_encoder"].eval())
    expected = last_hidden_states(encoder, tokenizer, texts, masked=True)
    torch.testing.assert_close(embeds, expected, atol=1e-5, rtol=0)
    unmasked = last_hidden_states(encoder, tokenizer, texts, masked=False)
    assert (embeds - unmasked).abs().max() > 1e-3


def test_tied_weights_resume_to_the_same_bits(run: Any, tmp_path: Path):
    folder = saved("T5EncoderModel", tmp_path / "pretrained")
    given = ("--text.pretrained", str(folder), "--text.subfolders", "false")
    assert_goes_on_to_the_same_bits(run, 8, *given)


def test_one_of_several_text_encoders_is_named(tmp_path: Path):
    for number, name in (("", "CLIPTextModelWithProjection"), ("_3", "T5EncoderModel")):
        encoder, tokenizer = text_encoder(name)
        encoder.save_pretrained(tmp_path / f"text_encoder{number}")
        tokenizer.save_pretrained(tmp_path / f"tokenizer{number}")
    config = TextConfig(pretrained=str(tmp_path), component="text_encoder_3")
    assert [type(part).__name__ for part in load_text(config)] == ["T5Tokenizer", "T5EncoderModel"]


def relabelled(folder: Path, source: str, **config: Any) -> Path:
    """A folder of `source` whose configuration says something else."""
    saved(source, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


CLIP = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_size": WIDTH}
REFUSED = {
    "an encoder-decoder": ("BartModel", {}, "is a 'bart' \\(BartModel\\), of which transformers has no text"),
    "a head without a pooler": (
        "BertForMaskedLM",
        {},
        "a BertForMaskedLM, whose weights do not fit",
    ),
    "a T5 that says it is CLIP": ("T5EncoderModel", CLIP, "do not fit a CLIPTextModel .* such as "),
    "other sizes": ("BertModel", {"hidden_size": 8}, "the weights do not fit|whose weights do not fit"),
    "a class of nobody": ("BertModel", {"model_type": "nobody"}, "cannot be loaded .*nobody"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path, kind: str):
    source, config, words = REFUSED[kind]
    folder = relabelled(tmp_path / "folder", source, **config)
    with pytest.raises(OSError, match=words) as refused:
        load_text_encoder(str(folder))
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)


def test_a_tokenizer_of_another_text_encoder_is_refused(tmp_path: Path):
    encoder, tokenizer = text_encoder("BertModel")
    tokenizer.add_tokens([f"<{number}>" for number in range(20)])
    encoder.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="its tokenizer has 50 tokens, and its BertModel knows 40"):
        load_text(TextConfig(pretrained=str(tmp_path), subfolders=False))


def without_words(folder: Path) -> Path:
    """A folder whose tokenizer has lost its files; transformers makes one that knows no word."""
    for file in folder.rglob("token*.*"):
        file.unlink()
    return folder


@pytest.mark.parametrize("source", ["BertModel", "T5EncoderModel"])
def test_a_tokenizer_that_knows_no_word_is_refused(tmp_path: Path, source: str):
    saved(source, tmp_path)
    with pytest.raises(OSError, match="a tokenizer without a vocabulary"):
        load_text(TextConfig(pretrained=str(without_words(tmp_path)), subfolders=False))


def test_a_pipeline_without_its_tokenizer_is_refused(tmp_path: Path):
    text_to_image().save_pretrained(tmp_path)
    with pytest.raises(OSError, match="tokenizer has a tokenizer without a vocabulary"):
        TextToImagePipeline.from_pretrained(without_words(tmp_path))


@pytest.mark.parametrize(
    ("pipeline", "missing"), [(True, "config.json"), (False, "text_encoder/config.json")]
)
def test_a_folder_of_the_other_kind_says_which_option(tmp_path: Path, pipeline: bool, missing: str):
    saved("T5EncoderModel", tmp_path, pipeline=pipeline)
    with pytest.raises(ValueError, match=f"which has no {missing}: .*text.subfolders"):
        load_text(TextConfig(pretrained=str(tmp_path), subfolders=not pipeline))


@pytest.mark.parametrize("source", ["T5EncoderModel", "CLIPTextModel"])
def test_a_clip_for_measuring_or_training_is_a_whole_one(tmp_path: Path, source: str):
    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    relabelled(tmp_path, source, text_config=tiny, vision_config={**tiny, "image_size": 8, "patch_size": 4})
    for load in (ClipScorer.from_pretrained, lambda folder: load_fitting(CLIPModel, folder)):
        with pytest.raises(OSError, match=f"holds a {source}, whose weights do not fit a CLIPModel"):
            load(tmp_path)


def test_a_pipeline_with_weights_of_another_class_is_refused(tmp_path: Path):
    """A large T5 under the name and configuration of a small CLIP: there are numbers enough."""
    pipeline = text_to_image()
    pipeline.save_pretrained(tmp_path)
    weights = text_encoder("T5EncoderModel")[0]
    weights.resize_token_embeddings(400)
    weights.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path / "text_encoder")
    with pytest.raises(OSError, match="text_encoder holds a CLIPTextModel, whose weights do not fit"):
        TextToImagePipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_variant_of_some_components_loads(tmp_path: Path, part: str):
    """diffusers takes the plain files of a component that has none of the variant."""
    pipeline = text_to_image()
    pipeline.save_pretrained(tmp_path)
    getattr(pipeline, part).half().save_pretrained(tmp_path / part, variant="fp16")
    for file in (tmp_path / part).glob("*.safetensors"):
        if ".fp16." not in file.name:
            file.unlink()
    loaded = TextToImagePipeline.from_pretrained(tmp_path, variant="fp16")
    weights, before = (getattr(one, part).state_dict() for one in (loaded, pipeline))
    assert all(torch.equal(weights[name].half(), before[name]) for name in before)


def test_clip_skip_is_of_clip_alone():
    encoder, tokenizer = text_encoder("T5EncoderModel")
    pipeline = text_to_image(text_encoder=encoder, tokenizer=tokenizer)
    pipeline.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="clip_skip is 1, .* text_encoder is a T5EncoderModel"):
        pipeline("ab", clip_skip=1, num_inference_steps=1)
    unmasked = last_hidden_states(encoder, tokenizer, ["ab"], masked=False)  # nothing says use_attention_mask
    ours = pipeline.encode_prompt("ab", torch.device("cpu"), 1, False, clip_skip=0)[0]
    torch.testing.assert_close(ours, unmasked)
