"""`polygraphy run --nrd-torch` and its scripts as processes: a good pair passes, planted faults do not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from nrd_trt.exporting.onnx_export import ExportOptions, export_onnx
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.model import load_model
from nrd_trt.specs import InputShape
from tests import artefacts
from tests.helpers import small_export
from tests.polygraphy.tool import IMAGES, MASKS, needs_polygraphy, polygraphy, tool_environment
from tests.warm.programs import python

pytestmark = needs_polygraphy


def run(model: Path, checkpoint: Path, *arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
    """Compare a file with a checkpoint on one scene."""
    return polygraphy(
        *("run", model, "--onnxrt", "--nrd-torch", checkpoint, *IMAGES, *MASKS, *arguments),
        **{"MODEL": str(model), "COUNT": "1", **settings},
    )


@cache
def both_float() -> Path:
    """The quickest network: both outputs, float input, sizes open."""
    return artefacts.write_model(small_export("float", "dynamic"), "both_float.onnx")


@cache
def swapped_channels() -> Path:
    """The trained network, exported as if it read BGR."""
    model = load_model(artefacts.checkpoint())
    model.info = replace(model.info, channel_order="bgr")
    full = export_onnx(model, ExportOptions(shape=InputShape.static(artefacts.SIZE_HW)))
    return artefacts.write_model(select_outputs(full, "mask"), "swapped.onnx")


def test_good_pair_passes_by_polygraphys_own_comparison() -> None:
    """The line with nothing but the option; Polygraphy draws the input and holds every byte of the masks equal."""
    done = polygraphy("run", artefacts.onnx_file(), "--onnxrt", "--nrd-torch", artefacts.checkpoint())
    assert done.returncode == 0, done.stdout
    assert "Comparing Output: 'mask' (dtype=uint8, shape=(1, 64, 96)) with 'mask' (dtype=uint8" in done.stdout


def test_good_pair_of_floats_and_open_sizes_passes() -> None:
    done = run(both_float(), artefacts.untrained_checkpoint(11), "--sequential-runners")
    assert done.returncode == 0, done.stdout
    for output in ("mask", "logits"):
        (share,) = re.findall(rf"{output} \| pixel agreement ([\d.]+)", done.stdout)
        assert float(share) >= 0.9999, "untrained weights have near ties"


def test_planted_fault_fails_until_the_checkpoint_is_told_of_it() -> None:
    done = run(swapped_channels(), artefacts.checkpoint())
    assert done.returncode == 1, done.stdout
    assert "FAILED: pixel agreement 0." in done.stdout
    assert "at least 0.9999 needed" in done.stdout
    done = run(swapped_channels(), artefacts.checkpoint(), "--nrd-torch-options", "bgr:1")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("arguments", "settings", "expected"),
    [
        (["--nrd-torch-options", "bgrr:1"], {}, "--nrd-torch-options bgrr: expected some of num_classes"),
        ([], {"MIN_AGREMENT": "0.5"}, "NRD_POLYGRAPHY_MIN_AGREMENT: expected one of NRD_POLYGRAPHY_MODEL"),
    ],
)
def test_mistake_is_one_line(arguments: list[str], settings: dict[str, str], expected: str) -> None:
    done = run(artefacts.onnx_file(), artefacts.checkpoint(), *arguments, **settings)
    assert done.returncode == 1, done.stdout
    assert f"[E] nrd_trt: {expected}" in done.stdout
    assert "Traceback" not in done.stdout


def test_two_checkpoints_are_compared_in_their_order() -> None:
    done = polygraphy(
        *("run", artefacts.onnx_file(), "--nrd-torch", artefacts.checkpoint()),
        *("--nrd-torch", artefacts.other_checkpoint(), *IMAGES, *MASKS),
        MODEL=str(artefacts.onnx_file()),
        COUNT="1",
        MIN_AGREEMENT="0",
    )
    assert done.returncode == 0, done.stdout
    assert "mask of nrd-torch-runner-N0" in done.stdout
    assert "pixel agreement 1.0" not in done.stdout


def test_generated_script_does_the_same(tmp_path: Path) -> None:
    script = tmp_path / "check.py"
    done = run(artefacts.onnx_file(), artefacts.checkpoint(), "--gen-script", script)
    assert done.returncode == 0, done.stdout
    other = tmp_path / "other.py"
    other.write_text(script.read_text().replace(str(artefacts.checkpoint()), str(artefacts.other_checkpoint())))
    settings = {"NRD_POLYGRAPHY_MODEL": str(artefacts.onnx_file()), "NRD_POLYGRAPHY_COUNT": "1"}
    for path, code in ((script, 0), (other, 1)):
        command = [python(), str(path)]
        done = subprocess.run(command, env=tool_environment(**settings), capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr


def test_saved_results_are_checked_again(tmp_path: Path) -> None:
    saved = tmp_path / "accuracy.json"
    done = run(artefacts.onnx_file(), artefacts.other_checkpoint(), "--save-accuracy-results", saved, MIN_AGREEMENT="0")
    assert done.returncode == 0, done.stdout
    assert '"clear_flips"' in json.dumps(json.loads(saved.read_text()))
    done = polygraphy("check", "accuracy", saved, *MASKS)
    assert done.returncode == 1, done.stdout
    assert "did not pass the requested thresholds" in done.stdout


def test_average_over_images_is_held_against_the_gates() -> None:
    done = run(artefacts.onnx_file(), artefacts.other_checkpoint(), "--check-average", COUNT="2")
    assert done.returncode == 1, done.stdout
    first, second, average = (float(share) for share in re.findall(r"pixel agreement (0\.\d+), mIoU", done.stdout))
    assert average == pytest.approx((first + second) / 2, abs=1e-6)
    assert "Passed: 0/1 outputs" in done.stdout


def test_extension_is_light() -> None:
    """Polygraphy loads it with each of its commands."""
    code = "import sys, nrd_trt.polygraphy.extension; print({'torch', 'onnx', 'PIL', 'onnxruntime'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=tool_environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
