"""The HTTP server: bodies, answers, faults, who may do what, and which part answers which address."""

from __future__ import annotations

import json
import os
import re
import threading
import time
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from .repositories import Repositories
from .store import ACCOUNTS, HubError, Store
from .uploads import Uploads
from .xet import Xet

PIECE = 65536
OF_A_REPOSITORY = set(
    "revision tree refs commits branch tag preupload commit paths-info settings resolve auth-check "
    "xet-read-token xet-write-token".split()
)


class Handler(Repositories, Uploads, Xet, BaseHTTPRequestHandler):
    """One request. `serve` makes a subclass with a store, a log and a list of faults of its own."""

    protocol_version = "HTTP/1.1"
    store: Store
    log: list[dict[str, Any]]
    faults: list[dict[str, Any]]
    throttle: int

    def log_message(self, *arguments: Any) -> None:
        pass

    def fault(self, when: str, count: int = 0) -> None:
        """Do what an armed fault says, where it fits.

        A fault: {"match": regex on "METHOD /path", "when": ..., "after": bytes, "do": "exit", "drop" or a
        status}. `when` is "body" (while reading the request), "send" (while sending the answer) or "reply"
        (after the request took effect, before its answer).
        """
        for fault in list(self.faults):
            wanted = fault.get("when", "body") == when and count >= fault.get("after", 0)
            if not wanted or not re.search(fault["match"], f"{self.command} {self.path}"):
                continue
            self.faults.remove(fault)
            if fault["do"] == "exit":
                os._exit(137)
            if fault["do"] == "drop":
                self.close_connection = True
                raise ConnectionAbortedError
            raise HubError(fault["do"], "injected fault")

    def chunks(self) -> Iterator[bytes]:
        """The request's body in pieces, with or without Content-Length."""
        chunked = self.headers.get("Transfer-Encoding", "").lower() == "chunked"
        seen, left = 0, 0 if chunked else int(self.headers.get("Content-Length") or 0)
        while True:
            if chunked and left == 0:
                left = int(self.rfile.readline().split(b";")[0], 16)
                if left == 0:
                    self.rfile.readline()
            if left == 0:
                break
            data = self.rfile.read(min(left, PIECE))
            if not data:
                raise ConnectionAbortedError("the client went away")
            left, seen = left - len(data), seen + len(data)
            if chunked and left == 0:
                self.rfile.readline()
            self.pause(len(data))
            self.fault("body", seen)
            yield data
        self.consumed = True

    def pause(self, count: int) -> None:
        if self.throttle:
            time.sleep(count / self.throttle)

    def json_body(self) -> Any:
        return json.loads(b"".join(self.chunks()) or b"{}")

    def reply(self, value: Any = None, status: int = 200, headers: dict[str, Any] | None = None) -> None:
        data = json.dumps({} if value is None else value).encode()
        self.fault("reply")
        self.send_response(status)
        fixed = {"Content-Type": "application/json", "Content-Length": len(data)}
        for name, text in {**(headers or {}), **fixed}.items():
            self.send_header(name, str(text))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_file(self, path: Path, headers: dict[str, Any]) -> None:
        size = path.stat().st_size
        status, first, last = 200, 0, size - 1
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(part[1]), min(int(part[2] or last), last)
            if first > last:
                raise HubError(416, "range", **{"Content-Range": f"bytes */{size}"})
            status, headers = 206, {**headers, "Content-Range": f"bytes {first}-{last}/{size}"}
        self.fault("reply")
        self.send_response(status)
        fixed = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        for name, text in {**headers, **fixed, "Content-Length": last - first + 1}.items():
            self.send_header(name, str(text))
        self.end_headers()
        if self.command == "HEAD":
            return
        with path.open("rb") as file:
            file.seek(first)
            sent, left = 0, last - first + 1
            while left and (data := file.read(min(left, PIECE))):
                self.wfile.write(data)
                left, sent = left - len(data), sent + len(data)
                self.pause(len(data))
                self.fault("send", sent)

    def answer(self) -> None:
        self.consumed, status = False, 200
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.base = f"http://{self.headers.get('Host')}"
        try:
            self.fault("body")
            self.route([unquote(part) for part in url.path.split("/")[1:]])
        except HubError as error:
            status = error.status
            headers = {"X-Error-Message": error.message, **error.headers}
            if not self.consumed and self.command in ("POST", "PUT", "DELETE"):
                headers["Connection"], self.close_connection = "close", True
            self.reply_error(error.message, status, headers)
        except ConnectionError:
            status, self.close_connection = -1, True
        except Exception as error:
            status, self.close_connection = 500, True
            traceback.print_exc()
            self.reply_error(repr(error), 500, {"Connection": "close"})
        finally:
            sent = self.headers.get("Content-Length")
            self.log.append({"method": self.command, "path": self.path, "status": status, "bytes": sent})

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def reply_error(self, message: str, status: int, headers: dict[str, Any]) -> None:
        try:
            self.reply({"error": message}, status, headers)
        except (ConnectionError, HubError):
            self.close_connection = True

    def user(self) -> dict[str, str] | None:
        given = self.headers.get("Authorization", "")
        if not given:
            return None
        who = ACCOUNTS.get(given.removeprefix("Bearer ").strip())
        if who is None:  # like the Hub: a bad token is refused even on public repositories
            raise HubError(401, "Invalid credentials in Authorization header")
        return who

    def repository(self, name: str, write: bool = False) -> dict[str, Any]:
        """The repository, for who may read or write it; what one may not see is not there."""
        who, repo = self.user(), self.store.load(name)
        own = who is not None and name.split("/")[0] == who["name"]
        if repo is None or (repo["private"] and not own):
            # Over http:// the client takes a bare 401 for something else: the code says what it is.
            status, text = (404, "Repository not found") if who else (401, "Invalid username or password.")
            raise HubError(status, text, "RepoNotFound")
        if write and not own:
            raise HubError(403 if who else 401, "You don't have the rights to write to this repository")
        if write and who["role"] != "write":
            raise HubError(403, "This token has no write access")
        return repo

    def route(self, parts: list[str]) -> None:
        if parts[0] == "_hub":
            return self.control(parts[1])
        if parts[0] == "lfs":
            return self.lfs_object(parts[1:])
        if parts[0] == "xet":
            return self.xet(parts[1:])
        if parts[:2] == ["api", "whoami-v2"]:
            return self.whoami()
        if parts[:2] == ["api", "validate-yaml"]:
            return self.validate_yaml(self.json_body())
        if parts[:2] == ["api", "repos"]:
            return self.create_or_delete(parts[2], self.json_body())
        if parts[:2] == ["api", "models"] and len(parts) > 2:
            end = 3 if len(parts) == 3 or parts[3] in OF_A_REPOSITORY else 4
            return self.of_repository("/".join(parts[2:end]), parts[end:])
        if len(parts) > 4 and parts[2] == "resolve":
            return self.resolve_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        if len(parts) == 6 and parts[1].endswith(".git") and parts[2:] == ["info", "lfs", "objects", "batch"]:
            return self.lfs_batch(f"{parts[0]}/{parts[1][:-4]}")
        raise HubError(404, f"no such address: {self.command} {self.path}")

    def control(self, what: str) -> None:
        """GET /_hub/log lists requests; POST /_hub/faults arms one, `null` disarms all."""
        if what == "faults":
            fault = self.json_body()
            self.faults[:] = [] if fault is None else [*self.faults, fault]
        self.reply({"log": list(self.log)} if what == "log" else None)


class Server(ThreadingHTTPServer):
    """A thread a connection."""

    daemon_threads, request_queue_size = True, 64


def serve(root: Path, port: int = 0, throttle: int = 0) -> str:
    """Serve from a thread of this process; gives the address."""
    own = {"store": Store(root), "log": [], "faults": [], "throttle": throttle}
    server = Server(("127.0.0.1", port), type("HandlerOfOneHub", (Handler,), own))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"
