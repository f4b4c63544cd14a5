"""Pull a revision into a folder: complete, or not there at all.

The files go to a neighbouring folder that carries the commit's name, so a pull that was interrupted goes on
where it was if the revision is still the same commit, and never mixes two. When all are there and are what
the Hub says they are, the folder gets its name.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, constants, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import CachedRepoTreeNotFoundError

from guided_diffusers.hub.errors import HubError, hub_errors
from guided_diffusers.store.hashes import file_hash
from guided_diffusers.store.safety import check_checkpoint, check_path
from guided_diffusers.store.weight_files import PICKLE_SUFFIXES

PULLING, REPLACED = ".pulling-", ".replaced-"


def pull(
    repo_id: str,
    folder: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    replace: bool = False,
) -> Path:
    """Download a checkpoint into a folder, atomically.

    Args:
        repo_id: "owner/name".
        folder: Where to; it must not be there, or be empty, unless `replace`.
        revision: A branch, a tag or a commit; by default main.
        token: Of the Hub; by default the one logged in.
        replace: Take the place of a folder that is there, once all is there.

    Returns:
        The folder.

    Raises:
        HubError: The Hub cannot be reached or refuses, or what came is not what it says; in one line.
        FileExistsError: The folder is there.
        OSError: The checkpoint is refused: see `safety`.
    """
    folder = Path(folder)
    old = folder.parent / f"{REPLACED}{folder.name}"
    if old.exists() and not folder.exists():  # an earlier pull was stopped between its two renames
        old.rename(folder)
    if folder.exists() and not replace and (folder.is_file() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already: name another folder, or replace it")
    with hub_errors(repo_id, revision):
        info = HfApi(token=token).model_info(repo_id, revision=revision, files_metadata=True)
        for file in info.siblings:
            check_path(file.rfilename, repo_id)
        partial = folder.parent / f"{PULLING}{folder.name}-{info.sha}"
        for other in folder.parent.glob(f"{PULLING}{folder.name}-*"):
            if other != partial:
                shutil.rmtree(other)
        snapshot_download(repo_id, revision=info.sha, token=token, local_dir=partial)
    _verify(partial, info.siblings, repo_id)
    check_checkpoint(partial, code=True)  # code of its own runs only where it is trusted
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def check_snapshot(
    repo_id: str, folder: Path, components: Collection[str], cache_dir: str | Path | None = None
) -> None:
    """Check that a snapshot in the cache has all small files of a pipeline's components.

    Where the Hub does not answer, the client hands out what an earlier, interrupted download left. Weights
    that are missing are noticed on loading; a tokenizer without its vocabulary would load, empty.

    Args:
        repo_id: "owner/name".
        folder: The snapshot, named by its commit.
        components: Those that will be loaded.
        cache_dir: Of the client, where it is not the usual one.

    Raises:
        HubError: A file is missing.
    """
    try:
        tree = get_cached_repo_tree(repo_id, revision=folder.name, cache_dir=cache_dir)
        paths = [PurePosixPath(file.path) for file in tree]
    except CachedRepoTreeNotFoundError:  # then nothing but model_index.json had come
        paths = []
    for component in components:
        files = [path for path in paths if path.parts[0] == component and path.suffix != ".py"]
        if any(path.suffix in (".safetensors", *PICKLE_SUFFIXES) for path in files):
            files = [path for path in files if path.name == "config.json"]
        if not (folder / component).is_dir() or not all((folder / path).is_file() for path in files):
            raise HubError(
                f"{repo_id}: only a part of it has been downloaded ({component} is not whole), and the Hub "
                f"at {constants.ENDPOINT} does not answer: load it again when it does"
            )


def _verify(folder: Path, files: list[Any], repo_id: str) -> None:
    """Sizes of all files, and the contents of the large ones, as the Hub has them."""
    for file in files:
        path = folder / file.rfilename
        size = path.stat().st_size if path.is_file() else None
        whole = size == file.size and (file.lfs is None or file_hash(path) == file.lfs.sha256)
        if not whole:
            path.unlink(missing_ok=True)
            raise HubError(f"{repo_id}: {file.rfilename} did not arrive whole: pull again")
