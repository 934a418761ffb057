"""Law over all bundles: each is what MONAI's own tools, MONAI Label, MONAI Deploy and FLARE expect of a bundle.

Every folder in bundles/ is held to the same rules; a new bundle is tested by being there. MONAI runs in process, from
another working directory, with its network switched off (the schema's rules come from ../shared/schemas).
"""

from __future__ import annotations

import configparser
import importlib
import json
import re
import shutil
import tomllib
from collections.abc import Iterator
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import monai.bundle
import monai.bundle.scripts
import numpy as np
import pytest
import torch
from monai.bundle import ComponentLocator, ConfigParser, ConfigWorkflow
from monai.bundle.scripts import _get_fake_spatial_shape
from monai.utils import set_determinism

from volseg.inference.reads import MR, modality_of
from volseg.io import write_nifti

REPOSITORY = Path(__file__).resolve().parents[1]
BUNDLES = sorted(path for path in (REPOSITORY / "bundles").glob("*") if path.is_dir())
LAYOUT = (
    "LICENSE",
    "configs/metadata.json",
    "configs/train.json",
    "configs/evaluate.json",
    "configs/inference.json",
    "configs/multi_gpu_train.json",
    "configs/logging.conf",
    "docs/README.md",
    "docs/data_license.txt",
    "models/model.pt",
)
TASKS = ("_segmentation", "_detection", "_classification")  # MONAI Label derives the task type from the ending
SCHEMA_URL = "https://project-monai.github.io/schema/meta_schema_20240725.json"
LARGEST_WEIGHTS_BYTES = 25 * 2**20
REQUIRED_METADATA = (
    "schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task",
    "description", "authors", "copyright", "network_data_format", "changelog",
)  # fmt: skip
# The ids that MONAI Label, Deploy and FLARE look up, beyond those that MONAI itself calls required.
# (No key_metric at inference: a study to read has no label; evaluate.json holds it.)
IDS = {
    "inference": ("output_dir", "preprocessing", "postprocessing", "handlers"),
    "evaluate": ("output_dir", "preprocessing", "postprocessing", "handlers", "key_metric"),
    "train": ("train#handlers", "train#preprocessing", "validate#evaluator", "validate#handlers", "val_interval"),
}
SECTIONS = ("training", "validation", "testing")
INSTALLED = ("volseg.", "monai.", "torch.", "ignite.")

every_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)


def test_there_is_a_bundle():
    assert BUNDLES, "bundles/ is empty: every law below would pass by having nothing to judge"


@every_bundle
def test_the_layout_is_complete_and_holds_no_python(bundle: Path):
    assert [name for name in LAYOUT if not (bundle / name).is_file() or not (bundle / name).stat().st_size] == []
    assert bundle.name.endswith(TASKS), f"the name must end in one of {TASKS}"
    python = [path.relative_to(bundle).as_posix() for path in bundle.rglob("*.py")]
    assert python == [], "a bundle is configs and documents; code lives in volseg/"


@every_bundle
def test_the_metadata_says_what_monai_and_the_model_zoo_ask_for(bundle: Path):
    metadata = read_metadata(bundle)
    assert [key for key in REQUIRED_METADATA if not metadata.get(key)] == []
    assert metadata["schema"] == SCHEMA_URL
    assert metadata["version"] in metadata["changelog"], "the changelog has no entry for this version"
    data_format = metadata["network_data_format"]
    image = data_format["inputs"][next(iter(data_format["inputs"]))]
    pred = data_format["outputs"][next(iter(data_format["outputs"]))]
    assert next(iter(data_format["inputs"])) == "image"
    assert next(iter(data_format["outputs"])) == "pred"
    assert (image["dtype"], pred["dtype"]) == ("float32", "float32"), "float16 forces CUDA in MONAI's verifier"
    assert pred["channel_def"].keys() == {str(channel) for channel in range(pred["num_channels"])}


@every_bundle
def test_the_packages_the_metadata_asks_for_come_with_volseg(bundle: Path):
    metadata = read_metadata(bundle)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installs = {normalised(re.split(r"[<>=!~\[ ]", need, maxsplit=1)[0]) for need in project["dependencies"]}
    asked = {normalised(name) for name in metadata["required_packages_version"]} - {"volseg"}
    assert asked <= installs, f"not among volseg's dependencies: {sorted(asked - installs)}"
    stated = {"monai": metadata["monai_version"], "torch": metadata["pytorch_version"]}
    stated |= {"numpy": metadata["numpy_version"], **metadata["required_packages_version"]}
    too_new = [name for name, version in stated.items() if release(version) > release(installed_version(name))]
    assert too_new == [], "the bundle says it was checked with newer packages than are installed"


@every_bundle
def test_the_metadata_passes_monais_verifier(bundle: Path, shared: Path, tmp_path: Path, monkeypatch):
    schema = shared / "schemas" / Path(SCHEMA_URL).name
    if not schema.is_file():
        pytest.skip(f"the schema's rules are not here ({schema})")
    pytest.importorskip("jsonschema", reason="MONAI's verifier needs jsonschema; it comes with the dev extra")
    monkeypatch.setattr(monai.bundle.scripts, "download_url", lambda **_: None)
    monkeypatch.chdir(tmp_path)
    monai.bundle.verify_metadata(meta_file=str(bundle / "configs" / "metadata.json"), filepath=str(schema))
    broken = read_metadata(bundle)
    del broken["task"]
    (tmp_path / "broken.json").write_text(json.dumps(broken), encoding="utf-8")
    with pytest.raises(ValueError, match="task"):
        monai.bundle.verify_metadata(meta_file=str(tmp_path / "broken.json"), filepath=str(schema))


@every_bundle
def test_every_target_is_an_installed_class(bundle: Path):
    """`scripts.X` works only from inside the bundle's folder; a misspelt target fails only when its config runs."""
    bad = []
    locator = ComponentLocator()
    for file, where, node in components(bundle):
        target = node["_target_"]
        if "." not in target:
            if locator.get_component_module_name(target) is None:
                bad.append(f"{file}: {where}: MONAI has nothing called {target}")
        elif not target.startswith(INSTALLED):
            bad.append(f"{file}: {where}: {target} is not one of {', '.join(INSTALLED)}...")
        elif not exists(target):
            bad.append(f"{file}: {where}: {target} does not exist")
    assert bad == [], "\n" + "\n".join(bad)


@every_bundle
def test_the_configs_avoid_the_known_traps(bundle: Path):
    bad = []
    for file, where, value in leaves(bundle):
        last = where.rsplit("#", 1)[-1]
        if isinstance(value, str) and "scripts." in value:
            bad.append(f"{file}: {where}: scripts.* fails from another working directory")
        if isinstance(value, str) and re.match(r"(/|~|[A-Za-z]:\\)", value):
            bad.append(f"{file}: {where}: {value} is a path on one machine")
        if isinstance(value, str) and value.startswith("$") and "import" in value and "@" in value:
            bad.append(f"{file}: {where}: MONAI parses what says `import` as plain Python, where @ is a syntax error")
        if where.startswith("imports#") and "," in str(value):
            bad.append(f"{file}: {where}: MONAI takes only the first name of an import, and warns; one line per name")
        if last == "amp" and value is True:
            bad.append(f"{file}: {where}: amp calls autocast('cuda') always; use the precision switch")
        if last == "map_location" and value != "@device":
            bad.append(f"{file}: {where}: map_location must be @device")
    for file, where, node in components(bundle):
        name = node["_target_"].rsplit(".", 1)[-1]
        if name == "Orientationd" and node.get("labels", "absent") is not None:
            bad.append(f"{file}: {where}: Orientationd wants labels null")
        if name == "CheckpointLoader" and "map_location" not in node:
            bad.append(f"{file}: {where}: CheckpointLoader without map_location breaks where there is no GPU")
        if name in ("DataLoader", "ThreadDataLoader") and not str(node.get("num_workers", "")).startswith("@"):
            bad.append(f"{file}: {where}: num_workers must be a key of its own that can be overridden")
    assert bad == [], "\n" + "\n".join(bad)


@every_bundle
def test_the_logging_config_is_one_that_monai_accepts(bundle: Path):
    """MONAI refuses (security) a logging.conf whose classes lie outside `logging` or whose args are not literals."""
    path = bundle / "configs" / "logging.conf"
    monai.bundle.workflows._reject_executable_logging_config(str(path))
    parsed = configparser.RawConfigParser()
    parsed.read(path, encoding="utf-8")
    assert "loggers" in parsed and "handlers" in parsed and "formatters" in parsed


@every_bundle
def test_the_weights_are_a_plain_state_dict_that_fits_the_network(bundle: Path):
    path = bundle / "models" / "model.pt"
    assert path.stat().st_size <= LARGEST_WEIGHTS_BYTES
    weights = torch.load(path, map_location="cpu", weights_only=True)
    assert all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in weights.items())
    assert [key for key, value in weights.items() if not torch.isfinite(value).all()] == []
    for config in ("inference.json", "train.json"):
        network(bundle, config).load_state_dict(weights, strict=True)


@every_bundle
def test_the_network_turns_the_stated_input_into_the_stated_output(bundle: Path, tmp_path: Path, monkeypatch):
    if bundle.name.endswith("_detection"):
        pytest.skip("a detector returns a dict, which MONAI's verify_net_in_out cannot judge; its README says so")
    data_format = read_metadata(bundle)["network_data_format"]
    image, pred = data_format["inputs"]["image"], data_format["outputs"]["pred"]
    net = network(bundle, "inference.json").eval()
    size_in, size_out = (_get_fake_spatial_shape(tuple(one["spatial_shape"])) for one in (image, pred))
    with torch.inference_mode():
        out = net(torch.zeros(1, image["num_channels"], *size_in))
    assert out.dtype == torch.float32
    assert tuple(out.shape) == (1, pred["num_channels"], *size_out)
    monkeypatch.chdir(tmp_path)
    monai.bundle.verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"),
        device="cpu",
        bundle_root=str(bundle),
    )


@every_bundle
@pytest.mark.parametrize("config", ["inference", "evaluate", "train"])
def test_monai_finds_every_property_it_looks_for(
    bundle: Path, config: str, dataset: Path, tmp_path: Path, monkeypatch, restored_determinism
):
    """From another working directory: `check_properties()` is empty, and the engines are the ones FLARE accepts.

    evaluate.json is laid over inference.json, as its README says: one truth for how a study is read.
    """
    monkeypatch.chdir(tmp_path)
    files = ["inference", "evaluate"] if config == "evaluate" else [config]
    workflow = ConfigWorkflow(
        config_file=[str(bundle / "configs" / f"{name}.json") for name in files],
        workflow_type="train" if config == "train" else "inference",
        logging_file=False,
        bundle_root=str(bundle),
        dataset_dir=str(dataset),
        output_dir=str(tmp_path / "out"),
        device="$torch.device('cpu')",
        num_workers=0,
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    assert [key for key in IDS[config] if key not in workflow.parser] == []
    engine, name = ("trainer", "SupervisedTrainer") if config == "train" else ("evaluator", "SupervisedEvaluator")
    assert type(getattr(workflow, engine)).__name__ == name, "FLARE's MonaiAlgo refuses other engines"
    if config != "train":
        handlers = [handler["_target_"].rsplit(".", 1)[-1] for handler in workflow.parser["handlers"]]
        assert "CheckpointLoader" in handlers


@every_bundle
def test_the_model_card_says_what_the_model_saw_and_where_it_ends(bundle: Path):
    card = (bundle / "docs" / "README.md").read_text(encoding="utf-8").lower()
    for word in ("research use only", "training data", "limit", "synthetic", read_metadata(bundle)["version"]):
        assert word in card, f"docs/README.md says nothing of: {word}"
    assert "licen" in (bundle / "docs" / "data_license.txt").read_text(encoding="utf-8").lower()
    assert "Apache License" in (bundle / "LICENSE").read_text(encoding="utf-8")


@pytest.fixture
def dataset(bundle: Path, request: pytest.FixtureRequest) -> Path:
    """The smallest data set of what the bundle reads."""
    reads = modality_of(read_metadata(bundle))
    return request.getfixturevalue("mri_dataset" if reads == MR else "ct_dataset")


@pytest.fixture(scope="module")
def mri_dataset(ct_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CT below as if it were two sequences: a folder per case. Nobody looks at the values."""
    folder = tmp_path_factory.mktemp("mri_dataset")
    sections = json.loads((ct_dataset / "datalist.json").read_text(encoding="utf-8"))
    for case in (case for section in SECTIONS for case in sections[section]):
        study = folder / case["image"].removesuffix(".nii.gz")
        study.mkdir(parents=True)
        for name in ("T1", "STIR"):
            shutil.copy(ct_dataset / case["image"], study / f"{name}.nii.gz")
        (folder / case["label"]).parent.mkdir(exist_ok=True)
        shutil.copy(ct_dataset / case["label"], folder / case["label"])
        case["image"] = study.relative_to(folder).as_posix()
    (folder / "datalist.json").write_text(json.dumps(sections), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def ct_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest data set that data/README.md describes: four CTs of air, bone and one lesion, and a datalist."""
    folder = tmp_path_factory.mktemp("dataset")
    voxels = np.full((40, 36, 24), -1000, np.int16)
    voxels[8:32, 8:28, 4:20] = 40
    voxels[12:28, 12:24, 6:18] = 300
    label = np.zeros(voxels.shape, np.uint16)
    label[16:20, 15:19, 10:13] = 1
    voxels[label > 0] = 700
    affine = np.diag([1.5, 1.5, 2.0, 1.0])
    sections: dict[str, list[dict[str, str]]] = {}
    for number, section in enumerate(("training", "training", "validation", "testing")):
        case = {"image": f"imagesTr/case{number}.nii.gz", "label": f"labelsTr/case{number}.nii.gz"}
        for key, array in (("image", voxels), ("label", label)):
            (folder / case[key]).parent.mkdir(exist_ok=True)
            write_nifti(folder / case[key], array, affine, dtype=array.dtype)
        sections.setdefault(section, []).append(case)
    (folder / "datalist.json").write_text(json.dumps({"name": "smallest", **sections}), encoding="utf-8")
    return folder


@pytest.fixture
def restored_determinism() -> Iterator[None]:
    """A config's `initialize` may fix seeds and cuDNN for the whole process: undo it."""
    deterministic, benchmark = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    yield
    set_determinism(seed=None)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, benchmark


def read_metadata(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))


def configs(bundle: Path) -> dict[str, Any]:
    """File name -> content of every config that MONAI runs."""
    files = sorted((bundle / "configs").glob("*.json"))
    return {file.name: json.loads(file.read_text(encoding="utf-8")) for file in files if file.name != "metadata.json"}


def walk(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """(id as MONAI writes it, value) of every node of a config."""
    yield where, node
    if isinstance(node, (dict, list)):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, child in items:
            yield from walk(child, f"{where}#{key}" if where else str(key))


def leaves(bundle: Path) -> Iterator[tuple[str, str, Any]]:
    for file, content in configs(bundle).items():
        yield from ((file, where, value) for where, value in walk(content) if not isinstance(value, (dict, list)))


def components(bundle: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(config, id of the component, its arguments with `_target_`)."""
    for file, content in configs(bundle).items():
        for where, node in walk(content):
            if isinstance(node, dict) and isinstance(node.get("_target_"), str):
                yield file, where, node


def exists(target: str) -> bool:
    """Whether a dotted name can be imported: the longest module first, then attributes (classes, class methods)."""
    parts = target.split(".")
    for split in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:split]))
        except ImportError:
            continue
        for attribute in parts[split:]:
            found = getattr(found, attribute, None)
        return callable(found)
    return False


def network(bundle: Path, config: str) -> torch.nn.Module:
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / config))
    parser.read_meta(str(bundle / "configs" / "metadata.json"))
    parser["bundle_root"] = str(bundle)
    parser["device"] = "$torch.device('cpu')"
    return parser.get_parsed_content("network_def")


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def release(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` -> (2, 13, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda b: b.name)
def test_on_several_gpus_an_epoch_has_as_many_steps_as_on_one(bundle):
    """However few cases there are: an epoch of one pass over them would end the schedule after a handful of steps."""
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / f"{name}.json") for name in ("train", "multi_gpu_train")])
    parser["train#dataset"], parser["epochs"], parser["iterations_per_epoch"], parser["batch_size"] = (
        [0, 1, 2],
        24,
        10,
        4,
    )
    parser["train#sampler#num_replicas"], parser["train#sampler#rank"] = 2, 1
    drawn = list(parser.get_parsed_content("train#sampler"))
    assert len(drawn) == 40 and set(drawn) <= {0, 1, 2}
    steps = [parser.get_parsed_content(f"lr_scheduler#{name}") for name in ("t_total", "warmup_steps")]
    assert steps == [240, 20]


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda b: b.name)
def test_a_short_training_is_validated_too(bundle):
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "train.json"))
    parser["epochs"] = 2
    (handler,) = [h for h in parser["train#handlers"] if h["_target_"] == "ValidationHandler"]
    parser["asked"] = handler["interval"]
    assert parser.get_parsed_content("asked") == 2
