"""The verb ``package``: a bundle for a server or a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nrd_trt.cli import common, groups
from nrd_trt.specs import PackageTarget


def package_command(
    *,
    bundle: Annotated[Path, typer.Argument(metavar="NAME.nrd", help="The bundle.")],
    target: Annotated[PackageTarget, typer.Option("--for", help="What shall run it.")],
    output: Annotated[
        Path, typer.Option("-o", metavar="DIR", help="Folder to write into, such as a model repository of Triton.")
    ],
    max_batch: Annotated[
        int | None,
        common.engine_option(
            min=1, metavar="N", help="Images that the server may put into one run (default the plan's)."
        ),
    ] = None,
    plugin: common.Plugin = None,
    verify_key: common.VerifyKey = None,
    force: common.Force = False,
    out: groups.OutputOptions,
) -> None:
    """Write what a server or a pipeline takes to run a bundle, with its configuration and code for clients."""
    from nrd_trt import package

    made = package(
        bundle, output, target=target, max_batch=max_batch, plugin=plugin, verify_key=verify_key, force=force
    )
    out.show(made, [f"{len(made.files)} files in {output}:", *(f"  {path.relative_to(output)}" for path in made.files)])
    for note in made.notes:
        out.note(f"note: {note}")
