"""What the README shows works: its Python runs, its commands and files are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)


def test_the_python_runs_in_order():
    """The pipeline, a sum of terms, the loop by hand, an autoencoder: each goes on from those before."""
    first, terms, loop, autoencoder = [block for block in blocks("python") if "push_to_hub" not in block]
    scope: dict[str, Any] = {}
    exec(first, scope)
    pipeline = scope["pipeline"]
    pipeline.set_progress_bar_config(disable=True)
    assert [image.size for image in scope["images"]] == [(32, 32)] * 2

    exec(terms, scope)
    assert len(scope["images"]) == 1

    exec(loop, scope)
    assert scope["latents"].shape == (1, 4, 8, 8)
    assert scope["latents"].isfinite().all() and not scope["latents"].requires_grad

    exec(autoencoder, scope)
    assert [image.size for image in scope["steps_between"]] == [(32, 32)] * 8


@pytest.mark.parametrize("target", re.findall(r"^make (\S+)", "\n".join(blocks("sh")), flags=re.MULTILINE))
def test_every_make_target_is_there(target: str):
    assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http)([^)]+)\)|((?:training|docs)/[\w/]+\.\w+)", TEXT))
def test_every_file_that_it_names_is_there(path: tuple[str, str]):
    assert (ROOT / (path[0] or path[1])).exists()
