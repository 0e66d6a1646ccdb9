"""The verb ``sign``: who a bundle comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nrd_trt.cli import common, groups


def sign_command(
    *,
    bundle: Annotated[Path, typer.Argument(metavar="NAME.nrd", help="The bundle.")],
    key: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Ed25519 private key in PEM: openssl genpkey -algorithm ed25519 -out FILE"),
    ],
    force: common.Force = False,
    out: groups.OutputOptions,
) -> None:
    """Sign a bundle, so that --verify-key of the other verbs tells that it comes from you as it is."""
    from nrd_trt import sign

    signed = sign(bundle, key=key, force=force)
    out.show(signed, [f"{signed.path}: signed by {signed.fingerprint}"])
