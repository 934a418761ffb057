"""Fit the lung-origin head on synthetic CT patients of known Bayes AUC and freeze it into a bundle's metadata.json.

    python tests/benchmarks/freeze_origin.py --bundle bundles/bone_ct_mask_rcnn_detection --patients 1200 --seed 7

Prints what the model card states: out-of-fold AUC with its DeLong interval for the image head and the clinical-only
baseline, and with shuffled labels. Everything is synthetic. A few minutes on one core.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from volseg.evaluation.classification import auc
from volseg.origin.frozen import fit_origin
from volseg.origin.shipped import FEW_PATIENTS, heads_document, synthetic_cohorts
from volseg.origin.synthetic_ct import CtDesign, draw_patients

SHUFFLES = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--patients", type=int, default=1200)
    parser.add_argument("--bayes-auc", type=float, default=0.80)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    design = CtDesign(patients=args.patients, bayes_auc=args.bayes_auc, phantoms=12)
    cohorts = dict(zip(("image", "clinical"), synthetic_cohorts(draw_patients(design, rng)), strict=True))
    figures: dict[str, object] = {"bayes_auc": args.bayes_auc, "patients": args.patients, "seed": args.seed}
    heads = {}
    for name, cohort in cohorts.items():
        heads[name], held_out = fit_origin(cohort, FEW_PATIENTS)
        figures[f"{name}_auc_out_of_fold"] = auc(cohort.lung, held_out.p_lung).text()
        training = heads[name].training
        figures[f"{name}_at_threshold"] = {
            "threshold": round(heads[name].threshold, 3),
            "sensitivity": round(training.sensitivity, 3),
            "specificity": round(training.specificity, 3),
            "calibration_error": round(training.calibration_error, 3),
        }
    shuffled = []
    for _ in range(SHUFFLES):
        nonsense = replace(cohorts["image"], lung=rng.permutation(cohorts["image"].lung))
        shuffled.append(auc(nonsense.lung, fit_origin(nonsense, FEW_PATIENTS)[1].p_lung).value)
    figures["shuffled_auc_out_of_fold"] = f"mean {np.mean(shuffled):.3f}, sd {np.std(shuffled):.3f} of {SHUFFLES}"
    path = args.bundle / "configs" / "metadata.json"
    metadata = json.loads(path.read_text(encoding="utf-8")) | heads_document(heads["image"], heads["clinical"])
    path.write_text(json.dumps(metadata, indent=4) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
