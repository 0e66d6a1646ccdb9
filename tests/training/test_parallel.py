"""A batch in parts: one after the other, or on two processes that torchrun started, with the same result."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nrd_trt.errors import ConfigError
from nrd_trt.model.network import Segmentor
from nrd_trt.training.loop import _Statistics, micro_batch
from nrd_trt.training.objective import Objective
from nrd_trt.training.parallel import World, joined_world
from nrd_trt.training.samples import Samples
from nrd_trt.training.train import train
from tests.artefacts import REPOSITORY, environment
from tests.training.conftest import States, logged, tiny
from tests.warm.programs import python

BATCH_OF_FOUR = {"batch": 4, "steps": 2, "evaluations": 2, "ema": 0.5}


def test_micro_batches_are_equal_parts_of_at_least_two_crops() -> None:
    """Batch norm behind global pooling sees one value per channel else, and PyTorch stops in the middle of a step."""
    assert [micro_batch(tiny(batch=12), parts) for parts in (1, 2, 3, 6)] == [12, 6, 4, 2]
    with pytest.raises(ConfigError, match=r"batch of 12 to be a multiple of processes times accumulate=, got 5 parts"):
        micro_batch(tiny(batch=12), 5)
    for batch in (4, 1):
        message = rf"at least 2 crops per micro-batch.*got a batch of {batch} in {batch} parts; take fewer processes"
        with pytest.raises(ConfigError, match=message):
            micro_batch(tiny(batch=batch), batch)


@pytest.mark.parametrize("parts", [1, 3])
def test_statistics_are_the_mean_over_the_micro_batches(parts: int) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    batches = [torch.randn(2, 3, 4, 4) * (index + 1) + index for index in range(parts)]
    apart = []
    for batch in batches:
        own = copy.deepcopy(norm)
        own(batch)
        apart.append((own.running_mean, own.running_var))
    statistics = _Statistics(norm, parts)
    for index, batch in enumerate(batches):
        norm(batch)
        statistics.add(last=index == parts - 1)
    for got, each in zip((norm.running_mean, norm.running_var), zip(*apart, strict=True), strict=True):
        torch.testing.assert_close(got, torch.stack(each).mean(0))
        assert got.equal(each[0]) == (parts == 1)


def test_accumulated_gradients_are_those_of_the_mean_loss(data: Path, tmp_path: Path, states: States) -> None:
    """One step of SGD without momentum's history: the change of a weight is its gradient times the rate."""
    recipe = tiny(**{**BATCH_OF_FOUR, "steps": 1, "evaluations": 1, "warmup": 0}, optimizer="sgd", weight_decay=0.0)
    recipe = replace(recipe, clip_norm=None, weigh_classes=False, ema=0.0)
    train(recipe, data, tmp_path, progress=False, accumulate=2)
    torch.manual_seed(recipe.seed)
    objective = Objective(Segmentor(recipe.config, recipe.info), recipe, None).train()
    samples, losses = Samples(recipe, [data]), []
    for first in (0, 2):
        loss, own = objective(*map(torch.from_numpy, samples.batch(first, 2)))
        (loss / 2).backward()
        losses.append(own.item())
    name = "decode_head.classifier.classifier.1.bias"
    gradient = objective.segmentor.decode_head.classifier.classifier[1].bias.grad
    moved = states.network(1)[name] - states.network(0)[name]
    torch.testing.assert_close(moved, -recipe.lr * gradient, rtol=1e-4, atol=1e-9)
    assert float(logged(tmp_path)[-1]["loss"]) == pytest.approx(sum(losses) / 2, abs=1e-4)


RANK = """
import json, os, runpy, sys
from nrd_trt.training import loop, recipes
from tests.training.conftest import tiny

script, changes, *arguments = sys.argv[1:]
recipes.RECIPES["tiny"] = tiny(name="tiny", **json.loads(changes))
if os.environ["RANK"] == "1":
    def refuse(*_, **__):
        raise AssertionError("the second process must not write")
    loop.save_checkpoint = loop.write_state = loop.Log = loop.prepare_folder = refuse
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def on_two_processes(changes: dict[str, Any], *arguments: object) -> list[tuple[int, str, str]]:
    """Run the verb as torchrun does, with its variables; return exit code, stdout and stderr of each process."""
    command = [python(), "-c", RANK, REPOSITORY / "scripts" / "train.py", json.dumps(changes), *arguments]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = [
        subprocess.Popen(
            list(map(str, command)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**shared, RANK=str(rank), LOCAL_RANK=str(rank), CUDA_VISIBLE_DEVICES=""),
        )
        for rank in range(2)
    ]
    return [(process.returncode, *texts) for process, texts in [(p, p.communicate()) for p in started]]


def _values(state: Any, name: str = "") -> dict[str, Tensor]:
    """The floating-point tensors in nested mappings and lists."""
    if isinstance(state, Tensor):
        return {name: state} if state.is_floating_point() else {}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list | tuple) else ()
    return {key: tensor for index, value in items for key, tensor in _values(value, f"{name}.{index}").items()}


def test_two_processes_of_two_micro_batches_equal_four(data: Path, tmp_path: Path) -> None:
    """Weights, moving average, batch-norm statistics, the optimisers' momenta, the log, and who writes it."""
    changes = {**BATCH_OF_FOUR, "batch": 8, "optimizer": "sgd"}
    arguments = ("--recipe", "tiny", "--data", data, "-o", tmp_path / "two", "--threads", 1, "-q", "--json")
    both = on_two_processes(changes, *arguments, "--accumulate", 2)
    assert [code for code, _, _ in both] == [0, 0], both
    train(tiny(name="tiny", **changes), data, tmp_path / "one", progress=False, accumulate=4)
    one, two = (torch.load(tmp_path / folder / "state.pt") for folder in ("one", "two"))
    assert (two["step"], two["parts"]) == (2, 4)
    for kind in ("objective", "average", "optimizers"):
        expected, got = _values(one[kind]), _values(two[kind])
        assert expected.keys() == got.keys()
        for name, tensor in expected.items():
            # The sums are the same ones in another order: after one step all are within 2e-7 of the largest. The second
            # step's gradients see weights that differ by that; where a ReLU flips for it, up to 3e-4 was seen. A
            # forgotten sample or statistic changes more. A bias whose next layers end in a batch norm has no gradient
            # but the rounding of others, a few 1e-8 of momentum.
            atol = max(2e-3 * tensor.abs().max().item(), 1e-6)
            torch.testing.assert_close(got[name], tensor, rtol=2e-3, atol=atol, msg=name)
    columns = [[(row["loss"], row["miou"]) for row in logged(tmp_path / folder)] for folder in ("one", "two")]
    assert columns[0] == columns[1]
    printed = json.loads(both[0][1])
    assert printed["best_miou"] == two["best"] == one["best"]
    assert both[1][1] == "", "one process speaks for both"


def test_one_process_communicates_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined_world("cpu") as world:
        assert (world, world.is_first) == (World(), True)
        assert world.device == torch.device("cpu")
        tensor = torch.arange(3.0)
        assert world.sum(tensor).tolist() == world.mean(tensor).tolist() == [0, 1, 2]
        world.barrier()
        assert not torch.distributed.is_initialized()


def test_a_world_of_one_that_torchrun_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with joined_world("cpu") as world:
        assert (world.rank, world.size) == (0, 1)
        assert torch.distributed.is_initialized()
    assert not torch.distributed.is_initialized()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_asked_for_must_be_there() -> None:
    with pytest.raises(ConfigError, match="device='cuda': PyTorch sees no GPU; install"), joined_world("cuda"):
        pass
    with joined_world("auto") as world:
        assert world.device.type == "cpu" or os.environ.get("LOCAL_RANK")
