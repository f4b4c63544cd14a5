"""Folders of pictures: every picture is a row, splits are folders that hold everything, names are names."""

import json
import logging
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_data import png

from guided_diffusers.training.data.dataset import DataConfig, ImageTextDataset, load_image_text


def make(folder, files, **metadata):
    """A folder of pictures by name, each of its own grey level, and of metadata files by theirs."""
    for value, name in enumerate(files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(value))
    for name, rows in metadata.items():
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return folder


def opened(folder, split="train", caption_column=None):
    return load_image_text(DataConfig(path=str(folder), split=split, caption_column=caption_column))


def names_of(dataset, folder):
    return [os.path.relpath(cell["path"], folder) for cell in dataset["image"]]


WORDS = (
    "steam train",
    "test pilot",
    "dev board",
    "val d'isere",
    "evaluation",
    "training",
    "valid_1",
    "eval-2",
)


@pytest.mark.parametrize("place", ["{}.png", "{}/1.png", "things/{}/1.png", "{}/in/1.png"])
@pytest.mark.parametrize("with_metadata", [False, True])
@pytest.mark.parametrize("word", [*WORDS, "train", "Test"])
def test_a_word_in_a_name_makes_no_split(tmp_path, word, place, with_metadata):
    files = [f"cats/{number}.png" for number in range(3)] + [place.format(word)]
    rows = [{"file_name": name, "text": name} for name in files]
    folder = make(tmp_path, files, **({"metadata_jsonl": rows} if with_metadata else {}))
    dataset = opened(folder, caption_column="text" if with_metadata else None)
    assert sorted(names_of(dataset, folder)) == sorted(files)


def test_words_in_all_names_make_no_splits(tmp_path):
    files = [f"{word}.png" for word in WORDS]
    assert names_of(opened(make(tmp_path / "files", files)), tmp_path / "files") == sorted(files)
    classes = [f"{word}/1.png" for word in ("steam train", "test pilot")]
    dataset = opened(make(tmp_path / "classes", classes))
    assert names_of(dataset, tmp_path / "classes") == classes
    assert dataset.features["label"].names == ["steam train", "test pilot"]


SPLITS = {
    ("train", "test"): ("train", "test"),
    ("Train", "Test"): ("train", "test"),
    ("training", "dev"): ("train", "validation"),
    ("train2017", "val2017"): ("train", "validation"),
    ("train_images", "test_images"): ("train", "test"),
    ("data/train", "data/validation"): ("train", "validation"),
    ("eval",): ("test",),
}


@pytest.mark.parametrize("folders", SPLITS)
def test_folders_that_hold_everything_are_splits(tmp_path, folders):
    folder = make(tmp_path, [f"{name}/{number}.png" for name in folders for number in range(3)])
    for name, split in zip(folders, SPLITS[folders], strict=True):
        dataset = opened(folder, split)
        assert names_of(dataset, folder) == [f"{name}/{number}.png" for number in range(3)]
        assert dataset.column_names == ["image"]  # the folder of a split is no class
    assert len(opened(folder, "all")) == 3 * len(folders)
    assert len(opened(folder, f"{SPLITS[folders][0]}[1:]")) == 2
    with pytest.raises(ValueError, match='Unknown split "other"'):
        opened(folder, "other")


def test_classes_have_one_number_in_all_splits(tmp_path):
    files = ["train/cat/1.png", "train/dog/1.png", "test/cow/1.png", "test/dog/1.png"]
    folder = make(tmp_path, files)
    for split, labels in (("train", [0, 2]), ("test", [1, 2])):
        dataset = opened(folder, split)
        assert dataset.features["label"].names == ["cat", "cow", "dog"] and dataset["label"] == labels


def test_metadata_of_each_split(tmp_path):
    for split in ("train", "test"):
        rows = [{"file_name": "1.png", "text": split}]
        make(tmp_path / split, ["1.png"], metadata_jsonl=rows)
    assert opened(tmp_path, "test", "text")["text"] == ["test"]


@pytest.mark.parametrize("more", ["other/1.png", "1.png", "metadata.jsonl"])
def test_splits_that_may_be_classes_are_refused(tmp_path, more):
    folder = make(tmp_path, ["train/1.png", "test/1.png", more])
    with pytest.raises(
        ValueError, match=r"named after splits \(test, train\), but not everything lies in them"
    ):
        opened(folder)


def test_a_card_says_which_files_are_whose(tmp_path):
    folder = make(tmp_path, ["train/1.png", "test/1.png", "other/1.png"])
    files = "  - {split: train, path: other/**}\n  - {split: test, path: test/**}\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n")
    for files in (["other/1.png"], ["other/1.png", "other/2.png"]):  # read anew when there are more
        assert names_of(opened(make(folder, files)), folder) == files


NAMES = [
    "a b",
    "[1]",
    "a*b",
    "what?",
    "#1",
    "ü 猫",
    "a::b",
    "{x}",
    "%20",
    "a'b\"c",
    "-1",
    "~x",
    "$HOME",
    "a=b,c",
]


@pytest.mark.parametrize("name", [*NAMES, ".hidden", "steam train"])
def test_names_are_taken_literally(tmp_path, name):
    """As the folder's, a class folder's, a file's, and a parquet file's."""
    files = [f"{name}/{name}.png", "x/y.png"] if not name.startswith(".") else ["x/y.png", "x/z.png"]
    folder = make(tmp_path / name, files)
    config = DataConfig(
        path=str(folder), caption_column=None, resolution=8, cache_dir=str(tmp_path / "cache")
    )
    assert len(ImageTextDataset(config)) == 2
    if "::" in name or "$" in name:
        return  # datasets reads its own paths so: archives within archives, and the environment
    table = pa.table({"image": [png(), png(9)], "text": ["a", "b"]})
    (tmp_path / "parquet" / name).mkdir(parents=True)
    for path in ("train.parquet", f"{name}.parquet"):
        pq.write_table(table, tmp_path / "parquet" / name / path)
    for path in ("", f"{name}.parquet"):
        assert opened(tmp_path / "parquet" / name / path, caption_column="text")["text"] == ["a", "b"]


def test_hidden_files_are_no_rows(tmp_path):
    folder = make(tmp_path, ["1.png", ".2.png", ".trash/3.png", "__MACOSX/4.png", "notes/5.PNG", "6.Png"])
    (folder / "1.txt").write_text("a caption")
    assert names_of(opened(folder), folder) == ["1.png", "6.Png", "notes/5.PNG"]


def test_folders_that_are_links_are_followed_once(tmp_path):
    folder = make(tmp_path / "here", ["a/1.png"])
    make(tmp_path / "there", ["2.png"])
    (folder / "b").symlink_to(tmp_path / "there")
    (folder / "b" / "c").symlink_to(folder)
    assert names_of(opened(folder), folder) == ["a/1.png", "b/2.png"]


CAPTIONS = ["2020-01-01", "NA", "null", "5", "a, b"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_words_of_metadata_stay_words(tmp_path, kind):
    files = [f"{number}.png" for number in range(len(CAPTIONS))]
    rows = [{"file_name": name, "text": text} for name, text in zip(files, CAPTIONS, strict=True)]
    table = "file_name,text\n" + "".join(f'{row["file_name"]},"{row["text"]}"\n' for row in rows)
    folder = make(tmp_path, files, **({"metadata_jsonl": rows} if kind == "jsonl" else {}))
    if kind == "csv":
        (folder / "metadata.csv").write_text("\ufeff" + table)  # as a Windows editor begins it
    if kind == "parquet":
        categories = pa.array(CAPTIONS).dictionary_encode()
        pq.write_table(pa.table({"file_name": files, "text": categories}), folder / "metadata.parquet")
    assert opened(folder, caption_column="text")["text"] == CAPTIONS


def test_pictures_without_metadata_are_told(tmp_path, caplog):
    folder = make(tmp_path, ["1.png", "2.png", "3.png"], metadata_jsonl=[{"file_name": "1.png", "text": "a"}])
    assert len(opened(folder)) == 1
    assert "2 pictures of" in caplog.text and "2.png" in caplog.text


def test_a_folder_that_is_no_split_is_told(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        opened(make(tmp_path, ["train/1.png", "ship/1.png"]))
    assert "has no splits: train/ is read like the others" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "metadata.jsonl",
            b'{"file_name": "1.png"}\n{"file_name": "caf\xe9.png"}\n',
            "line 2: the byte 0xe9 is not",
        ),
        (
            "metadata.csv",
            b"file_name,text\n1.png,caf\xe9\n",
            "metadata.csv, line 2: the byte 0xe9 is not UTF-8",
        ),
        ("metadata.csv", "file_name,text\n".encode("utf-16"), "line 1: the byte 0xff is not UTF-8"),
        (
            "metadata.jsonl",
            b'{"file_name": "1.png"}\n{"file_name": "1.png"\n',
            "metadata.jsonl, line 2 does not read as JSON",
        ),
        ("metadata.jsonl", b'["1.png"]\n', r"metadata.jsonl, line 1 is \['1.png'\]; allowed: a JSON object"),
        ("metadata.jsonl", b'{"file": "1.png"}\n', r"is \['file'\]; allowed: file_name"),
        (
            "metadata.jsonl",
            b'{"file_name": "../1.png"}\n',
            "row 0: file_name is '../1.png'; allowed: a path within",
        ),
        (
            "metadata.jsonl",
            b'{"file_name": "1.png", "text": 1}\n{"text": "a"}\n',
            "column 'text' does not read as values of one kind",
        ),
        (
            "metadata.csv",
            b"file_name,text\n1.png,a,b\n1.png,a,b,c\n",
            "metadata.csv does not read as CSV: .*line 3",
        ),
        (
            "metadata.csv",
            b"text,file_name\na red, round one,1.png\n",
            "metadata.csv has more values in its lines than names in its first one",
        ),
        ("metadata.parquet", b"no parquet", "metadata.parquet does not read as parquet"),
        ("metadata.txt", b"", None),
    ],
)
def test_metadata_that_cannot_be_read_is_named(tmp_path, name, content, message):
    folder = make(tmp_path, ["1.png"])
    (folder / name).write_bytes(content)
    if message is None:
        assert len(opened(folder)) == 1
        return
    with pytest.raises(ValueError, match=message) as caught:
        opened(folder)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_metadata_of_two_kinds_is_refused(tmp_path):
    folder = make(
        tmp_path, ["1.png"], metadata_jsonl=[{"file_name": "1.png"}], metadata_csv="file_name\n1.png\n"
    )
    with pytest.raises(ValueError, match="metadata of .* is .*metadata.csv.*allowed: files of one kind"):
        opened(folder)


def test_a_changed_picture_is_another_data_set_and_a_moved_copy_is_not_found_changed(tmp_path):
    folder = make(tmp_path / "one", ["1.png", "2.png"])
    first = opened(folder)._fingerprint
    assert opened(folder)._fingerprint == first
    shutil.copy(folder / "2.png", folder / "1.png")
    assert opened(folder)._fingerprint != first
