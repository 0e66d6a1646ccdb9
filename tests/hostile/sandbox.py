"""Runs an action on hostile input in a process forked for it, and tells how it ended and what it cost.

Nothing here asserts. The process that forks has its imports behind it, so a case costs milliseconds.
"""

from __future__ import annotations

import os
import pickle
import resource
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nrd_trt.errors import NrdTrtError

Ending = Literal["right", "refused", "internal error", "signal", "hang", "memory", "file left"]

SECONDS = 20
MOST_MIB = 1024
"""Memory beyond what the process had when it was forked; twice that kills it."""
_POLL_S = 0.02


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a case ended.

    Attributes:
        ending: ``"refused"`` is a typed error; the others but ``"right"`` are defects.
        said: The error's type and message.
        peak_mib: Resident memory at its peak beyond that at the fork.
    """

    ending: Ending
    said: str
    peak_mib: int

    @property
    def defect(self) -> bool:
        """Whether the gate fails."""
        return self.ending not in ("right", "refused")


def run(action: Callable[[], object], *, most_mib: int = MOST_MIB, seconds: float = SECONDS) -> Outcome:
    """Do an action in a forked process; its output is lost.

    Args:
        action: Raises an error of the toolkit or an `OSError` to refuse; what it returns is not used.
        most_mib: Memory that it may take beyond what the process has.
        seconds: Time that it may take.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: none of them is needed in the child
        child = os.fork()
    if not child:
        os.close(reader)
        _be_child(action, writer)
    os.close(writer)
    killed = _watch(child, reader, 2 * most_mib, seconds)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    ending, words, peak = pickle.loads(said) if said else ("signal", f"ended with {status}", 0)
    if killed:
        ending, words = killed, f"{killed}: {words}"
    elif peak > most_mib:
        ending, words = "memory", f"{peak} MiB: {words}"
    return Outcome(ending=ending, said=words, peak_mib=peak)


def _be_child(action: Callable[[], object], writer: int) -> None:
    """Do the action, say how it ended, and end."""
    hole, said = os.open(os.devnull, os.O_RDWR), os.memfd_create("stderr")
    for stream, target in enumerate((hole, hole, said)):
        os.dup2(target, stream)
    sys.stdout, sys.stderr = (open(stream, "w", closefd=False) for stream in (1, 2))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")  # as for a user; of tests they are errors
    before = _resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    ending, words = _ending(action)
    if ending == "internal error" and not words.strip("0123456789"):
        sys.stderr.flush()
        words = os.pread(said, 1 << 20, 0).decode(errors="replace")[-1900:]  # the traceback of a verb
    with suppress(BaseException):
        os.write(writer, pickle.dumps((ending, words[:2000], max(0, _resident_mib("VmHWM") - before))))
    os._exit(0)


def _ending(action: Callable[[], object]) -> tuple[Ending, str]:
    try:
        action()
    except (NrdTrtError, OSError) as exc:
        return "refused", f"{type(exc).__name__}: {exc}"
    except SystemExit as exc:  # of the command line
        return ("right" if exc.code in (0, None, 1) else "refused" if exc.code == 2 else "internal error"), str(
            exc.code
        )
    except BaseException as exc:
        return "internal error", f"{type(exc).__name__}: {exc} at {_place(exc)}"
    return "right", ""


def _place(exc: BaseException) -> str:
    """Return the last line of the toolkit that an error went through."""
    place, traceback = "", exc.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if "nrd_trt" in code.co_filename or not place:
            place = f"{Path(code.co_filename).name}:{traceback.tb_lineno} {code.co_name}"
        traceback = traceback.tb_next
    return place


def _watch(child: int, reader: int, most_mib: int, seconds: float) -> Ending | None:
    """Wait until a process says how it ended or does something that it may not; then kill it."""
    end, limit = time.monotonic() + seconds, _resident_mib("VmRSS", child) + most_mib
    while not select.select([reader], [], [], _POLL_S)[0]:
        reason: Ending | None = None
        if time.monotonic() > end:
            reason = "hang"
        elif _resident_mib("VmRSS", child) > limit:
            reason = "memory"
        if reason:
            os.kill(child, signal.SIGKILL)
            return reason
    return None


def _resident_mib(field: str, process: int | str = "self") -> int:
    with suppress(OSError), open(f"/proc/{process}/status", encoding="ascii") as file:
        for line in file:
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) >> 10
    return 0
