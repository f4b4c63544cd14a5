"""Class labels of a data set: rows without one, and splits that number them otherwise."""

from pathlib import Path

import datasets
import pytest

from guided_diffusers.training.data.dataset import DataConfig, ImageTextDataset
from guided_diffusers.training.data.labels import class_labels

PICTURE = Path(__file__).parents[3] / "docs" / "images" / "fashion-32-loss.png"


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        (datasets.Value("int64"), [0, 1, -1], "row 2 has -1, which is no class in label_column 'kind' of"),
        (datasets.ClassLabel(names=["cat", "dog"]), [0, 1, None], "row 2 has None in label_column 'kind' of"),
        (datasets.Value("float64"), [0.5, 1.0, 0.0], "row 0 has 0.5 in label_column 'kind' of"),
        (datasets.Value("string"), ["cat", None, "dog"], "row 1 has None in label_column 'kind' of"),
    ],
)
def test_a_row_without_a_class_is_named(tmp_path, kind, labels, message):
    image = {"bytes": PICTURE.read_bytes(), "path": None}
    features = datasets.Features(image=datasets.Image(), kind=kind)
    rows = datasets.Dataset.from_dict({"image": [image] * 3, "kind": labels}, features=features)
    rows.to_parquet(tmp_path / "train.parquet")
    config = DataConfig(path=str(tmp_path), caption_column=None, resolution=8, cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match=message):
        class_labels(ImageTextDataset(config), "kind")


def test_a_split_that_numbers_its_classes_otherwise_is_read_by_name(tmp_path):
    image = {"bytes": PICTURE.read_bytes(), "path": None}
    found, names = [], None
    for split, classes in (("train", ["cat", "dog", "owl"]), ("test", ["owl", "cat"])):
        features = datasets.Features(image=datasets.Image(), kind=datasets.ClassLabel(names=classes))
        rows = {"image": [image] * len(classes), "kind": list(range(len(classes)))}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
        options = {"caption_column": None, "resolution": 8, "cache_dir": str(tmp_path)}
        config = DataConfig(path=str(tmp_path), split=split, **options)
        labels, names = class_labels(ImageTextDataset(config), "kind", names)
        found.append(labels.tolist())
    assert found == [[0, 1, 2], [2, 0]] and names == ["cat", "dog", "owl"]
