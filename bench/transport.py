"""What our QUIC endpoint carries, beside aioquic's asyncio API: bulk, round trips, loss, readers that stop.

    python -m bench.transport                 all of it, about 6 minutes
    python -m bench.transport --quick         does it work at all, about a minute
    python -m bench.transport --only bulk     one part: bulk, large, trips, idle, lossy, stopped, overrun

Each way has two processes, the sender on the first processor and the receiver on the second (bench/transport_ends.py),
and both ways take turns, in one order and then in the other. bench/README.md describes the method.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.figures import Rounds, interval, quantile, ratio
from bench.lossy_line import LossyLine
from bench.machine import commit
from bench.record import Figure, Run
from bench.transport_ends import Ends
from bench.transport_ways import WAYS

ETHERNET_BYTES = 1452
LARGE_BYTES = 16384
LOSS = 0.01
DELAY_S = 0.005
IDLE_STREAMS = 100
MESSAGES = {64: "64 B", 8 << 10: "8 KiB", 64 << 10: "64 KiB"}
STOPPED_BYTES = 64 << 20
MB = 1e6


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of everything; `QUICK` only shows that it works."""

    rounds: int = 12
    bulk_bytes: int = 96 << 20
    trips: int = 2000
    trip_rounds: int = 5
    lossy_rounds: int = 5
    lossy_bytes: int = 48 << 20
    stop_s: float = 60.0


QUICK = Effort(
    rounds=2,
    bulk_bytes=8 << 20,
    trips=200,
    trip_rounds=1,
    lossy_rounds=1,
    lossy_bytes=2 << 20,
    stop_s=5.0,
)


def alternate(ways: list[Ends], rounds: int) -> Iterator[Ends]:
    """Each way once a round, in one order and then in the other (ABBA)."""
    for number in range(rounds):
        yield from ways if number % 2 == 0 else ways[::-1]


def rates(ways: list[Ends], rounds: int, size: int) -> dict[str, Rounds]:
    """MB/s of `size` bytes on one stream, by way; a shorter transfer of each warms up."""
    for ends in ways:
        ends.run("bulk", size=size // 4)
    found: dict[str, list[list[float]]] = {ends.way: [] for ends in ways}
    for ends in alternate(ways, rounds):
        found[ends.way].append([size / ends.run("bulk", size=size)["wall_s"] / MB])
    return found


def medians(found: dict[str, Rounds]) -> str:
    """What each way reached, in words."""
    return ", ".join(f"{way} {middle(rounds):.1f} MB/s" for way, rounds in found.items())


def middle(rounds: Rounds) -> float:
    """The median over all rounds."""
    return statistics.median(value for values in rounds for value in values)


def compared(run: Run, name: str, found: dict[str, Rounds], way: str, *, limit: float | None = None) -> None:
    """Report how many times the rate of stock a way reaches."""
    low, high = interval(ratio, found[way], found["stock"])
    value = ratio(found[way], found["stock"])
    run.add(Figure(name, value, "times", limit, at_least=True, low=low, high=high, note=medians(found)))


# --- the parts --------------------------------------------------------------------------------------------------


def bulk(run: Run, effort: Effort) -> None:
    """One stream, datagrams as on Ethernet."""
    with ExitStack() as stack:
        ways = [stack.enter_context(Ends(way, ETHERNET_BYTES)) for way in WAYS]
        found = rates(ways, effort.rounds, effort.bulk_bytes)
    run.raw["bulk_mb_s"] = found
    for way, rounds in found.items():
        run.add(Figure(f"bulk, one stream, 1452-byte datagrams: {way}", middle(rounds), "MB/s"))
    compared(run, "bulk, with aioquic's own connection class, over stock", found, "tuned", limit=2.5)
    compared(run, "bulk, with the hot path, over stock", found, "fast", limit=5)


def large(run: Run, effort: Effort) -> None:
    """The same with the datagrams that loopback and jumbo frames carry."""
    with ExitStack() as stack:
        ways = [stack.enter_context(Ends(way, LARGE_BYTES)) for way in WAYS]
        found = rates(ways, effort.rounds // 2, 2 * effort.bulk_bytes)
    run.raw["large_mb_s"] = found
    for way, rounds in found.items():
        run.add(Figure(f"bulk, one stream, 16384-byte datagrams: {way}", middle(rounds), "MB/s"))


def trips(run: Run, effort: Effort) -> None:
    """Messages that are sent back, one at a time."""
    limits = {64: 0.3, 8 << 10: 0.5}
    with ExitStack() as stack:
        ways = [stack.enter_context(Ends(way, ETHERNET_BYTES)) for way in ("stock", "fast")]
        for size, words in MESSAGES.items():
            times: dict[str, list[float]] = {ends.way: [] for ends in ways}
            count = effort.trips if size < 64 << 10 else effort.trips // 4
            for ends in alternate(ways, effort.trip_rounds):
                times[ends.way] += [1000 * trip for trip in ends.run("ping", size=size, count=count)["trips_s"]]
            for share, label in ((0.5, "p50"), (0.99, "p99")):
                stock, ours = (quantile(times[way], share) for way in ("stock", "fast"))
                limit = limits.get(size) if share == 0.5 else None
                run.add(Figure(f"round trip, {words}, {label}", ours, "ms", limit, note=f"stock {stock:.3f} ms"))


def idle(run: Run, effort: Effort) -> None:
    """Bulk beside a hundred open streams on which nothing happens, as a share of bulk alone."""
    with Ends("fast", ETHERNET_BYTES) as ends:
        ends.run("bulk", size=effort.bulk_bytes // 4)
        beside, alone = [], []
        for _ in range(effort.rounds):
            alone.append([effort.bulk_bytes / ends.run("bulk", size=effort.bulk_bytes)["wall_s"] / MB])
            ends.run("idle", count=IDLE_STREAMS)
            beside.append([effort.bulk_bytes / ends.run("bulk", size=effort.bulk_bytes)["wall_s"] / MB])
            ends.run("busy")

    def share(mine: Rounds, others: Rounds) -> float:
        return 100 * ratio(mine, others)

    low, high = interval(share, beside, alone)
    note = f"alone {middle(alone):.1f} MB/s, beside them {middle(beside):.1f}"
    name = f"bulk beside {IDLE_STREAMS} idle streams, share of bulk alone"
    run.add(Figure(name, share(beside, alone), "%", 75, at_least=True, low=low, high=high, note=note))


def lossy(run: Run, effort: Effort) -> None:
    """Bulk over a line that takes 5 ms each way and loses one datagram in a hundred."""
    found: dict[str, list[list[float]]] = {"stock": [], "fast": []}
    for number in range(effort.lossy_rounds):
        for way in ("stock", "fast") if number % 2 == 0 else ("fast", "stock"):
            # Stock gets a quarter of the bytes, so that it does not take all the time; both are past their start.
            size = effort.lossy_bytes // (4 if way == "stock" else 1)
            line = LossyLine(LOSS, DELAY_S, seed=number)
            with line, Ends(way, ETHERNET_BYTES, line.route) as ends:
                found[way].append([size / ends.run("bulk", size=size)["wall_s"] / MB])
    run.raw["lossy_mb_s"] = found
    compared(run, "bulk over 5 ms and 1 % loss, over stock", found, "fast", limit=3)


def stopped(run: Run, effort: Effort) -> None:
    """A reader that does not read for a minute: what piles up, and whether others notice."""
    with Ends("fast", ETHERNET_BYTES) as ends:
        undisturbed = [1000 * trip for trip in ends.run("ping", size=64, count=effort.trips)["trips_s"]]
        outcome = ends.run("stopped", stop_s=effort.stop_s, size=STOPPED_BYTES, count=effort.trips)
    seconds = f"{effort.stop_s:.0f} s"
    for side in ("server", "client"):
        name = f"a reader stops for {seconds}: growth of the {'receiver' if side == 'server' else 'sender'}"
        run.add(Figure(name, outcome["growth"][side] / MB, "MB", 8))
    beside = [1000 * trip for trip in outcome["trips_s"]]
    value = quantile(beside, 0.5) / quantile(undisturbed, 0.5)
    note = f"{quantile(beside, 0.5):.3f} ms, before {quantile(undisturbed, 0.5):.3f} ms"
    run.add(Figure("a reader stops: round trip of another stream, over before", value, "times", 1.5, note=note))


def overrun(run: Run, effort: Effort) -> None:
    """Single bytes at the highest offsets that the receiver allows, of a sender that has proven its key."""
    for way in ("stock", "fast"):
        with Ends(way, ETHERNET_BYTES) as ends:
            ends.run("bulk", size=1 << 20)
            before = ends.run("memory")["server"]
            outcome = ends.run("attack")
            growth = (ends.run("memory")["server"] - before) / MB
        note = f"{outcome['datagrams']} datagrams, {outcome['reached']:,} bytes allowed"
        limit = 2 if way == "fast" else None
        run.add(Figure(f"growth under the sparse-offset attack: {way}", growth, "MB", limit, note=note))


PARTS: dict[str, Callable[[Run, Effort], Any]] = {
    "bulk": bulk,
    "large": large,
    "trips": trips,
    "idle": idle,
    "lossy": lossy,
    "stopped": stopped,
    "overrun": overrun,
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a little of each kind; nothing is saved")
    parser.add_argument("--only", action="append", choices=PARTS, help="only this part (repeatable)")
    parser.add_argument("--out", type=Path, help="folder for the result (bench/results)")
    options = parser.parse_args()
    if not commit():
        sys.exit("run it in a checkout, so that the result can name its commit")
    run = Run("transport", quick=options.quick)
    for name, part in PARTS.items():
        if name in (options.only or PARTS):
            part(run, QUICK if options.quick else Effort())
    run.finish(options.out)


if __name__ == "__main__":
    main()
