"""Xet, as hf_xet speaks it (version 1, without queries for deduplication).

A file is a list of segments of xorbs, which are rows of compressed chunks; a shard says which. Numbers are
little endian, and a hash is printed as four of them.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import time
from pathlib import Path
from typing import Any

from .store import HubError

RECORD = 48
"""Bytes of a record of a shard, and of its header."""
HAS_VERIFICATION, HAS_METADATA = 1 << 31, 1 << 30


def printed(raw: bytes) -> str:
    """A hash as Xet prints it."""
    return "".join(raw[start : start + 8][::-1].hex() for start in (0, 8, 16, 24))


class Xet:
    """A part of `server.Handler`."""

    def xet_token(self) -> None:
        expires, store = int(time.time()) + 3600, f"{self.base}/xet"
        token = {"accessToken": "xet", "exp": expires, "casUrl": store}
        headers = {"X-Xet-Cas-Url": store, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": expires}
        self.reply(token, headers=headers)

    def xet_hash(self, sha: str) -> str | None:
        """The name that Xet has for a file; None where it came up another way."""
        found = self.store.read(f"xet/files/{sha}.sha.json")
        return found and found["file"]

    def xorb(self, name: str) -> Path:
        return self.store.root / "xet/xorbs" / name

    def xet(self, parts: list[str]) -> None:
        kind = parts[1] if len(parts) > 1 else ""
        if parts[0] == "v1" and kind == "xorbs" and self.command == "POST":
            new = not self.xorb(parts[3]).exists()
            with self.store.temporary() as file:
                for data in self.chunks():
                    file.write(data)
            os.replace(file.name, self.xorb(parts[3]))
            return self.reply({"was_inserted": new})
        if parts[0] == "v1" and kind == "shards":
            self.shard(b"".join(self.chunks()))
            return self.reply({"result": 1})
        if parts[0] == "v1" and kind == "reconstructions":
            return self.reconstruct(parts[2])
        if parts[0] == "data":
            return self.send_file(self.xorb(kind), {})
        raise HubError(404, "not here")  # version 2, grants, deduplication: hf_xet falls back

    def shard(self, data: bytes) -> None:
        """Take down the files of a shard: a file's record, its segments, their verification, its sha256."""
        at = RECORD
        while at < len(data) and data[at : at + 32] != b"\xff" * 32:
            name, (flags, count) = printed(data[at : at + 32]), struct.unpack_from("<II", data, at + 32)
            segments = []
            for number in range(1, count + 1):
                start = at + RECORD * number
                segment = [printed(data[start : start + 32]), *struct.unpack_from("<III", data, start + 36)]
                if not self.xorb(segment[0]).exists():
                    raise HubError(400, f"the shard names the missing xorb {segment[0]}")
                segments.append(segment)
            at += RECORD * (1 + count + (count if flags & HAS_VERIFICATION else 0))
            self.store.write(f"xet/files/{name}.json", segments)
            if flags & HAS_METADATA:
                size = sum(segment[1] for segment in segments)
                record = {"file": name, "size": size}
                self.store.write(f"xet/files/{printed(data[at : at + 32])}.sha.json", record)
                at += RECORD

    def reconstruct(self, name: str) -> None:
        """Where the bytes of a file, or of a range of it, lie."""
        segments = self.store.read(f"xet/files/{name}.json")
        if segments is None:
            raise HubError(404, "no such xet file")
        total = sum(segment[1] for segment in segments)
        first, end = 0, total
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, end = int(part[1]), min(int(part[2]) + 1 if part[2] else total, total)
            if first >= total:
                raise HubError(416, "range")
        terms, found, skip, at = [], {}, 0, 0
        for xorb, length, start, stop in segments:
            if at + length > first and at < end:
                skip = skip if terms else first - at
                chunks = {"start": start, "end": stop}
                terms.append({"hash": xorb, "unpacked_length": length, "range": chunks})
                found.setdefault(xorb, []).append({"range": chunks, **self.place(xorb, start, stop)})
            at += length
        self.reply({"offset_into_first_range": skip, "terms": terms, "fetch_info": found})

    def place(self, xorb: str, start: int, stop: int) -> dict[str, Any]:
        """The bytes of some chunks of a xorb. A chunk's header: version, packed length, scheme, length."""
        data, offsets = self.xorb(xorb).read_bytes(), [0]
        while len(offsets) <= stop:
            packed = int.from_bytes(data[offsets[-1] + 1 : offsets[-1] + 4], "little")
            offsets.append(offsets[-1] + 8 + packed)
        span = {"start": offsets[start], "end": offsets[stop] - 1}
        return {"url": f"{self.base}/xet/data/{xorb}", "url_range": span}

    def materialize(self, sha: str) -> None:
        """A commit names content that came up through Xet: put it together with hf_xet, and check it."""
        import hf_xet

        known = self.store.read(f"xet/files/{sha}.sha.json")
        if known is None:
            raise HubError(400, f"LFS object {sha} was never uploaded")
        with self.store.temporary() as file:
            path = Path(file.name)
        expires = int(time.time()) + 3600
        options = {"endpoint": f"{self.base}/xet", "token": "xet", "token_expiry_unix_secs": expires}
        with hf_xet.XetSession().new_file_download_group(**options) as group:
            group.start_download_file(hf_xet.XetFileInfo(known["file"], known["size"]), str(path))
        if hashlib.sha256(path.read_bytes()).hexdigest() != sha:
            raise HubError(400, f"the xet content of {sha} is not what it claims to be")
        os.replace(path, self.store.blob(sha))
