"""A Hub as a process of its own, that can be killed and started again; and clients as fresh processes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[2]
IMPATIENT = {"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2", "HF_XET_CLIENT_RETRY_BASE_DELAY": "200ms"}
"""Else hf_xet tries a dead server for two minutes."""


class Hub:
    """The server under `root`; a restart keeps its port.

    Attributes:
        url: Its address, for HF_ENDPOINT.
    """

    def __init__(self, root: Path, throttle: int = 0) -> None:
        self.root, self.port = Path(root), 0
        self.start(throttle)

    def start(self, throttle: int = 0) -> None:
        options = ("--root", self.root, "--port", self.port, "--throttle", throttle)
        command = [sys.executable, "-m", "hub.loopback", *map(str, options)]
        environment = {**os.environ, "PYTHONPATH": str(TESTS)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        word, self.url = self.process.stdout.readline().split()
        assert word == "READY"
        self.port = int(self.url.rsplit(":", 1)[1])

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    def restart(self, throttle: int = 0) -> None:
        self.kill()
        self.start(throttle)

    def call(self, path: str, body: Any = ...) -> Any:
        data = None if body is ... else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/_hub/{path}", data=data)
        return json.load(urllib.request.urlopen(request, timeout=10))

    def fault(self, **fault: Any) -> None:
        """Arm a fault: see `server.Handler.fault`."""
        self.call("faults", fault)

    @property
    def log(self) -> list[dict[str, Any]]:
        return self.call("log")["log"]

    def add(self, name: str, folder: Path) -> None:
        """A commit with exactly a folder's files, without a client; not while one pushes."""
        from .store import Store

        Store(self.root).add(name, folder)

    def tree(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository serves at a branch, by path; empty where there is no repository."""
        return {
            path: (self.root / "blobs" / sha).read_bytes() for path, sha in self.names(name, revision).items()
        }

    def names(self, name: str, revision: str = "main") -> dict[str, str]:
        """The sha256 of each file at a branch, by path."""
        record = self.root / f"repos/{name}.json"
        if not record.is_file():
            return {}
        sha = json.loads(record.read_bytes())["refs"][revision]
        tree = json.loads((self.root / f"commits/{sha}.json").read_bytes())["tree"]
        return {path: entry["sha256"] for path, entry in tree.items()}

    def history(self, name: str, revision: str = "main") -> list[dict[str, Any]]:
        """The commits of a branch, the newest first."""
        sha, found = json.loads((self.root / f"repos/{name}.json").read_bytes())["refs"][revision], []
        while sha:
            found.append(json.loads((self.root / f"commits/{sha}.json").read_bytes()))
            sha = found[-1]["parent"]
        return found

    def environment(
        self, home: Path, token: str | None = "hf_alice_write", xet: bool = False
    ) -> dict[str, str]:
        """The environment of a client whose cache is `home`."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))
        }
        folders = [str(TESTS), str(TESTS / "support"), os.environ.get("PYTHONPATH")]
        return {
            **kept,
            **IMPATIENT,
            **({} if token is None else {"HF_TOKEN": token}),
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_XET": "0" if xet else "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, folders)),
        }


def check_store(root: Path) -> None:
    """Every ref names a commit, every commit's files are there, every file is what its name says."""
    root = Path(root)
    for path in root.glob("blobs/*"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name, path
    for path in root.glob("repos/*/*.json"):
        repo = json.loads(path.read_bytes())
        waiting = [*repo["refs"].values(), *repo["tags"].values()]
        while waiting:
            commit = json.loads((root / "commits" / f"{waiting.pop()}.json").read_bytes())
            for name, entry in commit["tree"].items():
                assert (root / "blobs" / entry["sha256"]).stat().st_size == entry["size"], (path, name)
            waiting += [commit["parent"]] if commit["parent"] else []
