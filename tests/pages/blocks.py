"""The code blocks of a page of Markdown, and the commands of those for a shell."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LANGUAGES = ("", "json", "python", "sh", "yaml")
"""What a fence may say. A block that says nothing is no code."""

_BLOCK = re.compile(r"^```(?P<language>\S*)\n(?P<code>.*?)^```$", flags=re.DOTALL | re.MULTILINE)
_COMMENT = re.compile(r"(?:^|\s+)#.*$")


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block: its language, its text, and the line of the page that its text begins on."""

    language: str
    code: str
    line: int

    @property
    def file(self) -> str | None:
        """The name of the file that a block of YAML is, which its first line says in a comment."""
        found = re.match(r"# (\S+\.yaml)\n", self.code)
        return found[1] if found and self.language == "yaml" else None

    @property
    def commands(self) -> list[str]:
        """The commands of a block for a shell, without comments, continued lines joined."""
        if self.language != "sh":
            return []
        lines = re.sub(r"\\\n\s*", "", self.code).splitlines()
        return [command for line in lines if (command := _COMMENT.sub("", line).strip())]


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page in their order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(language=m["language"], code=m["code"], line=text[: m.start("code")].count("\n") + 1)
        for m in _BLOCK.finditer(text)
    ]
