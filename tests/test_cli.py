"""The front door: exit codes, one clear line, nothing half-written."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from volseg.cli import main
from volseg.cli.done import Asked, already_done
from volseg.cli.shared import asked_precision, unique_names, whole_name
from volseg.errors import InputError, UsageError
from volseg.io import write_nifti


def _predict(bright_bundle, *arguments) -> int:
    return main(
        [
            "predict",
            *map(str, arguments),
            "--bundle",
            str(bright_bundle),
            "--trust-bundle",
            "--quiet",
            "--device",
            "cpu",
        ]
    )


def test_predict_writes_the_report_and_says_where(ct, bright_bundle, tmp_path, capsys):
    assert _predict(bright_bundle, ct, "-o", tmp_path / "out") == 0
    assert "1 lesion" in (printed := capsys.readouterr().out)
    assert str(tmp_path / "out" / "block" / "report.html") in printed


def test_a_second_run_skips_what_is_done(ct, bright_bundle, tmp_path, capsys):
    _predict(bright_bundle, ct, "-o", tmp_path / "out")
    first = (tmp_path / "out" / "block" / "result.json").stat().st_mtime_ns
    assert _predict(bright_bundle, ct, "-o", tmp_path / "out") == 0
    assert "already done" in capsys.readouterr().out
    assert (tmp_path / "out" / "block" / "result.json").stat().st_mtime_ns == first


def _other_of_this_name(ct, tmp_path):
    other = tmp_path / "other" / ct.name
    other.parent.mkdir()
    other.write_bytes(ct.read_bytes())
    return other


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (lambda ct, path: [_other_of_this_name(ct, path)], "in/block.nii.gz; choose another --name or -o"),
        (lambda ct, _: [ct, "--overlap", "0.125"], "the bundle's own settings, now inferer#overlap 0.125"),
        (lambda ct, _: [ct, "--probability"], "made without --probability"),
        (lambda ct, _: [ct, "--series", "77"], "of the series volseg chooses, now series 77"),
        (lambda ct, path: [ct] if _changed(path / "bright_segmentation/models/model.pt") else [], "of other weights"),
        (lambda ct, path: [ct] if _changed(path / "out/block/result.json", "{") else [], "not a finished result"),
    ],
)
def test_another_question_is_not_answered_with_what_lies_there(asked, told, ct, bright_bundle, tmp_path, capsys):
    """PACS exports are often all called DICOM: the folder's name does not say whose result it is, nor made how."""
    assert _predict(bright_bundle, ct, "-o", tmp_path / "out") == 0
    arguments = asked(ct, tmp_path)
    here = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "out/block").iterdir())
    assert _predict(bright_bundle, *arguments, "-o", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("volseg: output-") and told in error and len(error.splitlines()) == 1
    assert here == sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "out/block").iterdir())


def _changed(path, content=None) -> bool:
    """Weights of other values, or another text."""
    if content is not None:
        path.write_text(content)
        return True
    state = torch.load(path, weights_only=True)
    torch.save({key: value + 1 for key, value in state.items()}, path)
    return True


def test_a_result_of_another_working_directory_is_known_again(ct, bright_bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ct.parent)
    assert _predict(bright_bundle, ct.name, "-o", tmp_path / "out") == 0
    monkeypatch.chdir(tmp_path)
    assert _predict(bright_bundle, ct, "-o", tmp_path / "out") == 0
    assert "already done" in capsys.readouterr().out


def test_a_new_patient_under_an_old_path_is_not_answered_with_the_old_ones_result(ct, bright_bundle, tmp_path, capsys):
    """Exports are taken into one folder, patient after patient."""
    result = tmp_path / "out/block/result.json"
    assert _predict(bright_bundle, ct, "-o", tmp_path / "out") == 0
    os.utime(ct, (1_600_000_000, 1_600_000_000))
    assert _predict(bright_bundle, ct, "-o", tmp_path / "out") == 0, "a copy of the same study has another date"
    image, made = nib.load(ct), result.read_bytes()
    write_nifti(ct, np.asarray(image.dataobj)[::-1].copy(), image.affine, dtype=np.int16)
    capsys.readouterr()
    assert _predict(bright_bundle, ct, "-o", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip()
    assert "output-of-another" in error and "the files there have changed since; choose another --name or -o" in error
    assert result.read_bytes() == made and len(error.splitlines()) == 1
    document = json.loads(made)
    del document["provenance"]["study_fingerprint"]
    result.write_text(json.dumps(document))
    assert _predict(bright_bundle, ct, "-o", tmp_path / "out") == 0
    assert "already done" in capsys.readouterr().out, "an older volseg took no fingerprint: judged by the path alone"
    result.write_bytes(made)
    ct.unlink()
    assert _predict(bright_bundle, ct, "-o", tmp_path / "out") == 1
    assert "path-missing" in capsys.readouterr().err and result.read_bytes() == made


def test_overwrite_spares_what_somebody_put_beside_a_result(ct, bright_bundle, tmp_path, capsys, monkeypatch):
    assert _predict(bright_bundle, ct, "-o", tmp_path / "out") == 0
    note = tmp_path / "out/block/radiologist.txt"
    note.write_text("two of these are bone islands")
    monkeypatch.setattr("volseg.pipeline.segment_volume", None)  # told before the search
    assert _predict(bright_bundle, ct, "-o", tmp_path / "out", "--overwrite") == 2
    assert "holds a result and besides radiologist.txt: not replaced" in capsys.readouterr().err
    assert note.is_file() and (tmp_path / "out/block/report.html").is_file()


def test_a_path_that_is_no_text_is_written_as_text_and_known_again(ct, bright_bundle, tmp_path, capsys):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this disk takes UTF-8 names only")
    moved = ct.rename(folder / "block.nii.gz")
    command = ["predict", str(moved), "-o", str(tmp_path / "out"), "--bundle", str(bright_bundle), "--trust-bundle"]
    assert main([*command, "--quiet", "--device", "cpu"]) == 0
    document = json.loads((tmp_path / "out/block/result.json").read_text(encoding="utf-8"))
    assert document["study"]["source"] == f"{tmp_path.resolve()}/M\\xfcller/block.nii.gz"
    assert main([*command, "--quiet", "--device", "cpu"]) == 0
    assert "already done" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../outside", "/elsewhere", "a/b", "..", ".hidden", "a\nb", "x" * 300])
def test_a_name_that_leads_elsewhere_is_refused(name, ct, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(ct), "-o", str(tmp_path / "out"), "--name", name])
    assert stop.value.code == 2 and "is no name of a folder" in capsys.readouterr().err
    assert whole_name("Fall 7, Becken") == "Fall 7, Becken"


def test_overwrite_replaces_results_and_nothing_else(ct, bright_bundle, tmp_path, capsys):
    theirs = tmp_path / "out/block/letters"
    theirs.mkdir(parents=True)
    (theirs / "mine.txt").write_text("not volseg's")
    assert _predict(bright_bundle, ct, "-o", tmp_path / "out", "--overwrite") == 2
    assert (
        "exists and is not a finished result: not replaced" in capsys.readouterr().err
        and (theirs / "mine.txt").is_file()
    )
    shutil.rmtree(tmp_path / "out")
    assert _predict(bright_bundle, ct, "-o", tmp_path / "out") == 0
    assert _predict(bright_bundle, ct, "-o", tmp_path / "out", "--overwrite", "--probability") == 0
    assert (tmp_path / "out/block/probability.nii.gz").is_file()


def test_the_input_is_never_replaced_by_the_result(ct, bright_bundle, tmp_path, capsys):
    assert _predict(bright_bundle, ct, "-o", tmp_path, "--name", ct.parent.name, "--overwrite") == 2
    assert "output-is-input" in capsys.readouterr().err and ct.is_file()


def test_only_what_was_asked_for_is_kept(tmp_path):
    asked = Asked("b_segmentation", "ab" * 32, {}, "1.0", series={"T1": "/mri/t1.nii"}, probability=False)
    study = {"source": str(tmp_path / "mri"), "asked": {"T1": "/mri/t1.nii"}}
    made_by = {"bundle": "b_segmentation", "bundle_version": "1.0", "weights_sha256": "ab" * 32, "settings": {}}
    (tmp_path / "out").mkdir()

    def done(one: Asked, **provenance) -> bool:
        document = {"study": study, "provenance": made_by | provenance}
        (tmp_path / "out/result.json").write_text(json.dumps(document))
        return already_done(tmp_path / "out", str(tmp_path / "mri"), one, overwrite=False)

    assert done(asked)
    with pytest.raises(UsageError, match=r"of T1 /mri/t1\.nii, now the series volseg chooses"):
        done(replace(asked, series={}))
    with pytest.raises(UsageError, match="another version"):
        done(replace(asked, version="1.1"))
    with pytest.raises(UsageError, match="other weights of bmseg_bmsmm_net"):
        done(asked, other_weights={"bmseg_bmsmm_net_segmentation": "cd" * 32})


def test_a_link_that_leads_to_itself_is_that_studys_failure(ct, bright_bundle, tmp_path, capsys):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert _predict(bright_bundle, tmp_path / "loop", ct, "-o", tmp_path / "out") == 1
    assert "path-missing" in capsys.readouterr().err and (tmp_path / "out/block/report.html").is_file()


def test_names_of_inputs_stay_apart():
    assert unique_names(["scan", "scan", "scan_2", "scan"]) == ["scan", "scan_3", "scan_2", "scan_4"]


@pytest.mark.parametrize("device", ["foo", "cuda:99"])
def test_a_device_that_is_not_there_is_named(device, ct, tmp_path, capsys):
    assert main(["predict", str(ct), "-o", str(tmp_path / "out"), "--device", device]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"volseg: device-unknown: {device}".replace(" foo", " 'foo'")) and "\n" not in error


def test_all_windows_finds_what_the_bone_mask_missed(ct, bright_bundle, tmp_path, capsys, monkeypatch):
    nothing = lambda _self, image: torch.zeros(image.shape, dtype=torch.uint8)  # noqa: E731
    monkeypatch.setattr("volseg.transforms.ct.BoneMaskd._found", nothing)
    assert _predict(bright_bundle, ct, "-o", tmp_path / "out") == 0
    assert "no lesion found" in capsys.readouterr().out
    assert _predict(bright_bundle, ct, "-o", tmp_path / "all", "--all-windows") == 0
    assert "1 lesion" in capsys.readouterr().out
    says = [json.loads((tmp_path / out / "block/result.json").read_text())["warnings"] for out in ("out", "all")]
    assert any("no window was searched" in line for line in says[0])
    assert any("the whole volume was searched" in line for line in says[1])


def test_what_is_refused_after_the_search_is_one_line_too(ct, bright_bundle, tmp_path, capsys, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise InputError("too-many-lesions", "70000 lesions")

    monkeypatch.setattr("volseg.inference.postprocess.label_lesions", refuse)
    assert _predict(bright_bundle, ct, "-o", tmp_path / "out") == 1
    assert capsys.readouterr().err.strip() == "volseg: too-many-lesions: 70000 lesions"
    assert not (tmp_path / "out/block").exists()


def test_a_bundle_that_is_heeded_and_missing_is_told_before_the_search(
    ct, bright_bundle, tmp_path, capsys, monkeypatch
):
    config = bright_bundle / "configs/inference.json"
    config.write_text(config.read_text().replace("bmseg_bmsmm_net_segmentation", "nowhere_segmentation"))
    monkeypatch.setattr("volseg.pipeline.segment_volume", None)
    assert _predict(bright_bundle, ct, "-o", tmp_path / "out", "--ensemble") == 2
    assert "nowhere_segmentation" in capsys.readouterr().err


def test_a_usage_error_of_one_study_does_not_stop_the_others(ct, bright_bundle, tmp_path, capsys, monkeypatch):
    """What is wrong with one study alone: a series it does not hold, a sequence it lacks."""
    from volseg.cli import predict

    other, read = _other_of_this_name(ct, tmp_path), predict.read_for

    def picky(reads, item, name, args):
        if item == str(ct):
            raise UsageError("mri-channel-unknown", "no T2 here")
        return read(reads, item, name, args)

    monkeypatch.setattr(predict, "read_for", picky)
    assert _predict(bright_bundle, ct, other, "-o", tmp_path / "out") == 1
    assert (tmp_path / "out/block_2/report.html").is_file() and "no T2" in capsys.readouterr().err
    assert _predict(bright_bundle, ct, "-o", tmp_path / "out") == 2


def test_an_input_that_may_not_be_looked_at_is_that_studys_failure(ct, bright_bundle, tmp_path, capsys):
    assert _predict(bright_bundle, "x" * 300, ct, "-o", tmp_path / "out") == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and (tmp_path / "out/block/report.html").is_file()


def test_one_bad_study_does_not_stop_the_others(ct, bright_bundle, tmp_path, capsys):
    bad = tmp_path / "in" / "empty.nii.gz"
    bad.touch()
    assert _predict(bright_bundle, bad, ct, "-o", tmp_path / "out") == 1
    assert (tmp_path / "out" / "block" / "report.html").is_file()
    assert not (tmp_path / "out" / "empty").exists()
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and errors[0].startswith("volseg: ")


def test_two_inputs_of_one_name_do_not_collide(ct, bright_bundle, tmp_path):
    other = tmp_path / "other" / "block.nii.gz"
    other.parent.mkdir()
    other.write_bytes(ct.read_bytes())
    assert _predict(bright_bundle, ct, other, "-o", tmp_path / "out") == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"block", "block_2"}


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["predict", "nowhere.nii.gz", "-o", "out"], 1, "nowhere"),
        (["predict", ".", "-o", "inside/out"], 2, "output-inside-input"),
        (["predict", "a", "b", "-o", "out", "--name", "x"], 2, "name-for-many"),
        (["predict", "a", "-o", "out", "--adapt", "--bundle", "spine_mri_unet_segmentation"], 2, "adapt-unknown"),
        (
            ["predict", "a", "-o", "out", "--ensemble", "--bundle", "bmseg_bmsmm_net_segmentation"],
            2,
            "ensemble-unknown",
        ),
        (["info", "nowhere.nii.gz"], 1, "nowhere"),
    ],
)
def test_wrong_requests_get_one_line_and_their_exit_code(arguments, code, word, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    error = capsys.readouterr().err.strip()
    assert word in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_refused(ct, tmp_path, capsys):
    (tmp_path / "out").touch()
    assert main(["predict", str(ct), "-o", str(tmp_path / "out")]) == 2
    assert "output-not-a-folder" in capsys.readouterr().err


def test_an_unfinished_folder_of_that_name_is_not_touched(ct, tmp_path, capsys):
    keep = tmp_path / "out" / "block" / "notes.txt"
    keep.parent.mkdir(parents=True)
    keep.write_text("mine")
    assert main(["predict", str(ct), "-o", str(tmp_path / "out")]) == 2
    assert keep.read_text() == "mine"


@pytest.mark.parametrize("arguments", [["predict"], ["predict", "x", "-o", "y", "--overlap", "2"], ["nonsense"]])
def test_wrong_usage_leaves_with_2(arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2


def test_no_command_prints_help(capsys):
    assert main([]) == 2
    assert "volseg predict" in capsys.readouterr().out


def test_info_prints_a_table_and_json(ct, capsys):
    assert main(["info", str(ct)]) == 0
    assert "80" in capsys.readouterr().out
    assert main(["info", str(ct), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


def test_bundles_lists_the_default(capsys):
    assert main(["bundles"]) == 0
    assert "bone_ct_segmamba_segmentation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "machine", "answer", "warned"),
    [
        (None, "float32", None, False),
        ("auto", "float32", "float32", False),
        ("auto", "bfloat16", "bfloat16", False),
        ("bfloat16", "bfloat16", "bfloat16", False),
        ("bfloat16", "float32", "bfloat16", True),
        ("float32", "bfloat16", "float32", False),
    ],
)
def test_precision_is_settled_for_this_machine_and_emulation_is_named(
    asked, machine, answer, warned, monkeypatch, caplog
):
    monkeypatch.setattr("volseg.inference.precision.best_precision", lambda device: machine)
    assert asked_precision(argparse.Namespace(precision=asked, device="cpu")) == answer
    assert ("emulated" in caplog.text) == warned


@pytest.mark.parametrize("command", [["train", "x", "--data", "d", "-o", "o"], ["predict", "s", "-o", "o"]])
def test_commands_know_the_same_precisions(command, capsys):
    with pytest.raises(SystemExit):
        main([*command, "--precision", "half"])
    message = capsys.readouterr().err
    assert all(word in message for word in ("auto", "float32", "bfloat16"))
