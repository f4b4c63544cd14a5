"""What `make docs` does that MkDocs does not: this repository's own layout, the reference, formulas.

A page of the site lies where its file lies in the repository, so that every relative link of README.md and of
the pages works in both. The reference has a page a module, of what the docstrings say. Formulas need no
script: `$...$` of the pages becomes MathML, and what stands indented in docstrings gets its Greek letters,
indices and powers.
"""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "guided_diffusers"
FOLDERS = ("benchmarks", "docs", "model_cards", "pipelines", "src", "tests", "training")
SHOWN = {".md", ".py", ".png", ".json", ".yaml"}


def on_files(files: Files, config: Any) -> Files:
    """The theme's files, those of the repository that pages may link to, and the reference."""
    paths = [*ROOT.glob("*.md"), ROOT / "LICENSE"]
    for folder in FOLDERS:
        paths += [path for path in (ROOT / folder).rglob("*") if path.suffix in SHOWN]
    names = sorted(path.relative_to(ROOT).as_posix() for path in paths if "template" not in path.name)
    own = [File(name, str(ROOT), config.site_dir, config.use_directory_urls) for name in names]
    kept = [file for file in files if not Path(file.abs_src_path or "").is_relative_to(ROOT / "docs")]
    modules = {name: page(name) for name in public_modules()}
    index = "# Reference\n\n" + "".join(f"- [`{name}`]({name}.md)\n" for name in modules)
    made = [File.generated(config, f"reference/{name}.md", content=text) for name, text in modules.items()]
    return Files([*kept, *own, *made, File.generated(config, "reference/index.md", content=index)])


def public_modules() -> list[str]:
    """Every module of the package but the command line's and those with an underscore."""
    paths = [path for path in PACKAGE.rglob("*.py") if path.stem == "__init__" or path.stem[0] != "_"]
    names = [path.relative_to(PACKAGE.parent).with_suffix("") for path in paths]
    dotted = (".".join(path.parts).removesuffix(".__init__") for path in names)
    return sorted(name for name in dotted if not name.startswith("guided_diffusers.cli"))


def page(module: str) -> str:
    """The page of a module."""
    return f"# `{module}`\n\n::: {module}\n"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A backslash at a line's end breaks the line, as it does elsewhere."""
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else part.replace("\\\n", "  \n") for part in parts)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Formulas as a reader expects them."""
    html = re.sub(
        r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>',
        lambda found: convert(unescape(found[2]), display="block" if found[1] == "div" else "inline"),
        html,
        flags=re.DOTALL,
    )
    if not page.file.src_uri.startswith("reference/"):
        return html
    parts = r"<pre>.*?</pre>|<(code|a|h\d)\b.*?</\1>|(?<=>)[^<>]+(?=<)"
    return re.sub(parts, lambda found: typeset(found[0]), html, flags=re.DOTALL)


def typeset(part: str) -> str:
    """A piece of a page: text, or an element with it."""
    if not part.startswith("<"):
        return formula(part)
    block, inline = "[^<]*(?=</code></pre>)", r"[^<]*(?:\^| = )[^<]*(?=</code>)"
    code = part.startswith(("<pre", "<code"))
    return re.sub(rf"(?<=<code>)(?:{block}|{inline})", formula_in_code, part) if code else part


LETTERS = "alpha beta gamma delta eps eta lambda mu phi pi rho sigma tau sqrt -&gt; &lt;- &gt;="
SIGNS = dict(zip(LETTERS.split(), "αβγδεηλμφπρστ√→←≥", strict=True))
CODE = re.compile(r"&quot;|#|\w\.\w|\w=\w|:$", flags=re.MULTILINE)


def formula(text: str) -> str:
    """A formula as docstrings write it, in HTML."""
    text = re.sub(rf"(?<![A-Za-z])({'|'.join(SIGNS)})(?![A-Za-z])", lambda found: SIGNS[found[0]], text)
    index = r"(?<![A-Za-z0-9_])([A-Za-zα-ω∑]'?)_(?!prediction)(\{[^}]*\}|[A-Za-z0-9]+)"
    return re.sub(r"\^(\([^)]*\)|\w+)", r"<sup>\1</sup>", re.sub(index, r"\1<sub>\2</sub>", text))


def formula_in_code(found: re.Match[str]) -> str:
    """The same where code may stand, which stays as it is."""
    return found[0] if CODE.search(found[0]) else formula(re.sub(r"\bsum(?=_)", "∑", found[0]))
