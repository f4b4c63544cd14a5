"""A run's page: one HTML file of what its log, its pictures and its configuration say.

It needs nothing beside it, no network and no script, and is made of what lies in the run's folder: of a run
in progress, or of one from long ago. All text that comes from files is escaped.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from guided_diffusers.training.engine.curves import chart
from guided_diffusers.training.engine.log import flatten, read_records
from guided_diffusers.training.engine.settings import recorded

COLUMNS = 8  # pictures of one kind, spread over the run
WIDEST = 640  # pixels of a picture on the page
GROUNDS = re.compile(  # keys of files that a run is made of, and of choices that decide what it learns
    r"data\.(path|split)|autoencoder|.*pretrained|.*\.class|scheduler|objective\.loss|denoising\.weighting"
    r"|training\.(seed|batch_size|learning_rate|mixed_precision|compile|ema_half_life_images)"
)
STYLE = """
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1400px;
padding:0 1rem}h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}h3{font-size:.95rem;margin:.2rem 0}
.row{display:flex;flex-wrap:wrap;gap:1rem}.row>figure,.card{margin:0;border:1px solid #8884;border-radius:6px;
padding:.6rem}.card{width:440px}svg{width:100%}svg text{font:11px system-ui;fill:currentColor}
.grid{stroke:#8884}.legend span{margin-right:1em;font-size:12px}table{border-collapse:collapse}
td,th{border-bottom:1px solid #8883;padding:.15rem .8rem .15rem 0;text-align:left;vertical-align:top}
td{font-variant-numeric:tabular-nums}img{max-width:420px;width:100%;image-rendering:pixelated}figcaption{font-size:12px}
"""


def report(run: Path) -> str:
    """The page of a run's folder, as HTML.

    Raises:
        FileNotFoundError: the folder is no run's.
    """
    log = run / "log.jsonl"
    if not log.is_file():
        raise FileNotFoundError(f"{run} has no log.jsonl; allowed: the folder of a run (training.output_dir)")
    records, config = read_records(log), recorded(run)
    body = [
        f"<h1>{escape(run.resolve().name)}</h1>",
        _table(_facts(run, records, config)),
        _section("Curves", _cards(records)),
        _section("Pictures", _pictures(run, config)),
        _section("What the run rests on", _table(_grounds(config))),
        _section("Configuration", _details("all keys", _table(flatten(config).items()))),
        _section("Files", _table(_files(run))),
    ]
    head = f'<meta charset="utf-8"><title>{escape(run.resolve().name)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>{content}" if content else ""


def _details(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>{content}</details>"


def _table(rows: Iterable[tuple[Any, Any]]) -> str:
    lines = [f"<tr><th>{escape(str(name))}</th><td>{escape(str(value))}</td></tr>" for name, value in rows]
    return f"<table>{''.join(lines)}</table>" if lines else ""


def _facts(run: Path, records: list[dict[str, Any]], config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How far the run is, and how fast."""
    total = config.get("training", config).get("num_images")
    if not records:
        return [("images", f"no record yet, of {total}")]
    last = records[-1]
    seen, seconds = last["images"], last["seconds"]
    share = f" of {total:,} ({seen / total:.0%})" if isinstance(total, int) and total else ""
    facts = [
        ("images", f"{seen:,}{share}"),
        ("hours", f"{seconds / 3600:.2f}"),
        ("images a second", f"{seen / max(seconds, 1e-9):.1f} over all, validation and checkpoints included"),
    ]
    speeds = [record["images_per_second"] for record in records if _number(record.get("images_per_second"))]
    if speeds and isinstance(total, int) and seen < total:
        facts.append(("hours left", f"{(total - seen) / max(speeds[-1], 1e-9) / 3600:.2f} at the last speed"))
    measured = [record for record in records if "validation" in record]
    for name, value in flatten(measured[-1]["validation"]).items() if measured else ():
        facts.append(
            (name, f"{value:.5g} after {measured[-1]['images']:,} images" if _number(value) else "-")
        )
    return [*facts, ("final/", "there" if (run / "final").is_dir() else "not yet")]


def _cards(records: list[dict[str, Any]]) -> str:
    """A chart for each metric: a list's items and a mapping's are lines of one, validation's one each."""
    charts: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for record in records:
        spread = {f"validation {name}": value for name, value in dict(record.get("validation", {})).items()}
        for name, value in {**record, **spread}.items():
            if name in ("images", "seconds", "validation"):
                continue
            for line, number in flatten({"": value}).items():
                if _number(number):
                    key = line.removeprefix("/") or name
                    key = f"quarter {int(key) + 1} of noise" if isinstance(value, list) else key
                    charts.setdefault(name, {}).setdefault(key, []).append((record["images"], number))
    cards = [
        f'<div class="card"><h3>{escape(name.replace("_", " "))}{_last(lines)}</h3>{chart(lines)}</div>'
        for name, lines in charts.items()
    ]
    return f'<div class="row">{"".join(cards)}</div>' if cards else ""


def _last(lines: Mapping[str, list[tuple[float, float]]]) -> str:
    return f" {next(iter(lines.values()))[-1][1]:.4g}" if len(lines) == 1 else ""


def _pictures(run: Path, config: Mapping[str, Any]) -> str:
    """The validation's pictures in time, a row a kind: of each prompt, or of all."""
    kinds: dict[str, dict[int, Path]] = {}
    for path in sorted((run / "validation").glob("[0-9]*.png")):
        images, kind = re.fullmatch(r"(\d+)(.*)", path.stem).groups()
        kinds.setdefault(kind, {})[int(images)] = path
    if len(kinds) > 1:
        kinds.pop("", None)  # the picture of all prompts
    prompts = dict(enumerate(config.get("drawing", {}).get("prompts", ())))
    rows = []
    for kind, found in kinds.items():
        number = re.match(r"-(\d+)-", kind)
        title = prompts.get(int(number[1]), kind) if number else kind
        figures = [_figure(found[images], f"{images:,} images") for images in _spread(sorted(found))]
        rows.append(f'<h3>{escape(str(title))}</h3><div class="row">{"".join(figures)}</div>')
    return "".join(rows)


def _spread(positions: list[int]) -> list[int]:
    """At most COLUMNS of them, the first and the last included."""
    count = min(len(positions), COLUMNS)
    return [positions[round(number * (len(positions) - 1) / max(count - 1, 1))] for number in range(count)]


def _figure(path: Path, caption: str) -> str:
    """A picture within the page, read as one: what is none is said."""
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
            picture.thumbnail((WIDEST, 4 * WIDEST))
            buffer = io.BytesIO()
            picture.save(buffer, "png", optimize=True)
    except OSError as error:
        return f"<figure><figcaption>{escape(f'{path.name} cannot be read: {error}')}</figcaption></figure>"
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}"><figcaption>{escape(caption)}</figcaption></figure>'
    )


def _grounds(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What other files and choices the run is made of."""
    flat = {name.replace("/", "."): value for name, value in flatten(config).items()}
    return [(name, value) for name, value in flat.items() if GROUNDS.fullmatch(name) and value is not None]


def _files(run: Path) -> list[tuple[str, str]]:
    found = []
    for path in sorted(run.iterdir()):
        if path.name.startswith("."):
            continue
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        size = f"{sum(file.stat().st_size for file in files) / 1e6:,.1f} MB"
        inside = "" if path.is_file() else f", {len(files)} files"
        found.append((path.name + ("" if path.is_file() else "/"), size + inside))
    return found


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
