"""The text header of NRRD and MetaImage: what it must say itself, because ITK fills in what it does not say.

Enters: a path. Leaves: its fields, or a refusal; and the word that compressed MetaImage voxels are whole. Knows no ITK.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from volseg.errors import InputError
from volseg.io.files import check_path, shown, suffix_of

NRRD_SUFFIXES = (".nrrd", ".nhdr")
# What ITK 5.4 turns to LPS rightly, in any case of letters. It reads scanner-xyz, 3D-right-handed and a bare
# `space dimension` as LPS, too: a guess of left and right (measured 2026-11).
NRRD_SPACES = ("left-posterior-superior", "lps", "right-anterior-superior", "ras", "left-anterior-superior", "las")
_MM = ("", "?", "???", "mm", "millimeter", "millimeters", "millimetre", "millimetres")
_HEAD_BYTES, _LONG_HEAD_BYTES = 1 << 14, 1 << 20
_BLOCK_BYTES = 1 << 20
_META_FIELD = re.compile(rb"^[ \t]*(\w+)[ \t]*[=:][ \t]*([^\n]*?)[ \t\r]*$", re.MULTILINE)
_NRRD_FIELD = re.compile(r"^([A-Za-z][A-Za-z ]*):(?!=) *(.*?) *$", re.MULTILINE)  # `key:=value` is no field


@dataclass(frozen=True)
class TextHeader:
    """`fields` by name (NRRD's in lower case without blanks, as its own names vary); `ends` in bytes, of MetaImage."""

    fields: Mapping[str, str]
    ends: int = 0


def read_text_header(path: Path, where: str) -> TextHeader:
    """The fields, once they tell orientation and voxel size and point to no data file outside this folder.

    Raises:
        InputError: itk-damaged, itk-data-file-outside, itk-no-orientation, itk-no-spacing.
    """
    with path.open("rb") as f:
        head = f.read(_HEAD_BYTES)
        nrrd = suffix_of(path) in NRRD_SUFFIXES
        if not nrrd and b"ElementDataFile" not in head:  # its last line; DICOM tags may come before
            head += f.read(_LONG_HEAD_BYTES)
    header = _nrrd(head, where) if nrrd else _meta_image(head, where)
    name = header.fields.get("datafile" if nrrd else "ElementDataFile", "LOCAL")
    if name != "LOCAL" and (name != Path(name).name or name == "LIST" or "%" in name or "\0" in name or not name):
        raise InputError("itk-data-file-outside", f"{where}: its voxels lie in {shown(name)!r}, not beside it")
    if nrrd:
        _check_nrrd_geometry(header.fields, where)
    else:
        _check_meta_geometry(header.fields, where)
    return header


def check_compressed(path: Path, header: TextHeader, n_bytes: int, where: str) -> None:
    """Inflate the voxels of a compressed MetaImage in blocks and refuse what is not whole (`itk-damaged`).

    MetaIO prints "Uncompress failed" and hands over what happens to lie in memory (ITK 5.4, 2026-11). The stream is
    looked for where MetaIO looks for it. Other files pass: ITK itself refuses a short one and NRRD's checksum.
    """
    fields = header.fields
    if fields.get("CompressedData", "")[:1] not in ("T", "t", "1"):
        return
    local = fields["ElementDataFile"].lower() == "local"
    size, skipped = _whole(fields, "CompressedDataSize", where), _whole(fields, "HeaderSize", where)
    if local and size <= 0:  # MetaIO would inflate the header's text
        raise InputError("itk-damaged", f"{where}: gives no CompressedDataSize; export it again")
    data = path if local else check_path(path.parent / fields["ElementDataFile"])
    start = skipped if skipped > 0 else header.ends if local else 0
    why = _why_not_whole(data, start, size if size > 0 else data.stat().st_size, n_bytes)
    if why:
        raise InputError("itk-damaged", f"{where}: the compressed voxels {why}; copy the file again")


def _why_not_whole(data: Path, start: int, left: int, due: int) -> str:
    inflate, length = zlib.decompressobj(47), 0  # 47: zlib or gzip, as MetaIO takes either
    with data.open("rb") as f:
        f.seek(start)
        try:
            while not inflate.eof and length <= due:
                block = inflate.unconsumed_tail
                if not block:
                    block = f.read(min(left, _BLOCK_BYTES))
                    left -= len(block)
                if not block:
                    return f"end too early, after {length} of {due} bytes"
                length += len(inflate.decompress(block, _BLOCK_BYTES))
        except zlib.error as e:
            return f"are damaged ({e})"
    return "" if length == due else f"are {'more than' if length > due else f'{length} bytes instead of'} {due} bytes"


def _whole(fields: Mapping[str, str], name: str, where: str) -> int:
    """A field's whole number, 0 where it is missing."""
    try:
        return int(float(fields.get(name, "0")))  # MetaIO takes 165.0, too
    except (ValueError, OverflowError):
        raise InputError("itk-damaged", f"{where}: {name} is {shown(fields[name])!r}; export it again") from None


def _nrrd(head: bytes, where: str) -> TextHeader:
    if not head.startswith(b"NRRD"):
        raise InputError("itk-damaged", f"{where}: the content is not NRRD; download or export it again")
    text = head.replace(b"\r", b"").split(b"\n\n")[0].decode("utf-8", "replace")
    return TextHeader({line[1].replace(" ", "").lower(): line[2] for line in _NRRD_FIELD.finditer(text)})


def _meta_image(head: bytes, where: str) -> TextHeader:
    fields = {}
    for line in _META_FIELD.finditer(head):
        fields[line[1].decode("ascii", "replace")] = line[2].decode("utf-8", "replace")
        if line[1] == b"ElementDataFile":  # the header's last line; voxels may follow
            return TextHeader(fields, line.end() + 1)
    raise InputError("itk-damaged", f"{where}: the content is not MetaImage; download or export it again")


def _check_nrrd_geometry(fields: Mapping[str, str], where: str) -> None:
    if "spacedirections" not in fields:
        raise InputError("itk-no-orientation", f"{where}: the header gives no orientation; export it with geometry")
    space = fields.get("space", "")
    if space.lower().removesuffix("-time") not in NRRD_SPACES:  # with time: four axes, which is another refusal
        said = f"its space is {shown(space)!r}" if space else "it names no space"
        raise InputError(
            "itk-no-orientation",
            f"{where}: {said}, which does not tell left from right; export it as {NRRD_SPACES[0]}",
        )
    _check_mm(re.findall(r'"([^"]*)"', fields.get("spaceunits", ""))[:3], where)


def _check_meta_geometry(fields: Mapping[str, str], where: str) -> None:
    if "TransformMatrix" not in fields:
        raise InputError("itk-no-orientation", f"{where}: the header gives no orientation; export it with geometry")
    if not {"ElementSpacing", "ElementSize"} & fields.keys():  # ITK takes the second where the first is missing
        raise InputError("itk-no-spacing", f"{where}: the header gives no ElementSpacing; export it with voxel sizes")
    _check_mm([fields.get("DistanceUnits", "")], where)


def _check_mm(units: list[str], where: str) -> None:
    """ITK takes every length for mm, whatever its unit."""
    other = [unit for unit in units if unit.strip().lower() not in _MM]
    if other:
        raise InputError("itk-no-spacing", f"{where}: its lengths are in {shown(other[0])!r}; export it in mm")
