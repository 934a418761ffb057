"""The tables of a model card, from the JSON that `make bench-lesions` wrote.

    python tests/benchmarks/lesion_tables.py tests/benchmarks/results/2026-11-24_lesions.json
    python tests/benchmarks/lesion_tables.py .../..._lesions_bone_ct_mask_rcnn_detection.json .../..._lesions.json

A second JSON stands beside the first as a column. `tests/test_figures.py` holds README and cards to these lines.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = {
    "rider_chest_0p8mm": "RIDER chest, 0.8 mm",
    "sts015_ct": "STS_015 hip, 3.3 mm",
    "tptbox_vertebra": "TPTBox L2-L4, 1.5 mm",
    "all": "**all**",
}


def synthetic_rows(document: dict[str, Any], beside: dict[str, Any] | None = None) -> list[str]:
    """Sensitivity on the held-out synthetic cases, CT by CT: Dice over positives, or of hits with a second bundle."""
    rows = []
    for name, of in _by_ct(document):
        dice = of["mean_dice_of_hits"] if beside else of["mean_dice_over_positives"]
        cells = [NAMES[name], of["cases"], of["lesions"], _two(of["sensitivity"])]
        cells += [_two(of["false_positives_per_case"]), _two(dice)]
        if beside:
            other = dict(_by_ct(beside))[name]
            cells.append(f"{_two(other['sensitivity'])} at {_two(other['false_positives_per_case'])}")
        rows.append(_row(cells))
    return rows


def groups_line(document: dict[str, Any]) -> str:
    """Hits by diameter and by kind, in words."""
    block = document["synthetic_held_out"]
    diameters = _hits(block["sensitivity_by_diameter"])
    return (
        f"Found by diameter (of the sphere of the same volume): {diameters}; "
        f"by kind: {_hits(block['sensitivity_by_kind'])}."
    )


def visibility_line(document: dict[str, Any]) -> str:
    """Hits by how plain a lesion is (`lesion_rows.changes`), in words."""
    groups = document["synthetic_held_out"]["sensitivity_by_visibility"]
    return (
        "By how visible they are (mean change of HU against the deviation of the bone that was there, both smoothed "
        f"by 1 mm): {_hits(groups, '; ')}."
    )


def both_line(document: dict[str, Any]) -> str:
    """What `bench_lesions.py --beside` found that the second bundle marks as well, in words, from its name on."""
    both = document["marked_by_both"]
    synthetic, real = both["synthetic_held_out"]["all"], both["real_metastases_blds"]["all"]
    return (
        f"marks as well**: {_two(synthetic['sensitivity'])} at {_two(synthetic['false_positives_per_case'])} on the "
        f"same cases; BLDS {real['hit_either']} of {real['boxes']}, {real['false_positive']} false; "
        f"{both['real_healthy_held_out']['false_positive']} marks in the untouched CTs instead of "
        f"{document['real_healthy_held_out']['false_positive']}."
    )


def real_rows(document: dict[str, Any]) -> list[str]:
    """The boxed real metastases of BLDS, patch by patch."""
    real = document["real_metastases_blds"]
    keys = ("boxes", "hit_iou_0.1", "hit_center_in_box", "hit_either", "false_positive")
    rows = [_row([patch["patch"], *(patch[key] for key in keys)]) for patch in real["patches"]]
    return [*rows, _row(["**all**", *(real["all"][key] for key in keys)])]


def healthy_line(document: dict[str, Any]) -> str:
    """False positives in the untouched held-out CTs, in words."""
    healthy = document["real_healthy_held_out"]
    parts = [
        f"{NAMES[name]} {of['false_positive']} false positives in {_two(of['bone_litres'])} L of bone"
        for name, of in healthy["by_ct"].items()
    ]
    return f"{'; '.join(parts)}; {_two(healthy['per_litre_of_bone'])} per litre of bone."


def _by_ct(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    block = document["synthetic_held_out"]
    yield from block["by_ct"].items()
    yield "all", block["all"]


def _hits(groups: dict[str, dict[str, Any]], between: str = ", ") -> str:
    return between.join(f"{name} {of['hit']} of {of['lesions']}" for name, of in groups.items())


def _two(number: float) -> str:
    return f"{number:.2f}"


def _row(cells: list[Any]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def main() -> None:
    documents = [json.loads(Path(name).read_text()) for name in sys.argv[1:3]]
    if not documents:
        sys.exit(__doc__)
    print("\n".join(synthetic_rows(*documents)), groups_line(documents[0]), sep="\n\n")
    if "sensitivity_by_visibility" in documents[0]["synthetic_held_out"]:  # older JSONs lack it
        print(visibility_line(documents[0]))
    print("", *real_rows(documents[0]), "", healthy_line(documents[0]), sep="\n")
    if "marked_by_both" in documents[0]:
        print("", both_line(documents[0]), sep="\n")


if __name__ == "__main__":
    main()
