"""A cohort of several sites: fit at one, freeze, test once at another. What `volseg validate` runs.

The order is the point: the cohort is checked for leaks, the training site is predicted and the rule frozen on disk
before the first image of the test site is opened for testing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from volseg.errors import InputError, UsageError
from volseg.evaluate.answers import origin_predictions, presence_predictions
from volseg.evaluate.compare import compare_pairs
from volseg.evaluate.freeze import (
    FROZEN,
    SiteResults,
    ValidateOptions,
    freeze_rule,
    made_with,
    write_frozen,
    write_tested,
)
from volseg.evaluate.pairs import Pair, find_predictions
from volseg.evaluate.sites_report import site_report
from volseg.io.cohort import Cohort, CohortCase, one_line
from volseg.io.cohort_check import as_document, check_cohort
from volseg.io.files import safe_name
from volseg.report.files import write_whole
from volseg.report.tables import as_json

Predict = Callable[[CohortCase, Path], None]


def validate_sites(
    data: Path,
    out: Path,
    options: ValidateOptions,
    *,
    predictions: Path | None = None,
    predict: Predict | None = None,
    patients_csv: Path | None = None,
    progress: bool | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Check, predict, freeze, test once; writes validation.html and its numbers into `out`, returns the page's path.

    Args:
        data: folder with datalist.json and patients.csv, or the path of a datalist.
        predictions: results of `volseg predict`, or masks, by image name. What `predict` makes goes to
            `out`/predictions unless given.
        predict: called with (case, folder) for an image without a result; None if all are given.

    Raises:
        InputError: the cohort has a fault (all of them in `out`/cohort_check.txt), a site or prediction is missing.
        UsageError: the test site was already looked at with another frozen rule.
    """
    cohort = checked_cohort(data, out, patients_csv=patients_csv, progress=progress, say=say)
    folder = predictions if predictions is not None else out / "predictions"
    train = [c for c in cohort.cases if c.label is not None and cohort.patients[c.patient].site == options.train_site]
    test = [c for c in cohort.cases if c.label is not None and cohort.patients[c.patient].site == options.test_site]
    if options.train_site == options.test_site:
        raise UsageError("one-site", f"site {options.test_site} cannot be its own external test; name two sites")
    for site, cases in ((options.train_site, train), (options.test_site, test)):
        if not cases:
            there = ", ".join(sorted({p.site for p in cohort.patients.values()}))
            raise InputError("site-empty", f"no labelled case of site {site}; the patients file has: {there}")

    say(f"site {options.train_site}: {len(train)} volumes, to freeze the rule on")
    fitted = _results(train, cohort, folder, out, options, predict, progress)
    frozen = freeze_rule(fitted, options)
    write_frozen(out, frozen)
    say(f"frozen in {out / FROZEN}: {frozen['sha256'][:12]}")

    say(f"site {options.test_site}: {len(test)} volumes, to test it on, once")
    tested = _results(test, cohort, folder, out, options, predict, progress)
    for name, value in made_with(tested.pairs).items() if tested.pairs else ():
        if value != frozen[name]:
            what = "settings" if name == "settings" else "weights"
            raise InputError(
                f"{what}-differ", f"site {options.test_site} was predicted with other {what} than were frozen"
            )
    write_tested(out, frozen)
    return site_report(out, cohort, options, fitted, tested, frozen, say)


def checked_cohort(
    data: Path,
    out: Path,
    *,
    patients_csv: Path | None = None,
    progress: bool | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Cohort:
    """Run the cohort check, keep its report in `out`/cohort_check.txt and .json, refuse a cohort with any fault."""
    out.mkdir(parents=True, exist_ok=True)
    with tqdm(
        desc="checking", unit="file", disable=not progress if progress is not None else None, file=sys.stderr
    ) as bar:

        def tick(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        cohort, report = check_cohort(data, patients=patients_csv, cache=out / ".cohort_cache.json", tick=tick)
    write_whole(out / "cohort_check.txt", report.text + "\n")
    write_whole(out / "cohort_check.json", json.dumps(as_json(as_document(report)), indent=1))
    if not report.ok:
        raise InputError("cohort-refused", f"{one_line(report.problems)}; all are in {out / 'cohort_check.txt'}")
    say(report.text)
    return cohort


def _results(
    listed: Sequence[CohortCase],
    cohort: Cohort,
    folder: Path,
    out: Path,
    options: ValidateOptions,
    predict: Predict | None,
    progress: bool | None,
) -> SiteResults:
    """Predict what is missing, compare, and collect the answers of one site."""
    predicted_here = predict is not None
    if predict is not None:
        bar = tqdm(listed, desc="predicting", unit="case", disable=not progress if progress is not None else None,
                   file=sys.stderr)  # fmt: skip
        for case in bar:
            if (folder / case.name / "result.json").is_file():
                predicted_here = False
            else:
                predict(case, folder / case.name)
    known = find_predictions(folder) if folder.is_dir() else {}
    pairs = []
    for case in listed:
        mask, result = known.get(case.name) or known.get(safe_name(case.name)) or (None, None)
        assert case.label is not None
        parameters = case.label.parent.parent / "parameters" / f"{case.name}.json"
        pairs.append(
            Pair(case.name, case.patient, case.label, mask, result, parameters if parameters.is_file() else None)
        )
    cases = compare_pairs(pairs, out / "cases", options.evaluate, progress=progress)
    presence = presence_predictions(cases, cohort.patients)
    origin, threshold = origin_predictions(pairs, cases, cohort.patients, iou=options.evaluate.iou)
    answers = {("any lesion", "patient"): presence} | {("lung origin", level): rows for level, rows in origin.items()}
    return SiteResults(pairs, cases, answers, threshold, predicted_here)
