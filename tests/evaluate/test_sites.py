"""`volseg validate`: check, freeze, test once."""

from __future__ import annotations

import csv
import json
import shutil

import pytest

from volseg.cli import main
from volseg.errors import InputError, UsageError
from volseg.evaluate import EvaluateOptions, ValidateOptions, validate_sites
from volseg.evaluate.freeze import freeze_rule, write_frozen, write_tested
from volseg.evaluate.sites import _results
from volseg.io.cohort import read_cohort
from volseg.io.files import safe_name

OPTIONS = ValidateOptions("B", "A", evaluate=EvaluateOptions(resamples=50))


def validate(cohort, *arguments) -> int:
    base = ["validate", "--data", str(cohort), "-o", str(cohort.parent / "out"), "--quiet", "--resamples", "50"]
    return main([*base, *arguments])


def fitted(cohort, site: str):
    read, _ = read_cohort(cohort)
    cases = [case for case in read.cases if read.patients[case.patient].site == site]
    return _results(cases, read, cohort / "pred", cohort.parent / "kept", OPTIONS, None, False)


def test_the_command_freezes_tests_and_reports_both_sites(cohort, capsys):
    sites = ["--train-site", "B", "--test-site", "A", "--pred", str(cohort / "pred")]
    assert validate(cohort, *sites) == 0
    out = cohort.parent / "out"
    assert "no problem found" in capsys.readouterr().out
    frozen = json.loads((out / "frozen.json").read_text())
    document = json.loads((out / "validation.json").read_text())
    # At B the true lesions score .8, .7, .65 and the false one .3; p1 is missed.
    assert frozen["weights_sha256"] == "ab" * 32 and frozen["operating_score"] == pytest.approx(0.3)
    assert frozen["rules"]["lung origin, patient level"]["threshold"] == 0.5
    assert document["frozen"]["sha256"] == frozen["sha256"]
    # Frozen half way between .65 and .3; the diseased of A score .55, .5, .4 and .35.
    assert frozen["rules"]["any lesion, patient level"]["threshold"] == pytest.approx(0.475)
    assert document["answers"]["any lesion, patient level"]["test"]["metrics"]["sensitivity"]["value"] == 0.5
    assert document["operating_point"]["external (site A)"]["sensitivity"]["0.1"]["value"] == 1.0
    page = (out / "validation.html").read_text()
    for words in ("Training and external validation", "external (site A)", "What was frozen", "Subgroup", "FROC"):
        assert words.lower() in page.lower()
    for name, least in (("claim_2024", 15), ("tripod_ai", 15), ("stard_ai", 12)):
        rows = list(csv.reader((out / f"tables/{name}.csv").open()))
        assert sum(row[2] != "TODO" for row in rows[1:]) >= least and any(row[2] == "TODO" for row in rows)
    crosstable = next(row for row in rows if row[0] == "30")
    # At .475 two of the four diseased of A are called; the false lesion of p6 scores .3.
    assert "any lesion, patient level: 2 true positive, 0 false positive, 2 false negative, 2 true" in crosstable[2]
    # The diseased: p1, p2, p4, p5 of B, of which p1 is missed; p7, p8, p10, p11 of A.
    for part, dice in (("training_site_b", 0.75 * 10 / 12), ("external_site_a", 10 / 12)):
        table = (out / f"tables/segmentation_per_volume_{part}.csv").read_text()
        assert f'with lesions,"DSC, mean",{dice:.3f}' in table
        assert (out / f"tables/any_lesion_per_patient_{part}.csv").is_file()
        assert (out / f"figures/bland_altman_of_lesion_volume_{part}.png").is_file()
    assert "<h3>Segmentation, per volume, training (site B)</h3>" in page
    assert "<h3>Segmentation, per volume, external (site A)</h3>" in page
    table = (out / "tables/training_and_external_validation.csv").read_text()
    assert table.startswith("cohort,level,question,n,DSC,sensitivity,specificity,AUC,accuracy")
    assert table.count("training (site B)") == table.count("external (site A)") == 4


def test_the_rule_does_not_see_the_test_site(cohort):
    before = freeze_rule(fitted(cohort, "B"), OPTIONS)
    for n in range(6, 12):
        path = cohort / f"pred/p{n}/result.json"
        path.write_text(path.read_text().replace('"score": 0.', '"score": 0.1'))
    assert freeze_rule(fitted(cohort, "B"), OPTIONS)["sha256"] == before["sha256"]


def test_a_second_test_with_another_rule_is_refused(cohort, tmp_path):
    frozen = freeze_rule(fitted(cohort, "B"), OPTIONS)
    write_frozen(tmp_path, frozen)
    write_tested(tmp_path, frozen)
    first = json.loads((tmp_path / "tested.json").read_text())["first"]
    write_frozen(tmp_path, frozen)
    write_tested(tmp_path, frozen)
    assert json.loads((tmp_path / "tested.json").read_text())["first"] == first
    with pytest.raises(UsageError, match="frozen-changed"):
        write_frozen(tmp_path, frozen | {"sha256": "0" * 64})


def test_the_refusal_names_the_site_that_was_tested_and_not_the_new_one(cohort, tmp_path):
    frozen = freeze_rule(fitted(cohort, "B"), OPTIONS)
    write_tested(tmp_path, frozen)
    other = frozen | {"sha256": "0" * 64, "test_site": "C"}
    with pytest.raises(UsageError, match=r"site A was already tested .* for site C; .*another site wants another -o"):
        write_frozen(tmp_path, other)
    noted = json.loads((tmp_path / "tested.json").read_text())
    assert noted.pop("test_site") == "A"
    (tmp_path / "tested.json").write_text(json.dumps(noted))  # as an older volseg wrote it
    with pytest.raises(UsageError, match=": a site was already tested with"):
        write_frozen(tmp_path, other)


CLAIMS = ("The software read images only", "written before the test site was predicted")


def claims(out) -> list[bool]:
    page = (out / "validation.html").read_text()
    assert ("written before the test site&#39;s figures were computed" in page) is (CLAIMS[1] not in page)
    (row,) = [row for row in csv.reader((out / "tables/stard_ai.csv").open()) if row[0] == "17a"]
    assert (row[2] == "TODO") is (CLAIMS[0] not in page)
    return [words in page for words in CLAIMS]


def test_what_the_software_saw_is_said_only_where_it_predicted_in_this_run(cohort, tmp_path):
    def copy(case, folder):
        shutil.copytree(cohort / "pred" / case.name, folder)

    validate_sites(cohort, tmp_path / "own", OPTIONS, predict=copy, progress=False)
    assert claims(tmp_path / "own") == [True, True]
    # The same once more: nothing is left to predict.
    validate_sites(cohort, tmp_path / "own", OPTIONS, predict=copy, progress=False)
    assert claims(tmp_path / "own") == [False, False]
    validate_sites(cohort, tmp_path / "given", OPTIONS, predictions=cohort / "pred", progress=False)
    assert claims(tmp_path / "given") == [False, False]


def test_one_result_that_was_there_before_is_enough_to_leave_it_to_people(cohort, tmp_path):
    def copy(case, folder):
        shutil.copytree(cohort / "pred" / case.name, folder)

    for name, expected in (("p0", [False, True]), ("p9", [False, False])):
        shutil.copytree(cohort / "pred" / name, tmp_path / name / "predictions" / name)
        validate_sites(cohort, tmp_path / name, OPTIONS, predict=copy, progress=False)
        assert claims(tmp_path / name) == expected


def test_the_page_says_at_which_site_predictions_are_missing(cohort, capsys):
    for name in ("p7", "p8", "p2"):
        shutil.rmtree(cohort / "pred" / name)
    sites = ["--train-site", "B", "--test-site", "A", "--pred", str(cohort / "pred")]
    assert validate(cohort, *sites, "--missing-is-empty") == 0
    notes = json.loads((cohort.parent / "out/validation.json").read_text())["notes"]
    nothing = "had no prediction and count as volumes in which nothing was found."
    assert [note for note in notes if nothing in note] == [
        f"1 volumes of site B {nothing}", f"2 volumes of site A {nothing}",
    ]  # fmt: skip
    page = (cohort.parent / "out/validation.html").read_text()
    assert f"2 volumes of site A {nothing}" in page and "Taken for &#34;not lung&#34;: other." in page


def test_masks_without_scores_are_calls_and_have_no_calibration(cohort, tmp_path):
    for n in range(12):
        (cohort / f"pred/p{n}/result.json").unlink()
    validate_sites(cohort, tmp_path / "out", OPTIONS, predictions=cohort / "pred", progress=False)
    answer = json.loads((tmp_path / "out/validation.json").read_text())["answers"]["any lesion, patient level"]
    assert answer["test"]["calibration"] is None and answer["training"]["calibration"] is None
    assert not list((tmp_path / "out/figures").glob("*calibration*"))


def test_a_provenance_of_null_is_refused_with_its_case(cohort):
    path = cohort / "pred/p2/result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"provenance": None}))
    with pytest.raises(InputError, match=r"result-unreadable: p2/result\.json: provenance is null"):
        freeze_rule(fitted(cohort, "B"), OPTIONS)


def test_missing_results_are_predicted_training_site_first(cohort, tmp_path):
    asked = []

    def predict(case, folder):
        asked.append(case.name)
        if len(asked) == 7:
            assert (tmp_path / "out/frozen.json").is_file()
        shutil.copytree(cohort / "pred" / case.name, folder)

    validate_sites(cohort, tmp_path / "out", OPTIONS, predict=predict, progress=False)
    assert asked == [f"p{n}" for n in range(12)]
    assert (tmp_path / "out/predictions/p3/result.json").is_file() and (tmp_path / "out/tested.json").is_file()


def test_other_weights_at_the_test_site_are_refused(cohort, tmp_path):
    path = cohort / "pred/p9/result.json"
    path.write_text(path.read_text().replace("abab", "cdcd"))
    with pytest.raises(InputError, match="weights-differ"):
        validate_sites(cohort, tmp_path / "out", OPTIONS, predictions=cohort / "pred", progress=False)


def set_in_results(cohort, patients, settings, entry="settings"):
    for n in patients:
        path = cohort / f"pred/p{n}/result.json"
        document = json.loads(path.read_text())
        document["provenance"][entry] = settings
        path.write_text(json.dumps(document))


def test_settings_are_frozen_with_the_weights(cohort, tmp_path):
    set_in_results(cohort, range(12), {"adapt": True})
    page = validate_sites(cohort, tmp_path / "out", OPTIONS, predictions=cohort / "pred", progress=False)
    assert json.loads((tmp_path / "out/frozen.json").read_text())["settings"] == {"adapt": True}
    assert "setting adapt" in page.read_text()
    set_in_results(cohort, range(6, 12), {"adapt": True, "adapt_steps": 2})
    with pytest.raises(InputError, match=r"settings-differ.*site A"):
        validate_sites(cohort, tmp_path / "out", OPTIONS, predictions=cohort / "pred", progress=False)
    set_in_results(cohort, [2], {})
    with pytest.raises(InputError, match=r"settings-differ.*adapt"):
        validate_sites(cohort, tmp_path / "out", OPTIONS, predictions=cohort / "pred", progress=False)


def test_weights_of_others_that_were_heeded_are_frozen_too(cohort, tmp_path):
    """With --ensemble another network has a say: its weights may change no more than the bundle's own."""
    set_in_results(cohort, range(12), {"other": "12" * 32}, "other_weights")
    page = validate_sites(cohort, tmp_path / "out", OPTIONS, predictions=cohort / "pred", progress=False)
    assert "weights of other, heeded too" in page.read_text() and "12" * 32 in page.read_text()
    assert "beside other (weights 121212121212)" in page.read_text()  # the checklist's line on the model
    set_in_results(cohort, range(6, 12), {"other": "34" * 32}, "other_weights")
    with pytest.raises(InputError, match=r"weights-differ.*site A"):
        validate_sites(cohort, tmp_path / "out", OPTIONS, predictions=cohort / "pred", progress=False)
    set_in_results(cohort, [2], {"other": "34" * 32}, "other_weights")
    with pytest.raises(InputError, match=r"weights-differ.*heeded"):
        validate_sites(cohort, tmp_path / "out", OPTIONS, predictions=cohort / "pred", progress=False)


def test_a_site_that_knows_one_answer_gets_no_rule_for_it(cohort):
    path = cohort / "patients.csv"
    path.write_text(path.read_text().replace("other", "lung"))
    for n in (0, 3):
        shutil.copy(cohort / "labelsTr/p2.nii.gz", cohort / f"labelsTr/p{n}.nii.gz")
    rules = freeze_rule(fitted(cohort, "B"), OPTIONS)["rules"]
    assert "any lesion, patient level" not in rules and rules["lung origin, patient level"]["chosen_by"].startswith(
        "frozen with"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        ([], 2, "sites-missing"),
        (["--train-site", "B", "--test-site", "B", "--pred", "pred"], 2, "one-site"),
        (["--train-site", "B", "--test-site", "C", "--pred", "pred"], 1, "site-empty"),
        (["--train-site=B", "--test-site=A", "--adapt", "--bundle=bone_ct_mask_rcnn_detection"], 2, "adapt-unknown"),
    ],
)
def test_wrong_requests_get_one_line(cohort, arguments, code, word, capsys):
    assert validate(cohort, *arguments) == code
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"volseg: {word}: ") and len(error.splitlines()) == 1


def test_a_leak_stops_everything_and_the_whole_list_lies_beside(cohort, capsys):
    shutil.copy(cohort / "imagesTr/p0.nii.gz", cohort / "imagesTr/p7.nii.gz")
    (cohort / "labelsTr/p8.nii.gz").unlink()
    assert validate(cohort, "--check") == 1
    error = capsys.readouterr().err.strip()
    assert "cohort-refused: 2 problems" in error and "hold the same voxels" in error and len(error.splitlines()) == 1
    listed = (cohort.parent / "out/cohort_check.txt").read_text()
    assert "image-in-two-splits: imagesTr/p0.nii.gz and imagesTr/p7.nii.gz" in listed and "file-missing" in listed


def test_two_images_of_one_name_would_share_a_result_and_are_refused(cohort, capsys):
    """A/img.nii.gz and B/img.nii.gz: one patient's masks would be scored against another's truth."""
    (cohort / "other").mkdir()
    twin = safe_name("p 1")
    moved = {"p7": "other/p0", "p1": "imagesTr/p 1", "p8": f"other/{twin}"}
    listed = (cohort / "datalist.json").read_text()
    for patient, image in moved.items():
        (cohort / f"imagesTr/{patient}.nii.gz").rename(cohort / f"{image}.nii.gz")
        listed = listed.replace(f'"imagesTr/{patient}.nii.gz"', f'"{image}.nii.gz", "patient": "{patient}"')
    (cohort / "datalist.json").write_text(listed)
    sites = ["--train-site", "B", "--test-site", "A", "--pred", str(cohort / "pred")]
    assert validate(cohort, *sites) == 1
    assert "cohort-refused: 2 problems" in capsys.readouterr().err
    told = (cohort.parent / "out/cohort_check.txt").read_text()
    assert "name-twice: imagesTr/p0.nii.gz and other/p0.nii.gz: share the name p0" in told
    assert f"name-twice: imagesTr/p 1.nii.gz and other/{twin}.nii.gz: share the name {twin}" in told


def test_the_check_alone_says_so_when_nothing_is_wrong(cohort, capsys):
    assert validate(cohort, "--check") == 0
    assert "12 cases of 12 patients: no problem found" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["evaluate", "validate"])
def test_help_teaches_by_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0 and f"volseg {command} --" in printed and "patients.csv" in printed
