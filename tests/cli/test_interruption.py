"""Builds that are killed or stopped: the bundle is the old one, the new one or absent, never half of one."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from nrd_trt.engine.bundle import read_bundle
from tests.artefacts import bundle, content, copy_of, environment, listing, onnx_file
from tests.cli.conftest import Invoke, one_object
from tests.warm.programs import command_line, python


def build_arguments(target: Path) -> tuple[object, ...]:
    """A build whose result differs from the old bundle: fp16 over fp32."""
    return "build", onnx_file(), "-o", target, "--builder", "onnxruntime", "--min-agreement", 0.9, "--force", "--json"


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that an undisturbed build makes."""
    target = tmp_path_factory.mktemp("whole") / "city.nrd"
    command = command_line(*build_arguments(target))
    result = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert result.returncode == 0, result.stderr
    return content(target)


KILL_WHILE_WRITING = """
import os, pathlib, signal, sys
import nrd_trt.files as files
import nrd_trt.engine.bundle as bundle

moment, arguments = sys.argv[1], sys.argv[2:]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if moment == "first file":
    plain = pathlib.Path.write_bytes
    def write_half(self, data):
        if self.parent.name.startswith(".city.nrd.tmp-"):
            plain(self, data[: len(data) // 2])
            die()
        return plain(self, data)
    pathlib.Path.write_bytes = write_half
elif moment == "before the swap":
    files._swap_in = die
elif moment == "after the swap":
    swap = files._swap_in
    files._swap_in = lambda *paths: (swap(*paths), die())
elif moment == "between two renames":
    files._exchange = lambda *paths: False
    plain_rename = pathlib.Path.rename
    def rename(self, target):
        plain_rename(self, target)
        if ".old-" in str(target):
            die()
    pathlib.Path.rename = rename
from nrd_trt.cli.main import app
app(arguments)
"""


@pytest.mark.parametrize(
    ("moment", "left"),
    [("first file", "old"), ("before the swap", "old"), ("after the swap", "new"), ("between two renames", "absent")],
)
def test_kill_at_the_worst_moments(
    moment: str, left: str, whole_run: dict[str, bytes], nrd_trt: Invoke, tmp_path: Path
) -> None:
    """Kills at random moments seldom hit the writing, so these are planted in it."""
    target = copy_of(bundle(), tmp_path / "city.nrd")
    planted = [python(), "-c", KILL_WHILE_WRITING, moment, *map(str, build_arguments(target))]
    result = subprocess.run(planted, capture_output=True, text=True, env=environment())
    assert result.returncode == -signal.SIGKILL, result.stderr
    if left == "absent":
        assert not target.exists()
    else:
        assert content(target) == (content(bundle()) if left == "old" else whole_run)
        read_bundle(target)
    assert len(list(tmp_path.iterdir())) >= 2  # there is something for the next build to clear away
    assert nrd_trt(*build_arguments(target)).exit_code == 0
    assert content(target) == whole_run
    assert [path.name for path in tmp_path.iterdir()] == ["city.nrd"]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_being_stopped_leaves_the_old_bundle(sent: signal.Signals, tmp_path: Path) -> None:
    target = copy_of(bundle(), tmp_path / "city.nrd")
    command = command_line(*build_arguments(target))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    assert process.stderr is not None
    assert "validating" in process.stderr.readline()  # everything is imported and running
    process.send_signal(sent)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert "Ctrl-C" in stderr
    assert one_object(stdout)["error"]["type"] == "Interrupted"
    assert content(target) == content(bundle())
    assert {name.split("/")[0] for name in listing(tmp_path)} == {"city.nrd"}
