"""Push a checkpoint: one commit, or nothing.

Over Xet the client's upload of a folder makes several commits, and a reader between two of them gets a mix
of two versions. So what is pushed goes up by one `create_commit` on the head that was looked at: the
weights, the card, and the removal of what the new version replaces (shards that it no longer has, which a
loader would prefer).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from guided_diffusers.hub.card import CARD, CardFacts, card_files
from guided_diffusers.hub.entry_point import COMPONENT_FILE, PIPELINE_FILE, entry_point
from guided_diffusers.hub.errors import hub_errors
from guided_diffusers.hub.inventory import INDEX
from guided_diffusers.store.safety import check_checkpoint, read_json
from guided_diffusers.store.weight_files import PICKLE_SUFFIXES, weights_kind

_CONFIGS = (
    INDEX,
    "config.json",
    "scheduler_config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
)
_OF_THIS_MACHINE = ("_name_or_path", "name_or_path", "is_local", "local_files_only")
"""What libraries write into configurations about where they loaded them from."""


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What a push did.

    Attributes:
        oid: The commit that the repository now has.
        commit_url: Its address.
        changed: False if the repository already had all of it, and no commit was made.
        pr_url: The pull request, if one was asked for.
    """

    repo_id: str
    oid: str
    commit_url: str
    changed: bool
    pr_url: str | None = None


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    with_code: bool = False,
    card: str | Path | CardFacts | None = None,
    new_card: bool = False,
) -> Pushed:
    """Push a folder that `save_pretrained` wrote. The folder is left as it is.

    Args:
        folder: A pipeline's or a model's.
        repo_id: "owner/name" (or "name", one's own); made if it is not there.
        revision: The branch, made if it is not there; by default main.
        subfolder: The folder of the repository to push to; by default its root.
        private: Whether a new repository is private; by default the owner's setting.
        token: Of the Hub; by default the one logged in.
        commit_message: By default "Upload <class>".
        create_pr: Open a pull request instead.
        with_code: Add what `DiffusionPipeline.from_pretrained(repo_id, trust_remote_code=True)` needs where
            this package is installed but not imported: see `hub.entry_point`.
        card: The card's text (.md), its facts (.json or CardFacts); by default `card.json` in the folder.
        new_card: Write the card anew though the folder or the repository has one.

    Raises:
        HubError: The Hub cannot be reached or refuses; in one line.
        OSError: The folder is no checkpoint, or has pickles.
        ValueError: with_code for a pipeline that is not ours.
    """
    folder = Path(folder)
    contents = _contents(folder, with_code)
    message = commit_message or f"Upload {_class_of(contents)}"
    api, branch = HfApi(token=token), revision or "main"
    with hub_errors(repo_id, branch):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if branch != "main" and not branch.startswith("refs/"):
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        info = api.model_info(repo_id, revision=branch)
        there = {sibling.rfilename for sibling in info.siblings or ()}
        if not subfolder:
            has_card = CARD in contents or CARD in there
            if card is not None or new_card or not has_card:
                contents |= card_files(folder, repo_id, card, with_code)
        prefix = f"{subfolder.strip('/')}/" if subfolder else ""
        for name in _configs_of_other_variants(contents, _below(there, prefix)):
            del contents[name]
        additions = [
            CommitOperationAdd(prefix + name, content if isinstance(content, bytes) else str(content))
            for name, content in sorted(contents.items())
        ]
        stale = [CommitOperationDelete(prefix + name) for name in replaced(_below(there, prefix), contents)]
        commit = api.create_commit(
            repo_id,
            [*additions, *stale],
            commit_message=message,
            revision=branch,
            create_pr=create_pr,
            parent_commit=None if create_pr else info.sha,
        )
    return Pushed(
        repo_id=repo_id,
        oid=commit.oid,
        commit_url=str(commit.commit_url),
        changed=commit.oid != info.sha,
        pr_url=commit.pr_url,
    )


def replaced(there: Iterable[str], contents: Iterable[str]) -> list[str]:
    """The files of a repository that a push must remove: weights and shims of an earlier version.

    Weights of another variant stay, and so does whatever the push says nothing about.
    """
    new = set(contents)
    sets = {(str(Path(name).parent), *kind) for name in new if (kind := weights_kind(name))}
    folders = {str(Path(name).parent) for name in new}

    def is_stale(name: str) -> bool:
        parent, kind = str(Path(name).parent), weights_kind(name)
        shim = (parent != "." and Path(name).name == COMPONENT_FILE) or name == PIPELINE_FILE
        if shim:
            return INDEX in new and (parent in folders or name == PIPELINE_FILE)
        return kind is not None and (parent, *kind) in sets

    return sorted(name for name in there if name not in new and is_stale(name))


def _contents(folder: Path, with_code: bool) -> dict[str, Path | bytes]:
    """What goes up, by its path in the repository: a file of the folder, or other bytes in its place."""
    if not folder.is_dir():
        raise OSError(f"{folder} is no folder")
    contents: dict[str, Path | bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not path.is_file() or any(part.startswith(".") or part == "__pycache__" for part in name.parts):
            continue
        if path.suffix in PICKLE_SUFFIXES:
            raise OSError(f"{path} is a pickle: only safetensors are pushed, for loading a pickle runs code")
        contents[name.as_posix()] = _without_origin(path) if path.suffix == ".json" else path
    check_checkpoint(folder, code=True)
    if INDEX in contents:
        if with_code:
            contents |= entry_point(_forget(read_json(folder / INDEX)))
    elif not any(weights_kind(name) or name.endswith("config.json") for name in contents):
        raise OSError(f"{folder} holds no checkpoint: no model_index.json, no config.json, no safetensors")
    elif with_code:
        raise ValueError("with_code is for pipelines: a single model is loaded by its class")
    return contents


def _configs_of_other_variants(contents: Iterable[str], there: Iterable[str]) -> list[str]:
    """The configurations that a push of a variant leaves alone: those of components that have other weights.

    transformers writes the dtype into it, and loads in that dtype: half a variant's would be all weights'.
    """

    def variants(names: Iterable[str]) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for name in names:
            if kind := weights_kind(name):
                found.setdefault(str(Path(name).parent), set()).add(kind[1])
        return found

    before, names = variants(there), set(contents)
    return [
        config
        for folder, new in variants(names).items()
        if "" not in new
        and "" in before.get(folder, ())
        and (config := str(Path(folder, "config.json"))) in names
    ]


def _without_origin(path: Path) -> Path | bytes:
    """The file, or its text without the folder it was loaded from, which means nothing elsewhere."""
    if path.name not in _CONFIGS:
        return path
    config = read_json(path)
    kept = _forget(config)
    return path if kept == config else (json.dumps(kept, indent=2, sort_keys=True) + "\n").encode()


def _forget(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in _OF_THIS_MACHINE}


def _class_of(contents: dict[str, Path | bytes]) -> str:
    for name in (INDEX, "config.json"):
        if name in contents:
            content = contents[name]
            config = json.loads(content if isinstance(content, bytes) else content.read_bytes())
            found = config.get("_class_name") or (config.get("architectures") or [None])[0]
            return found[-1] if isinstance(found, list) else str(found or "model")
    return "model"


def _below(names: Iterable[str], prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
