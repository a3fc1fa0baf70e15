"""What the server does under load: 64 clients at once against real server processes on the loopback address.

Two servers run the built-in model, one that answers requests together and one that answers them one by one
(`--batch 1`). They get their load in turns, so that whatever else the machine does meets both. Every request brings
an image of its own as a file and one expression. The clients run on the same processors as the servers.

Reported are statuses, seconds to the answer (p50, p95), requests a second, and the servers' resident memory: after a
warm-up with one to all clients, and after every round of requests.

    python benchmarks/serving.py [--requests 2000] [--clients 64] [--threads N] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from rich.console import Console
from rich.table import Table

from promptris.data.refshapes import WorldOptions, make_example

SCENES = 48
PATIENCE = "120"
"""The servers' deadline in seconds: what is measured is how long answers take, not when they are given up."""


@dataclass
class Load:
    """What a server has answered so far.

    Attributes:
        address: of the server.
        seconds: to each answer of status 200.
        statuses: how often each came; 0 where there was no response.
        lasted: seconds of every round.
        answered: answers of every round.
        memory: resident bytes after every round.
    """

    address: str
    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    lasted: list[float] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Numbers for a table."""
        cuts = statistics.quantiles(self.seconds, n=20)
        rates = [count / lasted for count, lasted in zip(self.answered, self.lasted, strict=True)]
        return {
            "requests": sum(self.statuses.values()),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "p50_s": round(statistics.median(self.seconds), 3),
            "p95_s": round(cuts[18], 3),
            "requests_per_second": round(sum(self.answered) / sum(self.lasted), 2),
            "requests_per_second_by_round": [round(rate, 2) for rate in rates],
        }


def requests() -> list[tuple[bytes, str]]:
    """Scenes as PNG files, each with an expression."""
    made = []
    for index in range(SCENES):
        example, buffer = make_example(4321, index, WorldOptions(size=128)), io.BytesIO()
        Image.fromarray(example.image).save(buffer, "PNG")
        made.append((buffer.getvalue(), example.descriptions[0].text))
    return made


@contextmanager
def server(*options: str) -> Iterator[str]:
    """A server process; gives its address."""
    command = [sys.executable, "-m", "promptris", "serve", "--port", "0", "--no-web", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if match := re.search(r"serving on (http://\S+?),", line):
                yield match[1]
                return
        raise SystemExit(f"the server did not start: {' '.join(command)}")
    finally:
        process.terminate()
        process.wait(60)


async def one_round(
    load: Load, clients: int, count: int, asked: Sequence[tuple[bytes, str]], longest: float
) -> None:
    """`count` requests by so many clients, each of which asks again as soon as it is answered.

    After `longest` seconds nothing further is asked.
    """
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    answered, left = 0, iter(range(count))
    async with httpx.AsyncClient(base_url=load.address, limits=limits, timeout=150) as http:
        start = time.perf_counter()

        async def client() -> None:
            nonlocal answered
            for number in left:
                if time.perf_counter() - start > longest:
                    return
                png, text = asked[number % len(asked)]
                began = time.perf_counter()
                try:
                    response = await http.post(
                        "/v1/segment", files={"image": ("scene.png", png)}, data={"expressions": [text]}
                    )
                except httpx.HTTPError:
                    load.statuses[0] += 1
                    continue
                load.statuses[response.status_code] += 1
                if response.status_code == 200:
                    load.seconds.append(time.perf_counter() - began)
                    answered += 1

        await asyncio.gather(*(client() for _ in range(clients)))
        load.lasted.append(time.perf_counter() - start)
        load.answered.append(answered)
        load.memory.append(await resident_bytes(http))


async def resident_bytes(http: httpx.AsyncClient) -> int:
    """The server's own count of its memory."""
    match = re.search(
        r"^process_resident_memory_bytes (\S+)", (await http.get("/metrics")).text, re.MULTILINE
    )
    return 0 if match is None else int(float(match[1]))


def measure(
    clients: int, count: int, rounds: int, threads: int, longest: float, console: Console
) -> dict[str, Any]:
    """Both servers in turns; the one that answers one by one gets half the requests."""
    asked, options = requests(), ("--threads", str(threads), "--deadline", PATIENCE)
    with ExitStack() as stack:
        together = Load(stack.enter_context(server(*options)))
        one_by_one = Load(stack.enter_context(server(*options, "--batch", "1")))
        for load in (together, one_by_one):
            warm = Load(load.address)
            # Batches of every size: what is kept for each is no growth.
            for some in (1, 4, 8, 16, clients):
                asyncio.run(one_round(warm, min(some, clients), max(SCENES, some), asked, longest))
            load.memory.append(warm.memory[-1])
        for _ in range(rounds):
            asyncio.run(one_round(together, clients, count // rounds, asked, longest))
            asyncio.run(one_round(one_by_one, clients, count // rounds // 2, asked, longest))
    results = {"together": together.summary(), "one_by_one": one_by_one.summary()}
    pairs = zip(*(case["requests_per_second_by_round"] for case in results.values()), strict=True)
    results["ratio"] = {
        "median": round(statistics.median(ratios := [a / b for a, b in pairs]), 2),
        "lowest": round(min(ratios), 2),
        "highest": round(max(ratios), 2),
    }
    for name, load in (("together", together), ("one_by_one", one_by_one)):
        megabytes = [round(value / 2**20, 1) for value in load.memory]
        results[name]["memory_mb"] = {
            "after_warm_up": megabytes[0],
            "after_every_round": megabytes[1:],
            "growth": round(megabytes[-1] - megabytes[0], 1),
        }
    table = Table(title=f"{clients} clients at once")
    for column in ("requests are answered", "requests", "statuses", "p50 s", "p95 s", "a second"):
        table.add_column(column, justify="right")
    for name in ("together", "one_by_one"):
        case = results[name]
        numbers = (
            case["requests"],
            case["statuses"],
            case["p50_s"],
            case["p95_s"],
            case["requests_per_second"],
        )
        table.add_row(name.replace("_", " "), *map(str, numbers))
    console.print(table)
    console.print(f"ratio {results['ratio']}; memory {results['together']['memory_mb']}")
    return results


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and print; returns what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=2000, help="to the server that answers together")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each server's model")
    parser.add_argument(
        "--longest",
        type=float,
        default=15.0,
        metavar="SECONDS",
        help="after which a round asks nothing further",
    )
    parser.add_argument("--note", default="", help="about the machine, for the JSON file")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    results = measure(
        arguments.clients,
        arguments.requests,
        arguments.rounds,
        arguments.threads,
        arguments.longest,
        Console(width=120),
    )
    report = {
        "clients": arguments.clients,
        "threads": arguments.threads,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "note": arguments.note,
        **results,
    }
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return report


if __name__ == "__main__":
    main()
