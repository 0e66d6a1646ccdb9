"""Signatures of bundles: a verified bundle is, byte for byte, what the owner of the key signed."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nrd_trt.engine import bundle as bundle_module
from nrd_trt.engine.bundle import ONNX_FILE, RECORD_FILE, REFERENCE_FILE, Origin, read_bundle, sign, write_bundle
from nrd_trt.engine.signature import SIGNATURE_FILE
from nrd_trt.errors import BundleError, ConfigError, MissingDependencyError
from tests.artefacts import read_facts_of, rewrite_facts
from tests.engine.records import record
from tests.signing import key_pair

FILES = {ONNX_FILE: b"onnx", REFERENCE_FILE: b"masks"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A signed bundle in a folder of its own, beside the pairs of keys `own` and `other`."""
    for name in ("own", "other"):
        key_pair(tmp_path, name)
    bundle = write_bundle(tmp_path / "city.nrd", FILES, record(), force=False).path
    sign(bundle, tmp_path / "own.pem")
    return bundle


def test_a_signed_bundle_tells_whose_it_is(path: Path) -> None:
    """The fingerprint is the SHA-256 of what the public key's PEM holds."""
    public = path.parent / "own.pub"
    fingerprint = hashlib.sha256(base64.b64decode("".join(public.read_text().splitlines()[1:-1]))).hexdigest()
    assert read_bundle(path, verify_key=public).origin == Origin(fingerprint=fingerprint, verified=True)
    opened = read_bundle(path)
    assert opened.origin == Origin(fingerprint=fingerprint, verified=False)
    assert read_bundle(opened) is opened
    assert read_bundle(opened, verify_key=public).origin == Origin(fingerprint=fingerprint, verified=True)
    with pytest.raises(ConfigError, match=r"bundle\.sig: already exists; give force=True"):
        sign(path, path.parent / "other.pem")
    assert sign(path, path.parent / "own.pem", force=True).to_dict() == {"path": str(path), "fingerprint": fingerprint}
    assert sorted(file.name for file in path.iterdir()) == sorted([*FILES, RECORD_FILE, SIGNATURE_FILE])
    write_bundle(path, FILES, record(), force=True)
    assert read_bundle(path).origin is None
    assert not list(path.parent.glob(".*"))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl: apt-get install openssl")
def test_openssl_makes_the_keys_and_verifies_too(path: Path, tmp_path: Path) -> None:
    """The commands of the documentation and of the messages."""
    for line in ("openssl genpkey -algorithm ed25519 -out key.pem", "openssl pkey -in key.pem -pubout -out public.pem"):
        subprocess.run(line.split(), cwd=tmp_path, capture_output=True, check=True)
    sign(path, tmp_path / "key.pem", force=True)
    assert read_bundle(path, verify_key=tmp_path / "public.pem").origin is not None
    (tmp_path / "raw").write_bytes(base64.b64decode(json.loads((path / SIGNATURE_FILE).read_text())["signature"]))
    words = ["openssl", "pkeyutl", "-verify", "-pubin", "-rawin", "-inkey", tmp_path / "public.pem", "-sigfile"]
    subprocess.run([*words, tmp_path / "raw", "-in", path / RECORD_FILE], capture_output=True, check=True)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def link(file: Path) -> None:
    """Equal bytes elsewhere."""
    moved = shutil.move(file, file.parent.parent / file.name)
    file.symlink_to(moved)


def consistent(path: Path) -> None:
    """Another file whose hashes are all made anew: what a hash cannot tell."""
    (path / ONNX_FILE).write_bytes(b"zeroed weights")
    hashes = {**read_facts_of(path)["files"], ONNX_FILE: hashlib.sha256(b"zeroed weights").hexdigest()}
    rewrite_facts(path, files=hashes)
    read_bundle(path)


def claim(path: Path) -> None:
    """The signature of another key under the fingerprint of the right one."""
    old = json.loads((path / SIGNATURE_FILE).read_text())
    sign(path, path.parent / "other.pem", force=True)
    new = json.loads((path / SIGNATURE_FILE).read_text())
    (path / SIGNATURE_FILE).write_text(json.dumps({**new, "fingerprint": old["fingerprint"]}))


TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    **{f"a byte of {name}": (lambda path, name=name: flip(path / name), name) for name in FILES},
    "a byte of the record": (lambda path: flip(path / RECORD_FILE), "got another bundle.json or a forged"),
    "a byte of the signature": (lambda path: flip(path / SIGNATURE_FILE), "bundle.sig"),
    "other weights, hashes made anew": (consistent, "got another bundle.json or a forged"),
    "a file more": (lambda path: (path / "extra.bin").write_bytes(b""), "extra.bin"),
    "a file less": (lambda path: (path / ONNX_FILE).unlink(), "model.onnx"),
    "no signature": (lambda path: (path / SIGNATURE_FILE).unlink(), "got an unsigned bundle"),
    "another key": (lambda path: sign(path, path.parent / "other.pem", force=True), "got one by"),
    "another key that claims to be the right one": (claim, "got another bundle.json or a forged"),
    **{f"a link for {name}": (lambda path, name=name: link(path / name), "symbolic link") for name in FILES},
    "a link for the record": (lambda path: link(path / RECORD_FILE), "symbolic link"),
    "a link for the signature": (lambda path: link(path / SIGNATURE_FILE), "symbolic link"),
    "a link that dangles": (lambda path: (path / "extra.bin").symlink_to("absent"), "symbolic link"),
    "no text": (lambda path: (path / SIGNATURE_FILE).write_bytes(b"\xff" * 80), "expected a signature of"),
    "much text": (lambda path: (path / SIGNATURE_FILE).write_bytes(b"[" * 10**6), "more than 4096 bytes"),
    "a short signature": (
        lambda path: (path / SIGNATURE_FILE).write_text('{"fingerprint": "' + "0" * 64 + '", "signature": "AAAA"}'),
        "its signature or fingerprint is none",
    ),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_what_was_not_signed_is_refused(name: str, path: Path) -> None:
    tamper, message = TAMPERED[name]
    tamper(path)
    with pytest.raises(BundleError, match=message):
        read_bundle(path, verify_key=path.parent / "own.pub")


def test_nothing_is_parsed_before_the_signature_is_verified(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(path / RECORD_FILE)
    monkeypatch.delattr(bundle_module, "read_record")
    with pytest.raises(BundleError, match="it was changed after it was signed"):
        read_bundle(path, verify_key=path.parent / "own.pub")


def test_a_link_or_a_damaged_bundle_is_not_signed(path: Path) -> None:
    (path / SIGNATURE_FILE).unlink()
    link(path / ONNX_FILE)
    read_bundle(path)  # a store of shared files is made of links: without a key they are followed
    with pytest.raises(BundleError, match=r"model\.onnx: expected a file in the bundle, got a symbolic link"):
        sign(path, path.parent / "own.pem")
    (path / "extra.bin").write_bytes(b"")
    with pytest.raises(BundleError, match=r"extra\.bin"):
        sign(path, path.parent / "own.pem")
    assert not (path / SIGNATURE_FILE).exists()


def test_a_key_that_is_none_is_named(path: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "text").write_text("ssh-ed25519 AAAA")
    (tmp_path / "long").write_bytes(b"-" * 10**6)
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    locked = ed25519.Ed25519PrivateKey.generate().private_bytes(*form, serialization.BestAvailableEncryption(b"x"))
    (tmp_path / "locked").write_bytes(locked)
    curve = ec.generate_private_key(ec.SECP256R1()).private_bytes(*form, serialization.NoEncryption())
    (tmp_path / "curve").write_bytes(curve)
    for name in ("absent", "fifo", "text", "long", "locked", "curve", "own.pub", "city.nrd"):
        with pytest.raises(ConfigError, match=rf"key=\S*{name}: expected a"):
            sign(path, tmp_path / name, force=True)
    for name in ("absent", "fifo", "text", "own.pem"):
        with pytest.raises(ConfigError, match=rf"verify_key=\S*{name}: expected a"):
            read_bundle(path, verify_key=tmp_path / name)
    assert read_bundle(path, verify_key=tmp_path / "own.pub").origin is not None


def test_a_machine_without_the_package_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.serialization", None)
    with pytest.raises(MissingDependencyError, match=r"nrd-trt\[signing\]"):
        read_bundle(path, verify_key=path.parent / "own.pub")
    assert read_bundle(path).origin is not None  # which is told without it
