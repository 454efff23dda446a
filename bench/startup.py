"""How soon it is there and what it takes when idle: version, help, ready with the demo, a large header, rest.

    python -m bench.startup [--quick]

Each command is a process of its own, as a person starts it; medians, because the first run also fills the caches of
the system. The engine must have been built already (`meshnode engine build`).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import psutil

from bench.figures import quantile
from bench.node import BenchNode
from bench.record import Figure, Run
from meshnode.models.gguf import read_header

HEADER_TOKENS = 150_000
HEADER_MERGES = 280_000
"""As many merges go with a vocabulary of that size in Qwen 2.5 and Llama 3."""
SETTLE_S = 3


@dataclass(frozen=True, slots=True)
class Effort:
    """How often, and for how long."""

    commands: int = 15
    starts: int = 7
    headers: int = 15
    idle_s: int = 30


QUICK = Effort(commands=3, starts=1, headers=3, idle_s=3)


def timed_ms(work: Callable[[], object], times: int) -> list[float]:
    """How long each of `times` calls took."""
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        found.append((time.perf_counter() - begun) * 1000)
    return found


def report(run: Run, name: str, values: list[float], unit: str, limit: float) -> None:
    """The median, with the range of all values as its bounds."""
    note = f"median of {len(values)}, bounds are the fastest and the slowest"
    run.add(Figure(name, statistics.median(values), unit, limit, low=min(values), high=max(values), note=note))


def commands(run: Run, effort: Effort) -> None:
    """`--version` and `--help` as processes of their own."""
    for flag, limit in (("--version", 300), ("--help", 500)):
        argv = [sys.executable, "-m", "meshnode", flag]
        values = timed_ms(partial(subprocess.run, argv, capture_output=True, check=True), effort.commands)
        report(run, f"meshnode {flag}", values, "ms", limit)


def write_large_header(path: Path) -> None:
    """A GGUF file with a vocabulary of the size that current models have, and next to no weights."""
    draw = np.random.default_rng(1)
    lengths = draw.integers(1, 14, HEADER_TOKENS)
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in {"block_count": 1, "embedding_length": 256, "context_length": 4096}.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_uint32("llama.attention.head_count", 4)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"{number:x}".rjust(int(length), "t") for number, length in enumerate(lengths)])
    writer.add_token_types([1] * HEADER_TOKENS)
    writer.add_token_merges([f"{number:x} {number:o}" for number in range(HEADER_MERGES)])
    writer.add_tensor("token_embd.weight", np.zeros((4, 256), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def header(run: Run, effort: Effort) -> None:
    """Reading the header of a model with 150,000 tokens."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.gguf"
        write_large_header(path)
        values = timed_ms(lambda: read_header(path), effort.headers)
        size = path.stat().st_size / 1e6
    report(run, f"header with {HEADER_TOKENS:,} tokens and {HEADER_MERGES:,} merges ({size:.0f} MB)", values, "ms", 100)


def starts(run: Run, effort: Effort) -> None:
    """From the command to the line that says it is ready."""
    values = []
    for _ in range(effort.starts):
        with BenchNode("demo") as node:
            values.append(node.ready_s)
    report(run, "ready with the demo", values, "s", 3)


def idle(run: Run, effort: Effort) -> None:
    """Memory and processor time of a node that nobody asks."""
    with BenchNode("demo") as node:
        processes = {"node": node.process, "its llama-server": node.engine()}
        time.sleep(SETTLE_S)
        before = {name: _used_s(process) for name, process in processes.items()}
        begun = time.monotonic()
        time.sleep(effort.idle_s)
        elapsed = time.monotonic() - begun
        for name, process in processes.items():
            ours = name == "node"
            resident = process.memory_info().rss / 1e6
            run.add(Figure(f"idle {name}, resident memory", resident, "MB", 120 if ours else None))
            share = 100 * (_used_s(process) - before[name]) / elapsed
            note = f"of one core, over {effort.idle_s} s"
            run.add(Figure(f"idle {name}, processor", share, "%", 1 if ours else None, note=note))


def _used_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def baseline(run: Run, effort: Effort) -> None:
    """What an empty Python costs on this machine, for comparison."""
    values = timed_ms(lambda: subprocess.run([sys.executable, "-c", ""], check=True), effort.commands)
    run.add(Figure("python -c '' (for comparison)", quantile(values, 0.5), "ms"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few repetitions; nothing is saved")
    parser.add_argument("--out", type=Path, help="folder for the result (bench/results)")
    options = parser.parse_args()
    run, effort = Run("startup", quick=options.quick), QUICK if options.quick else Effort()
    for part in (baseline, commands, header, starts, idle):
        part(run, effort)
    run.finish(options.out)


if __name__ == "__main__":
    main()
