"""A model from peers, beside what the transport carries: several sources, verified, written to the disk.

    python -m bench.weights                 4 GB from two sources, about 5 minutes and 9 GB of disk
    python -m bench.weights --quick         96 MB: does it work at all
    python -m bench.weights --folder DIR    where the model and the copies go (the system's temporary folder)

Three processes on loopback, as three nodes (bench/weights_ends.py). The ceiling is what the same processes carry from
memory to nowhere over the same connections: bytes that nobody reads from a disk, hashes, or writes. Both take turns, in
one order and then in the other. bench/README.md describes the method.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.figures import interval, ratio
from bench.machine import commit
from bench.make_model import write_model
from bench.record import Figure, Run
from bench.weights_ends import Process

GB = 1e9
MB = 1e6
MOST_TIMES = 1.3


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of everything; `QUICK` only shows that it works."""

    model_bytes: int = 4_000_000_000
    ceiling_bytes: int = 1 << 30
    layers: int = 32
    rounds: int = 3


QUICK = Effort(model_bytes=96_000_000, ceiling_bytes=96_000_000, layers=4, rounds=1)
SOURCES = 2


def measured(run: Run, effort: Effort, fetcher: Process, source: dict[str, Any]) -> None:
    """Fetch and ceiling by turns, with one source and with two."""
    for sources in (SOURCES, 1):
        fetcher.run("ceiling", size=effort.ceiling_bytes // 8, sources=sources)
        fetches: list[dict[str, Any]] = []
        ceilings: list[dict[str, Any]] = []
        for number in range(effort.rounds if sources == SOURCES else 1):
            for what in ("ceiling", "fetch") if number % 2 == 0 else ("fetch", "ceiling"):
                if what == "ceiling":
                    ceilings.append(fetcher.run("ceiling", size=effort.ceiling_bytes, sources=sources))
                else:
                    names = {"sha256": source["sha256"], "manifest": source["manifest"]}
                    fetches.append(fetcher.run("fetch", **names, sources=sources))
        report(run, sources, fetches, ceilings)
        run.raw[f"{sources} sources"] = {"fetch": fetches, "ceiling": ceilings}


def report(run: Run, sources: int, fetches: list[dict[str, Any]], ceilings: list[dict[str, Any]]) -> None:
    """The figures of one number of sources."""
    rates = [[entry["bytes"] / entry["wall_s"] / MB] for entry in fetches]
    most = [[entry["bytes"] / entry["wall_s"] / MB] for entry in ceilings]
    label = f"{fetches[0]['bytes'] / GB:.2g} GB from {sources} source{'s' * (sources > 1)}"
    rate, ceiling = (statistics.median(value for values in rounds for value in values) for rounds in (rates, most))
    run.add(Figure(f"{label}", rate, "MB/s", note=f"verified and on the disk; the ceiling is {ceiling:.0f} MB/s"))
    low, high = interval(ratio, most, rates)
    limit = MOST_TIMES if sources == SOURCES and not run.quick else None
    note = f"ceiling {ceiling:.0f} MB/s, fetch {rate:.0f} MB/s"
    run.add(
        Figure(f"{label}, times the ceiling's time", ratio(most, rates), "times", limit, low=low, high=high, note=note)
    )
    used, least = (
        statistics.median(entry["processor_s"] / entry["bytes"] * GB for entry in entries)
        for entries in (fetches, ceilings)
    )
    note = f"{least:.1f} s/GB for bytes that nobody keeps"
    run.add(Figure(f"{label}, processor of the fetching node", used, "s/GB", note=note))
    memory = max(entry["memory_bytes"] for entry in fetches) / MB
    run.add(Figure(f"{label}, memory of the fetching node", memory, "MB"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small model, once; nothing is saved")
    parser.add_argument("--folder", type=Path, help="where the model and its copies go")
    parser.add_argument("--out", type=Path, help="folder for the result (bench/results)")
    options = parser.parse_args()
    if not commit():
        sys.exit("run it in a checkout, so that the result can name its commit")
    run, effort = Run("weights", quick=options.quick), QUICK if options.quick else Effort()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, ExitStack() as running:
        place = Path(folder)
        model = place / "model.gguf"
        write_model(model, size_bytes=effort.model_bytes, layers=effort.layers, kind="Q4_0")
        sources = [
            running.enter_context(Process("give", str(model), str(place / f"source-{number}")))
            for number in range(SOURCES)
        ]
        dialled = [f"{source.place['port']}:{source.place['node']}" for source in sources]
        fetcher = running.enter_context(Process("fetch", str(model), str(place / "fetched"), *dialled))
        measured(run, effort, fetcher, sources[0].place)
    run.finish(options.out)


if __name__ == "__main__":
    main()
