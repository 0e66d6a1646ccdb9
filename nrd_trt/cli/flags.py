"""The one place that turns a parameter of the library into a flag, in its messages and in calls that it advises."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin

from typer.models import OptionInfo

import nrd_trt

_VERBS = {"segment_dataset": "batch", "segment_video": "video"}  # functions whose verb has another name
_RANGED = {"batch", "concurrency", "dynamic"}  # written as MIN:OPT:MAX
_REPEATED = {"include", "exclude", "builder_options"}  # given once per value
_FILES = {"class_names"}  # written to a file of the user's

_TEXT = r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\""
_PAIR = rf"\((?:{_TEXT}|[^()'\"])*\)"
_TUPLE = rf"\((?:{_TEXT}|{_PAIR}|[^()'\"])*\)"
_CALL = rf"nrd_trt\.[a-z_]+\((?:{_TEXT}|{_TUPLE}|[^()'\"])*\)"


def flags_of(command: Callable[..., Any]) -> dict[str, str]:
    """Return the flag of every option of a verb by the name of its parameter, which is that of the library's."""
    return {
        name: _flag(name, option)
        for name, parameter in inspect.signature(command, eval_str=True).parameters.items()
        if (option := _option(parameter.annotation)) is not None
    }


def translated(message: str, flags: Mapping[str, str]) -> str:
    """Return a message of the library as a user of the command line knows things: ``force=True`` becomes ``--force``.

    Args:
        message: Names parameters as ``name=`` or ``name=value``, what to run as a call ``nrd_trt.verb(…)``, and a
            function as ``nrd_trt.verb``.
        flags: Flags by parameter, see `flags_of`.
    """
    text = re.sub(_CALL, lambda call: shell_line(call[0]), message)
    text = re.sub(r"\bnrd_trt\.([a-z_]+)\b(?![.(]\w)", lambda found: _verb_named(found[1]) or found[0], text)
    names = "|".join(map(re.escape, flags))
    if not names:
        return text
    # A name is a parameter's unless it is part of an address, a path or another program's option.
    value = rf"True\b|False\b|{_TUPLE}|\[[^\]]*\]|'[^']*'(?: or '[^']*')*"
    parameter = rf"(?<![\w.?&/-])({names})=({value})?(?=([\w/~-]|\.+/)?)"
    return re.sub(parameter, lambda found: _assigned(found[1], flags[found[1]], found[2], found[3]), text)


def shell_line(call: str) -> str:
    """Return the command that does what a call of the library does: ``nrd_trt.build('a.pth', 'a.nrd')``.

    A text that is no such call is returned as it is.
    """
    from nrd_trt.cli.main import FLAGS  # which is made of the verbs, whose messages need this module

    try:
        node = ast.parse(call, mode="eval").body
    except SyntaxError:
        return call
    function = ast.unparse(node.func).removeprefix("nrd_trt.") if isinstance(node, ast.Call) else ""
    verb = _VERBS.get(function, function)
    if not isinstance(node, ast.Call) or verb not in FLAGS:
        return call
    names = iter(inspect.signature(getattr(nrd_trt, function)).parameters)
    given = {next(names): ast.literal_eval(value) for value in node.args}
    given |= {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg}
    options = [word for name, value in given.items() for word in _words(name, value, FLAGS[verb])]
    positional = [str(value) for name, value in given.items() if name not in FLAGS[verb]]
    return shlex.join(["nrd-trt", verb, *positional, *options])


def _verb_named(function: str) -> str | None:
    """Return how a function is called on the command line; None where it is no verb."""
    from nrd_trt.cli.main import FLAGS

    verb = _VERBS.get(function, function)
    return f"`nrd-trt {verb}`" if verb in FLAGS else None


def _words(name: str, value: Any, flags: Mapping[str, str]) -> Iterator[str]:
    """Yield an argument as words of a command line."""
    if name not in flags or value is None or value is False:
        return
    if isinstance(value, Mapping):
        value = [f"{key}={one}" for key, one in value.items()]
    for one in value if name in _REPEATED else [value]:
        yield flags[name].partition("/")[0]
        if one is not True:
            yield _typed(name, one)


def _typed(name: str, value: Any) -> str:
    """Return a value as it is typed."""
    if name in _FILES:
        return "FILE"
    if not isinstance(value, tuple | list):
        return str(value)
    if name in _RANGED:
        return ":".join(_typed("size", part) for part in value)
    if name == "sizes":
        return ",".join(_typed("size", part) for part in value)
    return ("x" if name in ("size", "tile", "stride") else ",").join(map(str, value))


def _assigned(name: str, flag: str, value: str | None, follows: str | None) -> str:
    """Return an assignment as it is typed; a plain value is not in `value` but follows in the message."""
    flag, _, negative = flag.partition("/")
    if value in ("True", "False"):
        return flag if value == "True" or not negative else negative
    if value is None:
        return f"{flag} " if follows else flag
    if value.startswith("'"):
        return f"{flag} " + re.sub("'([^']*)'", lambda text: shlex.quote(text[1]), value)
    try:
        return f"{flag} {_typed(name, ast.literal_eval(value))}"
    except (SyntaxError, ValueError):
        return f"{flag} {value}"


def _option(annotation: Any) -> OptionInfo | None:
    if get_origin(annotation) is not Annotated:
        return None
    return next((extra for extra in get_args(annotation)[1:] if isinstance(extra, OptionInfo)), None)


def _flag(name: str, option: OptionInfo) -> str:
    """Return the long flag where there is one; of a pair such as ``--live/--no-live`` both."""
    declared = (option.default, *(option.param_decls or ()))  # Typer takes the first for the default
    texts = [text for text in declared if isinstance(text, str) and text.startswith("-")]
    return next((text for text in texts if text.startswith("--")), (texts or [f"--{name.replace('_', '-')}"])[0])
