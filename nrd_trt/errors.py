"""The error tree of the toolkit. Leaf module: it imports nothing of the package.

NrdTrtError
├── MissingDependencyError   (also an ImportError)
├── ConfigError              (also a ValueError)
├── ShapeError               (also a ValueError)
├── CheckpointError
├── ExportError
├── BuildError
│   └── PluginError
├── CalibrationError
├── RunnerError
├── BundleError
├── VideoError
└── BatchError

A message has three parts: what (file, tensor), expected against got, and what to do about it.
"""

from collections.abc import Callable
from contextlib import suppress


class NrdTrtError(Exception):
    """Base of every error that the toolkit raises on purpose."""


class MissingDependencyError(NrdTrtError, ImportError):
    """An optional package is needed for this feature and is not installed."""


class ConfigError(NrdTrtError, ValueError):
    """An option or a combination of options is invalid."""


class ShapeError(NrdTrtError, ValueError):
    """An array or a size does not have the shape that the callee needs."""


class CheckpointError(NrdTrtError):
    """A checkpoint cannot be read, or holds another model than expected."""


class ExportError(NrdTrtError):
    """An ONNX file cannot be written or does not satisfy its contract."""


class BuildError(NrdTrtError):
    """An engine cannot be built, or is not what was asked for."""


class PluginError(BuildError):
    """The plugin library is absent, unusable or refused."""


class CalibrationError(NrdTrtError):
    """Calibration data or ranges are unusable."""


class RunnerError(NrdTrtError):
    """A runner is used outside its life cycle or its backend failed."""


class BundleError(NrdTrtError):
    """A bundle is damaged, incomplete or made for another host."""


class VideoError(NrdTrtError):
    """A source cannot be read or a sink cannot be written."""


class BatchError(NrdTrtError):
    """A batch job cannot begin or go on; what it has written stays."""


def attempt(action: Callable[..., object], *arguments: object) -> None:
    """Do what is left to do after an error, whose place no `RunnerError` takes that this raises.

    A device that has faulted fails every call from then on; only the first error says what went wrong.
    """
    with suppress(RunnerError):
        action(*arguments)


def leave(release: Callable[[], object], error: tuple[object, ...]) -> None:
    """Release at the end of a block, in whose ``__exit__`` this is; an error that is on its way goes on."""
    if any(error):
        attempt(release)
    else:
        release()
