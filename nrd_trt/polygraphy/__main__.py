"""Print the folder of the two scripts, for ``--data-loader-script`` and ``--compare-func-script``."""

from __future__ import annotations

from pathlib import Path

if __name__ == "__main__":
    print(Path(__file__).resolve().parent)
