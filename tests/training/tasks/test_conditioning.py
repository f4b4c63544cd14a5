"""What a denoiser is told in training: batches by position, dropped conditions, encoded captions."""

import pytest
import torch
from tiny_denoisers import SEED, image_task, text_task

from guided_diffusers.core.randomness import randn_for, seed_for
from guided_diffusers.training.tasks.encoded_text import FrozenText, JointText


@pytest.mark.parametrize("kind", ["text", "classes", "latents by class", "importance"])
def test_a_batch_is_made_of_its_positions_alone(tiny_pipeline, kind):
    if kind == "text":
        task = text_task(tiny_pipeline, caption_dropout=0.5)
    else:
        more = {"timesteps": "importance"} if kind == "importance" else {"class_dropout": 0.5}
        task = image_task(labels=torch.arange(50) % 10, classes=11, latent="latents" in kind, **more)
    whole = task.batch(list(range(8)), list(range(100, 108)))
    part = task.batch([5, 2], [105, 102])
    levels = {"uniform"} if kind == "importance" else {"bins"}
    for name in {"images", "noise", *levels}:
        assert torch.equal(part[name], whole[name][[5, 2]]), name
    if kind != "importance":
        assert torch.equal(part["level"].timestep, whole["level"].timestep[[5, 2]])
    for name, rows in part["condition"].items():
        assert torch.equal(rows, whole["condition"][name][[5, 2]]), name
    # of latents there are two draws
    drawn = whole["images"] - torch.arange(8).view(-1, 1, 1, 1)
    assert torch.allclose(drawn, whole["noise"], atol=1e-5) == (not task.images.latent)


@pytest.mark.parametrize(("kind", "of_image"), [("text", 0), ("latents by class", 1)])
def test_the_draws_are_those_that_older_runs_go_on_with(tiny_pipeline, kind, of_image):
    task = text_task(tiny_pipeline) if kind == "text" else image_task(latent=True)
    batch = task.batch([0, 0], [5, 9])
    drawn = randn_for(seed_for(SEED, 1), [5, 9], (2, *task.images.shape))
    assert torch.equal(batch["images"], drawn[:, of_image])
    assert torch.equal(batch["noise"], drawn[:, 1 - of_image])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["text", "classes"])
def test_conditions_are_dropped_to_the_null_one_in_their_share(tiny_pipeline, kind, share):
    rows, positions = [7] * 1000, list(range(1000))
    if kind == "text":
        condition = text_task(tiny_pipeline, ["abc"], caption_dropout=share).condition
        null = tiny_pipeline.tokenizer([""], padding="max_length", return_tensors="pt").input_ids[0]
        kept = condition.text.rows(["abc"])[0]
    else:
        task = image_task(labels=torch.arange(50) % 4, classes=5, class_dropout=share)
        condition, kept, null = task.condition, torch.tensor(3), torch.tensor(4)
    (told,) = condition.rows(rows, positions, SEED).values()
    told, kept, null = (value.reshape(len(value) if value is told else 1, -1) for value in (told, kept, null))
    dropped = (told == null).all(1)
    assert dropped.double().mean() == pytest.approx(share, abs=0.05)
    assert (told[~dropped] == kept).all()


def test_equal_captions_are_encoded_once_to_the_same_embeddings(tiny_pipeline):
    encoder, calls = tiny_pipeline.text_encoder, []
    text = JointText(tiny_pipeline.tokenizer, ["", "abc", "xyz"])
    rows = text.rows(["abc", "", "abc", "abc"])
    hook = encoder.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    embeds = text.embed(rows, encoder)
    hook.remove()
    assert calls == [2]
    torch.testing.assert_close(embeds, encoder(rows)[0])
    expected = tiny_pipeline.encode_prompt(["abc", ""], "cpu", do_classifier_free_guidance=False)[0]
    torch.testing.assert_close(embeds[:2], expected)


def test_frozen_embeddings_are_looked_up():
    table = torch.randn(2, 4, 8).half()
    text = FrozenText(["", "abc"], table)
    rows = text.rows(["abc", "", "abc"])
    assert torch.equal(text.embed(rows, None), table[[1, 0, 1]].float())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"out_channels": 1}, "out_channels is 1; .* needs 2"),
        ({"variance": "fixed_small", "out_channels": 1}, "'hybrid' with variance_type 'fixed_small'"),
        ({"loss": "simple"}, "'simple' with variance_type 'learned_range'"),
        ({"classes": 10}, "both label_column and unet.num_class_embeds"),
        ({"class_dropout": 1.5}, "class_dropout is 1.5"),
        ({"class_dropout": 0.1}, "class_dropout needs classes"),
        (
            {"class_dropout": 0.1, "classes": 4, "labels": torch.arange(50) % 4},
            "num_class_embeds is 4; class_dropout needs 5",
        ),
        ({"classes": 3, "labels": torch.arange(50) % 4}, "num_class_embeds is 3, .* labels up to 3"),
        ({"loss": "bound", "weighting": "min_snr"}, "'bound' with denoising.weighting 'min_snr'"),
        ({"loss": "bound", "levels": "cosine"}, "'bound' .*denoising.levels 'cosine'"),
        ({"timesteps": "importance", "levels": "cosine"}, "'importance' and denoising.levels 'cosine'"),
    ],
)
def test_parts_that_do_not_suit_each_other_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        image_task(**arguments)
