#!/usr/bin/env bash
# Ask the package index whether each supported Python can install this package's requirements together.
# Installs nothing. Left out: torch, whose local build exists for one Python, and tensorrt, a source package that
# fetches its wheels from NVIDIA; tensorrt-rtx-cu13 is one too and stands here by the two wheels that it requires.
# Usage: scripts/dev/check_resolution.sh [PYTHON_VERSION…]
set -euo pipefail
cd "$(dirname "$0")/../.."

python=.venv/bin/python
[ -x "$python" ] || python=python3
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

requirements() {
    "$python" - <<'PY'
import configparser

config = configparser.RawConfigParser()
config.read("setup.cfg")
lists = [config["options"]["install_requires"], *config["options.extras_require"].values()]
for line in sorted({line for text in lists for line in text.split("\n") if line}):
    if line.startswith("tensorrt-rtx-cu13"):
        for part in ("bindings", "libs"):
            print(line.replace("cu13", f"cu13-{part}", 1))
    elif not line.startswith(("torch", "tensorrt")):
        print(line)
PY
}

[ $# -gt 0 ] || set -- 3.10 3.11 3.12
requirements > "$scratch/requirements.txt"
for version in "$@"; do
    echo "Python $version:"
    "$python" -m pip install --quiet --dry-run --ignore-installed --only-binary=:all: --python-version "$version" \
        --target "$scratch/none" --report "$scratch/$version.json" --requirement "$scratch/requirements.txt"
    "$python" - "$scratch/$version.json" "$scratch/requirements.txt" <<'PY'
import json
import re
import sys

named = {re.split(r"[<>=]", line)[0].lower().replace("_", "-") for line in open(sys.argv[2]).read().split()}
found = [item["metadata"] for item in json.load(open(sys.argv[1]))["install"]]
rows = sorted((item["name"].lower().replace("_", "-"), item["version"]) for item in found)
print("  " + ", ".join(f"{name} {version}" for name, version in rows if name in named))
if missing := named - {name for name, _ in rows}:
    sys.exit(f"  not resolved: {', '.join(sorted(missing))}")
PY
done
