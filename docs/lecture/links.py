r"""Checks that the lecture quotes the code as it is, and says at which line; mends the numbers of lines.

    python docs/lecture/links.py          # what is wrong, and the exit code 1 where anything is
    python docs/lecture/links.py --write    # new numbers for code that has only moved

A quotation is a link to a line or lines of a file, [`name.py:17`](../../path/name.py#L17-L18), and after it
the code: one line between backticks, or in the next line a block of `py` (a test runs blocks of `python`).
Code that has changed has to be quoted anew by hand: the command says which.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = Path(__file__).with_name("lecture.md")
_LINK = r"\[`(?P<name>[^`]*?):\d+`\]\(\.\./\.\./(?P<path>[^)#]+)#L(?P<first>\d+)(?:-L(?P<last>\d+))?\)"
_CODE = r"(?: `(?P<line>[^`\n]+)`\\?$|\n```py\n(?P<lines>.*?)\n```$)"
_QUOTATION = re.compile(_LINK + _CODE, flags=re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Quotation:
    """A link to lines of code, and the code as the page has it.

    Attributes:
        path: Of the file, from the repository's root.
        first: The number of the first line, from 1.
        last: Of the last.
        lines: The code, without common indentation.
        link: As it is in the page.
    """

    path: str
    first: int
    last: int
    lines: tuple[str, ...]
    link: str


def quotations(text: str) -> list[Quotation]:
    """All of a page, in order."""
    found = []
    for match in _QUOTATION.finditer(text):
        first = int(match["first"])
        link = text[match.start() : text.index(")", match.start()) + 1]
        lines = tuple((match["line"] or match["lines"]).split("\n"))
        last = int(match["last"] or first)
        found.append(Quotation(path=match["path"], first=first, last=last, lines=lines, link=link))
    return found


def places(quotation: Quotation, root: Path = ROOT) -> list[int]:
    """The lines at which the quoted code begins in its file, whatever its indentation."""
    path = root / quotation.path
    if not path.is_file():
        return []
    lines, count = path.read_text(encoding="utf-8").split("\n"), len(quotation.lines)
    return [
        start + 1
        for start in range(len(lines) - count + 1)
        if tuple(textwrap.dedent("\n".join(lines[start : start + count])).split("\n")) == quotation.lines
    ]


def complaints(text: str, root: Path = ROOT) -> list[str]:
    """What is wrong with a page's quotations, one line each."""
    found, quoted = [], quotations(text)
    for each in quoted:
        where, count = places(each, root), len(each.lines)
        if not where:
            first = each.lines[0].strip()
            found.append(f"{each.path}#L{each.first}: its quoted code is not there: {first!r}: quote it anew")
        elif each.first not in where or each.last != each.first + count - 1:
            found.append(f"{each.path}#L{each.first}-L{each.last}: its code is at {where}: run with --write")
        elif f"{Path(each.path).name}:{each.first}`" not in each.link:
            found.append(f"{each.link} does not name its file and line: run with --write")
    for link in re.findall(r"\]\(([^)]*#L\d[^)]*)\)", text):
        if not any(f"({link})" in each.link for each in quoted):
            found.append(f"{link}: no code follows, or its text is not `name.py:line`")
    return found


def refreshed(text: str, root: Path = ROOT) -> str:
    """The page with the lines of code that has only moved; of several places the nearest to the old one."""

    def mended(match: re.Match[str]) -> str:
        [each] = quotations(match[0])
        where = places(each, root)
        if not where:
            return match[0]
        first = min(where, key=lambda line: abs(line - each.first))
        last = f"-L{first + len(each.lines) - 1}" if len(each.lines) > 1 else ""
        name = f"`{Path(each.path).name}:{first}`"
        return match[0].replace(each.link, f"[{name}](../../{each.path}#L{first}{last})", 1)

    return _QUOTATION.sub(mended, text)


def main() -> None:
    """Parses the command line, mends or checks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write the new numbers into the page")
    arguments = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    if arguments.write:
        text = refreshed(text)
        PAGE.write_text(text, encoding="utf-8")
    wrong = complaints(text)
    print("\n".join(wrong) or f"{len(quotations(text))} quotations, all as the code is")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
