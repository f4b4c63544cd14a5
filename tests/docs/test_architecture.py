"""docs/architecture.md names every room, and its picture is drawn from the imports as they are."""

from __future__ import annotations

import json
import re
import sys

import architecture
import pytest
from PIL import Image

PAGE = (architecture.ROOT / "docs" / "architecture.md").read_text()
PICTURE = architecture.ROOT / "docs" / "images" / "architecture.png"


def test_the_page_names_every_room():
    assert set(re.findall(r"^\| `([\w.]+)` \|", PAGE, flags=re.MULTILINE)) == architecture.rooms().keys()


def test_the_modules_that_the_page_names_are_there():
    named = set(re.findall(r"`((?:\w+/)+\w+\.\w+)`", PAGE))
    missing = {name for name in named if not (architecture.PACKAGE / name).exists()}
    assert named and not {name for name in missing if not (architecture.ROOT / name).exists()}


def test_the_script_draws_the_picture(tmp_path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "drawn.png"
    monkeypatch.setattr(sys, "argv", ["architecture.py", "--output", str(path)])
    architecture.main()
    drawn, kept = Image.open(path), Image.open(PICTURE)
    told = "imports have changed: run `python docs/architecture.py` and look at the picture"
    assert json.loads(kept.text["Description"]) == json.loads(drawn.text["Description"]), told


def test_an_arrow_that_others_stand_for_is_not_drawn():
    graph = {"top": {"middle", "bottom"}, "middle": {"bottom"}, "bottom": set()}
    assert architecture.arrows(graph) == [("middle", "bottom"), ("top", "middle")]
    assert architecture.floors(graph) == {"bottom": 0, "middle": 1, "top": 2}
