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

_PAIRED = {"size"}  # written as HxW
_RANGED = {"batch", "dynamic"}  # written as MIN:OPT:MAX


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
        message: Names parameters as ``name=`` or ``name=value``, and what to run as a call ``nrd_trt.verb(…)``.
        flags: Flags by parameter, see `flags_of`.
    """
    text = re.sub(r"nrd_trt\.[a-z_]+\([^()]*(?:\([^()]*\)[^()]*)*\)", lambda call: shell_line(call[0]), message)
    names = "|".join(map(re.escape, flags))
    if not names:
        return text
    value = r"'[^']*'|[^\s:;,()']*[^\s:;,()'.]|"  # the dot of a sentence is no part of it
    return re.sub(rf"(?<![\w.-])({names})=({value})", lambda found: _assigned(flags[found[1]], found[2]), text)


def shell_line(call: str) -> str:
    """Return the command that does what a call of the library does: ``nrd_trt.build('a.pth', 'a.nrd')``.

    A text that is no such call is returned as it is.
    """
    try:
        node = ast.parse(call, mode="eval").body
    except SyntaxError:
        return call
    if not isinstance(node, ast.Call) or not ast.unparse(node.func).startswith("nrd_trt."):
        return call
    verb = ast.unparse(node.func).removeprefix("nrd_trt.")
    names = iter(inspect.signature(getattr(nrd_trt, verb)).parameters)
    given = {next(names): ast.literal_eval(value) for value in node.args}
    given |= {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg}
    from nrd_trt.cli.main import FLAGS  # which is made of the verbs, whose messages need this module

    words = ["nrd-trt", verb.replace("_", "-")]
    options = [word for name, value in given.items() for word in _words(name, value, FLAGS[verb])]
    positional = [str(value) for name, value in given.items() if name not in FLAGS[verb]]
    return shlex.join([*words, *positional, *options])


def _words(name: str, value: Any, flags: Mapping[str, str]) -> Iterator[str]:
    """Yield a keyword argument as words of a command line; a list is an option that is repeated."""
    if name not in flags or value is None or value is False:
        return
    for one in value if isinstance(value, list) else [value]:
        yield flags[name].partition("/")[0]
        if one is not True:
            yield _typed(name, one)


def _typed(name: str, value: Any) -> str:
    """Return a value as it is typed."""
    if not isinstance(value, tuple):
        return str(value)
    if name in _RANGED:
        return ":".join(_typed("size", part) for part in value)
    return ("x" if name in _PAIRED else ",").join(map(str, value))


def _assigned(flag: str, value: str) -> str:
    """Return an assignment as it is typed: ``--force``, ``--no-copies``, ``--runner torch``, ``--size``."""
    flag, _, negative = flag.partition("/")
    if negative and value == "False":
        return negative
    return flag if value in ("", "True") else f"{flag} {value.strip(chr(39))}"


def _option(annotation: Any) -> OptionInfo | None:
    if get_origin(annotation) is not Annotated:
        return None
    return next((extra for extra in get_args(annotation)[1:] if isinstance(extra, OptionInfo)), None)


def _flag(name: str, option: OptionInfo) -> str:
    """Return the long flag where there is one; of a pair such as ``--live/--no-live`` both."""
    declared = (option.default, *(option.param_decls or ()))  # Typer takes the first for the default
    texts = [text for text in declared if isinstance(text, str) and text.startswith("-")]
    return next((text for text in texts if text.startswith("--")), (texts or [f"--{name.replace('_', '-')}"])[0])
