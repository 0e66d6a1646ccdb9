"""A Python that has its large imports behind it, and forks a process for each request of `door.py`.

Run with the listening socket's descriptor; ends when its standard input does.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
from types import ModuleType
from typing import Any, NoReturn

LARGE = ("onnx", "PIL.Image", "torch", "typer")
"""Of other people: `nrd_trt` is imported by each process itself, as far as it needs it and in its own order."""


def next_request(listener: socket.socket) -> socket.socket:
    """Return a door's connection, in a process forked for it."""
    while True:
        ready, _, _ = select.select([listener, 0], [], [])
        if 0 in ready:
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return connection
        connection.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def receive(door: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return what shall run, and the descriptors of its input, output and errors."""
    size, streams, _, _ = socket.recv_fds(door, 8, 3)
    with door.makefile("rb") as reader:
        return json.loads(reader.read(int.from_bytes(size, "big"))), streams


def watch(door: socket.socket, child: int) -> None:
    """Tell the door the child's number and how it ended; the child does not outlive the door."""
    with os.fdopen(os.pidfd_open(child)) as ended:
        door.sendall(f"{child}\n".encode())
        ready, _, _ = select.select([ended, door], [], [])
    if door in ready and ended not in ready:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):
        door.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def run(arguments: list[str], paths: list[str]) -> None:
    """Do what `python` does with these arguments: `-c code`, `-m module` or a script."""
    kind, rest = arguments[0], arguments[1:]
    if kind == "-c":
        sys.path[:0] = ["", *paths]
        sys.argv = ["-c", *rest[1:]]
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    elif kind == "-m":
        sys.path[:0] = [os.getcwd(), *paths]
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[:0] = [os.path.dirname(os.path.realpath(kind)), *paths]
        sys.argv = arguments
        runpy.run_path(kind, run_name="__main__")


def outcome(arguments: list[str], paths: list[str]) -> int:
    """Run, and return the exit code that `python` has; negative for a signal."""
    try:
        run(arguments, paths)
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def leave(code: int) -> NoReturn:
    """End without taking the imported modules apart, which takes longer than most of what is asked for."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the end of a program does
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)


def serve(listener: socket.socket) -> NoReturn:
    """Answer requests, each in a process of its own."""
    door = next_request(listener)
    request, streams = receive(door)
    child = os.fork()
    if child:
        for stream in streams:
            os.close(stream)
        watch(door, child)
        os._exit(0)
    door.close()
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    leave(outcome(request["arguments"], paths))


if __name__ == "__main__":
    del sys.path[0]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: whoever started the tests ends this process
    for name in LARGE:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    gc.freeze()  # a collection in a child would copy every page that it touches
    serve(socket.socket(fileno=int(sys.argv[1])))
