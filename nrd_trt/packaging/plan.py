"""What every package of a plan says of it and brings along: what must match where it runs, and its library."""

from __future__ import annotations

from pathlib import Path

from nrd_trt.engine.bundle import Bundle
from nrd_trt.engine.plugins import find_recorded
from nrd_trt.errors import BundleError, ConfigError
from nrd_trt.runtime.select import rebuild_call

_MATRIX = "https://docs.nvidia.com/deeplearning/frameworks/support-matrix/index.html"


def needs_of_plan(bundle: Bundle) -> str:
    """Return the version of TensorRT, the system and the GPU that a plan runs on."""
    built = bundle.record.builder
    version = f"TensorRT {built.version}{' or later' if built.version_compatible else ' exactly'}"
    gpus = " or ".join(built.compute_capabilities) + (" or later" if built.hardware_compatible else "")
    where = f"{built.os} on {built.machine}, a GPU of compute capability {gpus or 'as where it was built'}"
    return f"{version} ({_MATRIX}), {where}"


def library_of_plan(bundle: Bundle, plugin: Path | None) -> Path | None:
    """Find the library of a plan; None where it needs none.

    Args:
        bundle: Opened.
        plugin: Where the library is; None searches for it.

    Raises:
        ConfigError: `plugin` is given for a plan that needs none.
        PluginError: The library is absent or not that of the build.
        BundleError: The bundle does not say which library that was.
    """
    if bundle.record.decode != "plugin":
        if plugin is not None:
            raise ConfigError(
                f"plugin={plugin}: expected a bundle whose plan needs it, got {bundle.path} with the decode as "
                f"{bundle.record.decode}; leave it out."
            )
        return None
    if bundle.record.plugin is None:
        raise BundleError(f"{bundle.path}: expected the record of its plugin library, got none; rebuild the bundle.")
    rebuild = rebuild_call(bundle.path, bundle.record.builder.name, bundle.record.decode)
    return find_recorded(bundle.record.plugin, plugin, bundle=str(bundle.path), rebuild=rebuild)


def labels_of(bundle: Bundle) -> bytes:
    """Return the names of the classes, one a line."""
    return "".join(f"{' '.join(label.split())}\n" for label in bundle.graph.info.class_names).encode()
