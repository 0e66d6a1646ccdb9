"""DLPack by ctypes: what a capsule says of its array, and capsules of our own; see dlpack.h for the structures.

A capsule is read and left as it is: whoever holds it keeps the array, and its destructor gives the array back.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

CUDA, CUDA_HOST, CUDA_MANAGED = 2, 3, 13
"""Types of devices whose memory a GPU reads."""
_KINDS = ("int", "uint", "float", "opaque", "bfloat", "complex", "bool")
_READ_ONLY = 1


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


_OnAddress = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    name = b"dltensor"
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _OnAddress))


class _Versioned(ctypes.Structure):
    name = b"dltensor_versioned"
    _fields_ = (
        ("version", ctypes.c_uint32 * 2),  # major and minor
        ("context", ctypes.c_void_p),
        ("deleter", _OnAddress),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


def _python(name: str, result: Any, *arguments: Any) -> Any:
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


# A capsule is an address here: its destructor gets one that must not be held any more.
_name_of = _python("PyCapsule_GetName", ctypes.c_char_p, ctypes.c_void_p)
_content_of = _python("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
_new = _python("PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _OnAddress)


def read_capsule(capsule: object) -> ArrayFacts:
    """Read a capsule of DLPack, of version 1 or before.

    Raises:
        ValueError: It is none, or somebody else took its array.
    """
    name = _name_of(id(capsule)) if type(capsule).__name__ == "PyCapsule" else None
    kind = next((one for one in (_Managed, _Versioned) if one.name == name), None)
    if kind is None:
        raise ValueError(f"expected a new capsule of DLPack, got {capsule!r}")
    managed = kind.from_address(_content_of(id(capsule), name))
    tensor = managed.tensor
    lanes = f"x{tensor.lanes}" if tensor.lanes != 1 else ""
    return ArrayFacts(
        address=(tensor.data or 0) + tensor.byte_offset,
        shape=tuple(tensor.shape[: tensor.ndim]),
        strides=tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None,
        dtype=f"{_KINDS[tensor.kind] if tensor.kind < len(_KINDS) else '?'}{tensor.bits}{lanes}",
        read_only=isinstance(managed, _Versioned) and bool(managed.flags & _READ_ONLY),
    )


_held: dict[int, tuple[object, ...]] = {}
"""What the capsules that were made need, by the address of their structure, until their arrays are given back."""


def _give_back(address: int) -> None:
    _held.pop(address, None)


def _destroy(capsule: int) -> None:
    name = _name_of(capsule)
    if name in (_Managed.name, _Versioned.name):  # nobody took the array
        _give_back(_content_of(capsule, name))


_deleter, _destructor = _OnAddress(_give_back), _OnAddress(_destroy)


def make_capsule(address: int, shape: tuple[int, ...], *, owner: object, versioned: bool) -> object:
    """Return a capsule of a dense uint8 array on the first GPU.

    Args:
        address: On the device.
        shape: Its dimensions, in elements.
        owner: What is held until the array is given back.
        versioned: Whether the capsule is one of version 1.0, or of before.
    """
    managed: Any = _Versioned(version=(1, 0)) if versioned else _Managed()
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    managed.tensor = _Tensor(
        data=address, device=(CUDA, 0), ndim=len(shape), kind=_KINDS.index("uint"), bits=8, lanes=1, shape=sizes
    )
    managed.deleter = _deleter
    key = ctypes.addressof(managed)
    _held[key] = (managed, sizes, owner)
    return _new(key, managed.name, _destructor)
