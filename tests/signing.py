"""Keys for tests of signatures."""

from __future__ import annotations

from pathlib import Path


def key_pair(folder: Path, name: str) -> Path:
    """Write the private key `NAME.pem` and the public key `NAME.pub`; return the path of the public one."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key, public = Ed25519PrivateKey.generate(), folder / f"{name}.pub"
    (folder / f"{name}.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return public
