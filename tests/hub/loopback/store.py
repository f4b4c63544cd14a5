"""What the Hub keeps, on disk.

    blobs/<sha256>           every file's content       commits/<sha1>.json    immutable: parent, tree, title
    repos/<id>.json          refs, tags, visibility     xet/{xorbs,files}      what hf_xet uploaded

A commit becomes visible by one rename, that of its repository's file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ACCOUNTS = {
    "hf_alice_write": {"name": "alice", "role": "write"},
    "hf_alice_read": {"name": "alice", "role": "read"},
    "hf_bob_write": {"name": "bob", "role": "write"},
    "hf_you_write": {"name": "you", "role": "write"},  # of the documentation
}
"""Whose token is whose."""

LFS_SUFFIXES = ("safetensors", "bin", "ckpt", "h5", "npz", "parquet", "pt", "pth", "zip")
GIT_ATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)


class HubError(Exception):
    """An answer that is an error: status, message, and the code by which the client knows it."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers
        if code is not None:
            self.headers["X-Error-Code"] = code


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def git_oid(data: bytes) -> str:
    """Git's name of a file's contents."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def pointer(sha: str, size: int) -> bytes:
    """What git stores in the place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {size}\n".encode()


class Store:
    """The folder under `root`."""

    def __init__(self, root: Path) -> None:
        self.root, self.lock = Path(root).resolve(), threading.RLock()
        for name in ("blobs", "commits", "repos", "xet/xorbs", "xet/files", "tmp"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        for leftover in (self.root / "tmp").iterdir():  # of a killed server
            leftover.unlink()
        self.secret = (self.read("secret.json") or {}).get("secret") or os.urandom(8).hex()
        self.write("secret.json", {"secret": self.secret})

    def temporary(self) -> Any:
        return tempfile.NamedTemporaryFile(dir=self.root / "tmp", delete=False)

    def write(self, name: str, data: Any) -> None:
        with self.temporary() as file:
            file.write(
                data if isinstance(data, bytes) else json.dumps(data, indent=1, sort_keys=True).encode()
            )
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(file.name, self.root / name)

    def read(self, name: str) -> Any:
        path = self.root / name
        return json.loads(path.read_bytes()) if path.is_file() else None

    def blob(self, sha: str) -> Path:
        return self.root / "blobs" / sha

    def put_blob(self, data: bytes) -> str:
        sha = hashlib.sha256(data).hexdigest()
        if not self.blob(sha).exists():
            self.write(f"blobs/{sha}", data)
        return sha

    def entry(self, data: bytes, lfs: bool = False) -> dict[str, Any]:
        """A line of a commit's tree."""
        sha = self.put_blob(data)
        return (
            self.lfs_entry(sha)
            if lfs
            else {"oid": git_oid(data), "size": len(data), "lfs": None, "sha256": sha}
        )

    def lfs_entry(self, sha: str) -> dict[str, Any]:
        size = self.blob(sha).stat().st_size
        return {"oid": git_oid(pointer(sha, size)), "size": size, "lfs": sha, "sha256": sha}

    def create(self, name: str, private: bool, author: str) -> dict[str, Any]:
        repo = {"id": name, "private": private, "refs": {}, "tags": {}, "createdAt": now(), "prs": 0}
        tree = {".gitattributes": self.entry(GIT_ATTRIBUTES.encode())}
        self.commit(repo, "main", tree, "initial commit", author=author)
        return repo

    def commit(
        self,
        repo: dict[str, Any],
        ref: str,
        tree: dict[str, Any],
        title: str,
        body: str = "",
        author: str = "",
    ) -> str:
        """Add a commit to a branch; the last thing it does makes it visible."""
        commit = {
            "parent": repo["refs"].get(ref),
            "tree": tree,
            "title": title,
            "body": body,
            "author": author,
            "date": now(),
            "nonce": time.time_ns(),
        }
        sha = hashlib.sha1(json.dumps(commit, sort_keys=True).encode()).hexdigest()
        self.write(f"commits/{sha}.json", commit)
        repo["refs"][ref] = sha
        self.save(repo)
        return sha

    def save(self, repo: dict[str, Any]) -> None:
        self.write(f"repos/{repo['id']}.json", repo)

    def load(self, name: str) -> dict[str, Any] | None:
        return self.read(f"repos/{name}.json")

    def resolve(self, repo: dict[str, Any], revision: str) -> tuple[str, dict[str, Any]]:
        """The commit that a branch, a tag or the beginning of a hash names, if this repository has it."""
        named = repo["refs"].get(revision) or repo["refs"].get(revision.removeprefix("refs/heads/"))
        if sha := named or repo["tags"].get(revision):
            return sha, self.read(f"commits/{sha}.json")
        heads = [*repo["refs"].values(), *repo["tags"].values()]
        while heads and re.fullmatch("[0-9a-f]{7,40}", revision):
            sha = heads.pop()
            commit = self.read(f"commits/{sha}.json")
            if sha.startswith(revision):
                return sha, commit
            heads += [commit["parent"]] if commit["parent"] else []
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def add(self, name: str, folder: Path) -> None:
        """A commit with exactly a folder's files, without a client; the repository is made if need be."""
        repo = self.load(name) or self.create(name, private=False, author=name.split("/")[0])
        tree = {}
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            lfs = path.suffix.lstrip(".") in LFS_SUFFIXES
            tree[path.relative_to(folder).as_posix()] = self.entry(path.read_bytes(), lfs)
        self.commit(repo, "main", tree, "all")
