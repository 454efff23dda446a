"""What a hop through the mesh costs, and what a dying node costs the streams that it serves.

    python -m bench.mesh                 all of it, about 10 minutes
    python -m bench.mesh --quick         does it work at all, about a minute
    python -m bench.mesh --only latency  one part: latency, streams, large, slow, failover

One node serves; another one, on the same machine and without a model of its own, is called. The same llama-server is
called directly beside it, alternating, as in bench.gateway. bench/README.md describes the method.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.counting import Streams, by_socket
from bench.figures import quantile
from bench.gateway import STREAMS, added, chat, first_tokens_ms, large_model, mixed, paired, throughput
from bench.load import Job, LoadProcess, Target
from bench.machine import commit
from bench.node import BenchNode
from bench.record import Figure, Run
from bench.slow import read_slowly

SLOW_STREAMS = 200
SLOW_SLOTS = 64
FAILOVER_STREAMS = 40
FAILOVER_LAST = 150
KNOWN_WITHIN_S = 30
PARTS = ("latency", "streams", "large", "slow", "failover")


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of everything; `QUICK` only shows that it works."""

    latency_requests: int = 400
    stream_rounds: int = 10
    stream_requests: int = 160
    stream_tokens: int = 64
    large_rounds: int = 6
    large_tokens: int = 48
    slow_tokens: int = 120
    failovers: int = 5


QUICK = Effort(
    latency_requests=20,
    stream_rounds=2,
    stream_requests=16,
    stream_tokens=16,
    large_rounds=1,
    large_tokens=2,
    slow_tokens=30,
    failovers=1,
)


@dataclass(frozen=True, slots=True)
class Hop:
    """A node that serves one model, and another one of its mesh that serves none."""

    server: BenchNode
    gateway: BenchNode

    def targets(self) -> list[Target]:
        """The engine itself, and the way through both nodes."""
        direct = self.server.direct_target()
        return [direct, Target("mesh", model=direct.model, port=_port(self.gateway))]


@contextmanager
def hop(model: str, *options: str) -> Iterator[Hop]:
    """Start both nodes, and wait until the one knows what the other has."""
    with BenchNode(model, *options) as server, joined(server) as gateway:
        until_hosts(gateway, 1)
        yield Hop(server, gateway)


def joined(founder: BenchNode, *options: str) -> BenchNode:
    """A further node for the mesh of another; it serves a model only if `options` say so."""
    return BenchNode(None, "--join", _invite(founder), *options)


def _invite(node: BenchNode) -> str:
    """A fresh invite, as each has only a few uses."""
    return str(node.control("invite", {})["token"])


def until_hosts(node: BenchNode, count: int) -> None:
    """Wait until the node knows so many ready hosts of its first model. Raises RuntimeError when it takes too long."""
    deadline = time.monotonic() + KNOWN_WITHIN_S
    while _ready_hosts(node) != count:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the node knows {_ready_hosts(node)} hosts, not {count}")
        time.sleep(0.02)


def _ready_hosts(node: BenchNode) -> int:
    return sum(host["state"] == "ready" for model in node.models()[:1] for host in model["meshnode"]["hosts"])


def _port(node: BenchNode) -> int:
    return urlsplit(node.ready["api"]).port or 0


# --- the parts --------------------------------------------------------------------------------------------------


def latency(run: Run, both: Hop, load: LoadProcess, effort: Effort) -> None:
    """One stream at a time: what the hop adds to the first token."""
    outcomes = paired(load, both.targets(), Job([chat(stream=True, max_tokens=8)]), effort.latency_requests)
    ours, theirs = first_tokens_ms(outcomes["mesh"]), first_tokens_ms(outcomes["direct"])
    added(run, "one hop, added time to first token, 1 stream, p50", ours, theirs, 0.5, limit=5)
    added(run, "one hop, added time to first token, 1 stream, p99", ours, theirs, 0.99)


def streams(run: Run, both: Hop, load: LoadProcess, effort: Effort) -> None:
    """Sixteen streams at a time with the demo model, where nearly all is overhead."""
    job = Job(mixed(effort.stream_tokens), requests=effort.stream_requests, concurrency=STREAMS)
    outcomes = paired(load, both.targets(), job, effort.stream_rounds)
    name = "one hop, tokens/s of 16 streams, demo model, share of direct"
    throughput(run, name, outcomes["mesh"], outcomes["direct"], limit=85)


def large(run: Run, load: LoadProcess, effort: Effort, model: Path) -> None:
    """Sixteen streams at a time with a model of 1 GB, where the engine has real work."""
    with hop(str(model), "--parallel", str(STREAMS), "--ctx-size", "1024") as both:
        job = Job([chat(stream=True, max_tokens=effort.large_tokens)], requests=STREAMS, concurrency=STREAMS)
        outcomes = paired(load, both.targets(), job, effort.large_rounds)
    name = "one hop, tokens/s of 16 streams, 1 GB model, share of direct"
    throughput(run, name, outcomes["mesh"], outcomes["direct"], limit=97)


def slow(run: Run, effort: Effort) -> None:
    """Two hundred callers at once that read slowly, all through one node to one other with 64 slots."""
    with hop("demo", "--parallel", str(SLOW_SLOTS), "--ctx-size", "512", "--queue", "256") as both:
        _, target = both.targets()
        body = chat(stream=True, max_tokens=effort.slow_tokens).replace("{model}", target.model)
        read_slowly(target.port, body, streams=SLOW_STREAMS // 4)  # warms both up
        before = [node.process.memory_info().rss for node in (both.gateway, both.server)]
        outcome = read_slowly(target.port, body, streams=SLOW_STREAMS)
        after = [node.process.memory_info().rss for node in (both.gateway, both.server)]
    # An end, a role and one chunk for each token: a whole answer has at least as many events as tokens.
    whole = sum(events >= effort.slow_tokens for events in outcome.events)
    note = f"{SLOW_SLOTS} slots; all over after {outcome.wall_s:.0f} s"
    run.add(
        Figure(f"{SLOW_STREAMS} slow streams, whole answers", whole, "streams", SLOW_STREAMS, at_least=True, note=note)
    )
    pause = max(outcome.pauses_s)
    run.add(Figure(f"{SLOW_STREAMS} slow streams, longest silence of a stream that has begun", pause, "s", 10))
    for name, first, last in zip(("gateway", "serving node"), before, after, strict=True):
        size_mb = (last - first) / 1e6
        run.add(
            Figure(
                f"{SLOW_STREAMS} slow streams, growth of memory, {name}", size_mb, "MB", 50, note=f"{last / 1e6:.0f} MB"
            )
        )


def failover(run: Run, effort: Effort) -> None:
    """Forty streams through a third node, and one of two replicas ends: killed, or told to stop."""
    options = ("--parallel", str(FAILOVER_STREAMS), "--ctx-size", "1024", "--threads", "1", "--drain-timeout", "5")
    limits = {signal.SIGKILL: ("killed", 2.0), signal.SIGTERM: ("told to stop", 0.7)}
    with BenchNode("demo", *options) as first, joined(first) as gateway:
        for number, (name, limit_s) in limits.items():
            gaps_s: list[float] = []
            faults: list[str] = []
            for _ in range(effort.failovers):
                until_hosts(gateway, 1)
                with joined(first, "--model", "demo", *options) as replica:
                    until_hosts(gateway, 2)
                    _lose_one(gateway, replica, number, gaps_s, faults)
            wrong = f"{len(faults)} of {effort.failovers * FAILOVER_STREAMS} streams {'; '.join(faults[:1])}"
            title = f"a replica of two is {name}, {FAILOVER_STREAMS} streams"
            run.add(Figure(f"{title}: lost, cut or wrong", len(faults), "streams", 1, note=wrong))
            note = f"longest {max(gaps_s):.2f} s, median {quantile(gaps_s, 0.5):.2f} s, of all streams"
            run.add(Figure(f"{title}: gap p95", quantile(gaps_s, 0.95), "s", limit_s, note=note))


def _lose_one(
    gateway: BenchNode, replica: BenchNode, number: signal.Signals, gaps_s: list[float], faults: list[str]
) -> None:
    base_url = f"http://127.0.0.1:{_port(gateway)}"
    with Streams(by_socket(base_url), [("demo", FAILOVER_LAST)] * FAILOVER_STREAMS) as heard:
        running = heard.until_all_run()
        ended_at = time.monotonic()
        replica.process.send_signal(number)
    faults += heard.faults()
    gaps_s += [stream.gap_s(ended_at) for stream in running]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few requests of each kind; nothing is saved")
    parser.add_argument("--only", action="append", choices=PARTS, help="only this part (repeatable)")
    parser.add_argument("--out", type=Path, help="folder for the result (bench/results)")
    options = parser.parse_args()
    effort = QUICK if options.quick else Effort()
    wanted = options.only or PARTS
    if not commit():
        sys.exit("run it in a checkout, so that the result can name its commit")
    run = Run("mesh", quick=options.quick)
    with ExitStack() as stack:
        load = stack.enter_context(LoadProcess())
        hops: dict[str, Callable[[Run, Hop, LoadProcess, Effort], Any]] = {"latency": latency, "streams": streams}
        if set(wanted) & set(hops):
            with hop("demo", "--parallel", str(STREAMS)) as both:
                for name, part in hops.items():
                    if name in wanted:
                        part(run, both, load, effort)
        if "large" in wanted:
            large(run, load, effort, large_model())
        if "slow" in wanted:
            slow(run, effort)
        if "failover" in wanted:
            failover(run, effort)
    run.finish(options.out)


if __name__ == "__main__":
    main()
