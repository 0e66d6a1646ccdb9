"""One part of a self-test in a process of its own, which may crash or hang: ``python -m nrd_trt.proving.child …``.

`run_part` is called by the self-test, `main` is what the process does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import msgspec

from nrd_trt.errors import MissingDependencyError, NrdTrtError
from nrd_trt.files import atomic_file
from nrd_trt.machine.host import child_environment, without_folder
from nrd_trt.proving.record import Figures, Result

_KEPT_LINES = 20


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a part says of itself, or what is said of its process; see `nrd_trt.proving.record.PartResult`."""

    result: Result
    why: str = ""
    figures: Figures = field(default_factory=dict)
    output: str = ""


def part_command(part: str, folder: Path, answer: Path) -> list[str]:
    """Return the command that runs a part in the folder that parts share and writes its answer."""
    return without_folder([sys.executable, "-m", "nrd_trt.proving.child", part, str(folder), str(answer)])


def run_part(command: Sequence[str], answer: Path, deadline_s: float) -> Answer:
    """Run a part and wait for it, no longer than its deadline; whatever it started ends with it.

    Args:
        command: See `part_command`.
        answer: File that it writes.
        deadline_s: Seconds after which it is stopped, which is no failure.
    """
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=child_environment(),
            start_new_session=True,  # Ctrl-C is for the self-test, which stops the whole group
        )
        try:
            status = child.wait(deadline_s)
        except subprocess.TimeoutExpired:
            return Answer(result="not run", why=f"the deadline of {deadline_s:g} s was reached")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        if answer.is_file() and status == 0:
            told = msgspec.json.decode(answer.read_bytes(), type=Answer)
        else:
            told = Answer(result="failed", why=_ending(status))
        return replace(told, output=_end_of(output)) if told.result == "failed" else told


def _ending(status: int) -> str:
    """Say how a process ended that gave no answer, or none that counts."""
    if status >= 0:
        return f"its process ended with exit status {status}" if status else "its process ended without a result"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"its process was ended by {name}"


def _end_of(output: IO[bytes]) -> str:
    output.seek(0)
    return "\n".join(output.read().decode(errors="replace").splitlines()[-_KEPT_LINES:])


def main(name: str, folder: str, target: str) -> None:
    """Do one part and write its answer."""
    from nrd_trt.proving.parts import NotRunError, all_parts  # which loads what the self-test itself needs not

    try:
        answer = Answer(result="passed", figures=all_parts()[name].prove(Path(folder)))
    except (NotRunError, MissingDependencyError) as exc:
        answer = Answer(result="not run", why=str(exc))
    except NrdTrtError as exc:
        answer = Answer(result="failed", why=str(exc))
    except Exception as exc:
        traceback.print_exc()
        answer = Answer(result="failed", why=f"internal error: {type(exc).__name__}: {exc}")
    with atomic_file(Path(target)) as temporary:
        temporary.write_bytes(msgspec.json.encode(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
