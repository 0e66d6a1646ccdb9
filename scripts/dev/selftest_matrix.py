"""Fill the matrix of docs/selftest.md from the reports in docs/selftests/, and from nothing else.

Copy a ``selftest.json`` there under a name that says what it ran on (``orin-10.3.json``) and run this. What a report
says of a TensorRT flavour is one row, and that there was none is one too; whether it passed is judged by
`nrd_trt.proving.record` from the report's parts.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import msgspec

from nrd_trt.proving.record import Result, SelfTest, Verdict

ROOT = Path(__file__).resolve().parents[2]
PAGE, REPORTS = ROOT / "docs/selftest.md", ROOT / "docs/selftests"
STATUS = "beta, not yet run on a GPU"
"""What README.md says as long as no row has passed."""

_HEAD = "| GPU | TensorRT | nrd_trt | result | plan parts | day | report |\n|---|---|---|---|---|---|---|"
_NONE = "No report was made yet."
_TABLE = re.compile(r"(?<=<!-- matrix -->\n).*?(?=<!-- end of matrix -->)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class MatrixRow:
    """What one report says of one TensorRT flavour."""

    gpu: str
    tensorrt: str
    version: str
    verdict: Verdict
    parts: str
    date: str
    report: str

    def text(self) -> str:
        """Return it as a row of a Markdown table."""
        link = f"[{self.report}](selftests/{self.report})"
        cells = (self.gpu, self.tensorrt, self.version, self.verdict, self.parts, self.date, link)
        return f"| {' | '.join(cells)} |"


def matrix_rows(folder: Path) -> Iterator[MatrixRow]:
    """Yield the rows of all reports in a folder, which may be missing."""
    for path in sorted(folder.glob("*.json")):
        test = msgspec.json.decode(path.read_bytes(), type=SelfTest)
        for flavour in (*test.flavours,) or (None,):
            results = [part.result for part in test.parts if part.flavour == flavour]
            yield MatrixRow(
                gpu=test.gpu or "none",
                tensorrt="none" if flavour is None else f"{flavour} {test.version(flavour) or ''}".strip(),
                version=test.nrd_trt,
                verdict="not run" if flavour is None else test.verdict(flavour),
                parts=_counted(results) if flavour else "none",
                date=test.date,
                report=path.name,
            )


def _counted(results: list[Result]) -> str:
    return ", ".join(f"{results.count(name)} {name}" for name in get_args(Result) if name in results)


def filled(page: str, folder: Path) -> str:
    """Return the page with the matrix of the reports in a folder."""
    rows = [row.text() for row in matrix_rows(folder)]
    return _TABLE.sub(lambda _: "\n".join([_HEAD, *rows] if rows else [_NONE]) + "\n", page)


def main() -> int:
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), REPORTS), encoding="utf-8")
    passed = sum(row.verdict == "passed" for row in matrix_rows(REPORTS))
    print(f"{PAGE.relative_to(ROOT)}: {passed} rows passed; README.md says {STATUS!r} as long as there is none.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
