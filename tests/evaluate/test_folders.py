"""`volseg evaluate`: right numbers on disk, every volume accounted for, work that is done is kept."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from volseg.cli import main
from volseg.errors import InputError
from volseg.evaluate.answers import origin_predictions
from volseg.evaluate.compare import EvaluateOptions, compare_pairs
from volseg.evaluate.folders import told_apart
from volseg.evaluate.pairs import pair_folders, read_patients_strictly
from volseg.evaluate.write import write_case_tables, write_report
from volseg.evaluation.page import Section
from volseg.evaluation.tables import Table
from volseg.io import write_nifti

from .conftest import AFFINE, SHAPE, block

OPTIONS = EvaluateOptions(resamples=50)


def pairs_and_cases(cohort, options=OPTIONS):
    patients = read_patients_strictly(cohort / "patients.csv")
    pairs, _ = pair_folders(cohort / "pred", cohort, patients=patients)
    return pairs, compare_pairs(pairs, cohort / "kept", options, progress=False), patients


def evaluate(cohort, *arguments) -> int:
    base = ["evaluate", "--pred", str(cohort / "pred"), "--truth", str(cohort / "labelsTr"), "--quiet"]
    return main([*base, "--resamples", "50", "-o", str(cohort.parent / "out"), *arguments])


def test_the_command_writes_a_page_and_the_numbers_behind_it(cohort, capsys):
    assert evaluate(cohort, "--patients", str(cohort / "patients.csv"), "--against", str(cohort / "pred")) == 0
    out = cohort.parent / "out"
    printed = capsys.readouterr().out
    assert "7 of 8" not in printed and "0.88 (" in printed and str(out / "evaluation.html") in printed
    document = json.loads((out / "evaluation.json").read_text())
    assert document["lesions"]["n_lesions"] == 8 and document["lesions"]["sensitivity"]["0.1"]["value"] == 7 / 8
    dice = 2 * 5 / 12  # one voxel of six off
    assert document["segmentation"]["positive"]["dice"]["value"] == pytest.approx(7 / 8 * dice)
    assert document["segmentation"]["negative"]["specificity"]["value"] == 2 / 4
    assert document["origin_patient"]["metrics"]["sensitivity"]["n"] == 6
    # A model against itself: p is 1, and no interval, for no spread was seen.
    itself = document["paired"]["differences"]["DSC, volumes with lesions"]
    assert (itself["estimate"]["value"], itself["estimate"]["low"], itself["p_value"]) == (0, None, 1)
    assert '"DSC, volumes with lesions",0.000,1.000,' in (out / "tables/pred_minus_pred.csv").read_text()
    rows = list(csv.DictReader((out / "cases.csv").open()))
    assert len(rows) == 12 and rows[1]["case"] == "p1" and rows[1]["hd95_mm"] == "inf" and rows[1]["found"] == "0"
    lesions = list(csv.DictReader((out / "lesions.csv").open()))
    assert sum(row["side"] == "truth" for row in lesions) == 8
    page = (out / "evaluation.html").read_text()
    for words in ("Table 1", "Origin, patient level", "By site", "pred minus pred", "Worst volumes", "data:image/png"):
        assert words in page
    assert "<script" not in page and len(list((out / "figures").glob("*.png"))) >= 8


def test_a_second_run_compares_only_what_changed(cohort, monkeypatch):
    from volseg.evaluate import compare

    pairs_and_cases(cohort)
    done = []
    real = compare.compare_case
    monkeypatch.setattr(compare, "compare_case", lambda *a, **k: (done.append(k["case"]), real(*a, **k))[1])
    (cohort / "kept" / "p3.json").write_text("{ cut off")
    write_nifti(cohort / "labelsTr/p4.nii.gz", block(8).astype(np.uint16), AFFINE, dtype=np.uint16)
    _, cases, _ = pairs_and_cases(cohort)
    assert done == ["p3", "p4"] and len(cases) == 12
    pairs_and_cases(cohort, EvaluateOptions(resamples=50, tolerance_mm=1.0))
    assert len(done) == 14


def test_every_volume_that_cannot_be_compared_is_named_and_nothing_is_reported(cohort, capsys):
    shutil.rmtree(cohort / "pred/p2")
    write_nifti(cohort / "labelsTr/p5.nii.gz", np.zeros((9, 9, 9), np.uint8), AFFINE, dtype=np.uint8)
    assert evaluate(cohort) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("volseg: evaluation-incomplete: 2 problems: p2: there is no prediction") and "p5: " in error
    assert len(error.splitlines()) == 1 and not (cohort.parent / "out" / "evaluation.html").exists()


def test_a_missing_prediction_counts_as_nothing_found_only_when_asked(cohort):
    shutil.rmtree(cohort / "pred/p2")
    _, cases, _ = pairs_and_cases(cohort, EvaluateOptions(missing_is_empty=True))
    assert cases[[c.case for c in cases].index("p2")].overlap.dice == 0


def test_what_was_kept_for_a_missing_prediction_is_not_believed_once_none_may_be_missing(cohort):
    shutil.rmtree(cohort / "pred/p2")
    pairs_and_cases(cohort, EvaluateOptions(missing_is_empty=True))
    with pytest.raises(InputError, match="p2: there is no prediction"):
        pairs_and_cases(cohort)


def test_a_table_or_figure_never_overwrites_another(tmp_path):
    table = Table("Per volume", ("a",), (("1",),))
    sections = [Section("B", (table,)), Section("A", (replace(table, title="Per volume?"),))]
    about = {"title": "", "lead": "", "tiles": {}, "notes": [], "document": {}}
    with pytest.raises(ValueError, match=r"section 'A': per_volume\.csv"):
        write_report(tmp_path, "page", sections=sections, **about)
    with pytest.raises(ValueError, match=r"section 'D': roc\.png"):
        write_report(tmp_path, "page", sections=[Section(s, (), {"ROC": b""}) for s in "CD"], **about)
    assert not list(tmp_path.iterdir())


def test_names_of_cases_and_patients_run_in_no_spreadsheet(cohort):
    _, (case, *_), _ = pairs_and_cases(cohort)
    write_case_tables([replace(case, case="-2+3|x", patient="\t=1"), replace(case, case="-7")], cohort, iou=0.1)
    rows = list(csv.DictReader((cohort / "cases.csv").open(newline="")))
    assert [(row["case"], row["patient"]) for row in rows] == [("'-2+3|x", "'\t=1"), ("-7", "p0")]


def test_plain_masks_are_paired_by_name_and_score_1(cohort):
    plain = cohort / "plain"
    plain.mkdir()
    two = np.zeros(SHAPE, np.float32)
    two[block(3)] = two[block(16)] = 1
    for n in range(12):
        write_nifti(plain / f"p{n}.nii", two, AFFINE, dtype=np.float32)
    write_nifti(plain / "other.nii", two, AFFINE, dtype=np.float32)
    pairs, notes = pair_folders(plain, cohort / "labelsTr")
    assert "1 predictions have no truth and were left out: other" in notes[0] and "patient of its own" in notes[1]
    cases = compare_pairs(pairs, cohort / "kept", OPTIONS, progress=False)
    assert all(len(c.predicted_lesions) == 2 and not c.scored for c in cases)


@pytest.mark.parametrize("side", ["pred", "labelsTr"])
def test_two_masks_of_one_name_are_refused(cohort, side):
    write_nifti(cohort / side / "p1.nii", np.zeros(SHAPE, np.uint16), AFFINE, dtype=np.uint16)
    with pytest.raises(InputError, match=r"masks-of-one-name.*p1"):
        pair_folders(cohort / "pred", cohort / "labelsTr")


def test_kinds_come_from_what_synth_wrote_beside_the_labels(cohort):
    (cohort / "parameters").mkdir()
    (cohort / "parameters/p1.json").write_text('{"lesions": [{"id": 1, "kind": "lytic"}]}')
    _, cases, _ = pairs_and_cases(cohort)
    assert {case.case: case.true_lesions[0].kind for case in cases if case.has_lesions}["p1"] == "lytic"


def test_origin_answers_come_from_the_results_and_silence_stays_silence(cohort):
    answers, threshold = origin_predictions(*pairs_and_cases(cohort), iou=0.1)
    patient, lesion = answers["patient"], answers["lesion"]
    assert threshold == 0.5 and len(patient.labels) == 12 and len(lesion.labels) == 8
    at = {name: n for n, name in enumerate(patient.patients)}
    assert patient.scores[at["p2"]] == pytest.approx(0.34) and np.isnan(patient.scores[at["p1"]])
    assert np.isnan(lesion.scores[list(lesion.patients).index("p1")])  # missed: no answer
    assert patient.labels[at["p7"]] == 1 and patient.sites[at["p7"]] == "A"


def change_result(cohort, name, change):
    path = cohort / f"pred/{name}/result.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_who_has_no_prediction_or_no_answer_stays_among_those_who_were_asked(cohort):
    """p7 (lung, one lesion) has no prediction, p2's result says nothing of the origin: both are without an answer."""
    shutil.rmtree(cohort / "pred/p7")
    change_result(cohort, "p2", lambda document: document.pop("origin"))
    answers, threshold = origin_predictions(
        *pairs_and_cases(cohort, EvaluateOptions(resamples=50, missing_is_empty=True)), iou=0.1
    )
    patient, lesion = answers["patient"], answers["lesion"]
    assert threshold == 0.5 and len(patient.labels) == 12 and len(lesion.labels) == 8
    for rows in (patient, lesion):
        silent = set(rows.patients[np.isnan(rows.scores)])
        assert {"p2", "p7"} <= silent and not {"p4", "p5"} & silent
    assert patient.labels[list(patient.patients).index("p7")] == 1


def test_where_no_result_answers_the_origin_nobody_was_asked(cohort):
    for n in range(12):
        change_result(cohort, f"p{n}", lambda document: document.pop("origin"))
    assert origin_predictions(*pairs_and_cases(cohort), iou=0.1) == ({}, None)


def test_patients_of_unknown_origin_are_in_no_figure_on_origin(cohort):
    path = cohort / "patients.csv"
    path.write_text(path.read_text().replace("p4,B,other", "p4,B,unknown").replace("p2,B,other", "p2,B,CUP"))
    patients = origin_predictions(*pairs_and_cases(cohort), iou=0.1)[0]["patient"].patients
    assert len(patients) == 10 and not {"p2", "p4"} & set(patients)


def test_the_page_lists_what_was_taken_for_not_lung(cohort):
    path = cohort / "patients.csv"
    path.write_text(path.read_text().replace("p4,B,other", "p4,B,Breast").replace("p8,A,other", "p8,A,none"))
    assert evaluate(cohort, "--patients", str(path)) == 0
    page = (cohort.parent / "out/evaluation.html").read_text()
    assert page.count("Taken for &#34;not lung&#34;: breast, other.") == 2  # patient level, lesion level


def set_lesion(**entries):
    return lambda document: document["lesions"][0].update(entries)


def set_origin(**entries):
    return lambda document: document["origin"].update(entries)


@pytest.mark.parametrize("score", ["0,8", "high", float("nan"), float("inf"), [0.8], True])
def test_a_score_that_is_no_number_is_named_with_its_case(cohort, score):
    change_result(cohort, "p2", set_lesion(score=score))
    with pytest.raises(InputError, match=r"p2/result\.json: score of lesion 1 is ") as refusal:
        pairs_and_cases(cohort)
    assert f"{json.dumps(score)}, no number" in str(refusal.value)


@pytest.mark.parametrize("number", [1.5, float("inf"), float("nan"), "one", None])
def test_a_lesion_number_that_is_none_is_named_with_its_case(cohort, number):
    change_result(cohort, "p2", set_lesion(id=number))
    with pytest.raises(InputError, match=r"p2: p2/result\.json: "):
        pairs_and_cases(cohort)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_origin(p_lung="0,8"), 'p_lung of the origin is "0,8", no number'),
        (set_origin(p_lung=1.2), "p_lung of the origin is 1.2, outside 0 to 1"),
        (set_origin(threshold="0,5"), 'threshold of the origin is "0,5", no number'),
        (set_origin(threshold=float("nan")), "threshold of the origin is NaN, no number"),
        (set_lesion(p_lung=-0.1), "p_lung of lesion 1 is -0.1, outside 0 to 1"),
        (set_lesion(p_lung=float("nan")), "p_lung of lesion 1 is NaN, no number"),
        (lambda document: document.update(origin=None), "origin is null where an object belongs"),
    ],
)
def test_an_answer_that_cannot_be_read_is_named_with_its_case(cohort, change, words):
    change_result(cohort, "p2", change)
    with pytest.raises(InputError) as refusal:
        origin_predictions(*pairs_and_cases(cohort), iou=0.1)
    assert refusal.value.code == "result-unreadable" and refusal.value.message.startswith(f"p2/result.json: {words}")


@pytest.mark.parametrize("entry", ["settings", "other_weights", None])
def test_a_provenance_of_null_gets_one_line(cohort, entry, capsys):
    change_result(
        cohort, "p2", lambda document: document["provenance"].update({entry: None}) if entry else document.update(
            provenance=None)
    )  # fmt: skip
    assert evaluate(cohort) == 1
    error = capsys.readouterr().err.strip()
    told = f"volseg: result-unreadable: p2/result.json: {entry or 'provenance'} is null where an object belongs"
    assert error.startswith(told) and len(error.splitlines()) == 1


def test_a_lesion_numbered_in_text_keeps_its_answer(cohort):
    change_result(cohort, "p2", set_lesion(id="1"))
    lesion = origin_predictions(*pairs_and_cases(cohort), iou=0.1)[0]["lesion"]
    assert lesion.scores[list(lesion.patients).index("p2")] == pytest.approx(0.34)


def test_two_folders_of_one_name_are_told_apart_by_what_lies_above_them(tmp_path, monkeypatch):
    for folder in ("a/pred", "b/pred", "a-1", "a_1"):
        (tmp_path / folder).mkdir(parents=True)
    assert told_apart(tmp_path / "a/pred", tmp_path / "b") == ("pred", "b")
    assert told_apart(tmp_path / "a/pred", tmp_path / "b/pred") == ("a/pred", "b/pred")
    assert told_apart(tmp_path / "a/pred", tmp_path / "a/pred") == ("pred", "pred")
    assert told_apart(tmp_path / "a-1", tmp_path / "a_1") == ("a-1", "a_1")
    monkeypatch.chdir(tmp_path / "a/pred")
    assert told_apart(Path(), Path("../../b/pred")) == ("a/pred", "b/pred")


def test_the_paired_table_names_both_folders_and_so_does_its_file(cohort):
    shutil.copytree(cohort / "pred", cohort.parent / "second/pred")
    assert evaluate(cohort, "--against", str(cohort.parent / "second/pred")) == 0
    table = (cohort.parent / "out/tables/cohort_pred_minus_second_pred.csv").read_text()
    assert "patients right only with cohort/pred" in table and "only with second/pred" in table


def test_the_help_says_which_figures_have_no_interval(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "interval over patients, but for average precision, Brier score and expected calibration error" in told


def test_results_with_different_thresholds_are_not_one_model(cohort):
    path = cohort / "pred/p3/result.json"
    path.write_text(path.read_text().replace('"threshold": 0.5', '"threshold": 0.6'))
    with pytest.raises(InputError, match=r"thresholds \(0.5, 0.6\)"):
        origin_predictions(*pairs_and_cases(cohort), iou=0.1)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda c: shutil.rmtree(c / "pred"), "path-missing"),
        (lambda c: [shutil.rmtree(p) for p in (c / "pred").iterdir()], "no-masks"),
        (lambda c: [p.rename(p.with_name("x" + p.name)) for p in list((c / "pred").iterdir())], "no-pairs"),
        (lambda c: (c / "patients.csv").write_text("patient,site\np1,B\n"), "patients-incomplete"),
        (lambda c: (c / "patients.csv").write_text("patient,site,age\np1,B,x\n"), "patients-refused"),
    ],
)
def test_folders_that_cannot_be_evaluated_get_one_line(cohort, change, code, capsys):
    change(cohort)
    assert evaluate(cohort, "--patients", str(cohort / "patients.csv")) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"volseg: {code}: ") and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{ cut off", "JSONDecodeError"),
        ("[]", "AttributeError"),
        ('{"lesions": [{"score": 1}]}', "KeyError"),
        ('{"lesions": [{"id": 1, "score": 1}, {"id": 1, "score": 2}]}', "two lesions of one number"),
        ('{"lesions": []}', "no score for lesion 1"),
    ],
)
def test_a_result_that_is_not_what_predict_writes_is_named(cohort, text, word):
    (cohort / "pred/p2/result.json").write_text(text)
    with pytest.raises(InputError) as refusal:
        pairs_and_cases(cohort)
    assert "p2: " in str(refusal.value) and word in str(refusal.value)


@pytest.mark.parametrize(
    ("voxels", "code"),
    [
        (np.full(SHAPE, 0.5, np.float32) * block(2), "mask-not-whole"),
        (block(2).astype(np.int16) - 1, "mask-negative"),
    ],
)
def test_probability_maps_and_negative_values_are_no_masks(cohort, voxels, code):
    write_nifti(cohort / "labelsTr/p4.nii.gz", voxels, AFFINE, dtype=voxels.dtype)
    with pytest.raises(InputError) as refusal:
        pairs_and_cases(cohort)
    assert refusal.value.code == "evaluation-incomplete" and "p4" in str(refusal.value)
    assert code == "mask-negative" or "probability" in str(refusal.value)
