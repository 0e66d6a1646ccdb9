"""`nrd-trt sign`, and `--verify-key` of every verb that opens a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import nrd_trt as package
from nrd_trt.cli.main import FLAGS
from nrd_trt.engine.signature import SIGNATURE_FILE
from nrd_trt.errors import ConfigError
from tests.artefacts import bundle, checkpoint, copy_of, listing, onnx_file
from tests.cli.conftest import Invoke, check_refused, printed
from tests.signing import key_pair

OPENERS: dict[str, tuple[object, ...]] = {
    "batch": ("{data}/images", "-o", "{folder}/masks", "--bundle", "{bundle}"),
    "benchmark": ("{bundle}", "--runs", 1, "--warmup", 0),
    "build": ("{bundle}", "-o", "{folder}/new.nrd", "--builder", "onnxruntime"),
    "evaluate": ("{bundle}", "--data", "{data}"),
    "inspect": ("{bundle}",),
    "package": ("{bundle}", "--for", "triton", "-o", "{folder}/models"),
    "predict": ("{bundle}", "{data}/images", "-o", "{folder}/masks"),
    "serve": ("{data}/images", "--bundle", "{bundle}", "--port", 0),
    "validate": ("{bundle}",),
    "video": ("{data}/images", "-o", "null", "--bundle", "{bundle}"),
}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A bundle of its own; beside it the pairs of keys `own` and `other`."""
    for name in ("own", "other"):
        key_pair(tmp_path, name)
    return copy_of(bundle(), tmp_path / "a.nrd")


def words(verb: str, path: Path, data: Path, *key: object) -> list[str]:
    places = {"bundle": path, "folder": path.parent, "data": data}
    return [verb, *(str(word).format(**places) for word in OPENERS[verb]), *map(str, key)]


def test_every_verb_that_opens_a_bundle_takes_a_key() -> None:
    assert {verb for verb, flags in FLAGS.items() if flags.get("verify_key") == "--verify-key"} == OPENERS.keys()


def test_sign_and_inspect(nrd_trt: Invoke, made: Path) -> None:
    assert "unsigned" in nrd_trt("inspect", made).stdout
    assert printed(nrd_trt("inspect", made, "--json"))["bundle"]["origin"] is None
    found = printed(nrd_trt("sign", made, "--key", made.parent / "own.pem", "--json"))
    assert found.keys() == {"path", "fingerprint"}
    fingerprint = found["fingerprint"]
    text = nrd_trt("inspect", made).stdout
    assert f"signed by {fingerprint}, as it says; --verify-key verifies it" in text and "unsigned" not in text
    verified = ("inspect", made, "--verify-key", made.parent / "own.pub")
    assert f"signed by {fingerprint}\n" in nrd_trt(*verified).stdout
    assert printed(nrd_trt(*verified, "--json"))["bundle"]["origin"] == {"fingerprint": fingerprint, "verified": True}
    again = nrd_trt("sign", made, "--key", made.parent / "own.pem")
    assert again.exit_code == 2 and "--force" in again.stderr
    people = nrd_trt("sign", made, "--key", made.parent / "own.pem", "--force")
    assert (people.exit_code, people.stdout) == (0, f"{made}: signed by {fingerprint}\n")


@pytest.mark.parametrize("verb", OPENERS)
def test_every_verb_refuses_what_the_key_did_not_sign(verb: str, nrd_trt: Invoke, made: Path, data: Path) -> None:
    package.sign(made, made.parent / "own.pem")
    before = listing(made.parent)
    result = nrd_trt(*words(verb, made, data, "--verify-key", made.parent / "other.pub"))
    assert (result.exit_code, listing(made.parent)) == (2, before), result.output
    assert "expected a signature by the key" in result.stderr and "got one by" in result.stderr
    (made / SIGNATURE_FILE).unlink()
    result = nrd_trt(*words(verb, made, data, "--verify-key", made.parent / "own.pub"))
    assert result.exit_code == 2 and "got an unsigned bundle" in result.stderr
    assert "`nrd-trt sign" in result.stderr or "nrd-trt sign " in result.stderr


# tests/batch has a session of Ray.
@pytest.mark.parametrize("verb", sorted(OPENERS.keys() - {"batch", "serve", "build"}))
def test_every_verb_opens_what_the_key_signed(verb: str, nrd_trt: Invoke, made: Path, data: Path) -> None:
    package.sign(made, made.parent / "own.pem")
    if verb == "evaluate":
        pytest.importorskip("torch")
    result = nrd_trt(*words(verb, made, data, "--verify-key", made.parent / "own.pub"))
    assert result.exit_code == 0, result.stderr


def test_a_rebuilt_bundle_is_unsigned_and_says_so(nrd_trt: Invoke, made: Path, data: Path) -> None:
    package.sign(made, made.parent / "own.pem")
    arguments = words("build", made, data, "--verify-key", made.parent / "own.pub")
    with pytest.warns(UserWarning, match=r"new\.nrd: unsigned; .* nrd_trt\.sign\(.*new\.nrd', key='key\.pem'\)"):
        package.build(made, made.parent / "new.nrd", verify_key=made.parent / "own.pub", builder="onnxruntime")
    with pytest.warns(UserWarning, match=r"a\.nrd: unsigned"):
        package.build(onnx_file(), made, precision="fp32", builder="onnxruntime", force=True)
    assert package.open_bundle(made).bundle.origin is None  # type: ignore[union-attr]
    assert nrd_trt(*arguments, "--force").exit_code == 2


def test_what_is_no_bundle_takes_no_key(nrd_trt: Invoke, made: Path, data: Path) -> None:
    key = ("--verify-key", made.parent / "own.pub")
    before = listing(made.parent)
    for verb in ("evaluate", "build", "inspect", "benchmark", "video"):
        source = onnx_file() if verb in ("inspect", "build") else checkpoint()
        result = nrd_trt(*words(verb, source, data, *key))
        assert result.exit_code == 2, (verb, result.output)
        assert "expected a bundle, which can be signed" in result.stderr, verb
    result = nrd_trt("benchmark", "--decode", *key)
    assert "leave out --verify-key" in result.stderr
    assert listing(made.parent) == before
    with pytest.raises(ConfigError, match="verify_key=3: expected a path"):
        bad: Any = 3
        package.open_bundle(made, verify_key=bad)


def test_a_damaged_bundle_is_not_signed(nrd_trt: Invoke, made: Path) -> None:
    (made / "notes.txt").write_text("mine")
    before = listing(made.parent)
    result = nrd_trt("sign", made, "--key", made.parent / "own.pem", "--json")
    check_refused(result, made.parent, before, r"notes\.txt")
