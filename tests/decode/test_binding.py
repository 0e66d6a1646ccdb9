"""The PyTorch binding of the kernels, compiled for CPU tensors: its checks and its reading of strides need no GPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nrd_trt.decode import cuda_op
from nrd_trt.specs import DecodeSpec
from tests.decode import on_cpu
from tests.decode.on_cpu import KERNELS, launch_logits, launch_mask, logits_in_fp32, numbers
from tests.decode.test_cuda_op import inputs

SPEC = DecodeSpec(num_classes=19)

pytestmark = [on_cpu.needs_compiler, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def binding() -> None:
    on_cpu.load_binding()


def assert_close(logits: Tensor, wanted: Tensor) -> None:
    rounding = {torch.float32: 0.0, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}[logits.dtype]
    assert (logits.float() - wanted).abs().max() <= (1e-5 + rounding) * wanted.abs().max()


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {  # what lies between the values is NaN
    **on_cpu.LAYOUTS,
    "pitch_odd": lambda t: _padded(t, before=0, after=5).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)[:, :-5],
    "planes": lambda t: _padded(t, before=2, after=1)[:, 2:-1],
    "rows": lambda t: torch.cat([t, torch.nan * t[..., :1]], dim=3)[..., :-1],
    "rows_of_channels_last": lambda t: LAYOUTS["rows"](on_cpu.LAYOUTS["channels_last"](t)),
    "turned": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "every_other": lambda t: t.repeat_interleave(2, dim=3)[..., ::2],
    "reversed_batch": lambda t: t.flip(0).contiguous().flip(0),
}


def _padded(tensor: Tensor, *, before: int, after: int) -> Tensor:
    """Add planes of NaN."""
    return torch.cat([torch.nan * tensor[:, :before], tensor, torch.nan * tensor[:, :after]], dim=1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        ((2, 3, 2), torch.float32), ((1, 1, 1), torch.float16), ((3, 1, 4), torch.bfloat16),
        ((2, 4, 1), torch.float16), ((2, 1, 1), torch.bfloat16),
    ],
    ids=str,
)  # fmt: skip
def test_every_layout_is_read(layout: str, size: tuple[int, int, int], dtype: torch.dtype) -> None:
    theta, guidance, *tables = inputs(SPEC, size=size, dtype=dtype)
    change = LAYOUTS[layout]
    plain = launch_logits(SPEC, theta, guidance, tables)
    assert_close(plain, logits_in_fp32(SPEC, theta, guidance, tables))
    changed = change(theta), change(guidance)
    assert torch.equal(launch_logits(SPEC, *changed, tables), plain)
    assert torch.equal(launch_logits(SPEC, changed[0], guidance, tables), plain)
    assert torch.equal(launch_mask(SPEC, *changed, tables), launch_mask(SPEC, theta, guidance, tables))


def test_one_image_seen_as_many_and_none() -> None:
    theta, guidance, *tables = inputs(SPEC, size=(1, 2, 2))
    many = launch_logits(SPEC, theta.expand(3, -1, -1, -1), guidance.expand(3, -1, -1, -1), tables)
    assert all(torch.equal(one, launch_logits(SPEC, theta, guidance, tables)[0]) for one in many)
    assert launch_logits(SPEC, theta[:0], guidance[:0], tables).shape == (0, 19, 16, 16)
    assert launch_mask(SPEC, theta[..., :0], guidance[..., :0], tables).shape == (1, 64, 0)


def test_python_calls_the_binding_with_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_op, "load_extension", lambda: None)
    for f, s in [(4, 8), (8, 4), (16, 2)]:
        spec = DecodeSpec(num_classes=5, hidden=8, guidance_channels=32, patch=f, upsample=s)
        theta, guidance, *tables = inputs(spec, (2, 1, 2))
        arguments = (theta, guidance, *tables, *numbers(spec))
        logits = cuda_op._logits_on_cuda(*arguments, 0)
        assert_close(logits, logits_in_fp32(spec, theta, guidance, tables))
        mask = cuda_op._mask_on_cuda(*arguments, s, 0, True)
        assert (mask == cuda_op.patch_decode_mask(theta, guidance, *tables, spec)).float().mean() > 0.999
        assert torch.equal(mask, cuda_op._mask_on_cuda(*arguments, s, 1, False))


BAD: list[tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]] = [
    ("theta: expected .*899.*got .*898", lambda a: {"theta": a["theta"][:, 1:]}),
    (r"theta: expected \(B, P, h, w\)", lambda a: {"theta": a["theta"][0]}),
    ("guidance: expected .*24, 16.*got .*23, 16", lambda a: {"guidance": a["guidance"][:, :, 1:]}),
    ("guidance: expected theta's type Float, got Half", lambda a: {"guidance": a["guidance"].half()}),
    (
        "expected float32, float16 or bfloat16, got Double",
        lambda a: {name: a[name].double() for name in ("theta", "guidance", "logits")},
    ),
    ("logits: expected theta's type Float, got Half", lambda a: {"logits": a["logits"].half()}),
    ("logits: expected a contiguous tensor of", lambda a: {"logits": a["logits"][1:]}),
    ("logits: expected a contiguous tensor of", lambda a: {"logits": LAYOUTS["turned"](a["logits"])}),
    ("x_table and y_table: expected 8 values each, got 7 and 8", lambda a: {"x_table": a["x_table"][1:]}),
    ("num_classes: expected 2 to 256", lambda a: {"k": 257}),
    ("hidden: expected 8, 16 or 32", lambda a: {"d": 12}),
    ("guidance_channels: expected 8, 16 or 32", lambda a: {"m": 24}),
    ("patch: expected 4, 8 or 16", lambda a: {"f": 2}),
    ("variant: expected 0 to 3, got 4", lambda a: {"variant": 4}),
    ("variant 3 of patch_decode does not exist for these constants, Float", lambda a: {"variant": 3}),
]


@pytest.mark.parametrize(("message", "change"), BAD)
def test_bad_arguments_are_named(message: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    theta, guidance, *tables = inputs(SPEC)
    names = ("theta", "guidance", "logits", "x_table", "y_table", "k", "d", "m", "f", "variant")
    values = (theta, guidance, torch.full((2, 19, 24, 16), 7.0), *tables, *numbers(SPEC), 0)
    arguments = dict(zip(names, values, strict=True))
    arguments |= change(arguments)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.nrd.launch_decode(*arguments.values())
    assert (arguments["logits"] == 7).all()


def test_bad_masks_are_named() -> None:
    theta, guidance, *tables = inputs(SPEC)
    launch = torch.ops.nrd.launch_decode_mask
    for mask, message in [
        (torch.zeros(2, 96, 64, dtype=torch.int64), "mask: expected uint8, int32 or float16, got Long"),
        (torch.zeros(2, 64, 96, dtype=torch.uint8), "mask: expected a contiguous tensor of"),
        (theta.view(-1)[: 2 * 96 * 64 // 4].view(torch.uint8).view(2, 96, 64), "overlap|memory location"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            launch(theta, guidance, mask, *tables, 19, 16, 16, 8, 4, 0, True)
    with pytest.raises(RuntimeError, match="upsample: expected 1, 2, 4 or 8"):
        launch(theta, guidance, torch.zeros(2, 72, 48, dtype=torch.uint8), *tables, 19, 16, 16, 8, 3, 0, True)


def test_what_the_bench_asks() -> None:
    theta, *_ = inputs(SPEC, dtype=torch.float16)
    supported = [torch.ops.nrd.supports_variant(theta, 19, 16, 16, 8, 4, v, True) for v in range(4)]
    assert supported == [True] * 4
    assert not torch.ops.nrd.supports_variant(theta.float(), 19, 16, 16, 8, 4, 3, True)  # tensor cores take 16 bits
    assert [torch.ops.nrd.supports_variant(theta, 19, 8, 16, 8, 4, v, True) for v in range(3)] == [True, True, False]


def test_compiles_against_the_headers_of_cuda(tmp_path: Path) -> None:
    toolkit = Path("/usr/local/cuda/include")
    if not (toolkit / "cuda_runtime_api.h").is_file():
        pytest.skip("no headers of CUDA in /usr/local/cuda/include")
    macros = tmp_path / "c10/cuda/impl/cuda_cmake_macros.h"  # a CPU build of PyTorch lacks this one
    macros.parent.mkdir(parents=True)
    macros.write_text("#define C10_CUDA_BUILD_SHARED_LIBS\n")
    broken = tmp_path / "broken.cpp"
    broken.write_text((KERNELS / "torch/binding.cpp").read_text() + "\ncudaError_t unknown = nrd::noSuchLauncher();\n")
    folders = [f"-I{folder}" for folder in (tmp_path, KERNELS / "torch", KERNELS)]
    result = on_cpu.run_compiler(
        ["-fsyntax-only", *folders, *on_cpu.torch_headers(), "-isystem", str(toolkit), str(broken)]
    )
    (error,) = [line for line in result.stderr.splitlines() if "error:" in line]
    assert "noSuchLauncher" in error, "the planted mistake is the only one, so the compiler looks at the declarations"


def test_variants_have_the_numbers_of_the_header() -> None:
    text = (KERNELS / "decode_problem.h").read_text().split("enum class Variant")[1].split("};")[0]
    found = re.findall(r"k(\w+) = (\d+)", text)
    assert [(name.lower(), int(value)) for name, value in found] == [(n, v) for v, n in enumerate(cuda_op.VARIANTS)]
