"""Send images to a model of a Triton server by gRPC, as many at a time as there are clients, and hold every answer.

    build/triton/bin/python scripts/dev/triton_load.py 127.0.0.1:8001 MODEL PAIRS.npz --clients 4 --seconds 60

PAIRS.npz holds `images (N, H, W, 3) uint8` and the `masks (N, H, W) uint8` that they must give. Prints one JSON object:
requests that were sent and answered, answers that differ, requests that got none, tries that failed, percentiles of the
latency, and the longest time without an answer. A request that fails because the server is away is tried again for
`--patience` seconds. Runs in the environment of the server's clients and imports nothing of the toolkit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

_PAUSE_S = 0.05


@dataclass
class Count:
    """What came of the requests."""

    sent: int = 0
    wrong: int = 0
    lost: int = 0
    failed_tries: int = 0
    latencies_s: list[float] = field(default_factory=list)
    answered_at: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, float]:
        """Return the JSON object."""
        ms = np.array(self.latencies_s or [0.0]) * 1000
        times = np.array(self.answered_at)
        spent = float(np.ptp(times)) if len(times) > 1 else 0.0
        return {
            "sent": self.sent,
            "answered": len(self.latencies_s),
            "wrong": self.wrong,
            "lost": self.lost,
            "failed_tries": self.failed_tries,
            **{f"p{share}_ms": float(np.percentile(ms, share)) for share in (50, 90, 99)},
            "mean_ms": float(ms.mean()),
            "per_s": (len(times) - 1) / spent if spent else 0.0,
            "longest_gap_s": float(np.diff(np.sort(times)).max()) if len(times) > 1 else 0.0,
        }


async def _client(
    address: str,
    model: str,
    pairs: list[tuple[np.ndarray, np.ndarray]],
    turns: Iterator[int],
    count: Count,
    patience: float,
) -> None:
    """Send one request after the other, on a connection of its own, until there are no more turns."""
    async with triton.InferenceServerClient(address) as client:
        for turn in turns:
            image, mask = pairs[turn % len(pairs)]
            request = triton.InferInput("image", image.shape, "UINT8")
            request.set_data_from_numpy(image)
            count.sent += 1
            start = time.monotonic()
            while True:
                try:
                    answer = await client.infer(model, [request], client_timeout=30)
                except InferenceServerException:
                    count.failed_tries += 1
                    if time.monotonic() - start > patience:
                        count.lost += 1
                        break
                    await asyncio.sleep(_PAUSE_S)
                    continue
                count.latencies_s.append(time.monotonic() - start)
                count.answered_at.append(time.monotonic())
                count.wrong += not np.array_equal(answer.as_numpy("mask"), mask)
                break


def _turns(requests: int | None, seconds: float) -> Iterator[int]:
    """Count until the number or the time is used up; all clients take from one count."""
    end, turn = time.monotonic() + seconds, 0
    while time.monotonic() < end and (requests is None or turn < requests):
        yield turn
        turn += 1


async def _run(args: argparse.Namespace) -> Count:
    with np.load(args.pairs) as data:
        pairs = [(image[None], mask[None]) for image, mask in zip(data["images"], data["masks"], strict=True)]
    count, turns = Count(), _turns(args.requests, args.seconds)
    await asyncio.gather(
        *(_client(args.address, args.model, pairs, turns, count, args.patience) for _ in range(args.clients))
    )
    return count


def main() -> None:
    """Read the command line, send, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("model")
    parser.add_argument("pairs")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--requests", type=int)
    parser.add_argument("--patience", type=float, default=0.0)
    print(json.dumps(asyncio.run(_run(parser.parse_args())).to_dict()))


if __name__ == "__main__":
    main()
