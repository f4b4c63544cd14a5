"""`guided-diffusers push` and `pull`: checkpoints to the Hub and from it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

Folder = Annotated[Path, typer.Argument(help="The checkpoint's folder.", exists=True, file_okay=False)]
Target = Annotated[Path, typer.Argument(help="The folder to make.")]
Repo = Annotated[str, typer.Argument(help="The repository on the Hub: owner/name.")]
Revision = Annotated[
    str | None, typer.Option(help="The branch; pull takes a tag or a commit too.", show_default="main")
]
Token = Annotated[str | None, typer.Option(help="Of the Hub.", show_default="the one logged in")]
Private = Annotated[bool, typer.Option("--private", help="Make a new repository private.")]
Message = Annotated[str | None, typer.Option(help="Of the commit.", show_default="Upload and the class")]
PullRequest = Annotated[bool, typer.Option("--pull-request", help="Open a pull request instead.")]
WithCode = Annotated[
    bool,
    typer.Option("--with-code", help="Add pipeline.py, for diffusers' loader without an import of ours."),
]
Card = Annotated[
    Path | None,
    typer.Option(help="The card (.md), or its facts (.json).", show_default="card.json in the folder"),
]
NewCard = Annotated[bool, typer.Option("--new-card", help="Write the card anew though there is one.")]
Replace = Annotated[bool, typer.Option("--replace", help="Take the place of a folder that is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def push(
    folder: Folder,
    repo: Repo,
    revision: Revision = None,
    token: Token = None,
    private: Private = False,
    message: Message = None,
    pull_request: PullRequest = False,
    with_code: WithCode = False,
    card: Card = None,
    new_card: NewCard = False,
    json_output: Json = False,
) -> dict[str, Any]:
    """Push a checkpoint to the Hub, in one commit.

    Safetensors only, with a model card. The card is made from the files, from card.json and from
    evaluation.json beside them (what `evaluate --json` printed); one that is there already is kept.
    """
    from guided_diffusers.hub import push_folder

    _progress()
    pushed = push_folder(
        folder,
        repo,
        revision=revision,
        private=private or None,
        token=token,
        commit_message=message,
        create_pr=pull_request,
        with_code=with_code,
        card=card,
        new_card=new_card,
    )
    if not json_output and pushed.changed:
        typer.echo(pushed.pr_url or pushed.commit_url)
    elif not json_output:
        typer.echo(f"nothing to push: {pushed.repo_id} has all of it")
    return asdict(pushed)


def pull(
    repo: Repo,
    folder: Target,
    revision: Revision = None,
    token: Token = None,
    replace: Replace = False,
    json_output: Json = False,
) -> dict[str, Any]:
    """Download a checkpoint from the Hub into a folder.

    Complete, or not at all: stopped and given again, it goes on where it was.
    """
    from guided_diffusers.hub import pull as pull_checkpoint

    _progress()
    path = pull_checkpoint(repo, folder, revision=revision, token=token, replace=replace)
    if not json_output:
        typer.echo(path)
    return {"folder": str(path), "repo_id": repo}


def _progress() -> None:
    """Progress bars where somebody looks."""
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
