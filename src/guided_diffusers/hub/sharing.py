"""`push_to_hub` for whatever has `save_pretrained`: saved to a temporary folder, pushed as one commit."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from guided_diffusers.hub.card import BESIDE, CardFacts
from guided_diffusers.hub.push import Pushed, push_folder

PUSH_ARGUMENTS = ("repo_id", "commit_message", "private", "token", "create_pr", "revision", "with_code")
"""What `save_pretrained(push_to_hub=True)` hands on to `push_to_hub`."""


def push_to_hub(
    self: Any,
    repo_id: str,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    create_pr: bool = False,
    safe_serialization: bool = True,
    variant: str | None = None,
    subfolder: str | None = None,
    *,
    revision: str | None = None,
    max_shard_size: int | str | None = None,
    with_code: bool = False,
    card: str | Path | CardFacts | None = None,
    new_card: bool = False,
) -> Pushed:
    """Push to the Hub: one commit, safetensors only, with a model card where there is none.

    A class of pipelines or models takes it as its method.

    Args:
        self: The pipeline or the model.
        repo_id: "owner/name" (or "name", one's own); made if it is not there.
        commit_message: By default "Upload <class>".
        private: Whether a new repository is private.
        token: Of the Hub; by default the one logged in.
        create_pr: Open a pull request instead.
        safe_serialization: As in diffusers; weights are always safetensors.
        variant: Part of the weights' file names, such as "fp16"; they keep the dtype that they have.
        subfolder: The folder of the repository to push to; by default its root.
        revision: The branch, made if it is not there; by default main.
        max_shard_size: Of a file of weights, such as "5GB" (a string, or bytes).
        with_code: For pipelines, add what the generic loader needs: see `hub.push_folder`.
        card: The card's text (.md) or its facts (.json or CardFacts); by default what lies beside the
            weights where this was loaded from a folder.
        new_card: Write the card anew though there is one.

    Raises:
        HubError: The Hub cannot be reached or refuses; in one line.
    """
    saving: dict[str, Any] = {"safe_serialization": safe_serialization, "variant": variant}
    if max_shard_size is not None:
        saving["max_shard_size"] = max_shard_size
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        self.save_pretrained(folder, **saving)
        _bring_along(self, folder)
        return push_folder(
            folder,
            repo_id,
            revision=revision,
            subfolder=subfolder,
            private=private,
            token=token,
            commit_message=commit_message or f"Upload {type(self).__name__}",
            create_pr=create_pr,
            with_code=with_code,
            card=card,
            new_card=new_card,
        )


def _bring_along(pushed: Any, folder: Path) -> None:
    """The card and its facts, from beside the weights that this was loaded from."""
    origin = Path(getattr(pushed.config, "_name_or_path", None) or "")
    if origin == Path() or not origin.is_dir():
        return
    for name in BESIDE:
        if (origin / name).is_file():
            shutil.copyfile(origin / name, folder / name)
