"""What may not change between fitting and testing: chosen at one site, written down with a hash, tested once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import InputError, UsageError
from volseg.evaluate.compare import EvaluateOptions
from volseg.evaluate.pairs import Pair, entries_of, read_result
from volseg.evaluation.cases import CaseResult
from volseg.evaluation.detection import froc
from volseg.evaluation.external import FrozenRule, Predictions, freeze
from volseg.evaluation.tables import Table, number
from volseg.report.files import write_whole
from volseg.report.tables import as_json

FROZEN, TESTED = "frozen.json", "tested.json"


@dataclass(frozen=True)
class ValidateOptions:
    """Which sites, and how many false positives per volume the operating point may cost at the training site."""

    train_site: str
    test_site: str
    false_positives: float = 2.0
    evaluate: EvaluateOptions = field(default_factory=EvaluateOptions)


@dataclass(frozen=True, eq=False)
class SiteResults:
    """What is known of one site: pairs, compared volumes, answers by (question, level).

    `predicted_here`: volseg predicted every volume in this very run, and did not find the result of another.
    """

    pairs: list[Pair]
    cases: list[CaseResult]
    answers: dict[tuple[str, str], Predictions]
    origin_threshold: float | None
    predicted_here: bool = False


def freeze_rule(fitted: SiteResults, options: ValidateOptions) -> dict[str, Any]:
    """Everything that may not change before the test: weights, settings, operating score, every question's threshold.

    The origin threshold is the one the results carry (frozen with the bundle); any other is Youden's at this site. A
    question of which the site knows only one answer gets no rule.
    """
    made = made_with(fitted.pairs)
    weights = made["weights_sha256"]
    curve = froc([case.detection() for case in fitted.cases], iou=options.evaluate.iou)
    rules: dict[str, Any] = {}
    for (question, level), rows in fitted.answers.items():
        if question == "lung origin" and fitted.origin_threshold is not None:
            rule = FrozenRule(
                threshold=fitted.origin_threshold,
                chosen_by="frozen with the bundle",
                site=options.train_site,
                level=rows.level,
                n_rows=len(rows.labels),
                n_positive=int(rows.labels.sum()),
                weights_sha256=weights,
            )
        elif len(set(rows.labels[~np.isnan(rows.scores)].tolist())) == 2:
            rule = freeze(rows, site=options.train_site, weights_sha256=weights)
        else:
            continue
        rules[f"{question}, {level} level"] = asdict(rule)
    frozen = {
        "train_site": options.train_site,
        "test_site": options.test_site,
        **made,
        "operating_score": curve.threshold_for(options.false_positives),
        "operating_score_chosen_by": f"at most {options.false_positives:g} false positives per volume, "
        f"IoU >= {options.evaluate.iou:g}, at site {options.train_site}",
        "rules": rules,
    }
    frozen = as_json(frozen)
    return frozen | {"sha256": sha256(json.dumps(frozen, sort_keys=True).encode()).hexdigest()}


def made_with(pairs: Sequence[Pair]) -> dict[str, Any]:
    """What all results carry: sha256 of weights, settings, weights of other bundles heeded; "" and {} for mere masks.

    Raises InputError("weights-differ" or "settings-differ") where they are not the same throughout.
    """
    results = [pair.result for pair in pairs if pair.result is not None]
    made_by = [(path, entries_of(read_result(path), "provenance", path)) for path in results]
    weights = {str(one.get("weights_sha256") or "") for _, one in made_by}
    # As text, for mappings are no keys: results of before they were recorded have none.
    settings, others = (
        {json.dumps(entries_of(one, entry, path), sort_keys=True) for path, one in made_by}
        for entry in ("settings", "other_weights")
    )
    if len(weights) > 1:
        raise InputError(
            "weights-differ", f"the results come from {len(weights)} different weights; predict all with one"
        )
    if len(settings) > 1:
        raise InputError(
            "settings-differ", f"the results were made with different settings ({'; '.join(sorted(settings))})"
        )
    if len(others) > 1:
        raise InputError("weights-differ", "the results heeded other bundles whose weights differ")
    return {
        "weights_sha256": weights.pop() if weights else "",
        "settings": json.loads(settings.pop()) if settings else {},
        "other_weights": json.loads(others.pop()) if others else {},
    }


def write_frozen(out: Path, frozen: Mapping[str, Any]) -> None:
    """Write `out`/frozen.json. Raises UsageError("frozen-changed") if another rule was tested here before."""
    if (out / TESTED).is_file():
        tested = json.loads((out / TESTED).read_text(encoding="utf-8"))
        before, site = tested["frozen_sha256"], tested.get("test_site")  # older files do not say which site
        if before != frozen["sha256"]:
            raise UsageError(
                "frozen-changed",
                f"{out}: {f'site {site}' if site else 'a site'} was already tested with the rule {before[:12]}, this "
                f"is {frozen['sha256'][:12]} for site {frozen['test_site']}; choosing after looking is no external "
                "test: use another -o, report both (another site wants another -o, too)",
            )
    write_whole(out / FROZEN, json.dumps(frozen, indent=1, allow_nan=False) + "\n")


def write_tested(out: Path, frozen: Mapping[str, Any]) -> None:
    """Note in `out`/tested.json which rule was tested at which site, when first and when last."""
    path = out / TESTED
    now = datetime.now(UTC).isoformat(timespec="seconds")
    first = json.loads(path.read_text(encoding="utf-8"))["first"] if path.is_file() else now
    noted = {"frozen_sha256": frozen["sha256"], "test_site": frozen["test_site"], "first": first, "last": now}
    write_whole(path, json.dumps(noted, indent=1))


def frozen_table(frozen: Mapping[str, Any], *, predicted_after: bool) -> Table:
    """What `freeze_rule` chose, and how. `predicted_after`: this run predicted the test site, after it had frozen."""
    rows = [("weights (sha256)", frozen["weights_sha256"] or "not recorded", "")]
    rows += [(f"setting {entry}", str(value), "asked for") for entry, value in frozen["settings"].items()]
    rows += [(f"weights of {name}, heeded too", sha, "") for name, sha in frozen["other_weights"].items()]
    score = frozen["operating_score"]
    rows.append(("lesion score", number(np.inf if score is None else score), frozen["operating_score_chosen_by"]))
    rows += [(name, number(rule["threshold"]), rule["chosen_by"]) for name, rule in frozen["rules"].items()]
    then = "the test site was predicted" if predicted_after else "the test site's figures were computed"
    rows.append(("all of this (sha256)", frozen["sha256"], f"written before {then}"))
    return Table("What was frozen", ("what", "value", "how it was chosen"), tuple(rows))
