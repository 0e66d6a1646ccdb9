"""Which decode the PyTorch runner uses; both ways give the same. tests/gpu runs the kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nrd_trt.errors import MissingDependencyError, NrdTrtError, PluginError
from nrd_trt.runtime import torch_runner
from nrd_trt.runtime.torch_runner import TorchRunner
from tests.artefacts import trained_model
from tests.helpers import byte_images, cached_small_model, small_model

IMAGES = {"image": byte_images(3, 2, 64, 96)}


class OnGpu(TorchRunner):
    """A runner whose model seems to be on a GPU; the operators run on the CPU all the same."""

    @property
    def _device(self) -> torch.device:
        return torch.device("cuda") if self._specs is None else torch.device("cpu")


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the operators in the order in which they are called; loading them succeeds."""
    calls: list[str] = []
    for name in ("patch_decode", "patch_decode_mask"):
        real = getattr(torch_runner, name)
        monkeypatch.setattr(torch_runner, name, lambda *a, real=real, name=name: calls.append(name) or real(*a))
    monkeypatch.setattr(torch_runner, "load_extension", lambda: None)
    return calls


@pytest.mark.parametrize("margin", [False, True])
@pytest.mark.parametrize("logits", [False, True])
def test_kernels_give_what_the_reference_gives(kernels: list[str], logits: bool, margin: bool) -> None:
    results = []
    for kind in (TorchRunner, OnGpu):
        with kind(trained_model(), logits=logits, margin=margin) as runner:
            results.append(runner.infer(IMAGES))
            for name, array in results[-1].items():
                runner.outputs[name].check(array)
    assert kernels == ["patch_decode_mask", "patch_decode"][: 1 + (logits or margin)]
    reference, fused = results
    assert (
        set(reference) == set(fused) == {"mask"} | ({"logits"} if logits else set()) | ({"margin"} if margin else set())
    )
    assert all(np.array_equal(reference[name], fused[name]) for name in reference)
    assert len(np.unique(fused["mask"])) > 2


def test_a_cpu_and_other_heads_keep_the_reference(kernels: list[str], recwarn: pytest.WarningsRecorder) -> None:
    with TorchRunner(cached_small_model()) as runner:
        runner.infer(IMAGES)
    with OnGpu(small_model(head="bilinear", output_stride=32)) as runner:
        assert runner.infer(IMAGES)["mask"].shape == (2, 64, 96)
    assert kernels == []
    assert not recwarn.list


@pytest.mark.parametrize("failure", [MissingDependencyError("needs nvcc"), PluginError("needs repair")])
def test_without_kernels_it_warns_and_goes_on(
    failure: NrdTrtError, kernels: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise failure

    monkeypatch.setattr(torch_runner, "load_extension", fail)
    with TorchRunner(trained_model()) as reference:
        wanted = reference.infer(IMAGES)
    runner = OnGpu(trained_model())
    with pytest.warns(UserWarning, match=f"slower PyTorch reference, with the same masks: {failure}") as caught:
        runner.__enter__()
    assert len(caught) == 1
    assert "nrd_trt" in Path(caught[0].filename).parts  # what the command line shows
    got = runner.infer(IMAGES)
    runner.__exit__(None, None, None)
    assert kernels == []
    assert all(np.array_equal(got[name], wanted[name]) for name in wanted)


def test_constants_that_no_kernel_knows_warn(kernels: list[str]) -> None:
    runner = OnGpu(small_model(hidden=12))
    with pytest.warns(UserWarning, match="hidden: expected one of 8, 16, 32, got 12"):
        runner.__enter__()
    assert runner.infer(IMAGES)["mask"].shape == (2, 64, 96)
    assert kernels == []
