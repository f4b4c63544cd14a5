"""Uploads: which way a file goes, the objects of LFS, and the commit."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import os
from typing import Any

import yaml

from .repositories import FRONT_MATTER
from .store import HubError

LFS_THRESHOLD = 10 * 1024 * 1024
"""Larger files are LFS whatever their name."""


class Uploads:
    """A part of `server.Handler`."""

    def validate_yaml(self, wanted: dict[str, Any]) -> None:
        found = FRONT_MATTER.match(wanted["content"])
        if not found:
            warning = {"message": "empty or missing yaml metadata in repo card"}
            return self.reply({"errors": [], "warnings": [warning]})
        try:
            if not isinstance(yaml.safe_load(found[1]), dict | None):
                raise ValueError("metadata must be a mapping")
        except (yaml.YAMLError, ValueError) as error:
            return self.reply({"errors": [{"message": str(error)}], "warnings": []}, 400)
        self.reply({"errors": [], "warnings": []})

    def preupload(self, repo: dict[str, Any], revision: str, wanted: dict[str, Any]) -> None:
        """Say of each file whether it goes up as LFS, and its present name in git."""
        tree = self.store.resolve(repo, revision)[1]["tree"]
        attributes = self.store.blob(tree[".gitattributes"]["sha256"]).read_text()
        patterns = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line]
        files = []
        for file in wanted["files"]:
            path = file["path"]
            large = file["size"] > LFS_THRESHOLD or b"\0" in base64.b64decode(file.get("sample") or "")
            large = large or any(fnmatch.fnmatch(path.split("/")[-1], pattern) for pattern in patterns)
            files.append({"path": path, "shouldIgnore": False, "uploadMode": "lfs" if large else "regular"})
            if entry := tree.get(path):
                files[-1]["oid"] = entry["lfs"] or entry["oid"]
        self.reply({"files": files, "commitOid": repo["refs"].get(revision)})

    def lfs_batch(self, name: str) -> None:
        wanted = self.json_body()
        self.repository(name, write=wanted["operation"] == "upload")
        answers = []
        for item in wanted["objects"]:
            answer, address = {"oid": item["oid"], "size": item["size"]}, f"{self.base}/lfs/{item['oid']}"
            if not self.store.blob(item["oid"]).exists():
                signed = f"{item['size']}-{self.signature(item['oid'], item['size'])}"
                verify = {"href": f"{address}/verify"}
                answer["actions"] = {"upload": {"href": f"{address}/{signed}"}, "verify": verify}
            answers.append(answer)
        self.reply({"transfer": "basic", "objects": answers})

    def signature(self, oid: str, size: int) -> str:
        """Stands for the signed addresses of the Hub's store."""
        return hashlib.sha256(f"{self.store.secret}{oid}{size}".encode()).hexdigest()[:16]

    def lfs_object(self, parts: list[str]) -> None:
        oid, store = parts[0], self.store
        if parts[1] == "verify":
            size = self.json_body()["size"]
            if not store.blob(oid).exists() or store.blob(oid).stat().st_size != size:
                raise HubError(404, "object not uploaded")
            return self.reply()
        size = int(parts[1].split("-")[0])
        if parts[1] != f"{size}-{self.signature(oid, size)}":
            raise HubError(403, "bad signature")
        file, digest = store.temporary(), hashlib.sha256()
        try:
            with file:
                for data in self.chunks():
                    digest.update(data)
                    file.write(data)
            if digest.hexdigest() != oid or os.path.getsize(file.name) != size:
                raise HubError(400, "sha256 or size of the uploaded content does not match")
            os.replace(file.name, store.blob(oid))
        finally:
            if os.path.exists(file.name):
                os.unlink(file.name)
        self.reply(headers={"ETag": f'"{oid[:32]}"'})

    def commit(self, repo: dict[str, Any], revision: str) -> None:
        """The whole commit or nothing of it."""
        lines = [json.loads(line) for line in b"".join(self.chunks()).splitlines() if line.strip()]
        head, who = lines[0]["value"], self.user()
        for line in lines:  # what is slow comes first, outside the lock
            if line["key"] == "lfsFile" and not self.store.blob(line["value"]["oid"]).exists():
                self.materialize(line["value"]["oid"])
        answer = {"success": True, "hookOutput": ""}
        with self.store.lock:
            repo = self.store.load(repo["id"])
            tip, commit = self.store.resolve(repo, revision)
            if revision not in repo["refs"]:
                raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            if head.get("parentCommit") and not tip.startswith(head["parentCommit"]):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            tree = dict(commit["tree"])
            for line in lines[1:]:
                self.apply(line["key"], line["value"], tree)
            if "create_pr" in self.query:
                repo["prs"] += 1
                revision = f"refs/pr/{repo['prs']}"
                repo["refs"][revision] = tip
                answer["pullRequestUrl"] = f"{self.base}/{repo['id']}/discussions/{repo['prs']}"
            title, body = head["summary"], head.get("description", "")
            answer["commitOid"] = self.store.commit(repo, revision, tree, title, body, who["name"])
        self.reply({**answer, "commitUrl": f"{self.base}/{repo['id']}/commit/{answer['commitOid']}"})

    def apply(self, key: str, value: dict[str, Any], tree: dict[str, Any]) -> None:
        """One operation of a commit."""
        path = value["path"]
        if key == "file":
            tree[path] = self.store.entry(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            tree[path] = self.store.lfs_entry(value["oid"])
        elif key in ("deletedFile", "deletedFolder"):
            whole, below = key == "deletedFolder", path.rstrip("/") + "/"
            gone = [name for name in tree if name == path or (whole and name.startswith(below))]
            if not gone:
                raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
            for name in gone:
                del tree[name]
        else:
            raise HubError(400, f"unknown operation {key}")
