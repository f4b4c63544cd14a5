"""A Hub on the loopback interface that serves folders for reading, to huggingface_hub's own client."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest


class ReadOnlyHub:
    """Serves each added folder as a model repository with one commit.

    It answers what downloads ask for: `/api/models/NAME[/revision/REV]`, `/api/models/NAME/tree/REV`, and
    `/NAME/resolve/REV/PATH`; anything else is 404 with the error code that the client knows.
    """

    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}
        self.requested: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def add(self, name: str, folder: Path) -> None:
        self.folders[name] = folder

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        parts = [unquote(part) for part in urlsplit(request.path).path.strip("/").split("/")]
        self.requested.append("/".join(parts))
        api = parts[:2] == ["api", "models"]
        name, rest = "/".join(parts[2:4] if api else parts[:2]), parts[4:] if api else parts[2:]
        folder = self.folders.get(name)
        if folder is None:
            return reply(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"})
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        files = {path.relative_to(folder).as_posix(): path for path in paths}
        commit = hashlib.sha1(b"".join(path.read_bytes() for path in files.values())).hexdigest()
        headers = {"X-Repo-Commit": commit}
        if api and (not rest or rest[0] == "revision"):
            body = {"id": name, "modelId": name, "sha": commit, "private": False, "downloads": 0, "likes": 0}
            body |= {"tags": [], "siblings": [{"rfilename": path} for path in files]}
            return reply(request, 200, json.dumps(body).encode(), headers)
        if api and rest[0] == "tree":
            tree = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": blob_id(path)}
                for name, path in files.items()
            ]
            return reply(request, 200, json.dumps(tree).encode(), headers)
        path = files.get("/".join(rest[2:])) if rest[:1] == ["resolve"] else None
        if path is None:
            return reply(request, 404, b"{}", {"X-Error-Code": "EntryNotFound", **headers})
        return reply(request, 200, path.read_bytes(), {"ETag": f'"{blob_id(path)}"', **headers})


def blob_id(path: Path) -> str:
    """Git's name of the file's contents."""
    contents = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(contents) + contents).hexdigest()


def reply(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
    request.send_response(status)
    common = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    for name, value in {**common, **headers}.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


@pytest.fixture(scope="session")
def hub() -> Iterator[ReadOnlyHub]:
    """A ReadOnlyHub, empty at first."""
    hub = ReadOnlyHub()
    yield hub
    hub.close()
