"""What ITK guesses or hands over damaged, measured in its files: space, spacing, units, compressed MetaImage."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from volseg.errors import InputError
from volseg.io import itk_header, read_volume

SHAPE = (40, 30, 20)  # X, Y, Z
STORED = np.random.default_rng(0).integers(-500, 500, SHAPE[::-1]).astype("<i2")


def nrrd(folder: Path, space: str, more: str = "") -> Path:
    """1 x 1 x 2 mm, first voxel at (10, 20, 30) of whatever space."""
    path = folder / "a.nrrd"
    sizes = " ".join(map(str, SHAPE))
    header = (
        f"NRRD0004\ntype: short\ndimension: 3\n{space}\nsizes: {sizes}\nspace directions: (1,0,0) (0,1,0) (0,0,2)\n"
        f"kinds: domain domain domain\nendian: little\nencoding: raw\nspace origin: (10,20,30)\n{more}\n"
    )
    path.write_bytes(header.encode() + STORED.tobytes())
    return path


def mha(folder: Path, data: bytes, *, detached: bool = False, **changes: str | None) -> Path:
    """A MetaImage of `STORED`; None leaves a field out."""
    path = folder / ("a.mhd" if detached else "a.mha")
    fields: dict[str, str | None] = {
        "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "CompressedData": "True", "CompressedDataSize": str(len(data)), "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "1 2 3", "ElementSpacing": "1 1 2", "DimSize": " ".join(map(str, SHAPE)),
        "ElementType": "MET_SHORT",
    }  # fmt: skip
    lines = [f"{name} = {value}\n" for name, value in (fields | changes).items() if value is not None]
    name = "a.zraw" if detached else "LOCAL"
    path.write_bytes("".join([*lines, f"ElementDataFile = {name}\n"]).encode() + (b"" if detached else data))
    if detached:
        (folder / name).write_bytes(data)
    return path


def refused(path: Path) -> InputError:
    with pytest.raises(InputError) as refusal:
        read_volume(path)
    assert "\n" not in refusal.value.message
    return refusal.value


@pytest.mark.parametrize(
    ("space", "position"),
    [
        ("left-posterior-superior", (-10, -20, 30)), ("LPS", (-10, -20, 30)),
        ("Right-Anterior-Superior", (10, 20, 30)), ("ras", (10, 20, 30)),
        ("left-anterior-superior", (-10, 20, 30)), ("LAS", (-10, 20, 30)),
    ],
)  # fmt: skip
def test_the_three_spaces_of_a_patient_become_ras(tmp_path, space, position) -> None:
    volume, _ = read_volume(nrrd(tmp_path, f"space: {space}"))
    np.testing.assert_allclose(volume.affine[:3, 3], position)
    np.testing.assert_allclose(volume.affine.diagonal()[:3], np.sign(position) * [1, 1, 2])
    np.testing.assert_array_equal(volume.voxels, STORED.transpose(2, 1, 0))


@pytest.mark.parametrize(
    "space", ["space dimension: 3", "space: scanner-xyz", "space: 3D-right-handed", "space: 3D-left-handed"]
)
def test_a_space_that_does_not_tell_left_from_right_is_refused(tmp_path, space) -> None:
    assert refused(nrrd(tmp_path, space)).code == "itk-no-orientation"


def test_field_names_in_other_letters_are_seen(tmp_path) -> None:
    path = nrrd(tmp_path, "Space: scanner-xyz")
    assert refused(path).code == "itk-no-orientation"
    assert refused(nrrd(tmp_path, "Space: LPS", "Data File: ../b.raw\n")).code == "itk-data-file-outside"


def test_lengths_that_are_not_mm_are_refused(tmp_path) -> None:
    units = 'space units: "{0}" "{0}" "{0}"\n'
    read_volume(nrrd(tmp_path, "space: LPS", units.format("mm")))
    assert refused(nrrd(tmp_path, "space: LPS", units.format("um"))).code == "itk-no-spacing"
    raw = STORED.tobytes()
    read_volume(mha(tmp_path, raw, CompressedData="False", DistanceUnits="mm"))
    assert refused(mha(tmp_path, raw, CompressedData="False", DistanceUnits="um")).code == "itk-no-spacing"


def test_a_metaimage_without_voxel_sizes_is_refused_and_element_size_will_do(tmp_path) -> None:
    raw = STORED.tobytes()
    error = refused(mha(tmp_path, raw, CompressedData="False", ElementSpacing=None))
    assert error.code == "itk-no-spacing" and "ElementSpacing" in error.message
    assert refused(mha(tmp_path, raw, CompressedData="False", ElementSpacing=None, elementspacing="1 1 2")).code == (
        "itk-no-spacing"
    )
    volume, _ = read_volume(mha(tmp_path, raw, CompressedData="False", ElementSpacing=None, ElementSize="1 1 2"))
    np.testing.assert_allclose(volume.affine.diagonal()[:3], (-1, -1, 2))


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress])
def test_whole_compressed_voxels_are_read_whatever_follows_them(tmp_path, detached, pack) -> None:
    packed = pack(STORED.tobytes())
    for data, size in ((packed, len(packed)), (packed + b"junk", len(packed))):
        volume, _ = read_volume(mha(tmp_path, data, detached=detached, CompressedDataSize=str(size)))
        np.testing.assert_array_equal(volume.voxels, STORED.transpose(2, 1, 0))


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("level", [0, 6])  # stored and deflated blocks
def test_one_flipped_bit_or_a_missing_end_is_refused(tmp_path, detached, level) -> None:
    good = zlib.compress(STORED.tobytes(), level)
    for at in (0, 40, len(good) // 2, len(good) - 1):
        bad = bytearray(good)
        bad[at] ^= 0x10
        error = refused(mha(tmp_path, bytes(bad), detached=detached))
        assert error.code == "itk-damaged" and "compressed" in error.message, at
    for cut in (1, 4, 3000):
        assert refused(mha(tmp_path, good[:-cut], detached=detached)).code == "itk-damaged", cut
        size = str(len(good) - cut)  # the whole stream, but MetaIO reads no further than this
        assert refused(mha(tmp_path, good, detached=detached, CompressedDataSize=size)).code == "itk-damaged", cut


def test_a_whole_stream_of_another_length_is_refused(tmp_path) -> None:
    raw = STORED.tobytes()
    assert "47998 bytes instead of 48000" in refused(mha(tmp_path, zlib.compress(raw[:-2]))).message
    assert "more than 48000" in refused(mha(tmp_path, zlib.compress(raw + bytes(2)))).message


def test_the_stream_is_looked_for_where_metaio_looks(tmp_path) -> None:
    packed = zlib.compress(STORED.tobytes())
    shifted = mha(tmp_path, b"1234567" + packed, detached=True, HeaderSize="7", CompressedDataSize=str(len(packed)))
    np.testing.assert_array_equal(read_volume(shifted)[0].voxels, STORED.transpose(2, 1, 0))
    unsized = mha(tmp_path, packed, detached=True, CompressedDataSize=None)
    np.testing.assert_array_equal(read_volume(unsized)[0].voxels, STORED.transpose(2, 1, 0))
    # Without its size MetaIO inflates a local file from the header's first letter on, and returns old memory.
    assert "CompressedDataSize" in refused(mha(tmp_path, packed, CompressedDataSize=None)).message
    assert refused(mha(tmp_path, packed, CompressedDataSize="many")).code == "itk-damaged"
    (tmp_path / "a.zraw").unlink()
    assert refused(tmp_path / "a.mhd").code == "path-missing"


def test_a_bomb_is_inflated_no_further_than_its_voxels(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(itk_header, "_BLOCK_BYTES", 1 << 10)
    given: list[int] = []
    real = zlib.decompressobj

    class Counted:
        def __init__(self, wbits: int) -> None:
            self.inner = real(wbits)

        eof = property(lambda self: self.inner.eof)
        unconsumed_tail = property(lambda self: self.inner.unconsumed_tail)

        def decompress(self, data: bytes, most: int) -> bytes:
            out = self.inner.decompress(data, most)
            given.append(len(out))
            return out

    monkeypatch.setattr(itk_header.zlib, "decompressobj", Counted)
    assert "more than 48000" in refused(mha(tmp_path, zlib.compress(bytes(20 << 20)))).message
    assert max(given) <= 1 << 10 and sum(given) <= 48000 + (1 << 10)


def test_numbers_with_a_point_long_headers_and_key_value_pairs_are_no_damage(tmp_path):
    image = SimpleITK.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(4, 3, 2))
    SimpleITK.WriteImage(image, str(tmp_path / "z.mha"), useCompression=True)
    raw = (tmp_path / "z.mha").read_bytes()
    size = re.search(rb"CompressedDataSize = (\d+)", raw)
    (tmp_path / "point.mha").write_bytes(raw.replace(size[0], size[0] + b".0"))
    for n in range(400):
        image.SetMetaData(f"0010|{n:04x}", "x" * 60)
    SimpleITK.WriteImage(image, str(tmp_path / "long.mha"))
    SimpleITK.WriteImage(image, str(tmp_path / "pairs.nrrd"))
    pairs = (tmp_path / "pairs.nrrd").read_bytes().replace(b"\n\n", b"\nData File:=../x\nspace:=nowhere\n\n", 1)
    (tmp_path / "pairs.nrrd").write_bytes(pairs)
    for name in ("point.mha", "long.mha", "pairs.nrrd"):
        assert read_volume(tmp_path / name)[0].voxels.shape == (2, 3, 4)
