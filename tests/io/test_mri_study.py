"""MRI: every rule of the table, who belongs together, and what is refused, each in one line that names both."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from volseg.errors import InputError, UsageError
from volseg.io import format_table, inspect, parse_channels, read_mri_study
from volseg.io.frames import read_frames
from volseg.io.mri_candidates import evidence_of, plane_of
from volseg.io.mri_rules import RULES, Evidence, channel_of
from volseg.labels import MRI_CHANNELS

MR, ROOT = "1.2.840.10008.5.1.4.1.1.4", "1.2.826.0.1.3680043.10.7"
EXAMPLES = [(rule, example) for rule in RULES for example in rule.examples]
NOT_OURS = {
    "t2_seg-manual": "a mask", "AAHead_Scout": "a localizer", "ep2d_diff_b800": "diffusion", "T1_SUB": "a subtraction",
    "T1 MIP": "a projection", "T1 MAP": "a map", "TOF 3D": "an angiogram", "t2_ciss3d": "a myelogram",
    "t2s_uncropped": "T2*", "AX T2*": "T2*", "t1_vibe_opp_phase": "an opposed", "MRS press": "spectroscopy",
}  # fmt: skip


@pytest.fixture
def mr(series):
    """Callable: write an MR series of four slices; the number makes its UID."""

    def write(description: str = "", *, number: int = 1, **changes: object) -> Path:
        own = {
            "SOPClassUID": MR, "Modality": "MR", "SeriesInstanceUID": f"{ROOT}.{number}", "SeriesNumber": number,
            "SeriesDescription": description, "RescaleSlope": None, "RescaleIntercept": None,
        }  # fmt: skip
        return series(folder="mri", prefix=f"n{number}_", **{**own, **changes})

    return write


@pytest.fixture
def nifti(tmp_path):
    """Callable: write a small ramp as NIfTI under tmp_path/study."""

    def write(name: str, affine: np.ndarray | None = None) -> Path:
        path = tmp_path / "study" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        voxels = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
        image = nib.Nifti1Image(voxels, np.diag([3.0, 1.0, 1.0, 1.0]) if affine is None else affine)
        image.set_sform(image.affine, code=1)
        nib.save(image, path)
        return path

    return write


def refusal(*args, **kwargs) -> InputError | UsageError:
    with pytest.raises((InputError, UsageError)) as caught:
        read_mri_study(*args, **kwargs)
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize(("rule", "example"), EXAMPLES, ids=[f"{r.name}: {getattr(e, 'text', e)}" for r, e in EXAMPLES])
def test_every_rule_decides_its_examples(rule, example) -> None:
    verdict = channel_of(example if isinstance(example, Evidence) else Evidence(example))
    assert (verdict.rule, verdict.channel) == (rule.name, rule.gives)


def test_every_rule_is_tried_by_an_example_or_a_word_here() -> None:
    tried = {channel_of(Evidence(text)).rule for text in NOT_OURS}
    assert [rule.name for rule in RULES if not rule.examples and rule.name not in tried] == []
    assert {rule.gives for rule in RULES} == {None, *MRI_CHANNELS}


@pytest.mark.parametrize(("text", "why"), NOT_OURS.items())
def test_what_is_none_of_the_four_is_called_by_its_name(text, why) -> None:
    verdict = channel_of(Evidence(text))
    assert verdict.channel is None and verdict.why.startswith(why)


@pytest.mark.parametrize(
    ("evidence", "words"),
    [
        (Evidence("T1", te_ms=100), "TE of 100 ms"),
        (Evidence("T2", te_ms=10), "TE of 10 ms"),
        (Evidence("STIR", ti_ms=2500), "TI of 2500 ms"),
    ],
)
def test_a_name_and_times_that_exclude_each_other_are_both_not_believed(evidence, words) -> None:
    verdict = channel_of(evidence)
    assert verdict.channel is None and words in verdict.why


def test_vertebrae_are_no_contrasts() -> None:
    assert channel_of(Evidence("spine T1-T12")).channel is None
    assert channel_of(Evidence("sag T12")).channel is None
    assert channel_of(Evidence("T2 sag C2-T1")).channel == "T2"


def test_a_folder_of_dicom_becomes_one_volume_per_channel(mr) -> None:
    mr("t1_tse_sag", number=1)
    mr("t1_tse_fs_sag", number=2, ContrastBolusAgent="Dotarem")
    mr("", number=3, RepetitionTime=3500, EchoTime=100)
    mr("survey", number=5, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    folder = mr("", number=4, RepetitionTime=4000, EchoTime=60, InversionTime=160)
    study = read_mri_study(folder, name="case")
    assert list(study.volumes) == list(MRI_CHANNELS) and study.name == "case"
    for number, (channel, volume) in enumerate(study.volumes.items(), 1):
        assert volume.channel == channel and volume.series_uid == f"{ROOT}.{number}"
        assert volume.voxels[2, 3, 1] == 1000 + 100 + 30 + 2
    assert any("by rule 'nameless, TI of STIR'" in note for note in study.notes)
    assert any("left" in note and "a localizer" in note for note in study.notes)
    assert next(iter(read_mri_study(folder, reference="t2").volumes)) == "T2"


def test_the_source_is_recorded_as_an_absolute_path(nifti, monkeypatch) -> None:
    path = nifti("x_T1w.nii.gz")
    monkeypatch.chdir(path.parents[1])
    assert read_mri_study("study").source == str(path.parent.resolve())
    assert read_mri_study({"T2": "study/x_T1w.nii.gz"}).source == str(path.resolve())


def test_a_name_too_long_for_the_disk_is_a_path_that_is_not_there(nifti) -> None:
    folder = nifti("x_T1w.nii.gz").parent
    assert refusal(folder, channels={"T1": "7" * 300}).code == "path-missing"


def test_a_missing_sequence_is_said_and_no_error(mr) -> None:
    study = read_mri_study(mr("STIR sag"))
    assert list(study.volumes) == ["STIR"] and "T1 is missing" in study.notes


def test_the_agent_named_none_is_no_agent(mr) -> None:
    assert list(read_mri_study(mr("T1 sag", ContrastBolusAgent="NONE")).volumes) == ["T1"]


def test_enhanced_headers_give_their_times(tmp_path) -> None:
    from tests.io.conftest import ct_slice, save_dicom

    timing, echo, modifier, shared = Dataset(), Dataset(), Dataset(), Dataset()
    timing.RepetitionTime, echo.EffectiveEchoTime = 4000.0, 60.0
    modifier.InversionTimes = [160.0]
    shared.MRTimingAndRelatedParametersSequence = Sequence([timing])
    shared.MREchoSequence, shared.MRModifierSequence = Sequence([echo]), Sequence([modifier])
    ds = ct_slice(0, Modality="MR", AcquisitionContrast="STIR")
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    (frame,) = read_frames(save_dicom(ds, tmp_path / "enhanced"))
    assert (frame.mr.tr_ms, frame.mr.te_ms, frame.mr.ti_ms) == (4000, 60, 160)
    assert evidence_of(frame).text == "STIR" and channel_of(evidence_of(frame)).channel == "STIR"


def test_the_sagittal_one_of_two_is_taken_and_two_alike_are_refused(mr) -> None:
    mr("T2", number=1)  # axial
    folder = mr("T2", number=2, ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
                ImagePositionPatient=lambda k: [2.5 * k, 0, 0])  # fmt: skip
    study = read_mri_study(folder)
    assert study.volumes["T2"].series_uid == f"{ROOT}.2"
    assert any("axial; sagittal is preferred" in note for note in study.notes)
    mr("t2_tse", number=3, ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
       ImagePositionPatient=lambda k: [2.5 * k, 50, 0])  # fmt: skip
    error = refusal(folder)
    assert error.code == "mri-several-series" and "--channel T2=" in error.message
    assert read_mri_study(folder, channels={"T2": "7.3"}).volumes["T2"].series_uid == f"{ROOT}.3"
    assert refusal(folder, channels={"T2": "9.9"}).code == "series-unknown"
    assert refusal(folder, channels={"T2": "7.1", "T1": "7.1"}).code == "mri-series-twice"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"PatientID": "P2"}, "mri-several-patients"),
        ({"FrameOfReferenceUID": "1.2.9"}, "mri-frame-of-reference"),
        ({"FrameOfReferenceUID": "1.2.9", "StudyInstanceUID": "1.2.8"}, "mri-several-studies"),
    ],
)
def test_series_that_do_not_belong_together_are_refused_and_both_named(mr, change, code) -> None:
    mr("T1", number=1)
    error = refusal(mr("T2", number=2, **change))
    assert error.code == code and f"{ROOT}.1"[-14:] in error.message and f"{ROOT}.2"[-14:] in error.message
    assert "P2" not in error.message and "Doe" not in error.message


@pytest.mark.parametrize(
    ("change", "code"),
    [({"PatientID": "P2"}, "mri-several-patients"), ({"FrameOfReferenceUID": "1.2.9"}, "mri-frame-of-reference")],
)
def test_a_first_series_that_says_nothing_hides_no_second_patient(mr, change, code) -> None:
    mr("T1", number=1, PatientID="", PatientName="", StudyInstanceUID="", FrameOfReferenceUID="")
    folder = mr("T2", number=2)
    assert set(read_mri_study(folder).volumes) == {"T1", "T2"}
    error = refusal(mr("STIR", number=3, **change))
    assert error.code == code and "T2 (" in error.message and "STIR (" in error.message


def test_another_frame_of_reference_may_be_allowed_for_registration(mr) -> None:
    mr("T1", number=1)
    study = read_mri_study(mr("T2", number=2, FrameOfReferenceUID="1.2.9"), allow_other_frame=True)
    assert len(study.volumes) == 2 and any("want registration" in note for note in study.notes)


def test_two_patients_with_the_same_sequence_are_told_as_patients(mr) -> None:
    mr("T1", number=1)
    assert refusal(mr("T1", number=2, PatientID="P2")).code == "mri-several-patients"


def test_colour_and_ct_are_refused_where_grey_mr_is_due(mr, series, ct_nifti) -> None:
    rgb = mr("T1", PhotometricInterpretation="RGB", SamplesPerPixel=3)
    error = refusal(rgb)
    assert error.code == "mri-no-channel" and "a colour picture" in error.message
    assert refusal({"T1": rgb}).code == "mri-not-a-scan"
    assert refusal({"T1": series()}).code == "mri-not-mr"
    colour = ct_nifti(edit=lambda h: h.__setitem__("datatype", 128))
    assert refusal({"T1": colour}).code == "nifti-datatype"
    jpeg = colour.with_name("picture.jpg")
    jpeg.write_bytes(b"\xff\xd8\xff\xe0" + bytes(200))
    assert refusal({"T1": jpeg}).code == "format-unknown"


def test_a_broken_series_is_refused_and_not_just_missing(mr) -> None:
    mr("T1", number=1)
    folder = mr("T2", number=2)
    (folder / "n2_002").unlink()
    assert refusal(folder).code == "dicom-missing-slice"


def test_a_folder_of_files_named_as_bids_does_is_read(nifti) -> None:
    nifti("anat/sub-07_T1w.nii.gz")
    nifti("anat/sub-07_ce-gadolinium_T1w.nii.gz")
    nifti("anat/sub-07_acq-stir_T2w.nii.gz")
    nifti("anat/sub-07_T2w.nii.gz")
    folder = nifti("anat/sub-07_T2w_seg.nii.gz").parents[1]
    study = read_mri_study(folder)
    assert list(study.volumes) == list(MRI_CHANNELS) and study.name == "study"
    assert any("taken on trust" in note for note in study.notes)
    nifti("anat/sub-08_T1w.nii.gz")
    assert refusal(folder).code == "mri-several-patients"


def test_the_times_of_a_sidecar_count(nifti) -> None:
    path = nifti("series_3.nii.gz")
    assert refusal(path.parent).code == "mri-no-channel"
    path.with_name("series_3.json").write_text(json.dumps({"RepetitionTime": 0.6, "EchoTime": 0.01}))
    assert list(read_mri_study(path.parent).volumes) == ["T1"]


def test_a_path_asked_for_wins_over_the_rules_and_the_doubt_is_told(nifti) -> None:
    path = nifti("x_T2w.nii.gz")
    study = read_mri_study({"STIR": path})
    assert list(study.volumes) == ["STIR"]
    assert any("though its header or name says T2" in note for note in study.notes)
    assert list(read_mri_study(path.parent, channels={"T1": path}).volumes) == ["T1"]


def test_options_of_the_command_line_are_read_or_refused() -> None:
    assert parse_channels(["t1C=a=b", "STIR=c"]) == {"T1c": "a=b", "STIR": "c"}
    for bad in (["T1"], ["FLAIR=x"], ["T1="], ["T1=a", "t1=b"]):
        with pytest.raises(UsageError):
            parse_channels(bad)


def test_planes_are_told_by_the_slice_axis() -> None:
    assert plane_of(np.diag([4.0, 1, 1, 1])) == "sagittal"
    assert plane_of(np.diag([1.0, 1, 4, 1])) == "axial"
    assert plane_of(np.diag([1.0, 1, 1, 1])) == "volume"


def test_info_names_the_channel_of_each_series(mr, nifti) -> None:
    mr("T1", number=1)
    seen = inspect(mr("STIR", number=2))
    assert [(row.channel, row.used, row.why) for row in seen.series] == [
        ("T1", True, "used as T1"),
        ("STIR", True, "used as STIR"),
    ]
    assert seen.refusal is None and "used as STIR" in format_table(seen)
    nifti("a_T1w.nii.gz")
    files = inspect(nifti("a_T1w_mask.nii.gz").parent)
    assert [(row.channel, row.used) for row in files.series] == [("T1", True), ("", False)]
    assert "a mask or label map" in format_table(files)


def test_real_spine_sequences_on_their_own_grids(shared) -> None:
    data = shared / "data" / "sct_spine_mr"
    error = refusal(data)
    assert error.code == "mri-several-series" and "t2_fake_lesion" in error.message
    study = read_mri_study(data, channels={"T2": data / "t2.nii.gz"})
    assert {c: v.voxels.shape for c, v in study.volumes.items()} == {"T1": (42, 76, 77), "T2": (60, 55, 52)}
    assert any("t2s_uncropped.nii.gz: T2*" in note for note in study.notes)


def test_real_mr_among_three_modalities_is_found(unpacked) -> None:
    study = read_mri_study(unpacked("sts015_ct_mr_pet/STS_015_dicom.tar.xz") / "STS_015")
    assert list(study.volumes) == ["T1"] and study.volumes["T1"].voxels.shape == (80, 100, 46)
    assert sum("not MR" in note for note in study.notes) == 2


def test_real_files_with_and_without_a_telling_name(shared) -> None:
    vertebra = read_mri_study(shared / "data" / "tptbox_vertebra" / "sample_mri")
    assert list(vertebra.volumes) == ["T2"]
    folder = shared / "data" / "totalseg_ct" / "mr"
    assert refusal(folder).code == "mri-no-channel"
    assert list(read_mri_study(folder, channels={"T1": folder / "example_mr_sm.nii.gz"}).volumes) == ["T1"]
