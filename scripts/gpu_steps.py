"""Runs the parts of `gpu_check`: programs with a limit, their log, what their results mean. Standard library only."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from xml.etree import ElementTree

Status = Literal["passed", "failed", "not run"]
_OWN = {"nrd_trt", "scripts", "tests"}
_TAIL_LINES = 15


class NotRun(Exception):
    """A part cannot run on this machine; the message says why."""


class Failed(Exception):
    """A part ran and its result is bad."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What became of one part.

    Attributes:
        name: For people.
        status: ``passed``, ``failed`` or ``not run``.
        note: Reason, or what was done.
        seconds: It took.
        commands: As they can be typed in the checkout.
    """

    name: str
    status: Status
    note: str
    seconds: float
    commands: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes for JSON."""
        return {**asdict(self), "commands": list(self.commands)}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished program."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """All it printed."""
        return self.out + self.err

    def last_line(self) -> str:
        """The last line that says something, of the errors first."""
        for text in (self.err, self.out):
            if lines := [line.strip() for line in text.splitlines() if re.search(r"\w", line)]:
                return lines[-1]
        return f"exit code {self.code}"


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Counts and texts of a JUnit file."""

    passed: int = 0
    failed: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def judge(self, outcome: Outcome) -> str:
        """Return a note on tests that passed.

        Raises:
            Failed: A test failed, or the program did without one.
            NotRun: All were skipped; the message gives their reasons.
        """
        if self.failed:
            raise Failed(f"{len(self.failed)} of {self.passed + len(self.failed)} failed: {', '.join(self.failed[:5])}")
        if outcome.code != 0 and (self.passed or not self.skipped):
            raise Failed(outcome.last_line())
        reasons = "; ".join(dict.fromkeys(self.skipped))
        if not self.passed:
            raise NotRun(reasons or "there are no tests")
        return f"{self.passed} passed" + (f", {len(self.skipped)} skipped: {reasons}" if self.skipped else "")


def read_junit(path: Path) -> Tally:
    """Read what pytest or ctest wrote; an absent file holds no tests."""
    if not path.is_file():
        return Tally()
    passed, failed, skipped = 0, [], []
    for case in ElementTree.parse(path).iter("testcase"):
        name, skip = case.get("name", "?"), case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(name)
        elif skip is not None:
            printed = re.search(r"^skipped: (.+)$", case.findtext("system-out") or "", re.MULTILINE)
            skipped.append(printed[1] if printed else skip.get("message") or name)
        else:
            passed += 1
    return Tally(passed=passed, failed=tuple(failed), skipped=tuple(skipped))


def absent_module(text: str) -> str | None:
    """Return the package that a traceback says is not installed; one of ours would be our mistake."""
    found = re.findall(r"No module named '?([\w.]+)'?", text)
    names = [name.split(".")[0] for name in found if name.split(".")[0] not in _OWN]
    return names[-1] if names else None


class Runner:
    """Runs programs in a folder until a deadline, writes what they print to a log and keeps the parts' results.

    Args:
        root: Where programs run; it is put on their ``PYTHONPATH``.
        log: File to write.
        deadline: Of `time.monotonic`.
    """

    def __init__(self, root: Path, log: Path, *, deadline: float) -> None:
        self._root, self._deadline = root, deadline
        self._log = log.open("w", encoding="utf-8")
        self._lock = threading.Lock()
        self._commands = threading.local()
        self._status: dict[str, Status] = {}

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.close()

    def passed(self, name: str) -> bool:
        """Whether a part of that name passed."""
        return self._status.get(name) == "passed"

    def part(self, name: str, body: Callable[[], str]) -> Part:
        """Run one part, which returns a note. Whatever goes wrong in it stays in it."""
        self._commands.value = []
        start, status = time.monotonic(), "failed"
        try:
            note, status = body(), "passed"
        except NotRun as exc:
            note, status = str(exc), "not run"
        except Failed as exc:
            note = str(exc)
        except Exception as exc:
            note = f"{type(exc).__name__}: {exc}"
        part = Part(
            name=name,
            status=status,  # type: ignore[arg-type]
            note=" ".join(note.split()),
            seconds=round(time.monotonic() - start, 1),
            commands=tuple(self._commands.value),
        )
        self._status[name] = part.status
        self._say(f"{part.name}: {part.status} in {part.seconds:.1f} s{': ' if part.note else ''}{part.note}")
        return part

    def call(
        self,
        command: Sequence[str],
        *,
        limit_s: float,
        environment: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> Outcome:
        """Run a program; it is stopped at its limit or at the deadline, with all that it started.

        Raises:
            NotRun: The deadline has passed.
            Failed: It was stopped, or it failed and `check` is set.
        """
        limit_s = min(limit_s, self._deadline - time.monotonic())
        if limit_s <= 1:
            raise NotRun("the time of the whole check was used up")
        self._commands.value.append(self._shown(command))
        with subprocess.Popen(
            command,
            cwd=self._root,
            env={**os.environ, "NO_COLOR": "1", "PYTHONPATH": self._python_path(), **(environment or {})},
            text=True,
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process:
            try:
                out, err = process.communicate(timeout=limit_s)
                code = process.returncode
            except BaseException as exc:
                os.killpg(process.pid, signal.SIGKILL)
                out, err = process.communicate()
                if not isinstance(exc, subprocess.TimeoutExpired):
                    raise
                code = None
        self._write(self._shown(command), out, err, code)
        if code is None:
            raise Failed(f"stopped after {limit_s:.0f} s: {self._shown(command)}")
        outcome = Outcome(code=code, out=out, err=err)
        if check and code != 0:
            raise Failed(outcome.last_line())
        return outcome

    def _python_path(self) -> str:
        return os.pathsep.join(filter(None, (str(self._root), os.environ.get("PYTHONPATH"))))

    def _shown(self, command: Sequence[str]) -> str:
        """The command as it can be typed in the checkout, on any machine."""
        program = Path(command[0])
        inside = program.is_relative_to(self._root)
        name = "python" if command[0] == sys.executable else command[0] if inside else program.name
        root = os.environ.get("TENSORRT_ROOT")
        words = [shlex.quote(word.replace(f"{self._root}/", "")) for word in (name, *command[1:])]
        for index, word in enumerate(command):
            if root and word.endswith(f"={root}"):
                words[index] = f'"{word.removesuffix(root)}$TENSORRT_ROOT"'
        return " ".join(words)

    def _write(self, command: str, out: str, err: str, code: int | None) -> None:
        state = "stopped at its limit" if code is None else f"exit code {code}"
        with self._lock:
            print(f"== {command}\n{out}{err}== {state}", file=self._log, flush=True)
        if code != 0:
            tail = (out + err).splitlines()[-_TAIL_LINES:]
            self._say("\n".join(["  " + line for line in (command, *tail)]))

    def _say(self, text: str) -> None:
        with self._lock:
            print(text, flush=True)
