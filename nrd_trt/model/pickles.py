"""What a PyTorch checkpoint would make, told before it is made: its records, and the names in its pickles."""

from __future__ import annotations

import pickletools
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from nrd_trt.errors import CheckpointError

_MOST_BYTES = 2 << 20
"""Of a pickle: the tensors' values lie beside it, so that of the largest network has a tenth of it."""
_OLD_PICKLES = 5  # of a file of before PyTorch 1.6, in front of the values
_HARMLESS = {
    *("collections OrderedDict", "__builtin__ set", "builtins set", "_codecs encode", "torch Size", "torch device"),
    *("torch.nn.parameter Parameter", "torch.storage UntypedStorage", "torch.serialization _get_layout"),
    *("numpy dtype", "numpy.core.multiarray scalar", "numpy._core.multiarray scalar"),
    *(f"torch._utils _rebuild_{kind}" for kind in ("tensor", "tensor_v2", "parameter")),
    *(f"torch {kind}" for kind in "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()),
}


def check_pickles(path: Path) -> None:
    """Raise `CheckpointError` unless reading a checkpoint costs about what its size suggests and makes plain tensors.

    PyTorch's own check of a pickle lets pass what makes gigabytes of a few bytes, as a ``bytearray`` of a number does.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PK\3\4":  # which is how PyTorch tells
                file.seek(0)
                for _ in range(_OLD_PICKLES):
                    _check_names(file)
                return
        with zipfile.ZipFile(path) as archive:
            _check_records(archive, path.stat().st_size)
            for record in archive.infolist():
                if record.filename.endswith(".pkl"):
                    with archive.open(record) as file:
                        _check_names(file)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, OSError, RuntimeError, struct.error) as exc:
        raise CheckpointError(f"not a readable PyTorch checkpoint ({exc}); it may be truncated.") from exc


def _check_records(archive: zipfile.ZipFile, size: int) -> None:
    """PyTorch compresses no record, and none lies in another: both would hide how much there is."""
    held = sum(record.file_size for record in archive.infolist())
    if held > size:
        raise CheckpointError(
            f"expected records as PyTorch writes them, got compressed ones that hold {held / 2**20:.1f} MiB in "
            f"a file of {size / 2**20:.1f} MiB; save it with torch.save."
        )


def _check_names(file: IO[bytes]) -> None:
    for name in _names(file):
        module, _, kind = name.partition(" ")
        values = module == "numpy.dtypes" or (module == "torch" and kind.endswith("Storage"))
        if name not in _HARMLESS and not values:
            raise CheckpointError(
                f"expected plain tensors, got an object of type {module}.{kind}, which could run code when "
                "loaded or take much memory; save only the state dict."
            )


def _names(file: IO[bytes]) -> Iterator[str]:
    """Yield what a pickle imports, up to its end."""
    start = file.tell()
    for operation, argument, position in pickletools.genops(file):
        if (position or 0) - start > _MOST_BYTES:
            raise CheckpointError(
                f"expected a pickle of at most {_MOST_BYTES >> 20} MiB, got more; save only the state dict."
            )
        if operation.name == "GLOBAL":
            yield str(argument)
