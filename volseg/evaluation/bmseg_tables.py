"""BM-Seg figures beside the published ones: one table per family and level, so that unlike things never share a column.

Published figures in %, as printed; each row names its protocol. Sources: BMSMM-Net (Shang et al., Academic Radiology
2024, doi 10.1016/j.acra.2024.11.018) and MFP-DeepLabv3+ (Gu et al. 2024, doi 10.18280/ts.410218), tables 1 to 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from volseg.evaluation.bmseg import Protocol
from volseg.evaluation.estimate import Estimate
from volseg.evaluation.slices import Family, Level, SliceSummary
from volseg.evaluation.tables import Table

Block = tuple[Family, Level]
MFP_PROTOCOL = 'by image, "9:1" and "5-fold" (LEAKY)'
UNKNOWN_SPLIT = "split unknown"

# Figure -> heading, in the order of the columns. F1 of pixels is Dice.
HEADINGS: Mapping[Family, Mapping[str, str]] = {
    "lesion": {"iou": "IoU", "dice": "F1 (Dice)", "sensitivity": "sensitivity", "precision": "precision"},
    "bone": {"iou": "IoU", "dice": "F1 (Dice)", "sensitivity": "sensitivity", "precision": "precision"},
    "class-mean": {"miou": "mIoU", "mpa": "mPA", "mprecision": "mPrecision", "mdice": "mean Dice"},
}
TITLES: Mapping[Family, str] = {
    "lesion": "Lesion only",
    "bone": "Bone only",
    "class-mean": "Mean over lesion and background",
}
NOTES: Mapping[Block, str] = {
    ("lesion", "pooled"): "All pixels of all tested slices as one picture: large lesions dominate. "
    "MFP-DeepLabv3+ prints no lesion-only figure; its class means imply an IoU of about 68 and a Dice of about 81.",
    ("bone", "pooled"): "All pixels of all tested slices as one picture.",
    ("class-mean", "pooled"): "Background counts as much as the lesion and is nearly always right: these figures are "
    "high for any mask, and Dice = 2 IoU / (1 + IoU) does not hold for them. Whether the published ones are pooled "
    "is not said; they are taken to be.",
    ("lesion", "per patient"): "Mean over patients; nobody has published this for BM-Seg.",
    ("bone", "per patient"): "Mean over patients; nobody has published this for BM-Seg.",
    ("class-mean", "per patient"): "Mean over patients; nobody has published this for BM-Seg.",
}


@dataclass(frozen=True)
class Published:
    """One published row of one block; figures in %."""

    method: str
    block: Block
    protocol: str
    percent: Mapping[str, float]


def _mfp(method: str, miou: float, *others: float) -> Published:
    names = ("miou", "mpa", "mprecision", "mdice")
    percent = dict(zip(names, (miou, *others), strict=False))
    return Published(method, ("class-mean", "pooled"), MFP_PROTOCOL, percent)


PUBLISHED: tuple[Published, ...] = (
    Published("BMSMM-Net", ("lesion", "pooled"), UNKNOWN_SPLIT, {"iou": 83.60, "dice": 91.07}),
    Published("BMSMM-Net", ("bone", "pooled"), UNKNOWN_SPLIT, {"iou": 90.78, "dice": 95.17}),
    _mfp("MFP-DeepLabv3+", 83.97, 93.90, 87.97, 90.50),
    _mfp("DeepLabv3+ with AFPP and PSCAN", 83.69, 93.19, 87.80, 90.31),
    _mfp("DeepLabv3+ with AFPP", 82.89, 92.91, 87.01, 89.73),
    _mfp("DeepLabv3+", 81.86, 91.54, 86.73, 88.98),
    _mfp("TransUNet", 83.67),
    _mfp("SegFormer", 82.81),
    _mfp("U-Net", 82.78),
    _mfp("Non-local", 82.37),
    _mfp("Mask R-CNN", 82.04),
    _mfp("EncNet", 82.02),
    _mfp("HRNet", 81.85),
)


@dataclass(frozen=True)
class Ours:
    """One of our runs: what was trained, on what (`data`: "BM-Seg", or "synthetic"), under which protocol."""

    method: str
    data: str
    protocol: Protocol
    summary: SliceSummary


def bmseg_tables(runs: Sequence[Ours], published: Sequence[Published] = PUBLISHED) -> tuple[Table, ...]:
    """One table per block (family and level) that holds anything of ours; published rows below, in their own block."""
    blocks = [block for block in NOTES if any(block in run.summary.figures for run in runs)]
    return tuple(block_table(block, runs, [row for row in published if row.block == block]) for block in blocks)


def block_table(block: Block, runs: Sequence[Ours], published: Sequence[Published]) -> Table:
    """Raises ValueError for a published row of another block: such figures cannot be compared."""
    family, level = block
    for row in published:
        if row.block != block:
            told = f"{row.method} reports {' '.join(row.block)}; it has no place among {' '.join(block)}"
            raise ValueError(f"{told} figures")
    headings = HEADINGS[family]
    rows: list[tuple[str, ...]] = []
    for run in runs:
        figures = run.summary.figures.get(block, {})
        if figures:
            n = f"{run.summary.n_slices} slices, {run.summary.n_patients or 'unknown'} patients"
            cells = (_percent(figures.get(name)) for name in headings)
            rows.append((run.method, f"{run.data}, {run.protocol.label}", *cells, n))
    for row in published:
        cells = (f"{row.percent[name]:.2f}" if name in row.percent else "not reported" for name in headings)
        rows.append((f"{row.method} (published)", f"BM-Seg, {row.protocol}", *cells, "1517 slices, 23 patients"))
    note = NOTES[block]
    if published and any(run.data != "BM-Seg" for run in runs):
        note += " Ours on other data than BM-Seg cannot be compared with the published rows at all."
    used = {run.protocol.name: run.protocol for run in runs}
    note = " ".join([note, *(p.describe() for p in used.values())])
    columns = ("method", "data and protocol", *(f"{words}, %" for words in headings.values()), "n")
    return Table(f"{TITLES[family]}, {level}", columns, tuple(rows), note)


def _percent(estimate: Estimate | None) -> str:
    """`"83.60 (80.12 to 86.90)"`; two digits, as in the papers."""
    if estimate is None:
        return "n/a"
    value, low, high = (100 * v for v in (estimate.value, estimate.low, estimate.high))
    return Estimate(value, low, high, estimate.n).text(2)
