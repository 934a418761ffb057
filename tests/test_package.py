"""Law: the package as people receive it: one version, a cheap import, a complete wheel, a repository without data."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import volseg

REPOSITORY = Path(__file__).resolve().parents[1]
BUNDLES = sorted(folder.name for folder in (REPOSITORY / "bundles").glob("*") if folder.is_dir())
LARGEST_FILE_MIB = 25
# Images, volumes, archives and arrays: patient data comes in these, and nothing in the repository needs one.
FORBIDDEN_SUFFIXES = (
    ".dcm", ".dicom", ".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".npz", ".npy", ".zip", ".tar.xz", ".tar.gz",
)  # fmt: skip
PREAMBLE = b"\0" * 128 + b"DICM"


def test_the_version_is_the_one_pyproject_states():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert volseg.__version__ == project["version"]


def test_the_changelog_knows_the_version():
    assert f"\n## {volseg.__version__}" in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "module", ["volseg", "volseg.errors", "volseg.geometry", "volseg.types", "volseg.labels", "volseg.io", "volseg.cli"]
)
def test_importing_is_cheap(module: str):
    """Neither torch nor MONAI is loaded, so `volseg info` and a refusal answer at once."""
    code = f"import sys, {module}; print([name for name in ('torch', 'monai', 'ignite') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names inside the wheel, built from the working tree's tracked files without a network."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel; it comes with the dev extra")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in tracked_files():
        if (REPOSITORY / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--wheel-dir", str(out), str(source)], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("volseg-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_carries_every_module_and_the_report_template(wheel_names: list[str]):
    needed = [name for name in tracked_files() if name.startswith("volseg/")]
    assert any(name.endswith((".html", ".j2", ".jinja", ".css")) for name in needed), "no report template is tracked"
    assert [name for name in needed if name not in wheel_names] == []


def test_the_wheel_carries_every_bundle_and_nothing_else_of_the_repository(wheel_names: list[str]):
    assert BUNDLES, "no bundle in bundles/"
    needed = [f"volseg/_{name}" for name in tracked_files() if name.startswith("bundles/")]
    assert [name for name in needed if name not in wheel_names] == []
    tops = {name.split("/")[0] for name in wheel_names}
    assert tops == {"volseg", f"volseg-{volseg.__version__}.dist-info"}
    assert not [name for name in wheel_names if "__pycache__" in name or "/eval/" in name]


def test_no_volume_no_dicom_and_no_large_file_is_tracked():
    found = []
    for name in tracked_files():
        path = REPOSITORY / name
        if name.lower().endswith(FORBIDDEN_SUFFIXES):
            found.append(f"{name}: this kind of file holds patient data")
        elif path.is_file():
            size_mib = path.stat().st_size / 2**20
            with path.open("rb") as file:
                start = file.read(len(PREAMBLE))
            if size_mib > LARGEST_FILE_MIB:
                found.append(f"{name}: {size_mib:.1f} MiB, more than {LARGEST_FILE_MIB}")
            if start[128:] == PREAMBLE[128:]:
                found.append(f"{name}: a DICOM file under another name")
    assert not found, "\n" + "\n".join(found)


def test_the_top_level_holds_what_the_plan_names():
    allowed = {
        "pyproject.toml",
        "volseg",
        "bundles",
        "tests",
        "data",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "Makefile",
    }
    tops = {name.split("/")[0] for name in tracked_files()}
    assert {top for top in tops if not top.startswith(".")} <= allowed
    assert {name for name in tracked_files() if name.startswith("data/")} <= {"data/README.md"}


def tracked_files() -> list[str]:
    """Names of the files git knows, relative to the repository; the test skips in a tree without git (an sdist)."""
    git = shutil.which("git")
    if git is None or not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout: what is tracked cannot be told")
    listed = subprocess.run(
        [git, "-c", f"safe.directory={REPOSITORY}", "-C", str(REPOSITORY), "ls-files", "-z"],
        capture_output=True,
        text=True,
    )
    assert listed.returncode == 0, listed.stderr
    return [name for name in listed.stdout.split("\0") if name]
