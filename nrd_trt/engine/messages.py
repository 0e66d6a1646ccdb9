"""What TensorRT says while it works: logger, error recorder, progress, profiler, as objects that its C++ side calls.

The module is handed in; this file and `nrd_trt.engine.compat` name what is in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nrd_trt.progress import OnLayer, OnMessage

_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class MessageLog:
    """A logger and an error recorder for TensorRT, and the warnings and errors that they have seen.

    Attributes:
        logger: For constructors.
        recorder: For ``error_recorder``; where it is set, errors go to it instead of the logger.
        messages: Oldest first.
    """

    logger: Any
    recorder: Any
    messages: list[str]

    def tail(self) -> str:
        """Return the last messages as a parenthesis, or nothing."""
        return f" ({'; '.join(self.messages[-_SHOWN:])})" if self.messages else ""

    def forget(self) -> None:
        """Drop the messages of the calls before."""
        self.messages.clear()
        self.recorder.clear()


def message_log(trt: Any, on_message: OnMessage) -> MessageLog:
    """Make a log that hands ``(severity, text)`` to `on_message` and keeps warnings and errors.

    TensorRT's own logger prints to stdout, which belongs to the command's result.
    """
    messages: list[str] = []

    class _Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR, trt.ILogger.WARNING):
                messages.append(f"{severity.name}: {text}")
            on_message(severity.name, text)

    return MessageLog(logger=_Logger(), recorder=_recorder(trt, messages, on_message), messages=messages)


def _recorder(trt: Any, messages: list[str], on_message: OnMessage) -> Any:
    """Return an error recorder that adds to `messages`."""

    class _Recorder(trt.IErrorRecorder):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IErrorRecorder.__init__(self)
            self._errors: list[tuple[Any, str]] = []

        def report_error(self, code: Any, description: str) -> bool:
            self._errors.append((code, description))
            messages.append(f"{code.name}: {description}")
            on_message("ERROR", description)
            return True  # fatal for the call that reports it

        def get_error_code(self, index: int) -> Any:
            return self._errors[index][0]

        def get_error_desc(self, index: int) -> str:
            return self._errors[index][1]

        def num_errors(self) -> int:
            return len(self._errors)

        def get_num_errors(self) -> int:  # what the C++ side calls in every version; num_errors is documented
            return len(self._errors)

        def has_overflowed(self) -> bool:
            return False

        def clear(self) -> None:
            self._errors.clear()

    return _Recorder()


def progress_monitor(trt: Any, on_start: Callable[[str, int], None], on_step: Callable[[str], bool]) -> Any:
    """Make a progress monitor of the nested phases of a build.

    Args:
        trt: The module.
        on_start: Called with a phase that begins and its number of steps.
        on_step: Called with the phase after each of its steps; False cancels the build.
    """

    class _Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            on_start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return on_step(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            pass

    return _Monitor()


def layer_profiler(trt: Any, on_layer: OnLayer) -> Any:
    """Make a profiler that hands on every layer of every run."""

    class _Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            on_layer(layer_name, ms)

    return _Profiler()
