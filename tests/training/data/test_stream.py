"""Streams: every row once an epoch, in an order that a few numbers bring back, on any number of processes."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from tiny_data import captioned, png, tars
from training_scripts import ENCODER, assert_goes_on_to_the_same_bits, load, records, train

from guided_diffusers.training.data.dataset import DataConfig, ImageTextDataset
from guided_diffusers.training.data.lanes import lane_count
from guided_diffusers.training.data.opening import expanded
from guided_diffusers.training.data.rows import CAPTIONS, PIXELS
from guided_diffusers.training.data.stream import ImageTextStream, open_held_out
from guided_diffusers.training.engine.order import Share

ROWS, BATCH = 48, 12
COLUMNS = {"stream": True, "image_column": "png", "caption_column": "txt"}
TARS = {**COLUMNS, "resolution": 8, "channels": 1, "shuffle_buffer": 24, "workers": 0}


def cells(count: int = ROWS) -> list[dict[str, bytes | str]]:
    """Pictures that say their row in their first pixel."""
    pictures = [np.arange(64, dtype=np.uint8).reshape(8, 8) * (row % 2) + row for row in range(count)]
    return [{"png": png(each), "txt": f"row {row}", "cls": str(row % 3)} for row, each in enumerate(pictures)]


@pytest.fixture(scope="module")
def pattern(tmp_path_factory) -> Path:
    """Four tars of twelve rows."""
    return tars(tmp_path_factory.mktemp("tars"), cells(), 12)


def opened(path, seed=0, **config) -> ImageTextStream:
    return ImageTextStream(DataConfig(**{**TARS, "path": str(path), **config}), seed)


def steps(stream, count, state=None, **share):
    """What a process reads of some steps: rows by their captions, with their first pixels, and the state."""
    share = Share(**{"batch_size": BATCH, **share})
    found = []
    with stream.reader(state, share) as read:
        for step in range(count):
            rows, state = read(range(step * BATCH, (step + 1) * BATCH))
            names = [int(options[0].removeprefix("row ")) for options in rows.columns[CAPTIONS]]
            found.append((names, rows.columns[PIXELS].clone(), json.loads(json.dumps(state))))
    return found


def names_of(found) -> list[int]:
    return [name for names, _, _ in found for name in names]


def test_every_epoch_is_another_order_of_all_rows(pattern):
    first = names_of(steps(opened(pattern), 8))
    epochs = [first[start : start + ROWS] for start in range(0, 2 * ROWS, ROWS)]
    assert all(sorted(epoch) == list(range(ROWS)) for epoch in epochs)
    orders = [tuple(epoch) for epoch in (*epochs, names_of(steps(opened(pattern, seed=1), 4)))]
    assert len(set(orders)) == 3
    neighbours = np.abs(np.diff([row // 12 for row in epochs[0]])).mean()
    assert neighbours > 0.2  # shards are mixed


def test_pixels_are_those_of_the_data_set_in_memory(pattern, tmp_path):
    stream = opened(pattern)
    kept = ImageTextDataset(replace(stream.config, stream=False, cache_dir=str(tmp_path)))
    (names, pixels, _), *_ = steps(stream, 1)
    captions = kept.captions(range(ROWS), range(ROWS))
    rows = [captions.index(f"row {name}") for name in names]
    streamed = pixels.float().div(127.5).sub(1.0)
    assert torch.equal(streamed, kept.pixels(rows)) and len(streamed.unique()) > 20


@pytest.mark.parametrize(
    "config", [{}, {"shuffle_buffer": 1}, {"shuffle_buffer": 5}, {"readers": 3}], ids=str
)
def test_it_goes_on_from_every_step(pattern, config):
    stream = opened(pattern, **config)
    whole = steps(stream, 6)
    for stop in (1, 3, 4):
        state = whole[stop - 1][2]
        assert len(json.dumps(state)) < 300
        rest = steps(stream, 6 - stop, state)
        assert [each[0] for each in rest] == [each[0] for each in whole[stop:]]
        assert rest[-1][2] == whole[-1][2]


def test_data_that_have_changed_go_on_with_a_new_epoch(pattern, caplog):
    state = steps(opened(pattern), 2)[-1][2]
    found = steps(opened(pattern, shuffle_buffer=6), 4, state)
    assert sorted(names_of(found)) == list(range(ROWS)) and "goes on with a new epoch" in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_and_workers_share_what_one_reads(pattern, workers):
    stream = opened(pattern, workers=workers, readers=6)
    whole = steps(opened(pattern, readers=6), 6)
    state = whole[2][2]
    shares = [steps(stream, 3, state, process=number, processes=2) for number in range(2)]
    for step in range(3):
        both = shares[0][step], shares[1][step]
        assert both[0][0] + both[1][0] == whole[3 + step][0]
        assert {**both[0][2], **both[1][2]} == whole[3 + step][2]
        assert torch.equal(torch.cat([both[0][1], both[1][1]]), whole[3 + step][1])


def damaged(folder: Path, kind: str) -> Path:
    """Tars of which one has a row that cannot be read, or breaks off."""
    rows = cells()
    if kind == "a picture":
        rows[17]["png"] = rows[17]["png"][:30]
    if kind == "no caption":
        del rows[17]["txt"]
    path = tars(folder, rows, 12)
    if kind in CUT:
        os.truncate(folder / "train-01.tar", int(3 * 1024 * CUT[kind]))
    return path


CUT = {"a tar cut in a row": 5.5, "a tar cut between rows": 5}
"""After so many rows."""


@pytest.mark.parametrize("kind", ["a picture", "no caption", *CUT])
def test_what_cannot_be_read_is_left_out_and_counted_or_named(kind, tmp_path):
    path = damaged(tmp_path, kind)
    stream = opened(path)
    found = steps(stream, 8)
    lost = set(range(ROWS)) - set(names_of(found))
    assert lost == (set(range(17, 24)) if kind in CUT else {17})
    assert 1 <= stream.skipped(found[-1][2]) <= 3
    again = steps(stream, 3, found[4][2])
    assert [(each[0], each[2]) for each in again] == [(each[0], each[2]) for each in found[5:]]
    said = r"train-01.tar breaks off" if kind in CUT else r"row 5 of .*train-01.tar has"
    with pytest.raises(ValueError, match=said + r".* on_corrupt|" + said + r".*data\.on_corrupt"):
        steps(opened(path, on_corrupt="raise"), 8)


def test_a_stream_without_one_readable_row_ends(tmp_path):
    rows = [{**row, "png": b"nothing"} for row in cells(12)]
    with pytest.raises(ValueError, match="no row of .* can be read; the last: row"):
        steps(opened(tars(tmp_path, rows, 3)), 1)


def test_parquet_by_its_row_groups(tmp_path):
    features = Features(png=ImageFeature(), txt=Value("string"))
    rows = [{name: row[name] for name in features} for row in cells()]
    rows = [{**row, "png": {"bytes": row["png"], "path": None}} for row in rows]
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "train.parquet", batch_size=6)
    stream = opened(tmp_path)
    assert stream.shards.count > 1
    found = steps(stream, 8)
    assert sorted(names_of(found)[:ROWS]) == list(range(ROWS))
    assert [each[0] for each in steps(stream, 5, found[2][2])] == [each[0] for each in found[3:]]


def test_tars_by_their_addresses(pattern):
    files = fsspec.filesystem("memory")
    for path in pattern.parent.glob("*.tar"):
        files.pipe(f"/shards/{path.name}", path.read_bytes())
    found = steps(opened(f"memory://shards/{pattern.name}"), 4)
    assert [each[0] for each in found] == [each[0] for each in steps(opened(pattern), 4)]


def test_half_are_mirrored_by_their_positions(pattern):
    (names, plain, _), (also, mirrored, _) = (
        steps(opened(pattern, mirror=mirror), 1)[0] for mirror in (False, True)
    )
    flipped = [not torch.equal(one, other) for one, other in zip(plain, mirrored, strict=True)]
    odd = [name % 2 == 1 for name in names]
    assert names == also and 0 < sum(flipped) < sum(odd)
    for one, other, turned in zip(plain, mirrored, flipped, strict=True):
        assert torch.equal(one, other.flip(-1) if turned else other)


@pytest.mark.parametrize(
    ("path", "paths"),
    [
        ("x-{08..11}.tar", ["x-08.tar", "x-09.tar", "x-10.tar", "x-11.tar"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("x{y}.tar", ["x{y}.tar"]),
    ],
)
def test_braces(path, paths):
    assert expanded(path) == paths


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"split": "train[:10]"}, "data.split is 'train[:10]'; allowed in a stream: the name of a whole"),
        ({"path": "PATTERN9"}, "matches no file: there is no"),
        ({"path": "PICTURES"}, "pictures in files of their own"),
        ({"image_column": "jpg"}, "image_column is 'jpg'; allowed: .*'png'"),
        ({"readers": 5}, "data.readers is 5; allowed: a multiple of the 1 processes that divides"),
        ({"labels": "cls"}, "data.num_classes is None, and label_column 'cls'"),
        ({"held out": "test"}, "the held-out split is 'test', and data.path .* names files of one split"),
    ],
    ids=lambda value: str(sorted(value.items())) if isinstance(value, dict) else "",
)
def test_what_is_refused(config, message, pattern, tmp_path):
    paths = {"PATTERN9": str(pattern).replace("{00", "{0"), "PICTURES": str(tmp_path)}
    if config.get("path") == "PATTERN9":
        paths["PATTERN9"] = str(pattern).replace("03}", "09}")
    captioned(tmp_path, ["a"])
    given = {name: value for name, value in config.items() if name not in ("labels", "held out")}
    given["path"] = paths.get(given.get("path"), str(pattern))
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message).replace(r"\.\*", ".*")):
        stream = opened(**given)
        if "labels" in config:
            stream.labels(config["labels"])
        if "held out" in config:
            open_held_out(stream.config, config["held out"])
        steps(stream, 1)


def test_lanes_come_out_even():
    assert [lane_count(shards, 1, 64, None) for shards in (1, 4, 6, 1000)] == [1, 4, 2, 16]
    assert [lane_count(shards, 2, 64, None) for shards in (1, 4, 1000)] == [2, 4, 16]
    assert lane_count(1000, 32, 64, None) == 32


def test_a_run_by_class_goes_on_in_the_middle_of_an_epoch(pattern, tmp_path):
    script = load("train_unconditional")
    unet = {**ENCODER, "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    words = {
        "data.path": pattern,
        "data.stream": "true",
        "data.image_column": "png",
        "data.caption_column": "null",
        "data.resolution": 8,
        "data.channels": 1,
        "data.num_classes": 3,
        "data.shuffle_buffer": 16,
        "label_column": "cls",
        "unet": json.dumps({**unet, "add_attention": False}),
        "validation.images": 0,
        "num_images": 72,
        "batch_size": 12,
        "checkpoint_every_images": 12,
        "log_every_images": 24,
        "snapshot_fractions": "[]",
    }

    def run(name, *more):
        folder = tmp_path / name
        given = [word for key, value in words.items() for word in (f"--{key}", value)]
        train(script, *given, "--output_dir", folder, *more)
        return folder

    whole, _ = assert_goes_on_to_the_same_bits(run, 24)
    assert [record["rows_skipped"] for record in records(whole)] == [0, 0, 0]


@pytest.mark.slow
def test_a_worker_that_dies_is_one_sentence(pattern):
    stream = opened(pattern, workers=1)
    with (
        pytest.raises(OSError, match="a process that reads the data has died"),
        stream.reader(None, Share(batch_size=BATCH)) as read,
    ):
        read(range(BATCH))
        for child in active_children():
            os.kill(child.pid, signal.SIGKILL)
        for _ in range(20):
            read(range(BATCH))
