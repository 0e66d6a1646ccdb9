"""Runs in the environment of the server: what a README tells clients to do, and Triton's own reading of configurations.

clients.py README.md GRPC_PORT HTTP_PORT MASKS.npz CONFIG.pbtxt...
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2


def main() -> None:
    readme, grpc_port, http_port, target, *configs = sys.argv[1:]
    text = Path(readme).read_text().replace("localhost:8001", f"127.0.0.1:{grpc_port}")
    text = text.replace("localhost:8000", f"127.0.0.1:{http_port}")
    masks = []
    for code in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        names: dict[str, Any] = {}
        exec(code, names)
        masks.append(names["mask"])
    np.savez(target, *masks)
    parsed = (text_format.Parse(Path(path).read_text(), model_config_pb2.ModelConfig()) for path in configs)
    print(json.dumps([json_format.MessageToDict(config, preserving_proto_field_name=True) for config in parsed]))


if __name__ == "__main__":
    main()
