"""The server is killed with SIGKILL at random moments of uploads and downloads; the client is run again.

Twenty kills each fall into a transfer: those that come after its end do not count, and are made up for.
Versions differ in weights, in configuration and in the number of shards. At no moment may a repository serve,
or a client load, a mix of two.
"""

from __future__ import annotations

import json
import random
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub.clients import identity
from hub.loopback import Hub, check_store
from tiny import shallow_unet

from guided_diffusers import GuidedDDPMScheduler, ImagePipeline

MOMENTS = 20
THROTTLE = 3_000_000
pytestmark = pytest.mark.slow


class Client:
    """A process that pushes, loads and pulls as it is told."""

    def __init__(self, hub: Hub, home: Path, xet: bool) -> None:
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "hub.clients", "obey"]
        environment = hub.environment(home, xet=xet)
        log = (home.parent / f"{home.name}.log").open("w")
        options = {"stdin": pipe, "stdout": pipe, "stderr": log, "text": True}
        self.process = subprocess.Popen(command, env=environment, **options)
        self.answer()

    def tell(self, *words: object) -> None:
        self.process.stdin.write(json.dumps([str(word) for word in words]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> tuple[str, Any]:
        return tuple(json.loads(self.process.stdout.readline()))

    def busy(self) -> bool:
        """Whether what it was told to do is not done yet."""
        return not select.select([self.process.stdout], [], [], 0)[0]

    def ask(self, *words: object) -> tuple[str, Any]:
        self.tell(*words)
        return self.answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


def version(folder: Path, number: int) -> Path:
    """A pipeline of about 2.5 MB."""
    torch.manual_seed(number)
    unet = shallow_unet(block_out_channels=(64,), norm_num_groups=32)
    pipeline = ImagePipeline(unet, GuidedDDPMScheduler(num_train_timesteps=12 + number))
    pipeline.save_pretrained(folder / str(number), max_shard_size=["10MB", "700KB", "400KB"][number % 3])
    return folder / str(number)


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def served(hub: Hub) -> dict[str, str]:
    """What the repository has of a version: no card, no attributes."""
    return {path: sha for path, sha in hub.names("alice/model").items() if Path(path).parent != Path()}


def version_of(state: dict[str, str], versions: list[dict[str, str]]) -> Any:
    """The number of the version that a state is; for a mix, the versions of each file."""
    if state in versions:
        return versions.index(state)
    return {
        path: [number for number, known in enumerate(versions) if known.get(path) == sha]
        for path, sha in state.items()
    }


@pytest.fixture(params=["lfs", "xet"])
def stage(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Hub, Client, Path, random.Random]]:
    hub = Hub(tmp_path / "hub", throttle=THROTTLE)
    client = Client(hub, tmp_path / "home", xet=request.param == "xet")
    yield hub, client, tmp_path, random.Random(request.param)
    hub.kill()
    client.close()
    check_store(tmp_path / "hub")


def timed(client: Client, *words: object) -> float:
    """The seconds of a deed that nothing disturbs."""
    start = time.monotonic()
    status, value = client.ask(*words)
    assert status == "ok", value
    return time.monotonic() - start


def one_line(text: str) -> bool:
    return text.startswith("HubError: ") and "\n" not in text


def test_uploads(stage: tuple[Hub, Client, Path, random.Random]):
    hub, client, folder, chance = stage
    length = timed(client, "push", version(folder, 0), "alice/model")
    versions, seen, over = [served(hub)], [], threading.Event()

    def look() -> None:
        now = served(hub)
        if not seen or seen[-1] != now:
            seen.append(now)

    def watch() -> None:
        while not over.wait(0.01):
            look()

    watcher = threading.Thread(target=watch)
    watcher.start()
    failed, during, number = 0, 0, 0
    while during < MOMENTS:
        number += 1
        path = version(folder, number)
        client.tell("push", path, "alice/model")
        time.sleep(chance.uniform(0, length))
        during += client.busy()
        hub.kill()
        status, value = client.answer()
        failed += status == "error"
        assert status == "ok" or one_line(value), value
        hub.start(THROTTLE)
        status, value = client.ask("push", path, "alice/model")
        assert status == "ok", value
        versions.append(served(hub))
        assert set(versions[-1]) == {name for name in files_of(path) if "/" in name}
        shutil.rmtree(path)
    over.set()
    watcher.join()
    look()  # at what the last push left
    print(f"\n{during} of {number} kills in uploads of {length:.1f} s: {failed} pushes failed")
    assert failed > MOMENTS // 2
    assert [version_of(state, versions) for state in seen] == list(range(number + 1))
    assert len(hub.history("alice/model")) == number + 2  # the first commit is the Hub's own


def test_downloads(stage: tuple[Hub, Client, Path, random.Random]):
    hub, client, folder, chance = stage
    paths = [version(folder, number) for number in range(2)]
    known = [identity(ImagePipeline.from_pretrained(path)) for path in paths]
    assert client.ask("push", paths[0], "alice/model")[0] == "ok"
    length, current = timed(client, "load", "alice/model", folder / "first"), 0
    failed, during, number = 0, 0, -1
    while during < MOMENTS:
        number += 1
        deed = ("load", "alice/model", folder / f"cache-{number}")
        if number % 2:
            deed = ("pull", "alice/model", folder / f"pulled-{number}")
        client.tell(*deed)
        time.sleep(chance.uniform(0, length))
        during += client.busy()
        hub.kill()
        status, value = client.answer()
        failed += status == "error"
        assert value == known[current] if status == "ok" else one_line(value), value
        if status == "error":
            assert not (folder / f"pulled-{number}").exists()
        if number % 4 > 1:  # the repository moves on before the client comes back
            current = 1 - current
            hub.add("alice/model", paths[current])
        hub.start(THROTTLE)
        if status == "error":
            assert client.ask(*deed) == ("ok", known[current])
    print(f"\n{during} of {number + 1} kills in downloads of {length:.1f} s: {failed} failed")
    assert failed > MOMENTS // 2


def test_a_tokenizer_whose_vocabulary_did_not_come_is_not_loaded_empty(
    stage: tuple[Hub, Client, Path, random.Random], tiny_folder: Path
):
    hub, client, folder, _ = stage
    hub.add("alice/text", tiny_folder)
    status, whole = client.ask("draw", "alice/text", folder / "cache")
    assert status == "ok", whole
    (vocabulary,) = (folder / "cache").glob("*/snapshots/*/tokenizer/tokenizer.json")
    vocabulary.unlink()
    hub.kill()
    status, value = client.ask("draw", "alice/text", folder / "cache")
    assert status == "error" and one_line(value), value
    hub.start(THROTTLE)
    assert client.ask("draw", "alice/text", folder / "cache") == ("ok", whole)
