"""Training on a real GPU: 16-bit products, channels-last memory, resumption."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from nrd_trt.model import load_model
from nrd_trt.specs import Arithmetic
from nrd_trt.training import loop
from nrd_trt.training.train import train
from tests.training.conftest import data, logged, tiny  # noqa: F401

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU and a CUDA build of PyTorch"),
]


@pytest.mark.parametrize("arithmetic", ["fp32", "bf16", "fp16", "auto"])
def test_loss_falls(arithmetic: Arithmetic, data: Path, tmp_path: Path) -> None:  # noqa: F811
    recipe = tiny(steps=60, evaluations=3, synthetic_share=0.0)
    train(recipe, data, tmp_path, device="cuda", arithmetic=arithmetic, workers=2, progress=False)
    losses = [float(row["loss"]) for row in logged(tmp_path)]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
    model = load_model(tmp_path / "last.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values() if tensor.is_floating_point())


def test_resumed_run_reaches_the_same_loss(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    recipe, how = tiny(steps=6, evaluations=3), {"device": "cuda", "arithmetic": "fp32", "progress": False}
    train(recipe, data, tmp_path / "whole", **how)
    advance = loop._Run.advance

    def interrupted(run: loop._Run, *arguments: object) -> float:
        if run.step == 4:
            raise KeyboardInterrupt
        return advance(run, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop._Run, "advance", interrupted)
        train(recipe, data, tmp_path / "broken", **how)
    train(recipe, data, tmp_path / "broken", **how, resume=True)
    whole, broken = (float(logged(tmp_path / name)[-1]["loss"]) for name in ("whole", "broken"))
    assert broken == pytest.approx(whole, rel=1e-3)  # kernels on a GPU add in an order of their own
