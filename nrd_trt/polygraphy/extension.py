"""The extension of `polygraphy run`: ``--nrd-torch CKPT``, found by the entry point ``polygraphy.run.plugins``.

Polygraphy loads it with each of its commands: nothing heavy is imported here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, get_args

from polygraphy.tools.args import ModelArgs
from polygraphy.tools.args import util as args_util
from polygraphy.tools.args.base import BaseArgs, BaseRunnerArgs
from polygraphy.tools.script import Script, make_invocable

import nrd_trt.polygraphy.results  # noqa: F401  `polygraphy check accuracy` reads what `run` saves
from nrd_trt.specs import InputForm

_OPTION = "nrd-torch"


class _AddCheckpoint(argparse.Action):
    """Selects the runner, as the options of Polygraphy's own runners do, and keeps the checkpoint of each time."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        namespace.runners = [*(getattr(namespace, "runners", None) or []), _OPTION]
        namespace.nrd_torch = [*(getattr(namespace, self.dest) or []), values]


class NrdTorchRunnerArgs(BaseRunnerArgs):
    """
    NRD in PyTorch: running a checkpoint with nrd_trt.

    Depends on:

        - ModelArgs
        - RunnerSelectArgs
    """  # noqa: D212  Polygraphy reads the title from here

    def get_name_opt_impl(self) -> tuple[str, str]:
        """Return what the runner is called, and its option."""
        return "NRD in PyTorch", _OPTION

    def add_parser_args_impl(self) -> None:
        """Add the options."""
        # Polygraphy has registered --nrd-torch as a flag; this one, which takes the checkpoint, replaces it.
        self.group.conflict_handler = "resolve"
        self.group.add_argument(
            f"--{_OPTION}",
            metavar="CKPT",
            action=_AddCheckpoint,
            help="Run inference using a checkpoint (.pth or .safetensors) in PyTorch, fp32. Inputs and outputs are "
            "those of the model. May be given again with another checkpoint.",
        )
        self.group.add_argument(
            "--nrd-torch-input",
            choices=get_args(InputForm),
            help="Input form: uint8 NHWC RGB, rgb_float NCHW RGB in 0-255, or float NCHW normalised. Defaults to the "
            "model's.",
        )
        self.group.add_argument(
            "--nrd-torch-output",
            choices=("mask", "logits", "both"),
            help="Outputs. Defaults to the model's.",
        )
        self.group.add_argument(
            "--nrd-torch-options",
            metavar="NAME:VALUE",
            nargs="+",
            help="What the checkpoint does not tell itself, e.g. num_classes:19 bgr:1 mean:[123.7,116.3,103.5].",
        )

    def parse_impl(self, args: argparse.Namespace) -> None:
        """Read the options.

        Attributes:
            checkpoints (List[str]): In the order of their runners.
            input_form (str): Or None for the model's.
            output (str): Or None for the model's.
            options (Dict[str, Any]): Or None.
        """
        self.checkpoints: list[str] = args_util.get(args, "nrd_torch") or []
        self.input_form: str | None = args_util.get(args, "nrd_torch_input")
        self.output: str | None = args_util.get(args, "nrd_torch_output")
        self.options: dict[str, Any] | None = args_util.parse_arglist_to_dict(args_util.get(args, "nrd_torch_options"))
        self._unused = list(self.checkpoints)

    def add_to_script_impl(self, script: Script) -> None:
        """Add the runner of the next checkpoint."""
        script.add_import(imports=["NrdTorchRunner"], frm="nrd_trt.polygraphy.runner")
        runner = make_invocable(
            "NrdTorchRunner",
            self._unused.pop(0),
            model=self.arg_groups[ModelArgs].path,
            input_form=self.input_form,
            output=self.output,
            options=self.options,
        )
        script.add_runner(runner)


def arg_groups() -> list[BaseArgs]:
    """Return what `polygraphy run` takes in addition."""
    return [NrdTorchRunnerArgs()]
