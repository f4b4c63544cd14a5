"""What the README and the pages of docs/ show works: every block of code on them is run.

Fast: the Python of all pages, in one fresh process beside a Hub on the loopback interface, with untrained
networks where a page loads what training makes; and every command's options, by the tools' own parsers. Slow:
every command is typed. What is shorter than on the page, and what is not run, `pages/declared.py` lists.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub.loopback import Hub
from pages.blocks import LANGUAGES, ROOT, blocks_of
from pages.declared import (
    EXPECTED,
    NOT_TYPED,
    PAGES,
    REPLACED,
    RUN_ELSEWHERE,
    SHORTER,
    UNTRAINED,
    name_of,
    shorter,
    why_not_typed,
)
from pages.desk import lay_out
from pages.options import check

READ = [page for page in PAGES if name_of(page) not in RUN_ELSEWHERE]
COMMANDS = list(
    dict.fromkeys(command for page in READ for block in blocks_of(page) for command in block.commands)
)
BROKEN = {
    "broken-python.md": "Text.\n\n```python\nx = 1\n```\n\n```python\nx.no_such_name\n```\n",
    "broken-json.md": '```json\n{"desription": "A key with a mistake."}\n```\n',
    "broken-yaml.md": "```yaml\nkey: of no file\n```\n",
}
MISTAKES = [
    "guided-diffusers generate 'a bag' --stepz 3",
    "guided-diffusers generate 'a bag' --seed -1",
    "guided-diffusers evaluate drawn --real real --num-images many",
    "guided-diffusers draw 'a bag'",
    "accelerate launch training/train_text_to_image.py --config my-text-to-image.yaml --learning_rat 1",
    "accelerate launch training/train_text_to_image.py --config nothing.yaml",
    "accelerate launch --no_such_option training/train_text_to_image.py --config my-text-to-image.yaml",
    "torchrun --nproc_per_node 2 training/train_text_to_image.py --config my-text-to-image.yaml --unet 3",
    "python training/export_text_to_image.py --pipeline runs/x --output y",
    "python training/no_such_script.py",
    "make nothing",
    "pip install '.[nothing]'",
    "pip install something-else",
    "rm -r runs",
]


def by_name(page: Path) -> str:
    return name_of(page)


def played(folder: Path, hub: Hub, pages: list[Path], *options: str) -> dict[str, Any]:
    """What `pages.play` says of pages, read in a folder beside a Hub."""
    results = folder / "results.json"
    line = [sys.executable, "-m", "pages.play", *options, str(results), *map(str, pages)]
    environment = hub.environment(folder / ".home", token="hf_you_write")
    environment |= {
        "XDG_CACHE_HOME": str(folder / ".cache"),
        "GUIDED_DIFFUSERS_CACHE": str(folder / ".cache" / "evaluation"),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), environment["PYTHONPATH"]]),
        "PYTHONWARNINGS": "ignore",
    }
    ended = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    return json.loads(results.read_text())


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The Python of all pages, and of some that are wrong."""
    folder = lay_out(tmp_path_factory.mktemp("python") / "clone")
    broken = []
    for name, text in BROKEN.items():
        (folder / name).write_text(text)
        broken.append(folder / name)
    hub = Hub(folder.parent / "hub")
    try:
        return played(folder, hub, [*READ, *broken], "--furnish")
    finally:
        hub.kill()


@pytest.mark.parametrize("page", READ, ids=by_name)
def test_the_python_of_a_page_runs(python: dict[str, Any], page: Path):
    assert python[name_of(page)]["error"] is None, python[name_of(page)]["error"]


def test_what_is_wrong_on_a_page_is_found(python: dict[str, Any]):
    errors = {name: python[name]["error"] for name in BROKEN}
    assert 'broken-python.md", line 8' in errors["broken-python.md"]
    assert "no_such_name" in errors["broken-python.md"]
    assert "did you mean 'description'" in errors["broken-json.md"]
    assert "names no file" in errors["broken-yaml.md"]


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("options") / "clone")


@pytest.fixture
def clone(untouched: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone as the current folder, in which nothing has been run."""
    monkeypatch.chdir(untouched)
    return untouched


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_understood(clone: Path, command: str):
    check(command)
    if why_not_typed(command) is None:
        check(shorter(command))


@pytest.mark.parametrize("command", MISTAKES)
def test_a_command_with_a_mistake_is_not(clone: Path, command: str):
    with pytest.raises(BaseException) as raised:  # noqa: PT011 (each parser has its own)
        check(command)
    assert not isinstance(raised.value, KeyboardInterrupt | TypeError | AttributeError)


def test_every_fence_says_what_it_is():
    """A block of another language would be run by nobody."""
    for page in READ:
        fences = re.findall(r"^ *(```|~~~)(.*)$", page.read_text(), flags=re.MULTILINE)
        assert len(fences) == 2 * len(blocks_of(page)), f"{name_of(page)}: a fence is indented or not closed"
        assert {block.language for block in blocks_of(page)} <= set(LANGUAGES), name_of(page)


def test_nothing_is_declared_that_no_page_has():
    text = "\n".join(page.read_text() for page in READ)
    for start in NOT_TYPED:
        assert any(command.startswith(start) for command in COMMANDS), start
    typed = [command for command in COMMANDS if why_not_typed(command) is None]
    for pattern, _ in SHORTER:
        assert any(re.search(pattern, command) for command in typed), pattern
    files = [block.code for page in READ for block in blocks_of(page) if block.file]
    for pattern, _ in REPLACED:
        assert any(re.search(pattern, place) for place in [*COMMANDS, *files]), pattern
    for folder in UNTRAINED:
        assert folder in text, folder
    with_python = {name_of(page) for page in READ if any(b.language == "python" for b in blocks_of(page))}
    assert EXPECTED.keys() == with_python


def test_a_page_that_is_run_elsewhere_is_run_there():
    for page, word in RUN_ELSEWHERE.items():
        if (ROOT / page).is_file():
            tests = (ROOT / "tests").rglob(f"test_*{word}*.py")
            others = [path for path in tests if page in path.read_text()]
            assert others, f"no test of {word} runs {page}"


def links() -> list[tuple[str, str]]:
    inside = {name_of(page): re.findall(r"\]\((?!http)([^)\s]+)\)", page.read_text()) for page in READ}
    return sorted({(name, link) for name, found in inside.items() for link in found})


@pytest.mark.parametrize(("page", "link"), links())
def test_what_a_page_links_to_is_there(page: str, link: str):
    path, _, heading = link.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page
    if name_of(target.resolve()) in RUN_ELSEWHERE and not target.exists():
        pytest.skip(f"{path} is being written")
    assert target.exists()
    if heading:
        titles = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.MULTILINE)
        assert heading in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A clone and a Hub, where the commands of train.md have been typed; and what that said."""
    folder = lay_out(tmp_path_factory.mktemp("commands") / "clone")
    hub = Hub(folder.parent / "hub")
    yield folder, hub, played(folder, hub, [ROOT / "docs" / "train.md"], "--commands")
    hub.kill()


@pytest.mark.slow
@pytest.mark.parametrize("page", READ, ids=by_name)
def test_the_commands_of_a_page_are_typed(desk: Any, page: Path):
    """All blocks of a page in their order, Python included, where train.md has made what they load."""
    folder, hub, trained = desk
    name = name_of(page)
    result = trained if name == "docs/train.md" else played(folder, hub, [page], "--commands")
    assert result[name]["error"] is None, result[name]["error"]


@pytest.mark.slow
def test_a_command_that_fails_is_found(desk: Any, tmp_path: Path):
    page = tmp_path / "broken.md"
    page.write_text("```sh\nguided-diffusers info no-such-checkpoint\n```\n")
    error = played(desk[0], desk[1], [page], "--commands")["broken.md"]["error"]
    assert "no-such-checkpoint" in error and "allowed: a folder" in error
