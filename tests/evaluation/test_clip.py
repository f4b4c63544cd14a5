import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CONTEXT, tiny_tokenizer
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

from guided_diffusers.evaluation.clip import ClipScorer, clip_figures, clip_scores, retrieved

SIZE = 16
TEXTS = ["a bag", "a boot", "a red coat", "a dress", "sandal", "a bag"]


@pytest.fixture(scope="module")
def scorer():
    tokenizer = tiny_tokenizer()
    width = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = {**width, **special, "vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT}
    vision = {**width, "image_size": SIZE, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    sizes = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    return ClipScorer(model, CLIPProcessor(CLIPImageProcessorPil(**sizes), tokenizer))


def pictures(count, channels=3, height=20, width=28):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, channels, height, width), generator=generator, dtype=torch.uint8)


def directions(count, d=5, seed=0):
    values = torch.randn(count, d, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=1)


def test_the_score_is_that_of_the_models_own_logits(scorer):
    """100 cos is what CLIP's forward gives over its temperature, from PIL images, one pair at a time."""
    images = pictures(len(TEXTS))
    expected = []
    for image, text in zip(images, TEXTS, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        entered = scorer.processor(
            images=picture, text=text, return_tensors="pt", padding="max_length", max_length=CONTEXT
        )
        with torch.no_grad():
            logit = scorer.model(**entered).logits_per_image / scorer.model.logit_scale.exp()
        expected.append(max(0.0, 100 * logit.item()))
    assert len({round(value, 3) for value in expected}) > 2
    scores = clip_scores(scorer.image_features(images), scorer.text_features(TEXTS))
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-3)
    figures = clip_figures(scorer, images, TEXTS, candidates=None)
    assert figures.score.value == pytest.approx(np.mean(expected), abs=1e-3)
    assert figures.score.low <= figures.score.value <= figures.score.high and figures.score.count == 6
    assert figures.retrieval is None


def test_neither_batch_matters(scorer):
    images = pictures(5)
    torch.testing.assert_close(scorer.image_features(images, 2), scorer.image_features(images))
    torch.testing.assert_close(scorer.text_features(TEXTS, 1), scorer.text_features(TEXTS))


def test_grey_images_are_grey_colour_images(scorer):
    grey = pictures(3, channels=1)
    same = scorer.image_features(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(scorer.image_features(grey), same)


def test_a_long_text_is_cut(scorer):
    assert scorer.text_features(["bag " * 50]).isfinite().all()


def test_save_and_load(scorer, tmp_path):
    scorer.model.save_pretrained(tmp_path)
    scorer.processor.save_pretrained(tmp_path)
    loaded, images = ClipScorer.from_pretrained(tmp_path), pictures(3)
    torch.testing.assert_close(loaded.image_features(images), scorer.image_features(images))
    torch.testing.assert_close(loaded.text_features(TEXTS), scorer.text_features(TEXTS))


def test_scores_below_0_count_as_0():
    images = directions(4)
    torch.testing.assert_close(clip_scores(images, images), torch.full((4,), 100.0))
    assert clip_scores(images, -images).tolist() == [0.0] * 4


def test_among_all_captions_retrieval_is_the_nearest_one():
    texts, of_texts = [f"text {index}" for index in range(30)], directions(30)
    of_images = torch.nn.functional.normalize(of_texts + 0.9 * directions(30, seed=1), dim=1)
    expected = (of_images @ of_texts.T).argmax(1) == torch.arange(30)
    assert 0.2 < expected.float().mean() < 0.9
    assert torch.equal(retrieved(of_images, of_texts, texts, candidates=30), expected)


def test_by_chance_retrieval_is_one_in_so_many():
    texts = [f"text {index}" for index in range(2000)]
    hits = retrieved(directions(2000), directions(2000, seed=1), texts, candidates=10)
    assert hits.float().mean().item() == pytest.approx(0.1, abs=4 * (0.09 / 2000) ** 0.5)


def test_an_equal_text_is_no_rival_and_an_equal_direction_is_a_miss():
    one, other = directions(2)
    same = torch.stack([one, one, other])
    assert retrieved(same, same, ["a", "a", "b"], candidates=2).tolist() == [True] * 3
    assert (
        retrieved(same, torch.stack([one, one, one]), ["a", "a", "b"], candidates=2).tolist() == [False] * 3
    )


def test_retrieval_of_figures_is_the_fraction_of_hits(scorer):
    images = pictures(6)
    hits = retrieved(scorer.image_features(images), scorer.text_features(TEXTS), TEXTS, candidates=3, seed=4)
    figures = clip_figures(scorer, images, TEXTS, candidates=3, seed=4, batch_size=2)
    assert figures.retrieval.value == pytest.approx(hits.float().mean().item()) and figures.candidates == 3


def test_errors(scorer):
    with pytest.raises(ValueError, match="candidates is 100; allowed: from 2 to 5"):
        clip_figures(scorer, pictures(6), TEXTS)
    with pytest.raises(ValueError, match="texts is .*; allowed: 2, one an image"):
        clip_figures(scorer, pictures(2), TEXTS)
    with pytest.raises(ValueError, match="uint8"):
        scorer.image_features(pictures(2).float())
    with pytest.raises(ValueError, match="text_features is .* shape of image_features"):
        clip_scores(directions(2), directions(3))
    with pytest.raises(ValueError, match="texts is .*; allowed: 3, one an image"):
        retrieved(directions(3), directions(3), ["a", "b"], candidates=2)
