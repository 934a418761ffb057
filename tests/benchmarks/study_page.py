"""Compared volumes of all arms -> who wins, with intervals; a page in Markdown, its JSON and two figures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from volseg.evaluation.bootstrap import bootstrap, paired_bootstrap
from volseg.evaluation.cases import CaseResult
from volseg.evaluation.external import Predictions
from volseg.evaluation.figures import froc_figure, png, roc_figure
from volseg.evaluation.lesion_summary import summarise_lesions
from volseg.report.files import write_whole
from volseg.report.tables import as_json

PAGE, JSON = "study.md", "study.json"
FIGURES = {"froc.png": "Lesions at site A, first seed of every arm", "origin.png": "Lung or not, patient level"}
FEW_STEPS = 1000
DSC, FOUND, FALSE = "DSC, volumes with lesions", "lesion sensitivity at the frozen score", "false positives per volume"


def describe_arm(validation: Path, resamples: int) -> tuple[dict[str, Any], list[CaseResult], list[CaseResult]]:
    """What `volseg validate` wrote -> figures at both sites, site A's volumes, the same at the frozen score."""
    frozen = json.loads((validation / "frozen.json").read_text(encoding="utf-8"))
    document = json.loads((validation / "validation.json").read_text(encoding="utf-8"))
    score = math.inf if frozen["operating_score"] is None else float(frozen["operating_score"])
    every = [
        CaseResult.from_json(json.loads(path.read_text(encoding="utf-8"))["case"])
        for path in sorted((validation / "cases").glob("*.json"))
    ]
    told: dict[str, Any] = {
        "weights_sha256": frozen["weights_sha256"], "frozen_sha256": frozen["sha256"], "operating_score": score,
    }  # fmt: skip
    rng = np.random.default_rng(0)
    cases: list[CaseResult] = []
    for site in (frozen["train_site"], frozen["test_site"]):
        cases = [case for case in every if case.patient.startswith(f"{site}_")]
        lesions = summarise_lesions([case.at_score(score) for case in cases], rng=rng, resamples=resamples)
        some = [case for case in cases if case.has_lesions]
        dice = np.array([case.overlap.dice for case in some])
        mean = bootstrap(lambda rows, d=dice: float(d[rows].mean()), [c.patient for c in some], rng=rng,
                         resamples=resamples)  # fmt: skip
        told[site] = {
            "volumes": len(cases), "with lesions": len(some), "lesions": lesions.n_lesions, DSC: asdict(mean),
            FOUND: asdict(lesions.sensitivity[0.1]), FALSE: asdict(lesions.false_positives[0.1]),
        }  # fmt: skip
    told["answers"] = {
        name: {part: answer[part]["metrics"]["auc"] for part in ("training", "test")}
        for name, answer in document.get("answers", {}).items()
    }
    return told, cases, [case.at_score(score) for case in cases]


def compare_arms(
    results: Mapping[str, Mapping[int, Sequence[CaseResult]]], *, resamples: int
) -> dict[str, dict[str, Any]]:
    """Every pair of arms on the same patients: each patient's figure is the mean over seeds, patients are resampled.

    The interval is of patients for these trained networks; the spread over seeds stands beside. "tie" where the
    interval holds 0. Lower is better for false positives.
    """
    rng = np.random.default_rng(0)
    compared: dict[str, dict[str, Any]] = {}
    for first, second in combinations(results, 2):
        rows: dict[str, Any] = {}
        for figure, better in ((DSC, 1), (FOUND, 1), (FALSE, -1)):
            one, two, patients = _per_patient(results[first], results[second], figure)
            difference = paired_bootstrap(
                lambda r, v=one: float(v[r].mean()), lambda r, v=two: float(v[r].mean()), patients,
                rng=rng, resamples=resamples,
            )  # fmt: skip
            estimate = difference.estimate
            low, high = estimate.low, estimate.high
            if math.isnan(low) and not math.isnan(difference.p_value):  # every resample alike: p alone speaks
                low = high = estimate.value if difference.p_value < 0.05 else 0.0
            rows[figure] = asdict(difference) | {
                "verdict": verdict(first, second, better * low, better * high),
                "seeds": [
                    float(np.mean(_figure(a, figure)) - np.mean(_figure(b, figure)))
                    for a, b in zip(results[first].values(), results[second].values(), strict=True)
                ],
            }
        compared[f"{first} minus {second}"] = rows
    return compared


def verdict(first: str, second: str, low: float, high: float) -> str:
    """Limits of first minus second, turned so that more is better (in any order) -> a name, "tie" or "unknown"."""
    if math.isnan(low) or math.isnan(high):
        return "unknown"
    if min(low, high) > 0:
        return first
    return second if max(low, high) < 0 else "tie"


def write_pages(
    document: Mapping[str, Any],
    compared: Mapping[str, Sequence[CaseResult]],
    drawn: Mapping[str, Predictions],
    out: Path,
) -> Path:
    """study.md, study.json and the figures in `out`. `compared`: site A's volumes by arm, for the FROC."""
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    (out / "froc.png").write_bytes(png(froc_figure(compared, rng=rng), dpi=80))
    threshold = document["origin"]["image head, patient level"]["threshold"]
    (out / "origin.png").write_bytes(png(roc_figure(drawn, rng=rng, threshold=threshold), dpi=80))
    write_whole(out / JSON, json.dumps(as_json(document), indent=1) + "\n")
    return write_whole(out / PAGE, markdown(document))


def markdown(document: Mapping[str, Any]) -> str:
    """The page: what was done, every figure with interval and n, who wins."""
    what, recipe, scale = document["what"], document["scale"]["recipe"], document["scale"]
    steps = recipe["epochs"] * recipe["iterations"]
    lines = [
        f"# Site B to site A, {what}",
        "",
        f"{document['date']}, volseg {document['volseg']}, torch {document['torch']}, {document['machine']}. "
        f"All lesions, patients and sites are {what}; nothing here is clinical accuracy.",
        "",
        f"Every network: {steps} steps of {recipe['batch_size']} crops of {recipe['roi']}^3 at 2 mm from "
        f"{scale['train']} patients of site B, same crops per seed, augmentation and schedule, averaged weights "
        f"(decay {recipe['ema_decay']:g}), {len(scale['seeds'])} seed(s). Weights and the lesion score (at most "
        f"{recipe['false_positives']:g} false positives per volume on {scale['fit']} other patients of site B) are "
        f"frozen; site A ({scale['test']} patients, other voxels, kernel, noise, prevalence) is tested once.",
        "",
        "## Segmentation and detection",
        "",
        "| arm | weights | seed | DSC, B | DSC, A | sensitivity, A | false positives, A | AUC any lesion, A |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, told in document["arms"].items():
        for seed, run in told["seeds"].items():
            any_lesion = run["answers"].get("any lesion, patient level", {}).get("test")
            cells = [_cell(run["B"][DSC]), _cell(run["A"][DSC]), _cell(run["A"][FOUND]), _cell(run["A"][FALSE])]
            lines.append(f"| {arm} | {told['parameters']:,} | {seed} | {' | '.join(cells)} | {_cell(any_lesion)} |")
    one = next(iter(next(iter(document["arms"].values()))["seeds"].values()))
    lines += [
        "",
        f"DSC: mean over volumes with lesions (B held out: {one['B']['with lesions']}, A: {one['A']['with lesions']}). "
        f"Sensitivity: of {one['A']['lesions']} lesions of site A, IoU >= 0.1, at the frozen score. Brackets: 95 % "
        "bootstrap intervals over patients.",
        "",
        "### In pairs, on the same patients of site A",
        "",
        "| first minus second | DSC | sensitivity | false positives per volume |",
        "|---|---|---|---|",
    ]
    for pair, rows in document["paired"].items():
        cells = [
            f"{_cell(rows[f]['estimate'], sign=True)}: {_word(f, rows[f]['verdict'])}" for f in (DSC, FOUND, FALSE)
        ]
        lines.append(f"| {pair} | {' | '.join(cells)} |")
    lines += [
        "",
        "A name is the better arm where the interval of the difference leaves 0 out; everything else is a tie at this "
        "size. Intervals are of patients, not of trainings (with one seed nothing is known of their spread), and not "
        "corrected for their number. False positives are read beside the sensitivity: a network that finds nothing has "
        "none.",
        "",
        f"**Who wins** (DSC at site A, after {steps} steps, {what}): {_winners(document['paired'])}. So few steps tell "
        "which network learns quickest, not which ends best."
        if steps < FEW_STEPS
        else f"**Who wins** (DSC at site A, after {steps} steps, {what}): {_winners(document['paired'])}.",
        "",
        "![FROC](froc.png)",
        "",
        "## Where did the tumour start?",
        "",
        *_origin(document["origin"]),
        "",
        "![ROC](origin.png)",
        "",
        "The same heads on lesions that the networks found (a missed patient has no answer):",
        "",
        "| arm | seed | AUC, patient level, A | AUC, lesion level, A |",
        "|---|---|---|---|",
    ]
    for arm, told in document["arms"].items():
        for seed, run in told["seeds"].items():
            both = [
                run["answers"].get(f"lung origin, {level} level", {}).get("test") for level in ("patient", "lesion")
            ]
            cells = [f"{_cell(e)}, n = {e['n']}" if e else "n/a" for e in both]
            lines.append(f"| {arm} | {seed} | {' | '.join(cells)} |")
    lines += [
        "",
        "## What it cost",
        "",
        f"{sum(document['wall_seconds'].values()):.0f} s wall in all, summed over the runs it was done in. "
        f"Backgrounds, by site: {_backgrounds(document['backgrounds'])}.",
        "",
    ]
    return "\n".join(lines)


def _word(figure: str, verdict: str) -> str:
    return f"fewer with {verdict}" if figure == FALSE and verdict not in ("tie", "unknown") else verdict


def _winners(paired: Mapping[str, Mapping[str, Any]]) -> str:
    """Every pair of arms in words, by DSC."""
    said = []
    for pair, rows in paired.items():
        first, second = pair.split(" minus ")
        won = rows[DSC]["verdict"]
        loser = second if won == first else first
        said.append(f"{first} and {second} tie" if won in ("tie", "unknown") else f"{won} beats {loser}")
    return "; ".join(said)


def _backgrounds(found: Mapping[str, Sequence[str]]) -> str:
    """Which bodies there were, and a warning where several patients are one body."""
    told = "; ".join(f"{site}: {', '.join(names)}" for site, names in found.items())
    if all(list(names) == ["phantoms"] for names in found.values()):
        return f"{told} (one body per patient; the origin study deals a few bodies to many patients)"
    return f"{told}. Patients of a site share these bodies: intervals over patients say nothing of other bodies"


def _origin(origin: Mapping[str, Any]) -> list[str]:
    n = origin["n"]
    counts = "; ".join(
        f"site {site}: {c['patients']} patients ({c['lung']} lung), {c['with lesions']} with {c['lesions']} lesions"
        for site, c in n.items()
    )
    lines = [
        f"From exact masks. {counts}. Patients without lesions are not asked.",
        "",
        "| | AUC, B (out of fold) | AUC, A | accuracy, A | sensitivity, A | specificity, A |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("image head, patient level", "image head, lesion level", "clinical head, patient level"):
        told = origin[name]
        cells = [_cell(told["training"]["auc"])]
        cells += [_cell(told["external"].get(m)) for m in ("auc", "accuracy", "sensitivity", "specificity")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    best, scanner, shuffled = (
        origin["best possible (drawn log-likelihood ratio)"],
        origin["scanner as the only feature (noise)"],
        origin["shuffled labels"],
    )
    lines += [
        f"| best possible (what was drawn), Bayes AUC .80 | {_cell(best['B'])} | {_cell(best['A'])} | | | |",
        "",
        f"- Control, shuffled labels at B: mean AUC at A {shuffled['mean AUC at A']:.2f} (deviation "
        f"{shuffled['deviation']:.2f} of {shuffled['shuffles']} shuffles); .5 is right.",
        f"- Control, site shift: the scanner's noise alone has AUC {_cell(scanner['within B'])} within B, "
        f"{_cell(scanner['within A'])} within A, {_cell(scanner['both sites pooled'])} with both sites pooled, where "
        "it tells the site's prevalence and nothing of the tumour.",
        "",
        "Protocol, lesion AUC at site B:",
        "",
        "| head | folds over patients | folds over lesions, LEAKY |",
        "|---|---|---|",
    ]
    for head, told in origin["protocol"].items():
        lines.append(f"| {head} | {_cell(told['folds over patients'])} | {_cell(told['folds over lesions, LEAKY'])} |")
    return lines


def _per_patient(
    first: Mapping[int, Sequence[CaseResult]], second: Mapping[int, Sequence[CaseResult]], figure: str
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Rows (volumes, or lesions) of both arms, meaned over seeds, and whose they are."""
    one, two = (np.mean([_figure(cases, figure) for cases in arm.values()], axis=0) for arm in (first, second))
    cases = next(iter(first.values()))
    if figure == FOUND:
        patients = [case.patient for case in cases for _ in case.true_lesions]
    elif figure == DSC:
        patients = [case.patient for case in cases if case.has_lesions]
    else:
        patients = [case.patient for case in cases]
    return one, two, patients


def _figure(cases: Sequence[CaseResult], figure: str) -> np.ndarray:
    if figure == DSC:
        return np.array([case.overlap.dice for case in cases if case.has_lesions])
    if figure == FOUND:
        return np.concatenate([case.found(0.1) for case in cases if case.has_lesions]).astype(float)
    return np.array([len(case.predicted_lesions) - float(case.found(0.1).sum()) for case in cases])


def _cell(estimate: Mapping[str, Any] | None, *, sign: bool = False) -> str:
    if estimate is None or estimate["value"] is None or math.isnan(float(estimate["value"])):
        return "n/a"
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    form = "+.2f" if sign else ".2f"
    if low is None or high is None or math.isnan(float(low)) or math.isnan(float(high)):
        return f"{value:{form}}"
    return f"{value:{form}} ({low:{form}} to {high:{form}})"
