"""A study is known again by its content, wherever and whenever it was copied; another is not taken for it."""

from __future__ import annotations

import gzip
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from volseg.io.fingerprint import PIECE_BYTES, fingerprint

A_DAY_IN_2020_S = 1_600_000_000


def dated(path: Path, seconds: int = A_DAY_IN_2020_S) -> Path:
    for file in [path, *path.rglob("*")]:
        os.utime(file, (seconds, seconds))
    return path


def test_a_copy_with_other_dates_is_the_same_study(series, tmp_path) -> None:
    folder = series()
    before = fingerprint(folder)
    assert len(before) == 64
    shutil.copytree(folder, tmp_path / "elsewhere" / "copy")
    assert fingerprint(dated(tmp_path / "elsewhere" / "copy")) == before


def test_another_patient_of_the_same_names_sizes_and_dates_is_another_study(series) -> None:
    """What a PACS exports: IM000 ..., uncompressed, and dates as the archive had them."""
    one, other = (
        dated(series(folder=name, SOPInstanceUID=lambda k, n=n: f"1.2.3.{n}{k}")) for n, name in enumerate("ab", 1)
    )
    sizes = [sorted((f.name, f.stat().st_size, f.stat().st_mtime) for f in folder.iterdir()) for folder in (one, other)]
    assert sizes[0] == sizes[1] and fingerprint(one) != fingerprint(other)


def test_a_slice_more_or_less_or_under_another_name_is_told(series) -> None:
    folder = series()
    before = fingerprint(folder)
    series(ks=[4], prefix="x")
    more = fingerprint(folder)
    (folder / "x000").rename(folder / "y000")
    assert len({before, more, fingerprint(folder)}) == 3


def test_the_checksum_at_the_end_of_a_gz_tells_voxels_between_the_pieces_apart(tmp_path) -> None:
    noise = bytearray(os.urandom(8 * PIECE_BYTES))
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(noise), compresslevel=0, mtime=0))
    before = fingerprint(tmp_path / "a.nii.gz")
    noise[3 * PIECE_BYTES] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(noise), compresslevel=0, mtime=0))
    assert fingerprint(tmp_path / "a.nii.gz") != before


def test_a_zip_is_known_by_the_checksums_of_its_members(tmp_path) -> None:
    told = []
    for name, last in (("a", b"7"), ("b", b"7"), ("c", b"8")):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            member = zipfile.ZipInfo("IM0", (2000 + ord(name), 1, 1, 0, 0, 0))
            archive.writestr(member, bytes(20_000) + last + bytes(20_000))
        told.append(fingerprint(tmp_path / f"{name}.zip"))
    assert told[0] == told[1] != told[2]


def test_voxels_in_a_file_of_their_own_count(tmp_path) -> None:
    header = tmp_path / "ct.mhd"
    header.write_text("TransformMatrix = 1 0 0 0 1 0 0 0 1\nElementSpacing = 1 1 1\nElementDataFile = ct.raw\n")
    (tmp_path / "ct.raw").write_bytes(b"one")
    before = fingerprint(header)
    (tmp_path / "ct.raw").write_bytes(b"two")
    assert len(before) == 64 and fingerprint(header) != before


def test_what_a_system_leaves_in_a_folder_that_was_looked_at_does_not_count(series) -> None:
    folder = series()
    before = fingerprint(folder)
    for name in (".DS_Store", "Thumbs.db", "._s000"):
        (folder / name).write_bytes(b"looked at")
    assert fingerprint(folder) == before


@pytest.mark.timeout(60)
def test_pipes_and_links_that_lead_nowhere_are_not_opened(series, tmp_path) -> None:
    folder = series()
    before = fingerprint(folder)
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "up").symlink_to(tmp_path)
    (folder / "around").symlink_to(folder)
    assert fingerprint(folder) == before


def test_what_cannot_be_looked_at_has_none(tmp_path) -> None:
    (tmp_path / "cut.zip").write_bytes(b"PK\3\4 and no more")
    assert fingerprint(tmp_path / "nowhere") == fingerprint(tmp_path / "cut.zip") == fingerprint("a\0b") == ""
