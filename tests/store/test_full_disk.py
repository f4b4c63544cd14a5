"""A full disk: what was there stays whole, one line says that it is full and where, the exit code is not 0.

Two kinds of no room, both the system's own: a limit of a file's size (setrlimit), which needs no rights, and
a small file system of memory, mounted in a namespace of the test's own where the system lets users do so.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_data import sliced_tars
from trained_scripts import command, start, weights

from guided_diffusers.cli import main
from guided_diffusers.evaluation import Judge, JudgeConfig, save_judge
from guided_diffusers.evaluation.generation import generate_images, generated_images
from guided_diffusers.evaluation.reference import reference_features
from guided_diffusers.store.files import DiskFullError, new_array, room_for, write_json_atomically
from guided_diffusers.training.data.dataset import DataConfig
from guided_diffusers.training.engine.checkpoint import load_checkpoint, save_checkpoint
from guided_diffusers.training.engine.log import JsonLines
from guided_diffusers.training.tasks.precompute import PrecomputeConfig, precompute

resource = pytest.importorskip("resource")
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-euc"]


def said_under_a_limit(deed: Callable[[], object], limit: int) -> str:
    """Do it in a process whose files may have so many bytes; the error that ended it, "" without one."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            deed()
        except Exception as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return said


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_shard_of_latents_is_whole_or_not_there(tmp_path):
    data = DataConfig(
        path=str(sliced_tars(tmp_path / "tars")), image_column="png", caption_column="txt", channels=1
    )
    folder = tmp_path / "shards"
    config = PrecomputeConfig(output_dir=str(folder), data=data, autoencoder="fashion-32/vae")
    said = said_under_a_limit(lambda: precompute(config, torch.device("cpu")), 6000)
    assert said.startswith("DiskFullError") and str(folder) in said
    assert names(folder) == ["precomputed.json"]
    assert precompute(config, torch.device("cpu"))["shards"] == len(names(folder)) - 1 == 4


def test_a_checkpoint_before_stays_whole(tmp_path):
    def save(images: int) -> None:
        save_checkpoint(tmp_path, images, {"modules/net": {"w": torch.full((5000,), 1.0 * images)}}, {}, 1)

    save(8)
    before = names(tmp_path)
    said = said_under_a_limit(lambda: save(16), 10_000)
    assert said.startswith("DiskFullError: the limit of a file's size is reached: ")
    assert f"{tmp_path}/{16:012d} could not be written (File too large)" in said
    assert names(tmp_path) == before  # and nothing takes the room that is left
    assert load_checkpoint(tmp_path / f"{8:012d}")[0]["modules/net"]["w"].eq(8).all()


def test_other_files_stay_what_they_were(tmp_path):
    images = torch.randint(0, 256, (6, 1, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)

    class Network:
        name = "pixels"

        def __call__(self, images):
            return images.flatten(1)

    log = JsonLines(tmp_path / "log.jsonl")
    log.write(8, {"loss": 1.0})
    write_json_atomically(tmp_path / "results.json", ["before"])
    deeds = {
        "log.jsonl": lambda: log.write(16, {"loss": "x" * 2000}),
        "results.json": lambda: write_json_atomically(tmp_path / "results.json", ["x" * 2000]),
        "features": lambda: reference_features(images, Network(), tmp_path),
        "chunk-00000.npz": lambda: generate_images(
            lambda indices: images[list(indices)], 6, tmp_path / "images", settings={}
        ),
        "new.npy": lambda: new_array(tmp_path / "new.npy", "float32", (1000,)),
    }
    for name, deed in deeds.items():
        said = said_under_a_limit(deed, 1000)
        assert said.startswith("DiskFullError: ") and name in said and "File too large" in said, said
        assert "\n" not in said
    assert json.loads((tmp_path / "results.json").read_text()) == ["before"]
    assert len(JsonLines(tmp_path / "log.jsonl", 16).path.read_text().splitlines()) == 1
    assert not list((tmp_path / "features").iterdir())
    deeds["chunk-00000.npz"]()  # with room, it goes on
    assert torch.equal(generated_images(tmp_path / "images", 6), images)


def test_errors_of_other_kinds_pass():
    for error in (ValueError("no"), FileNotFoundError(2, "no"), RuntimeError("os error 2")):
        with pytest.raises(type(error)) as raised, room_for("here"):
            raise error
        assert raised.value is error


def test_the_text_of_safetensors_is_understood_and_what_is_kept_is_said():
    with pytest.raises(DiskFullError) as raised, room_for("run", lambda: "all is well"):
        with room_for("run/file"):
            raise RuntimeError("I/O error: No space left on device (os error 28)")
    text = "the disk is full: run/file could not be written (No space left on device); all is well"
    assert str(raised.value) == text


def command_line(*words: object) -> Callable[[], None]:
    """The command line, whose exit and last line are told as an error is."""

    def run() -> None:
        sys.argv = ["guided-diffusers", *map(str, words)]
        sys.stdout = sys.stderr = said = io.StringIO()
        try:
            main()
        except SystemExit as ended:
            raise RuntimeError(f"exit {ended.code}: {said.getvalue()}") from None

    return run


def test_generate(tiny_folder, tmp_path):
    words = ("generate", "a bag", "--checkpoint", tiny_folder, "--steps", 1, "--output", tmp_path)
    said = said_under_a_limit(command_line(*words), 100)
    assert "exit 1" in said
    assert f"error: the limit of a file's size is reached: {tmp_path}/00-a-bag-seed0-00.png could" in said
    assert names(tmp_path) == []


def room_of_ones_own() -> bool:
    """Whether a test may mount a file system for itself."""
    if shutil.which(NAMESPACE[0]) is None:
        return False
    return not subprocess.run([*NAMESPACE, "mount -t tmpfs none /mnt"], capture_output=True).returncode


real = pytest.mark.skipif(not room_of_ones_own(), reason="users may not mount file systems here")


def on_a_small_disk(script: str, size: str, *words: object) -> subprocess.CompletedProcess:
    """Run a shell script with a disk of `size` at /mnt; its arguments are `words`."""
    mount = f"mount -t tmpfs -o size={size} none /mnt\n"
    arguments = [*NAMESPACE, mount + script, "bash", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=600)


@real
@pytest.mark.slow
def test_a_cache_that_does_not_fit_is_an_error_and_no_signal(tmp_path):
    code = """if True:
        import sys; from pathlib import Path; from guided_diffusers.store.files import new_array
        new_array(Path("/mnt/array.npy"), "float32", (1000, 1000))[:] = 1"""
    done = on_a_small_disk('"$@"', "1m", sys.executable, "-c", code)
    assert done.returncode == 1  # and not -7, SIGBUS
    assert "the disk is full: /mnt/array.npy could not be written (No space left" in done.stderr


@real
@pytest.mark.slow
@pytest.mark.parametrize("name", ["autoencoder", "streamed", "unconditional"])
def test_training_says_what_it_goes_on_from_and_does_when_there_is_room(name, unbroken, shared, tmp_path):
    """Disk full at some checkpoint; the one before is whole; with more room the run ends bit-equal.

    The unconditional network is split over two processes, which both say it.
    """
    processes = 2 if name == "unconditional" else 1
    words = command(name, tmp_path / "run", shared, sharding="none" if processes == 1 else "parameters")
    file, whole = Path(words[-1]), tmp_path / "whole"
    if processes == 1:
        whole = unbroken(name)
    else:
        start(name, whole, shared, processes, sharding="parameters").finish()
    file.write_text(file.read_text().replace(str(tmp_path / "run"), "/mnt/run"))
    one = sum(path.stat().st_size for path in max((whole / "checkpoints").iterdir()).rglob("*.safetensors"))
    script = """
        "${@:2}" && exit 9 || test $? = 1
        find /mnt/run -name '.writing-*' | grep . && exit 8
        test ! -e /mnt/run/final
        ls /mnt/run/checkpoints
        mount -o remount,size=100m /mnt
        "${@:2}"
        cp -r /mnt/run "$1"
    """
    size = f"{(one * 5 // 2) // 1024}k"  # two checkpoints fit, the third in their company does not
    code = f"import trained_scripts; trained_scripts.execute({words}, '/dev/stderr', {processes}, 1000)"
    done = on_a_small_disk(script, size, tmp_path / "run", sys.executable, "-c", code)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    newest = next(line for line in done.stdout.splitlines()[::-1] if line.isdecimal())
    kept = f"the checkpoint /mnt/run/checkpoints/{newest} is whole: the same command goes on from it"
    told = rf"error: the disk is full: /mnt/run\S* could not be written \(No space left on device\); {kept}"
    assert len(re.findall(told, done.stderr)) == processes, done.stderr
    assert "Traceback" not in done.stderr
    assert f"resuming after {int(newest)} images" in done.stderr
    first, second = weights(whole), weights(tmp_path / "run")
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


@real
@pytest.mark.slow
def test_commands_on_a_full_disk(tiny_folder, tmp_path):
    """evaluate (its cache, and what it draws), sweep and generate: one line each; with room again, all."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_judge(Judge(JudgeConfig(image_size=16, width=4)).eval(), tmp_path / "judge.safetensors")
    (tmp_path / "real").mkdir()
    lines = []
    for number in range(12):
        pixels = np.full((16, 16), 20 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "real" / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": "a bag", "label": number % 2}))
    (tmp_path / "real" / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    sweep = {
        "checkpoint": str(tiny_folder),
        "data": str(tmp_path / "real"),
        "features": str(tmp_path / "judge.safetensors"),
        "images": 8,
        "steps": [1],
        "arms": {"plain": {"guidance": [{"term": "ClassifierFreeGuidance"}], "scales": [1]}},
    }
    (tmp_path / "sweep.yaml").write_text(json.dumps(sweep))  # YAML too
    judge, real_images = tmp_path / "judge.safetensors", tmp_path / "real"
    common = f"--real {real_images} --features {judge} --device cpu"
    drawn = f"--checkpoint {tiny_folder} --num-images 8 --steps 1"
    python = f"{sys.executable} -m guided_diffusers"
    commands = {
        "cache": f"GUIDED_DIFFUSERS_CACHE=/mnt/cache {python} evaluate {real_images} {common}",
        "evaluate": f"{python} evaluate /mnt/drawn {common} {drawn}",
        "sweep": f"{python} sweep {tmp_path}/sweep.yaml --output /mnt/sweep --device cpu",
        "generate": f"{python} generate 'a bag' --checkpoint {tiny_folder} --steps 1 --output /mnt/generated",
    }
    script = "export GUIDED_DIFFUSERS_CACHE=$1\n"
    for name, words in commands.items():
        script += "mkdir -p /mnt/cache/features /mnt/drawn /mnt/sweep /mnt/generated\n"
        script += "cat /dev/zero > /mnt/zeros || true\n"
        script += f"{words} > $1/{name}.out 2> $1/{name}.err && exit 9 || test $? = 1\n"
        script += "find /mnt -type f -size +0 -not -name zeros | grep . && exit 8\nrm /mnt/zeros\n"
        script += f"{words} >> $1/{name}.out 2>> $1/{name}.err\nrm -rf /mnt/*\n"
    done = on_a_small_disk(script, "1m", tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for name in commands:
        errors = (tmp_path / f"{name}.err").read_text()
        said = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert len(said) == 1 and "the disk is full: /mnt/" in said[0] and "Traceback" not in errors, errors
