"""A bundle as what another server or pipeline takes: one folder or several, each with what it needs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nrd_trt.engine.bundle import read_bundle
from nrd_trt.errors import ConfigError
from nrd_trt.packaging.deepstream import plan_pipeline
from nrd_trt.packaging.folders import write_folders
from nrd_trt.packaging.triton import plan_repository
from nrd_trt.specs import PackageTarget, as_path, check_choice, check_number, optional_path


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package that was written.

    Attributes:
        files: Every file of it.
        notes: What whoever runs it has to know: what must match there, and what was left out and why.
    """

    files: tuple[Path, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the values of the JSON object."""
        return {"files": [str(path) for path in self.files], "notes": list(self.notes)}


def package(
    bundle: Path | str,
    output: Path | str,
    target: PackageTarget,
    *,
    max_batch: int | None = None,
    plugin: Path | str | None = None,
    verify_key: Path | str | None = None,
    force: bool = False,
) -> Package:
    """Write what a server or a pipeline takes to run a bundle.

    ``"triton"`` writes two models into the model repository `output`, whose name is the bundle's: ``NAME``, its plan on
    Triton's TensorRT backend, and ``NAME_bundle``, the bundle on the Python backend, which takes images of any size.
    ``NAME`` is left out, and a note says why, where that backend cannot serve the plan.

    ``"deepstream"`` writes the folder ``NAME_deepstream``: a configuration of the element nvinfer, the code of a
    library that hands masks on, and pipelines. The bundle has ``input_form="rgb_float"``. One without a plan of
    TensorRT brings its ONNX file, of which nvinfer builds one.

    Args:
        bundle: A ``NAME.nrd`` folder.
        output: Folder to write into; it is made where it is missing, and what else is in it stays.
        target: What it is for.
        max_batch: Images of one run; None takes the most that the plan was built for, and for ``NAME_bundle`` at least
            8.
        plugin: Library of a plan that decodes by plugin; None searches for it.
        verify_key: See `nrd_trt.open_bundle`.
        force: Replace an earlier package of this bundle's name; folders that hold anything else are refused.

    Raises:
        ConfigError: An argument is not known, does not fit the plan, or the bundle's name cannot be a model's; or the
            output exists, or the bundle's form is not one that the target can run.
        BundleError: The bundle is damaged or not signed by the key of `verify_key`; or there is no space.
        PluginError: The plan's library is absent or not that of the build.
    """
    check_choice("target", target, PackageTarget)
    check_number("max_batch", max_batch, low=1)
    output = as_path("output", output)
    if not output.exists() and not output.parent.is_dir():
        raise ConfigError(f"{output}: the folder {output.parent} does not exist; create it first.")
    opened = read_bundle(as_path("bundle", bundle), verify_key=optional_path("verify_key", verify_key))
    name = opened.path.absolute().name.removesuffix(".nrd")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII):
        raise ConfigError(
            f"{opened.path}: expected a name of letters, digits, '_', '-' and '.', which becomes the model's, got "
            f"{name!r}; rename the bundle."
        )
    make = plan_repository if target == "triton" else plan_pipeline
    folders, notes = make(opened, name, output, max_batch=max_batch, plugin=optional_path("plugin", plugin))
    if not opened.passed:
        notes = [f"the bundle did not pass its gates: {'; '.join(opened.failures)}", *notes]
    files = write_folders(output, folders, name, force=force)
    return Package(files=tuple(files), notes=tuple(notes))
