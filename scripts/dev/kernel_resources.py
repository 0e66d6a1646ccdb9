"""Print what the compiler gives each decode kernel: registers, spills, shared memory, blocks per multiprocessor, SASS.

Needs nvcc and no GPU. Instruction counts also need the toolkit's cuobjdump and nvdisasm. Exits 1 when a kernel with
fixed sizes spills registers, 2 where a tool is missing.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "plugins" / "nrd_decode" / "decode_kernel.cu"
ARCHITECTURES = (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)
THREADS = 128
REGISTERS_PER_SM = 65536
OPCODES = ("FFMA", "FMUL", "HMMA", "LDS", "LDG", "STG")

# Limits of one multiprocessor: shared memory in KB, of which each block takes 1 KB for itself from sm_80 on; threads;
# blocks. From the technical specifications in the CUDA programming guide.
LIMITS = {
    75: (64, 1024, 16),
    80: (164, 2048, 32),
    86: (100, 1536, 16),
    87: (164, 1536, 16),
    89: (100, 1536, 24),
    90: (228, 2048, 32),
    100: (228, 2048, 32),
}

SHARED_BYTES = """
#include "launch_plan.h"
#include <cstdio>
int main()
{
    nrd::DecodeShape const shape{19, 16, 16, 8, 4, {}, {}};
    for (auto const variant : {nrd::Variant::kSIMT, nrd::Variant::kGENERIC})
    {
        std::printf("%d\\n", static_cast<int>(nrd::sharedBytes(shape, variant)));
    }
}
"""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One kernel on one architecture.

    Attributes:
        name: ``mask`` or ``logits``; ``released`` where the sizes are fixed at compile time, else ``any``; ``simt`` or
            ``tensor_core``; and the type of the inputs.
        registers: Number of registers per thread.
        spill_bytes: Bytes stored per thread.
    """

    name: str
    registers: int
    spill_bytes: int

    @property
    def sizes(self) -> str:
        """``released`` or ``any``."""
        return self.name.split()[1]


def known_architectures() -> list[int]:
    """Return those of `ARCHITECTURES` that this nvcc compiles for."""
    listed = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    return [number for number in ARCHITECTURES if f"sm_{number}" in listed]


def compile_kernels(architecture: int, output: Path) -> list[Kernel]:
    """Compile the kernels for one architecture into the cubin `output`.

    Raises:
        RuntimeError: The compiler failed or warned; the message is its output.
    """
    flags = f"-std=c++17 -O3 -fmad=false -arch=sm_{architecture} -Xptxas -v -Werror all-warnings"
    command = ["nvcc", *flags.split()]
    result = subprocess.run([*command, "-cubin", str(SOURCE), "-o", str(output)], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(result.stdout + result.stderr)
    return parse_resources(result.stderr + result.stdout)


def parse_resources(text: str) -> list[Kernel]:
    """Read the report of ``-Xptxas -v``."""
    pattern = r"Compiling entry function '(\S+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers"
    found = [
        Kernel(name=name_of(symbol), registers=int(registers), spill_bytes=int(spill))
        for symbol, spill, registers in re.findall(pattern, text, re.DOTALL)
    ]
    return sorted(found, key=lambda kernel: kernel.name)


def name_of(symbol: str) -> str:
    """Read the op, sizes, arithmetic and type off a kernel's name, such as ``nrd_mask_tensor_core_fp16``."""
    found = re.fullmatch(r"nrd_(logits|mask)_(generic|simt|tensor_core)_(fp32|fp16|bf16)", symbol)
    if found is None:
        raise RuntimeError(f"kernel {symbol}: expected a name as decode_kernel.cu gives it")
    op, kind, dtype = found.groups()
    return f"{op} any simt {dtype}" if kind == "generic" else f"{op} released {kind} {dtype}"


def count_instructions(compiled: Path) -> dict[str, Counter[str]]:
    """Count the machine instructions of each kernel in a cubin, by the name of the kernel."""
    text = subprocess.run(["cuobjdump", "-sass", str(compiled)], capture_output=True, text=True, check=True).stdout
    counts = {}
    for section in text.split("Function : ")[1:]:
        name = name_of(section.split()[0])
        opcodes = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d\s+)?([A-Z0-9_]+)", section, re.MULTILINE)
        used = [opcode for opcode in opcodes if opcode != "NOP"]
        counts[name] = Counter(used) + Counter(total=len(used))
    return counts


def blocks_per_multiprocessor(architecture: int, registers: int, shared_bytes: int) -> int | None:
    """Return how many blocks run at a time, or None where the limits are not known here."""
    if architecture not in LIMITS:
        return None
    shared_kb, threads, blocks = LIMITS[architecture]
    warps = THREADS // 32
    by_registers = REGISTERS_PER_SM // (-(-registers * 32 // 256) * 256 * warps)
    by_memory = shared_kb * 1024 // (shared_bytes + (1024 if architecture >= 80 else 0))
    return min(blocks, threads // THREADS, by_registers, by_memory)


def shared_bytes(folder: Path) -> dict[str, int]:
    """Return the dynamic shared memory of a launch, by `Kernel.sizes`: that of the launchers' own function."""
    program = folder / "shared_bytes"
    sources = ["-", str(SOURCE.parent / "emulation.cpp")]
    command = ["g++", "-std=c++17", "-Wno-unknown-pragmas", "-I", str(SOURCE.parent), "-x", "c++", *sources]
    subprocess.run([*command, "-o", str(program)], input=SHARED_BYTES, text=True, check=True)
    released, generic = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout.split()
    return {"released": int(released), "any": int(generic)}


def report(architecture: int, folder: Path) -> tuple[str, bool]:
    """Return a Markdown table of all kernels, and whether those with fixed sizes are free of spills."""
    compiled = folder / f"decode_{architecture}.cubin"
    kernels = compile_kernels(architecture, compiled)
    shared = shared_bytes(folder)
    counts = count_instructions(compiled) if shutil.which("cuobjdump") else {}
    head = ["kernel", "registers", "spilled bytes", "shared KB", "blocks per SM"]
    head += ["instructions", *OPCODES] if counts else []
    rows = [head, ["---"] * len(head)]
    for kernel in kernels:
        blocks = blocks_per_multiprocessor(architecture, kernel.registers, shared[kernel.sizes])
        row = [kernel.name, kernel.registers, kernel.spill_bytes, f"{shared[kernel.sizes] / 1024:.1f}", blocks or "-"]
        if counts:
            row += [counts[kernel.name][opcode] for opcode in ("total", *OPCODES)]
        rows.append([str(cell) for cell in row])
    clean = not any(kernel.spill_bytes for kernel in kernels if kernel.sizes == "released")
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"sm_{architecture}\n\n{lines}\n", clean


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="*", metavar="N", help="such as 87 90; default: all that nvcc knows")
    options = parser.parse_args(arguments)
    missing = [tool for tool in ("nvcc", "g++") if shutil.which(tool) is None]
    if missing:
        print(f"kernel_resources: no {' and no '.join(missing)} here; install the CUDA toolkit.", file=sys.stderr)
        return 2
    clean = True
    with tempfile.TemporaryDirectory() as folder:
        for architecture in options.arch or known_architectures():
            table, without_spills = report(architecture, Path(folder))
            print(table, flush=True)
            clean &= without_spills
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
