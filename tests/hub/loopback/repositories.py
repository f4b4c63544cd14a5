"""Repositories: made, removed, described, listed, branched, read."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from .store import HubError, git_oid, pointer

FRONT_MATTER = re.compile(r"\s*---\r?\n(.*?)\r?\n---", re.S)


class Repositories:
    """A part of `server.Handler`."""

    def whoami(self) -> None:
        who = self.user()
        if who is None:
            raise HubError(401, "Invalid username or password.")
        token = {"displayName": "test", "role": who["role"]}
        auth = {"type": "access_token", "accessToken": token}
        self.reply({"type": "user", "id": who["name"], "name": who["name"], "orgs": [], "auth": auth})

    def create_or_delete(self, action: str, wanted: dict[str, Any]) -> None:
        who = self.user()
        if who is None:
            raise HubError(401, "Invalid username or password.")
        owner = wanted.get("organization") or who["name"]
        name = f"{owner}/{wanted['name']}"
        answer = {"url": f"{self.base}/{name}", "name": name, "id": name}
        if action == "delete":
            self.repository(name, write=True)
            (self.store.root / f"repos/{name}.json").unlink()
            return self.reply()
        if owner != who["name"] or who["role"] != "write":
            raise HubError(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        with self.store.lock:
            if self.store.load(name):
                return self.reply({"error": "You already created this model repo", **answer}, 409)
            private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
            self.store.create(name, private, who["name"])
        self.reply(answer)

    def of_repository(self, name: str, parts: list[str]) -> None:
        """Everything under /api/models/NAME."""
        head, revision = parts[0] if parts else "", parts[1] if len(parts) > 1 else "main"
        reads = self.command == "GET" or head == "paths-info" or "create_pr" in self.query
        repo = self.repository(name, write=not reads or head == "xet-write-token")
        if head in ("", "revision"):
            return self.reply(self.info(repo, revision))
        if head == "auth-check":
            return self.reply()
        if head.startswith("xet-"):
            return self.xet_token()
        if head == "tree":
            return self.tree(repo, revision, "/".join(parts[2:]))
        if head == "paths-info":
            return self.paths_info(repo, revision)
        if head == "refs":
            return self.refs(repo)
        if head == "commits":
            return self.commits(repo, revision)
        if head == "preupload":
            return self.preupload(repo, revision, self.json_body())
        if head == "commit":
            return self.commit(repo, revision)
        return self.change(name, head, revision)

    def change(self, name: str, head: str, revision: str) -> None:
        """What changes a repository's record: visibility, branches, tags."""
        wanted = self.json_body()
        with self.store.lock:
            repo = self.store.load(name)
            if head == "settings":
                repo["private"] = wanted.get("visibility") == "private" or bool(wanted.get("private"))
            elif head in ("branch", "tag"):
                kind = repo["refs" if head == "branch" else "tags"]
                ref = revision if head == "branch" or self.command == "DELETE" else wanted["tag"]
                if self.command == "DELETE":
                    if kind.pop(ref, None) is None:
                        raise HubError(404, f"{head} not found", "RevisionNotFound")
                elif ref in kind:
                    raise HubError(409, f"Reference already exists: {ref}")
                else:
                    start = (wanted.get("startingPoint") or "main") if head == "branch" else revision
                    kind[ref] = self.store.resolve(repo, start)[0]
            else:
                raise HubError(404, f"no such address: {self.command} {self.path}")
            self.store.save(repo)
        self.reply()

    def info(self, repo: dict[str, Any], revision: str) -> dict[str, Any]:
        sha, commit = self.store.resolve(repo, revision)
        card, siblings = self.card(commit["tree"]), []
        for path, entry in sorted(commit["tree"].items()):
            sibling = {"rfilename": path}
            if "blobs" in self.query:
                described = self.describe(path, entry)
                sibling |= {"size": entry["size"], "blobId": entry["oid"]}
                if entry["lfs"]:
                    sibling["lfs"] = {"sha256": entry["lfs"], **described["lfs"]}
            siblings.append(sibling)
        library = card.get("library_name")
        return {
            "_id": repo["id"],
            "id": repo["id"],
            "modelId": repo["id"],
            "author": repo["id"].split("/")[0],
            "sha": sha,
            "private": repo["private"],
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "createdAt": repo["createdAt"],
            "lastModified": commit["date"],
            "siblings": siblings,
            "tags": [*(card.get("tags") or []), *([library] if library else [])],
            "library_name": library,
            "pipeline_tag": card.get("pipeline_tag"),
            "cardData": card or None,
        }

    def card(self, tree: dict[str, Any]) -> dict[str, Any]:
        """The metadata of the model card."""
        if "README.md" not in tree:
            return {}
        found = FRONT_MATTER.match(self.store.blob(tree["README.md"]["sha256"]).read_text())
        return (yaml.safe_load(found[1]) or {}) if found else {}

    def describe(
        self, path: str, entry: dict[str, Any], commit: tuple[str, dict] | None = None
    ) -> dict[str, Any]:
        """A file as the tree's listing has it."""
        described = {"type": "file", "path": path, "oid": entry["oid"], "size": entry["size"]}
        if sha := entry["lfs"]:
            size = entry["size"]
            described["lfs"] = {"oid": sha, "size": size, "pointerSize": len(pointer(sha, size))}
            if xet := self.xet_hash(sha):
                described["xetHash"] = xet
        if commit is not None:
            described["lastCommit"] = {"id": commit[0], **{key: commit[1][key] for key in ("title", "date")}}
        return described

    def tree(self, repo: dict[str, Any], revision: str, folder: str) -> None:
        commit = self.store.resolve(repo, revision)
        recursive, expand = (
            self.query.get(key, [""])[0].lower() in ("true", "1") for key in ("recursive", "expand")
        )
        prefix, files, folders = folder.strip("/") + "/" if folder else "", [], {}
        for path, entry in sorted(commit[1]["tree"].items()):
            if not path.startswith(prefix):
                continue
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts)):
                folders.setdefault(prefix + "/".join(parts[:depth]), depth)
            if len(parts) == 1 or recursive:
                files.append(self.describe(path, entry, commit if expand else None))
        if prefix and not files and not folders:
            raise HubError(404, f"{prefix} does not exist on {revision}", "EntryNotFound")
        listed = [_folder(path) for path, depth in folders.items() if depth == 1 or recursive] + files
        count, start = (int(self.query.get(key, [default])[0]) for key, default in _PAGE.items())
        link = {}
        if start + count < len(listed):
            address = f"{self.base}{urlsplit(self.path).path}?recursive={recursive}&expand={expand}"
            link = {"Link": f'<{address}&limit={count}&cursor={start + count}>; rel="next"'}
        self.reply(listed[start : start + count], headers=link)

    def paths_info(self, repo: dict[str, Any], revision: str) -> None:
        form = parse_qs(b"".join(self.chunks()).decode())
        commit = self.store.resolve(repo, revision)
        expand = commit if form.get("expand", [""])[0].lower() == "true" else None
        tree, paths = commit[1]["tree"], form.get("paths", [])
        found = [self.describe(path, tree[path], expand) for path in paths if path in tree]
        found += [
            _folder(path)
            for path in paths
            if path not in tree and any(name.startswith(path.rstrip("/") + "/") for name in tree)
        ]
        self.reply(found)

    def refs(self, repo: dict[str, Any]) -> None:
        def listed(kind: str, refs: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": k, "ref": f"refs/{kind}/{k}", "targetCommit": v} for k, v in refs.items()]

        heads = {name: sha for name, sha in repo["refs"].items() if not name.startswith("refs/")}
        pulls = [
            {"name": name, "ref": name, "targetCommit": sha}
            for name, sha in repo["refs"].items()
            if name.startswith("refs/pr/")
        ]
        tags = listed("tags", repo["tags"])
        self.reply({"branches": listed("heads", heads), "converts": [], "tags": tags, "pullRequests": pulls})

    def commits(self, repo: dict[str, Any], revision: str) -> None:
        sha, found = self.store.resolve(repo, revision)[0], []
        while sha:
            commit = self.store.read(f"commits/{sha}.json")
            found.append(
                {"id": sha, "title": commit["title"], "message": commit["body"], "date": commit["date"]}
            )
            found[-1]["authors"] = [{"user": commit["author"]}]
            sha = commit["parent"]
        self.reply(found)

    def resolve_file(self, name: str, revision: str, path: str) -> None:
        repo = self.repository(name)
        sha, commit = self.store.resolve(repo, revision)
        entry = commit["tree"].get(path)
        if entry is None:
            raise HubError(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": sha})
        etag = f'"{entry["lfs"] or entry["oid"]}"'
        headers = {"X-Repo-Commit": sha, "ETag": etag, "X-Linked-Size": entry["size"]}
        if entry["lfs"]:
            headers["X-Linked-Etag"] = etag
            if xet := self.xet_hash(entry["lfs"]):
                refresh = f"{self.base}/api/models/{name}/xet-read-token/{sha}"
                headers |= {"X-Xet-Hash": xet, "X-Xet-Refresh-Route": refresh}
                headers["Link"] = f'<{refresh}>; rel="xet-auth"'
        self.send_file(self.store.blob(entry["sha256"]), headers)


_PAGE = {"limit": "1000", "cursor": "0"}


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": git_oid(path.encode()), "size": 0}
