"""docs/polygraphy.md: what it says runs on a CPU is run as it stands; of the rest Polygraphy knows every option."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from nrd_trt.data.overlay import write_rgb
from nrd_trt.data.synthetic import street_scene
from tests import artefacts
from tests.artefacts import needs_rtx
from tests.polygraphy.tool import needs_polygraphy, tool_environment

pytestmark = [needs_polygraphy, needs_rtx, pytest.mark.slow]

PAGE = (artefacts.REPOSITORY / "docs/polygraphy.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?:^<!-- (?P<kind>\w+) -->\n)?^```bash\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
WRONG = "backbone.layer4.1.conv.1.conv/Conv"


def blocks(kind: str) -> list[str]:
    return [found["text"] for found in BLOCK.finditer(PAGE) if found["kind"] == kind]


def shell(script: str, folder: Path) -> str:
    """Run a script, which ends at the first command that fails, and return what it prints."""
    done = subprocess.run(
        ["bash", "-e", "-u", "-o", "pipefail", "-c", script],
        cwd=folder,
        env=tool_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-4000:]}"
    return done.stdout


def suspect(model: onnx.ModelProto) -> onnx.ModelProto:
    """The file after somebody doubled one convolution's weights."""
    node = next(node for node in model.graph.node if node.output[0] == WRONG)
    (weights,) = (tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * 2, weights.name))
    return model


def test_every_block_says_where_it_runs() -> None:
    kinds = [found["kind"] for found in BLOCK.finditer(PAGE)]
    assert set(kinds) == {"install", "cpu", "gpu"}
    gpu = PAGE.index("\n## On a GPU")
    assert [found.start() > gpu for found in BLOCK.finditer(PAGE)] == [kind == "gpu" for kind in kinds]
    assert len(gpu_commands()) == 6


@pytest.mark.all_combinations  # test_extension.py and test_scripts.py run what the blocks call
def test_cpu_blocks_do_what_the_page_says(tmp_path: Path) -> None:
    setup, export, ties, tensors, reduce, rtx = blocks("cpu")
    shutil.copy(artefacts.checkpoint(), tmp_path / "model.safetensors")
    (tmp_path / "images").mkdir()
    for seed in range(2):
        write_rgb(tmp_path / "images" / f"{seed}.png", street_scene(seed, (80, 120)).image)

    shown = shell(setup + export, tmp_path)
    assert "Passed: 2/2 iterations" in shown
    assert "mask | pixel agreement 1.000000" in shown
    assert "PASSED | Accuracy results passed" in shell(setup + ties, tmp_path)

    onnx.save(suspect(onnx.load(tmp_path / "model.onnx")), tmp_path / "suspect.onnx")
    shown = shell(setup + tensors, tmp_path)
    compared = re.findall(r"Comparing Output: '(.+?)'", shown)
    assert compared[-1] == WRONG
    assert len(compared) > 20
    assert "the last tensor shown is the first wrong one" in shown
    shell(setup + reduce, tmp_path)
    assert [entry.name for entry in onnx.load(tmp_path / "reduced.onnx").graph.output] == [WRONG]

    shown = shell(setup + rtx, tmp_path)
    assert "NrdPatchDecodeMask" in shown
    assert "Graph is fully supported by TensorRT" in shown
    assert (tmp_path / "rtx.plan").stat().st_size > 100_000


def gpu_commands() -> list[str]:
    """The comparisons of the GPU's blocks; of a search the one that it makes at each step."""
    lines = [line for block in blocks("gpu") for line in block.replace("\\\n", " ").splitlines()]
    return [line[line.index("polygraphy run") :] for line in lines if "polygraphy run" in line]


@pytest.mark.parametrize("command", gpu_commands())
def test_options_of_gpu_lines_exist(command: str, tmp_path: Path) -> None:
    """Writing the script that a line stands for parses all of it, and touches neither TensorRT nor a file."""
    script = shell(f"SCRIPTS=scripts\n{command} --gen-script -", tmp_path)
    assert "TrtRunner(" in script
    assert ("NrdTorchRunner(" in script) == ("--nrd-torch" in command)
    assert ("strongly_typed=True" in script) == ("--strongly-typed" in command)
