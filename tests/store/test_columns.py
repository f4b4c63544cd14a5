"""Cells as captions and as class numbers, and which row is neither."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from guided_diffusers.evaluation import Judge, JudgeConfig, read_images, stratified_prompts
from guided_diffusers.evaluation.evaluate import evaluate_images
from guided_diffusers.evaluation.features import JudgeFeatures
from guided_diffusers.store.columns import captions_of, class_numbers

NUMBERS = {
    "numbers": ([2, 0, 2], None, [2, 0, 2], None),
    "names": (["owl", "cat", "owl"], None, [1, 0, 1], ["cat", "owl"]),
    "names that are settled": (["owl", "cat"], ["owl", "dog", "cat"], [0, 2], ["owl", "dog", "cat"]),
    "numbers of settled names": ([1, 0], ["owl", "cat"], [1, 0], ["owl", "cat"]),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_class_numbers(name):
    values, names, expected, classes = NUMBERS[name]
    numbers, found = class_numbers(values, "a column", names)
    assert numbers.dtype == torch.int64 and numbers.tolist() == expected and found == classes


NO_CLASSES = [
    ([0, 1, -1], None, "row 2 has -1, which is no class in column 'kind'; allowed: a class number"),
    ([0, None], None, "row 1 has None in column 'kind'"),
    ([0.5, 1.0], None, "row 0 has 0.5 in column 'kind'"),
    ([0, True], None, "row 1 has True"),
    (["cat", None], None, "row 1 has None in column 'kind'; allowed: one of .'cat'."),
    (["cat", 0], None, "row 1 has 0 in"),
    (["cat", "owl"], ["cat", "dog"], "row 1 has 'owl' in column 'kind'; allowed: one of .'cat', 'dog'."),
    ([0, 2], ["cat", "dog"], "row 1 has 2 in"),
    ([[0]], None, r"row 0 has \[0\] in"),
]


@pytest.mark.parametrize(("values", "names", "message"), NO_CLASSES)
def test_a_row_without_a_class_is_named(values, names, message):
    with pytest.raises(ValueError, match=message):
        class_numbers(values, "column 'kind'", names)


def test_captions():
    cells = ["a", ["b", None, "c"], ""]
    assert captions_of(cells, "a column") == [["a"], ["b", "c"], [""]]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (None, "row 7 has no caption in column 'text': give it one"),
        ([], "row 7 has no caption"),
        ([None], "row 7 has no caption"),
        (5, "row 7 has 5 in column 'text'; allowed: a text, or a list of texts"),
        ({"en": "a cat"}, "row 7 has {'en': 'a cat'} in"),
        ([["a cat"]], r"row 7 has \[\['a cat'\]\] in"),
        (b"a cat", "row 7 has a bytes in"),
    ],
)
def test_a_row_without_a_caption_is_named(cell, message):
    with pytest.raises(ValueError, match=message):
        captions_of(["a", cell], "column 'text'", [3, 7])


def folder_of(path, rows):
    for number, row in enumerate(rows):
        Image.new("L", (8, 8), number).save(path / f"{number}.png")
        row["file_name"] = f"{number}.png"
    (path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return read_images(path)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (-1, "row 1 has -1, which is no class"),
        (None, "row 1 has None"),
        (1.5, "1.5"),
        ("bag", "row 1 has 'bag'"),
    ],
)
def test_evaluation_says_which_label_is_none_when_a_judge_asks(tmp_path, label, message):
    data = folder_of(tmp_path, [{"text": "a", "label": 0}, {"text": "b", "label": label}])
    assert data.labels is None and data.captions == [["a"], ["b"]]
    judge = Judge(JudgeConfig(image_size=16, width=4))
    with pytest.raises(
        ValueError, match=f"agreement needs the class .*{message}.*column 'label' of .*metadata"
    ):
        evaluate_images(data, data, JudgeFeatures(judge), judge=judge)


def test_evaluation_knows_no_number_of_a_name(tmp_path):
    data = folder_of(tmp_path, [{"label": "dog"}, {"label": "dog"}])
    with pytest.raises(ValueError, match="a judge; row 0 of column 'label' .* is 'dog'; allowed: the class"):
        data.need("labels", "a judge")


@pytest.mark.parametrize("text", [5, {"en": "b"}, None])
def test_evaluation_says_which_caption_is_none_when_prompts_are_asked_for(tmp_path, text):
    data = folder_of(tmp_path, [{"text": "a"}, {"text": text}])
    assert np.array_equal(data.images[:, 0, 0, 0], [0, 1])  # distances need no captions
    with pytest.raises(ValueError, match="the data have no captions; .*row 1 has .* in column 'text' of"):
        stratified_prompts(data, 1)
