"""How the kernels come to PyTorch: names, cache, missing tools. Compilers are played; test_binding runs a real one."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils import cpp_extension

from nrd_trt.decode import extension
from nrd_trt.decode.cuda_op import _logits_on_cuda, _mask_on_cuda
from nrd_trt.decode.extension import build_and_load, check_toolchain, extension_name, kernel_sources, load_extension
from nrd_trt.errors import MissingDependencyError, PluginError
from nrd_trt.specs import DecodeSpec
from tests.decode.on_cpu import numbers
from tests.decode.test_cuda_op import inputs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the kernels' sources."""
    return Path(shutil.copytree(kernel_sources() / "nrd_decode", tmp_path / "plugins/nrd_decode")).parent


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a toolkit that is not asked."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(extension, "check_toolchain", lambda: tmp_path / "toolkit")
    executable(tmp_path / "toolkit/bin/nvcc", 'echo "$@" >> "$(dirname "$0")/calls"')
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    return tmp_path / "cache"


@pytest.mark.parametrize(
    "change",
    [
        lambda f: (f / "nrd_decode/decode_kernel.cu").write_text("// another kernel\n"),
        lambda f: (f / "nrd_decode/decode_problem.h").write_text("// another header\n"),
        lambda f: (f / "nrd_decode/torch/binding.cpp").rename(f / "nrd_decode/torch/renamed.cpp"),
        lambda f: (f / "nrd_decode/new.cu").touch(),
    ],
)
def test_every_change_of_the_sources_has_its_own_library(folder: Path, change: Callable[[Path], object]) -> None:
    before = extension_name(folder, ["90"])
    assert before == extension_name(folder, ["90"]) == extension_name(kernel_sources(), ["90"])
    change(folder)
    assert extension_name(folder, ["90"]) != before


def test_architectures_and_torch_have_their_own_library(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {extension_name(kernel_sources(), which) for which in (["90"], ["87"], ["87", "90"])}
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    assert len(names | {extension_name(kernel_sources(), ["90"])}) == 4


@mock.patch.object(torch.ops, "load_library")
def test_compiles_once_for_exactly_these_gpus(loaded: mock.Mock, folder: Path, cache: Path, tmp_path: Path) -> None:
    directory = cache / extension_name(folder, ["87", "90"])
    directory.mkdir(mode=0o700, parents=True)
    (directory / "lock").touch()  # of a process that was stopped while it compiled

    def compile_(name: str, files: list[str], **options: Any) -> None:
        assert not (directory / "lock").exists()  # it would wait for ever
        assert cpp_extension.CUDA_HOME == str(tmp_path / "toolkit")
        lines = (Path(options["extra_include_paths"][0]) / "images.inc").read_text().splitlines()
        assert lines == [f'NRD_IMAGE(sm_{n}, {n}, false, "{directory}/sm_{n}.cubin")' for n in (87, 90)]

    with mock.patch.object(cpp_extension, "load", side_effect=compile_) as load:
        for _ in range(3):
            build_and_load(folder, ["87", "90"])
    load.assert_called_once()
    (name, files), options = load.call_args
    assert (name, options["build_directory"]) == (directory.name, str(directory))
    names = {Path(file).name for file in files}
    assert names == {"binding.cpp", "decode_images.cpp", "decode_launcher.cpp"}
    calls = (tmp_path / "toolkit/bin/calls").read_text().splitlines()
    assert [[part for part in call.split() if "arch" in part] for call in calls] == [["-arch=sm_87"], ["-arch=sm_90"]]
    assert all("-cubin" in call and "-fmad=false" in call and call.endswith("decode_kernel.cu") for call in calls)
    assert options["with_cuda"]
    assert not options["is_python_module"]
    assert loaded.call_args_list == [mock.call(str(directory / f"{directory.name}.so"))] * 2


@mock.patch.object(cpp_extension, "load")
@pytest.mark.parametrize("compiler", ["/opt/gcc-12/bin/gcc", None])
def test_nvcc_takes_the_compiler_of_the_environment(
    load: mock.Mock, compiler: str | None, folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    if compiler:
        monkeypatch.setenv("CC", compiler)
    build_and_load(folder, ["90"])
    call = (tmp_path / "toolkit/bin/calls").read_text()
    assert f"-ccbin {compiler} " in call if compiler else "-ccbin" not in call


@mock.patch.object(cpp_extension, "load")
def test_what_did_not_compile_is_tried_again(load: mock.Mock, folder: Path, cache: Path, tmp_path: Path) -> None:
    nvcc = tmp_path / "toolkit/bin/nvcc"
    worked = nvcc.read_text()
    executable(nvcc, "echo decode_kernel.cu: nothing works >&2; exit 1")
    with pytest.raises(PluginError, match=r"cannot be compiled or loaded.*nothing works"):
        build_and_load(folder, ["90"])
    load.assert_not_called()
    nvcc.write_text(worked)
    log = "decode_kernel.cu(1): error: nothing works\n" * 1000
    load.side_effect = [RuntimeError(log), RuntimeError(log), None]
    for _ in range(2):
        with pytest.raises(PluginError, match=r"cannot be compiled or loaded.*nothing works") as caught:
            build_and_load(folder, ["90"])
        assert "sm_90" in str(caught.value)
        assert len(str(caught.value)) < 3000
    build_and_load(folder, ["90"])
    assert load.call_count == 3
    shutil.rmtree(cache)
    cache.write_text("a file, not a folder: it cannot be written")
    with pytest.raises(PluginError, match="cannot be compiled or loaded"):
        build_and_load(folder, ["90"])


@mock.patch.object(cpp_extension, "load")
@mock.patch.object(torch.ops, "load_library")
@pytest.mark.parametrize("others", ["group", "world", "above", "link", "owner"])
def test_what_others_can_write_is_not_executed(
    loaded: mock.Mock, load: mock.Mock, others: str, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = cache / extension_name(folder, ["90"])
    build_and_load(folder, ["90"])
    build_and_load(folder, ["90"])
    assert (loaded.call_count, stat.S_IMODE(directory.stat().st_mode)) == (1, 0o700)
    if others == "link":
        directory.rename(cache / "elsewhere")
        directory.symlink_to(cache / "elsewhere")
    elif others == "owner":
        monkeypatch.setattr(os, "geteuid", lambda: directory.stat().st_uid + 1)
    else:
        (cache if others == "above" else directory).chmod({"group": 0o770, "world": 0o707, "above": 0o777}[others])
    with pytest.raises(PluginError, match=rf"{directory}: expected a folder of yours .*TORCH_EXTENSIONS_DIR"):
        build_and_load(folder, ["90"])
    assert (loaded.call_count, load.call_count) == (1, 1)
    if others == "above":
        cache.chmod(0o1777)  # as /tmp is: nobody but the owner renames there
        build_and_load(folder, ["90"])
        assert loaded.call_count == 2


def test_missing_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"expected .*one/nrd_decode.* or .*two/nrd_decode.*reinstall"):
        kernel_sources((tmp_path / "one", tmp_path / "two"))


def executable(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with everything, of which each test takes something away."""
    home = tmp_path / "cuda"
    (home / "include").mkdir(parents=True)
    (home / "include/cuda_runtime_api.h").touch()
    executable(home / "bin/nvcc", 'echo "Cuda compilation tools, release 13.0, V13.0.88"')
    for name in ("ninja", "c++"):
        executable(tmp_path / "programs" / name, "echo 1.13")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(home))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(extension, "_DEFAULT_HOME", str(tmp_path / "nowhere"))
    monkeypatch.setattr(extension.sys, "executable", str(tmp_path / "no_environment/bin/python"))
    monkeypatch.setenv("PATH", f"{tmp_path}/programs:{tmp_path}/bin")
    monkeypatch.delenv("CXX", raising=False)
    return home


def test_toolkit_is_found(toolkit: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert check_toolchain() == toolkit
    # PyTorch takes the folder above the nvcc on PATH, which may be a script elsewhere; nvcc tells where it lies.
    executable(tmp_path / "bin/nvcc", f'echo "#$ TOP={toolkit}/bin/.." >&2')
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
    assert check_toolchain() == toolkit


def test_missing_tools_are_named(toolkit: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    with pytest.raises(MissingDependencyError, match=r"expected a CUDA 12\.6 toolkit, as PyTorch's, got 13\.0 in "):
        check_toolchain()
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    check_toolchain()  # a major version is one ABI
    (tmp_path / "programs/ninja").unlink()
    with pytest.raises(MissingDependencyError, match=r"needs ninja.*pip install 'nrd-trt\[torch\]'"):
        check_toolchain()
    executable(Path(extension.sys.executable).parent / "ninja", "echo 1.13")
    check_toolchain()  # that of this Python's environment, which is not on PATH
    (tmp_path / "programs/c++").unlink()
    with pytest.raises(MissingDependencyError, match=r"needs a C\+\+ compiler"):
        check_toolchain()
    (toolkit / "include/cuda_runtime_api.h").unlink()
    with pytest.raises(MissingDependencyError, match=r"needs nvcc with its headers.*install the CUDA toolkit 13\.2"):
        check_toolchain()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_kernels_say_so() -> None:
    spec = DecodeSpec(num_classes=7, hidden=8, guidance_channels=8)
    for call in (
        load_extension,
        lambda: _logits_on_cuda(*inputs(spec), *numbers(spec), 0),
        lambda: _mask_on_cuda(*inputs(spec), *numbers(spec), 4, 0, True),
    ):
        with pytest.raises(MissingDependencyError, match=r"needs an NVIDIA GPU.*sees no GPU"):
            call()


def test_a_failure_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take as long the next time."""
    tries = mock.Mock(return_value=False)
    extension._failure.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", tries)
    for _ in range(2):
        with pytest.raises(MissingDependencyError, match="sees no GPU"):
            load_extension()
    tries.assert_called_once()
    tries.return_value = True
    monkeypatch.setattr(extension, "build_and_load", lambda *_: None)
    extension._failure.cache_clear()
    load_extension()
    extension._failure.cache_clear()
