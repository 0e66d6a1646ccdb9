"""`package`: what is written for which bundle, and what is refused; the server itself is in test_triton.py."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import nrd_trt as toolkit
from nrd_trt.engine.plugins import LIBRARY, read_plugin
from nrd_trt.errors import BundleError, ConfigError, PluginError
from nrd_trt.files import sha256_file
from nrd_trt.packaging.folders import MANIFEST
from tests.artefacts import bundle, content, copy_of, listing
from tests.cli.conftest import Invoke, check_refused, nrd_trt, printed  # noqa: F401  a fixture
from tests.engine.records import record
from tests.packaging.plans import FIXED, PLAN, RANGES, planned_bundle
from tests.plugin_library import library, needs_compiler

REGISTRAR = "libnrd_trt_plugin_trt10.so"


def packaged(path: Path, **options: Any) -> tuple[dict[str, bytes], str]:
    """Package a bundle beside it; return the files below the repository and the notes."""
    made = toolkit.package(path, path.parent / "models", target="triton", **options)
    models = path.parent / "models"
    files = {name: data for name, data in content(models).items() if name.split("/")[0].startswith(path.stem)}
    assert sorted(map(str, made.files)) == sorted(str(models / name) for name in files if "__pycache__" not in name)
    return files, "\n".join(made.notes)


def test_a_plan_and_its_bundle_become_two_models(tmp_path: Path) -> None:
    path = planned_bundle(tmp_path / "city.nrd")
    files, notes = packaged(path)
    ours = {f"city_bundle/1/city.nrd/{name}": data for name, data in content(path).items()}
    assert files.items() >= ours.items()
    assert files["city/1/model.plan"] == PLAN
    assert files.keys() - ours.keys() == {
        *(f"city/{name}" for name in ("1/model.plan", "config.pbtxt", "labels.txt", MANIFEST)),
        *(
            f"city_bundle/{name}"
            for name in ("1/model.py", "README.md", "config.pbtxt", "labels.txt", "run.sh", "warmup/image", MANIFEST)
        ),
    }
    assert files["city/labels.txt"].decode() == "Straße\nsky\ncar\n"
    assert "TensorRT 10.13.2 exactly" in notes and "linux on x86_64, a GPU of compute capability 8.6" in notes
    assert notes.splitlines()[0] in files["city_bundle/README.md"].decode()
    config = files["city/config.pbtxt"].decode()
    assert 'platform: "tensorrt_plan"' in config and "max_batch_size: 8" in config
    assert "preferred_batch_size: [ 4, 8 ]" in config and "dims: [ 352, 480, 3 ]" in config
    assert sha256_file(path / "bundle.json") in config
    run = (tmp_path / "models/city_bundle/run.sh").stat()
    assert run.st_mode & 0o111


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"plan": None}, "the bundle holds no plan. For it, build the plan where it is served: nrd_trt.build"),
        ({"builder": replace(record().builder, name="tensorrt-rtx", version="1.7")}, "tensorrt-rtx 1.7 built the plan"),
        ({"mask_encoding": "u8x4"}, r"\(u8x4\).*build with mask_encoding='uint8'"),
    ],
    ids=["none", "rtx", "packed"],
)
def test_a_plan_that_the_backend_cannot_serve_is_left_out_and_told(
    changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    files, notes = packaged(planned_bundle(tmp_path / "city.nrd", **changes))
    assert {name.split("/")[0] for name in files} == {"city_bundle"}
    assert re.search(why, notes) and "city on the TensorRT backend is left out" in notes
    assert "--load-model=city " not in files["city_bundle/run.sh"].decode()


def test_what_a_plan_takes_decides_on_batches_and_notes(tmp_path: Path) -> None:
    """The configurations themselves are parsed by Triton's protobuf in test_triton.py."""
    _, notes = packaged(planned_bundle(tmp_path / "fixed.nrd", FIXED), max_batch=16)
    assert "fixed takes 1 image at a time" in notes and "1:4:8" in notes
    _, notes = packaged(planned_bundle(tmp_path / "ranges.nrd", RANGES, input_form="float"))
    assert "ranges refuses runs of fewer than 2 images" in notes and "ranges reads normalised images" in notes
    with pytest.raises(ConfigError, match=r"^max_batch=16: expected at most 8, the most that the plan was built for"):
        packaged(planned_bundle(tmp_path / "larger.nrd"), max_batch=16)
    files, _ = packaged(planned_bundle(tmp_path / "smaller.nrd"), max_batch=2)
    for name in ("smaller", "smaller_bundle"):
        assert "max_batch_size: 2" in files[f"{name}/config.pbtxt"].decode()
    built = replace(record().builder, version_compatible=True, hardware_compatible=True)
    files, notes = packaged(planned_bundle(tmp_path / "later.nrd", builder=built))
    assert "TensorRT 10.13.2 or later" in notes and "8.6 or later" in notes
    assert "--backend-config=tensorrt,version-compatible=true" in files["later_bundle/run.sh"].decode()


@needs_compiler
def test_the_plugin_of_a_plan_comes_along_and_run_sh_loads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = read_plugin(library()).record("uint8")
    path = planned_bundle(tmp_path / "city.nrd", decode="plugin", plugin=facts)
    beside = Path(shutil.copy(library(), tmp_path / "plugin.so"))
    with pytest.raises(PluginError, match=rf"{REGISTRAR}: expected the plugin for programs that only open it"):
        packaged(path, plugin=beside)
    (tmp_path / REGISTRAR).write_bytes(b"registers itself")
    files, notes = packaged(path, plugin=beside)
    assert (files[f"city/{REGISTRAR}"], files[f"city_bundle/{LIBRARY}"]) == (
        b"registers itself",
        library().read_bytes(),
    )
    assert "city needs the plugin, made for TensorRT 10.3.0 and CUDA 12.6" in notes
    assert f'string_value: "{LIBRARY}"' in files["city_bundle/config.pbtxt"].decode()
    (tmp_path / "server").write_text('#!/bin/sh\necho "$LD_PRELOAD" "$@"\n')
    (tmp_path / "server").chmod(0o755)
    models = tmp_path / "models"

    def started(**settings: str) -> str:
        monkeypatch.setenv("TRITONSERVER", str(tmp_path / "server"))
        for key, value in settings.items():
            monkeypatch.setenv(key, value)
        line = [models / "city_bundle/run.sh", "--http-port", "1"]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout

    always = f"--model-repository={models} --model-control-mode=explicit --load-model=city"
    loaded = f"--backend-config=tensorrt,plugins={models}/city/{REGISTRAR} --load-model=city_bundle"
    assert started() == f" {always} {loaded} --http-port 1\n"
    assert started(PLUGIN_BY="preload", LD_PRELOAD="") == f"{models}/city/{REGISTRAR} {always} --http-port 1\n"


@needs_compiler
def test_a_plugin_that_is_missing_another_or_not_needed_is_refused(tmp_path: Path) -> None:
    facts = read_plugin(library()).record("uint8")
    path = planned_bundle(tmp_path / "city.nrd", decode="plugin", plugin=facts)
    for given, message in (
        (tmp_path / "absent.so", "no plugin library was found"),
        (library(2), "another plugin library"),
    ):
        with pytest.raises(PluginError, match=message):
            packaged(path, plugin=given)
    with pytest.raises(BundleError, match="expected the record of its plugin library"):
        packaged(planned_bundle(tmp_path / "old.nrd", decode="plugin"))
    with pytest.raises(ConfigError, match=r"^plugin=.*: expected a bundle whose plan needs it"):
        packaged(planned_bundle(tmp_path / "plain.nrd"), plugin=library())
    assert listing(tmp_path) == sorted(
        [
            "old.nrd",
            "plain.nrd",
            "city.nrd",
            *(f"{name}.nrd/{file}" for name in ("city", "old", "plain") for file in content(path)),
        ]
    )


def test_other_models_stay_and_force_replaces_what_is_ours_only(tmp_path: Path) -> None:
    """Also the plan's model of an earlier package, where the bundle has no plan any more."""
    path = planned_bundle(tmp_path / "city.nrd")
    (tmp_path / "models/other").mkdir(parents=True)
    first, _ = packaged(path)
    (tmp_path / "models/city_bundle/1/__pycache__").mkdir()  # as a server leaves it
    (tmp_path / "models/city_bundle/1/__pycache__/model.pyc").touch()
    with pytest.raises(ConfigError, match=r"models/city: already exists; give force=True"):
        packaged(path)
    assert packaged(path, force=True)[0] == first
    path.rename(tmp_path / "earlier")
    files, _ = packaged(planned_bundle(path, plan=None), force=True)
    assert {name.split("/")[0] for name in files} == {"city_bundle"}
    assert listing(tmp_path / "models")[0] == "city_bundle" and (tmp_path / "models/other").is_dir()


@pytest.mark.parametrize("harm", ["foreign", "edited", "named", "link", "mine", "damaged"])
def test_force_refuses_what_it_did_not_write(harm: str, tmp_path: Path) -> None:
    path, models = planned_bundle(tmp_path / "city.nrd"), tmp_path / "models"
    packaged(path)
    folder = models / "city_bundle"
    if harm == "foreign":
        (folder / "2").mkdir()
        (folder / "2/model.py").write_text("mine")
    elif harm == "edited":
        (folder / "config.pbtxt").write_bytes((folder / "config.pbtxt").read_bytes() + b"# tuned\n")
    elif harm == "named":
        (folder / MANIFEST).write_text(json.dumps({"package": "other", "files": {}}))
    elif harm == "link":
        (folder / "labels.txt").unlink()
        (folder / "labels.txt").symlink_to(path)
    elif harm == "mine":
        (folder / MANIFEST).unlink()
    else:
        (folder / MANIFEST).write_text("[]")
    before = content(models)
    with pytest.raises(ConfigError, match="force=True removes nothing that this tool did not write"):
        packaged(path, force=True)
    assert content(models) == before


def test_a_disk_that_is_full_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = planned_bundle(tmp_path / "city.nrd")
    before = listing(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nrd_trt.packaging.folders.shutil.copyfile", full)
    with pytest.raises(BundleError, match=r"models: cannot write there .*No space left.*free some space"):
        packaged(path)
    assert listing(tmp_path) == before


def test_the_command_line(nrd_trt: Invoke, tmp_path: Path) -> None:  # noqa: F811
    path = copy_of(bundle(), tmp_path / "street.nrd")
    found = printed(nrd_trt("package", path, "--for", "triton", "-o", tmp_path / "models", "--json"))
    assert found.keys() == {"files", "notes"}
    assert found["files"] == sorted(str(tmp_path / "models" / name) for name in content(tmp_path / "models"))
    before = listing(tmp_path)
    line = ("package", path, "--for", "triton", "-o")
    check_refused(nrd_trt(*line, tmp_path / "models", "--json"), tmp_path, before, "already exists; give --force")
    check_refused(nrd_trt(*line, tmp_path / "a/b", "--json"), tmp_path, before, "a does not exist; create it first")
    check_refused(nrd_trt(*line, path / "bundle.json", "--json"), tmp_path, before, "expected a folder, got a file")
    check_refused(
        nrd_trt("package", path, "-o", "m", "--for", "kserve", "--json"), tmp_path, before, "'kserve'.*one of"
    )
    check_refused(
        nrd_trt("package", tmp_path, "-o", "m", "--for", "triton", "--json"), tmp_path, before, "bundle folder"
    )
    path.rename(odd := tmp_path / "city centre.nrd")
    refused = nrd_trt("package", odd, "--for", "triton", "-o", tmp_path / "new", "--json")
    check_refused(refused, tmp_path, listing(tmp_path), "expected a name of letters", "rename the bundle")
    told = nrd_trt("package", odd.rename(path), "--for", "triton", "-o", tmp_path / "models", "--force")
    assert told.exit_code == 0 and "10 files in " in told.stdout
    assert f"nrd-trt build {path.name} -o {path.name} --builder tensorrt --force" in told.stderr
