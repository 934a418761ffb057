"""What the MRI bundle does on real MRI: untouched, where every mark is false, and with lesions grown in its vertebrae.

    python tests/benchmarks/bench_spine_real.py --shared ../shared

No public MRI has masks of bone metastases, so sensitivity is that of SYNTHETIC lesions in real spines. `in_training`
says which spines the shipped weights have seen (with other lesions). Runs the bundle as `volseg predict` does; a lesion
is hit at IoU >= 0.1. Writes one JSON with date and machine.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from lesion_rows import IOU, heading, judged, summary

from volseg.geometry import voxel_to_ras_mm
from volseg.inference.bundle import find_bundle, load_bundle
from volseg.inference.segment import segment_sequences
from volseg.io import read_mri_study, read_volume
from volseg.synth_mri import MarrowMask, MriSynthOptions, grow_mri_case
from volseg.types import Volume

# Bodies of C3 to C6 of the SCT subject as boxes in RAS mm, drawn by hand from its T1: x, y and each z from-to.
SCT_BODIES = ((-18.0, 0.0), (11.0, 22.0), ((-16.0, -6.0), (1.0, 12.0), (19.0, 31.0), (38.0, 48.0)))


@dataclass(frozen=True)
class Spine:
    """A real MRI without bone metastases. `mask` is a label map and the values that are vertebrae."""

    name: str
    sequences: dict[str, str]
    in_training: bool
    seed: int | None = None
    mask: tuple[str, frozenset[int]] | None = None


TPTBOX = "tptbox_vertebra/sample_mri/sub-mri_"
SPINES = (
    Spine("SCT", {"T1": "sct_spine_mr/t1w.nii.gz", "T2": "sct_spine_mr/t2.nii.gz"}, False, 900),
    Spine("STS_015", {"T1": "sts015_ct_mr_pet/nifti_reference/MR_T1_image.nii.gz"}, False),
    Spine(
        "TPTBox",
        {"T2": f"{TPTBOX}label-6_T2w.nii.gz"},
        True,
        901,
        (f"{TPTBOX}seg-vert_label-6_msk.nii.gz", frozenset({5, 6, 7})),
    ),
    Spine(
        "TotalSegmentator",
        {"T1": "totalseg_ct/mr/example_mr_sm.nii.gz"},
        True,
        902,
        ("totalseg_ct/mr/example_seg_mr.nii.gz", frozenset({19})),
    ),
)


def marrow_of(spine: Spine, reference: Volume, data: Path) -> MarrowMask:
    """Where lesions may grow."""
    if spine.mask is not None:
        return MarrowMask.of(read_volume(data / spine.mask[0])[0], spine.mask[1])
    x, y, z = np.moveaxis(
        voxel_to_ras_mm(reference.affine, np.moveaxis(np.indices(reference.voxels.shape), 0, -1)), -1, 0
    )
    (left, right), (back, front), levels = SCT_BODIES
    inside = (x > left) & (x < right) & (y > back) & (y < front)
    inside &= np.any([(z > low) & (z < high) for low, high in levels], axis=0)
    return MarrowMask.of(Volume(inside.astype(np.uint8), reference.affine))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--bundle", default="spine_mri_unet_segmentation")
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    args = parser.parse_args()
    data = args.shared / "data"
    bundle = load_bundle(find_bundle(args.bundle, trust=True), overrides={"inferer#progress": False})
    blocks: dict[str, Any] = {}
    for spine in SPINES:
        study = read_mri_study({c: data / path for c, path in spine.sequences.items()}, name=spine.name)
        reference = next(iter(study.volumes.values()))
        marked = segment_sequences(study, bundle).instances
        block: dict[str, Any] = {"in_training": spine.in_training, "sequences": list(spine.sequences)}
        volume_ml = float((marked > 0).sum() * abs(np.linalg.det(reference.affine[:3, :3]))) / 1000
        block["untouched"] = {"false_positive": int(marked.max()), "ml": round(volume_ml, 2)}
        if spine.seed is not None:
            marrow, rows = marrow_of(spine, reference, data), []
            options = MriSynthOptions(args.cases, spine.seed, (1, 3), (0, 0), healthy=0.0)
            for number in range(args.cases):
                case = grow_mri_case(study, marrow, options, number)
                found = segment_sequences(replace(study, volumes=dict(case.volumes)), bundle).instances
                rows.append(judged(found, case.instances, [asdict(lesion) for lesion in case.lesions]))
            block["grown"] = summary(rows) | {"cases_in_full": rows}
        blocks[spine.name] = block
        print(spine.name, block["untouched"], {k: v for k, v in block.get("grown", {}).items() if k != "cases_in_full"})
    document = {
        **heading(bundle),
        "what": "SYNTHETIC lesions grown in real MRI, and the same MRI untouched",
        "iou": IOU,
        "spines": blocks,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{document['date']}_spine_mri_real.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
