"""The table of what features are worth, from the results of features.py."""

from __future__ import annotations

from typing import Any


def table(results: dict[str, Any]) -> str:
    """Accuracy in percent, mean and standard deviation over seeds, as Markdown: a row an arm."""
    rows = {(row["arm"], row["labels"]): row for row in results["summary"]}
    arms, labels = (list(dict.fromkeys(key[place] for key in rows)) for place in (0, 1))
    lines = [f"| | {' | '.join(f'{label:,} labels' for label in labels)} |", "|---|" + "---|" * len(labels)]
    for arm in arms:
        cells = []
        for row in (rows[arm, label] for label in labels):
            spread = "" if row["deviation"] is None else f" ± {100 * row['deviation']:.1f}"
            cells.append(f"{100 * row['mean']:.1f}{spread}")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)
