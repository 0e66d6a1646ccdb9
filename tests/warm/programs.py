"""Programs of this environment that need not import PyTorch anew. Nothing here asserts.

Each is a process of its own with its own imports of `nrd_trt`; what other people wrote it finds imported.
"""

from __future__ import annotations

import atexit
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

from tests.artefacts import environment, workspace

HERE = Path(__file__).parent
NAMES = ("python", "nrd-trt", "polygraphy")


@cache
def programs() -> Path:
    """The folder with the programs; they end with this process."""
    folder = workspace() / "warm"
    folder.mkdir()
    for name in NAMES:
        door = folder / name
        door.write_text(f"#!{sys.executable} -IS\n{(HERE / 'door.py').read_text()}")
        door.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen(64)
        command = [sys.executable, str(HERE / "server.py"), str(listener.fileno())]
        server = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            env=environment(PYTHONPATH=""),
        )
    atexit.register(server.communicate)
    return folder


def python() -> str:
    """The path of `python`, for `-c`, `-m` and scripts."""
    return str(programs() / "python")


def command_line(*arguments: object) -> list[str]:
    """Return the command that runs `nrd-trt` of this checkout."""
    return [python(), "-c", "from nrd_trt.cli.main import main; main()", *map(str, arguments)]
