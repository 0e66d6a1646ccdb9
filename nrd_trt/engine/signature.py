"""Signatures of bundles: ``bundle.sig`` beside ``bundle.json``, over its bytes as they are.

``bundle.json`` holds the hash of every other file, and unlisted files are refused, so one signature covers the folder.
The algorithm is Ed25519, the library `cryptography`; SECURITY.md says why. Nothing of a bundle is parsed before its
signature is verified.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from nrd_trt.errors import BundleError, ConfigError
from nrd_trt.files import sha256_bytes
from nrd_trt.json_files import decode_json
from nrd_trt.optional import require

SIGNATURE_FILE = "bundle.sig"
_MAX_BYTES = 4096
_MAKE_KEY = "openssl genpkey -algorithm ed25519 -out key.pem"
_MAKE_PUBLIC = "openssl pkey -in key.pem -pubout -out public.pem"


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Content of ``bundle.sig``.

    Attributes:
        fingerprint: SHA-256 of the public key (DER, SubjectPublicKeyInfo) in hexadecimal: a claim until it is verified.
        signature: The 64 bytes of the Ed25519 signature over ``bundle.json``; base64 in the file.
        algorithm: ``"ed25519"``.
    """

    fingerprint: str
    signature: bytes
    algorithm: Literal["ed25519"] = "ed25519"

    def to_bytes(self) -> bytes:
        """Return the bytes of the file."""
        return json.dumps(msgspec.to_builtins(asdict(self)), indent=1).encode() + b"\n"


def signed(data: bytes, key: Path) -> Signature:
    """Sign the bytes of ``bundle.json`` with a private key.

    Raises:
        ConfigError: The file holds no Ed25519 private key in PEM, or one that a passphrase protects.
        MissingDependencyError: The package cryptography is not installed.
    """
    private = _load("key", key, "private")
    return Signature(fingerprint=_fingerprint(private.public_key()), signature=private.sign(data))


def read_signature(bundle: Path) -> Signature | None:
    """Return what ``bundle.sig`` claims; None where a bundle is unsigned.

    Raises:
        BundleError: The file is something else.
    """
    path = bundle / SIGNATURE_FILE
    if not path.is_file():
        return None
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    try:
        if len(data) > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES} bytes")
        found = decode_json(data, Signature)
        if len(found.signature) != 64 or not re.fullmatch("[0-9a-f]{64}", found.fingerprint):
            raise ValueError("its signature or fingerprint is none")
    except ValueError as exc:
        raise BundleError(
            f"{path}: expected a signature of `nrd_trt.sign`, got something else ({exc}); sign the bundle again."
        ) from exc
    return found


def verify(bundle: Path, data: bytes, verify_key: Path) -> str:
    """Return the fingerprint of the key that signed a bundle, which is that of `verify_key`.

    Args:
        bundle: The folder.
        data: Bytes of its ``bundle.json``.
        verify_key: File with the public key.

    Raises:
        BundleError: There is no signature, another key signed, ``bundle.json`` was changed, or an entry is a link.
        ConfigError: `verify_key` holds no Ed25519 public key in PEM.
        MissingDependencyError: The package cryptography is not installed.
    """
    public = _load("verify_key", verify_key, "public")
    expected = _fingerprint(public)
    check_no_links(bundle)
    found = read_signature(bundle)
    if found is None:
        raise BundleError(
            f"{bundle}: expected a signature by the key {expected}, got an unsigned bundle; get it from whoever has "
            f"the key, or sign it: nrd_trt.sign({str(bundle)!r}, key='key.pem')"
        )
    if found.fingerprint != expected:
        raise BundleError(
            f"{bundle}: expected a signature by the key {expected}, got one by {found.fingerprint}; give the public "
            "key of whom you trust to sign it, or get the bundle from them."
        )
    invalid = require("cryptography.exceptions", extra="signing", purpose="verifying a signature").InvalidSignature
    try:
        public.verify(found.signature, data)
    except invalid as exc:
        raise BundleError(
            f"{bundle}: expected what the key {expected} signed, got another bundle.json or a forged "
            f"{SIGNATURE_FILE}; it was changed after it was signed. Get it anew."
        ) from exc
    return expected


def check_no_links(bundle: Path) -> None:
    """Raise `BundleError` where an entry of a bundle is a symbolic link: a signature is about files in the folder."""
    if links := sorted(entry.name for entry in bundle.iterdir() if entry.is_symlink()):
        raise BundleError(
            f"{bundle / links[0]}: expected a file in the bundle, got a symbolic link; copy what it points to."
        )


def _load(name: str, path: Path, kind: Literal["private", "public"]) -> Any:
    """Return the Ed25519 key of a PEM file."""
    purpose = "signing a bundle" if kind == "private" else "verifying a signature"
    pem = require("cryptography.hazmat.primitives.serialization", extra="signing", purpose=purpose)
    ed25519 = require("cryptography.hazmat.primitives.asymmetric.ed25519", extra="signing", purpose=purpose)
    if not path.is_file():
        raise ConfigError(f"{name}={path}: expected a file with a {kind} key, found none; check the path.")
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    try:
        if kind == "private":
            key, wanted = pem.load_pem_private_key(data, password=None), ed25519.Ed25519PrivateKey
        else:
            key, wanted = pem.load_pem_public_key(data), ed25519.Ed25519PublicKey
    except (
        Exception
    ) as exc:  # of cryptography, whose errors have no common base: TypeError for a passphrase, among them
        raise _not_a_key(name, path, kind, str(exc) or type(exc).__name__) from exc
    if not isinstance(key, wanted):
        raise _not_a_key(name, path, kind, type(key).__name__.lstrip("_"))
    return key


def _not_a_key(name: str, path: Path, kind: str, got: str) -> ConfigError:
    made = _MAKE_KEY if kind == "private" else _MAKE_PUBLIC
    return ConfigError(
        f"{name}={path}: expected an Ed25519 {kind} key in PEM without a passphrase, got {got}; make one with `{made}`."
    )


def _fingerprint(public: Any) -> str:
    """Return the SHA-256 of a public key, as `openssl pkey -pubin -outform DER | sha256sum` prints it."""
    pem = require("cryptography.hazmat.primitives.serialization", extra="signing", purpose="signing a bundle")
    return sha256_bytes(public.public_bytes(pem.Encoding.DER, pem.PublicFormat.SubjectPublicKeyInfo))
