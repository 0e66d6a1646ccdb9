"""DLPack by ctypes: what a capsule says of its array, and capsules of our own; see dlpack.h for the structures.

A capsule is read and left as it is: whoever holds it keeps the array, and its destructor gives the array back.
Capsules of our own are NumPy's, told that their memory lies on the device. Libraries give arrays back from any thread
and while an error of theirs is on its way, where no Python code may run: NumPy's functions are C and made for that.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

CUDA, CUDA_HOST, CUDA_MANAGED = 2, 3, 13
"""Types of devices whose memory a GPU reads."""
_KINDS = ("int", "uint", "float", "opaque", "bfloat", "complex", "bool")
_READ_ONLY = 1
_NUMPY_HAS_VERSIONS = np.lib.NumpyVersion(np.__version__) >= "2.1.0"


@dataclass(frozen=True, kw_only=True)
class ArrayFacts:
    """What an array says of itself; strides are in elements, None where it is dense."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: str
    read_only: bool


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),  # type and number
        ("ndim", ctypes.c_int32),
        ("kind", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    name = b"dltensor"
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class _Versioned(ctypes.Structure):
    name = b"dltensor_versioned"
    _fields_ = (
        ("version", ctypes.c_uint32 * 2),  # major and minor
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


def _python(name: str, result: Any, *arguments: Any) -> Any:
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


_name_of = _python("PyCapsule_GetName", ctypes.c_char_p, ctypes.py_object)
_content_of = _python("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)


def read_capsule(capsule: object) -> ArrayFacts:
    """Read a capsule of DLPack, of version 1 or before.

    Raises:
        ValueError: It is none, or somebody else took its array.
    """
    managed = _managed_of(capsule)
    tensor = managed.tensor
    lanes = f"x{tensor.lanes}" if tensor.lanes != 1 else ""
    return ArrayFacts(
        address=(tensor.data or 0) + tensor.byte_offset,
        shape=tuple(tensor.shape[: tensor.ndim]),
        strides=tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None,
        dtype=f"{_KINDS[tensor.kind] if tensor.kind < len(_KINDS) else '?'}{tensor.bits}{lanes}",
        read_only=isinstance(managed, _Versioned) and bool(managed.flags & _READ_ONLY),
    )


def make_capsule(address: int, shape: tuple[int, ...], *, owner: object, versioned: bool) -> object:
    """Return a capsule of a dense uint8 array on the first GPU.

    Args:
        address: On the device.
        shape: Its dimensions, in elements.
        owner: What is held until the array is given back.
        versioned: Whether the consumer knows capsules of version 1.0; NumPy before 2.1 makes none of them.
    """
    interface = {"shape": shape, "typestr": "|u1", "data": (address, False), "version": 3}
    # The array keeps the object that describes it, and is not read.
    array: Any = np.asarray(SimpleNamespace(__array_interface__=interface, owner=owner))
    capsule: object = array.__dlpack__(**({"max_version": (1, 0)} if versioned and _NUMPY_HAS_VERSIONS else {}))
    _managed_of(capsule).tensor.device[:] = CUDA, 0
    return capsule


def _managed_of(capsule: object) -> Any:
    """Return the structure in a capsule, or raise `ValueError`."""
    name = _name_of(capsule) if type(capsule).__name__ == "PyCapsule" else None
    kind = next((one for one in (_Managed, _Versioned) if one.name == name), None)
    if kind is None:
        raise ValueError(f"expected a new capsule of DLPack, got {capsule!r}")
    return kind.from_address(_content_of(capsule, name))
