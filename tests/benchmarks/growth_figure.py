"""Seconds and memory of the inference engine against volume and classes: a table and a figure of a bench's JSON.

    python tests/benchmarks/growth_figure.py results/<date>_<machine>_speed.json

Prints the table (Markdown) and writes <date>_<machine>_growth.png beside the JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TITLES = {
    "volume": "volume, tiles of 96 x 128 x 128, 2 classes",
    "classes": "classes, head named (features blended)",
    "classes_blended": "classes, logits blended",
}


def table(growth: dict[str, Any]) -> str:
    lines = ["| what grows | | seconds | engine, GB | process, GB |", "|---|---|---|---|---|"]
    for block, rows in growth.items():
        for i, (value, row) in enumerate(rows.items()):
            figures = f"{row['seconds']:.2f} | {row['engine_gb']:.2f} | {row['peak_gb']:.2f}"
            lines.append(f"| {TITLES[block] if i == 0 else ''} | {value} | {figures} |")
    return "\n".join(lines)


def draw(growth: dict[str, Any], path: Path) -> None:
    """Two rows (seconds, memory) of two panels (volume, classes), as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(7, 4.6), sharex="col", layout="constrained")
    for column, blocks in enumerate((("volume",), ("classes", "classes_blended"))):
        for block in blocks:
            values = [int(v) for v in growth[block]]
            for panel, key in zip(panels[:, column], ("seconds", "engine_gb"), strict=True):
                y = [row[key] for row in growth[block].values()]
                label = {"classes": "head named", "classes_blended": "logits blended"}.get(block)
                panel.plot(values, y, "o-", color="C1" if block == "classes_blended" else "C0", label=label)
        panels[1, column].set_xticks([int(v) for v in growth[blocks[0]]])
    for panel in panels.flat:
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    panels[0, 0].set_ylabel("seconds")
    panels[1, 0].set_ylabel("engine's peak memory, GB")
    panels[1, 0].set_xlabel("volume (times 96 x 128 x 128)")
    panels[1, 1].set_xlabel("classes")
    panels[0, 1].legend(frameon=False)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def main() -> None:
    path = Path(sys.argv[1])
    growth = json.loads(path.read_text())["growth"]
    print(table(growth))
    draw(growth, path.with_name(path.name.replace("_speed.json", "_growth.png")))


if __name__ == "__main__":
    main()
