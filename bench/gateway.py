"""What the gateway costs: a node's API against the same llama-server called directly, paired in one run.

    python -m bench.gateway                 all of it, about 20 minutes
    python -m bench.gateway --quick         does it work at all, about a minute
    python -m bench.gateway --only memory   one part: latency, streams, body, plain, memory, large

The two ways alternate, and which one goes first alternates too, so that whatever else the machine does falls on both.
bench/README.md describes the method.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.figures import Rounds, difference, growth, interval, quantile, ratio, shift
from bench.load import Job, LoadProcess, Outcome, Target
from bench.machine import commit
from bench.make_model import write_model
from bench.node import BenchNode
from bench.record import Figure, Run
from meshnode.config import find_places

STREAMS = 16
LARGE_MODEL_BYTES = 10**9
BODY_BYTES = 20_000_000
MEMORY_STEP = 250
PARTS = ("latency", "streams", "body", "plain", "memory", "large")


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of everything; `QUICK` only shows that it works."""

    latency_requests: int = 800
    pause_s: float = 0.0
    stream_rounds: int = 20
    stream_requests: int = 160
    stream_tokens: int = 64
    large_rounds: int = 8
    large_tokens: int = 48
    bodies: int = 15
    plain_rounds: int = 12
    plain_requests: int = 500
    memory_requests: int = 20_000
    memory_warm_up: int = 2_000


QUICK = Effort(
    latency_requests=20,
    stream_rounds=2,
    stream_requests=16,
    stream_tokens=16,
    large_rounds=1,
    large_tokens=2,
    bodies=1,
    plain_rounds=1,
    plain_requests=50,
    memory_requests=1_000,
    memory_warm_up=250,
)


def chat(*, stream: bool, max_tokens: int, content: str = "count from 1 to 200", **more: object) -> str:
    """The body of a chat request that yields exactly `max_tokens` tokens."""
    body: dict[str, object] = {
        "model": "{model}",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        **({"stream": True, "stream_options": {"include_usage": True}} if stream else {}),
        **more,
    }
    return json.dumps(body)


def mixed(tokens: int) -> list[str]:
    """Sixteen bodies for streams of half to one and a half times `tokens`, well mixed.

    Streams of one length would end together and begin together, again and again.
    """
    return [chat(stream=True, max_tokens=tokens // 2 + tokens * (7 * turn % 16) // 15) for turn in range(16)]


def alternate(targets: list[Target], rounds: int) -> Iterator[list[Target]]:
    """The targets in one order, then in the other (ABBA)."""
    for number in range(rounds):
        yield targets if number % 2 == 0 else targets[::-1]


def paired(
    load: LoadProcess, targets: list[Target], job: Job, rounds: int, *expected: int, pause_s: float = 0.0
) -> dict[str, list[Outcome]]:
    """Run the job `rounds` times against each target, alternating; outcomes by the name of the target."""
    for target in targets:
        load.run(target, job).check(*expected or (200,))  # warms caches and pages of both
    outcomes: dict[str, list[Outcome]] = {target.name: [] for target in targets}
    for order in alternate(targets, rounds):
        for target in order:
            time.sleep(pause_s)
            outcomes[target.name].append(load.run(target, job).check(*expected or (200,)))
    return outcomes


def first_tokens_ms(outcomes: list[Outcome]) -> Rounds:
    """Times to the first token, by round."""
    return [[value * 1000 for value in outcome.first_s] for outcome in outcomes]


def added(run: Run, name: str, ours: Rounds, theirs: Rounds, share: float, *, limit: float | None = None) -> None:
    """Report our quantile minus theirs, in milliseconds, with its interval."""
    figure = partial(difference, share=share)
    direct = quantile([value for values in theirs for value in values], share)
    note = f"direct {direct:.2f} ms, {sum(map(len, ours))} requests each way"
    _report(run, name, figure, ours, theirs, limit, note)


def added_in_pairs(run: Run, name: str, ours: Rounds, theirs: Rounds, *, limit: float) -> None:
    """Report the median of our time minus theirs over the pairs of rounds, in milliseconds.

    Where the engine takes seconds, this is what its drift disturbs least.
    """
    note = f"direct {quantile([value for values in theirs for value in values], 0.5):.0f} ms, {len(ours)} pairs"
    _report(run, name, shift, ours, theirs, limit, note)


def _report(
    run: Run,
    name: str,
    figure: Callable[[Rounds, Rounds], float],
    ours: Rounds,
    theirs: Rounds,
    limit: float | None,
    note: str,
) -> None:
    low, high = interval(figure, ours, theirs)
    run.add(Figure(name, figure(ours, theirs), "ms", limit, low=low, high=high, note=note))


def throughput(run: Run, name: str, ours: list[Outcome], theirs: list[Outcome], *, limit: float | None = None) -> None:
    """Report our tokens/s as a share of theirs, in percent."""

    def figure(mine: Rounds, others: Rounds) -> float:
        return 100 * ratio(mine, others)

    rates = [[[outcome.tokens_per_s] for outcome in side] for side in (ours, theirs)]
    low, high = interval(figure, *rates)
    medians = [statistics.median(rate for (rate,) in side) for side in rates]
    busy = statistics.median(outcome.processor_s / outcome.wall_s for outcome in theirs)
    note = f"direct {medians[1]:.0f} tokens/s, here {medians[0]:.0f}; the load generator took {busy:.0%} of a core"
    run.add(Figure(name, figure(*rates), "%", limit, at_least=True, low=low, high=high, note=note))


# --- the parts --------------------------------------------------------------------------------------------------


def latency(run: Run, node: BenchNode, load: LoadProcess, effort: Effort) -> None:
    """One stream at a time: what the gateway adds to the first token."""
    targets = [node.direct_target(), node.gateway_target()]
    job = Job([chat(stream=True, max_tokens=8)])
    outcomes = paired(load, targets, job, effort.latency_requests, pause_s=effort.pause_s)
    ours, theirs = first_tokens_ms(outcomes["meshnode"]), first_tokens_ms(outcomes["direct"])
    added(run, "added time to first token, 1 stream, p50", ours, theirs, 0.5, limit=2)
    added(run, "added time to first token, 1 stream, p99", ours, theirs, 0.99, limit=10)


def streams(run: Run, node: BenchNode, load: LoadProcess, effort: Effort) -> None:
    """Sixteen streams at a time with the demo model, where nearly all is overhead."""
    targets = [node.direct_target(), node.gateway_target()]
    job = Job(mixed(effort.stream_tokens), requests=effort.stream_requests, concurrency=STREAMS)
    outcomes = paired(load, targets, job, effort.stream_rounds)
    ours, theirs = first_tokens_ms(outcomes["meshnode"]), first_tokens_ms(outcomes["direct"])
    added(run, "added time to first token, 16 streams, p50", ours, theirs, 0.5, limit=2)
    added(run, "added time to first token, 16 streams, p99", ours, theirs, 0.99, limit=10)
    name = "tokens/s of 16 streams, demo model, share of direct"
    throughput(run, name, outcomes["meshnode"], outcomes["direct"], limit=90)


def large(run: Run, load: LoadProcess, effort: Effort, model: Path) -> None:
    """Sixteen streams at a time with a model of 1 GB, where the engine has real work."""
    with BenchNode(str(model), "--parallel", str(STREAMS), "--ctx-size", "1024") as node:
        targets = [node.direct_target(), node.gateway_target()]
        body = chat(stream=True, max_tokens=effort.large_tokens)
        outcomes = paired(load, targets, Job([body], requests=STREAMS, concurrency=STREAMS), effort.large_rounds)
    name = "tokens/s of 16 streams, 1 GB model, share of direct"
    throughput(run, name, outcomes["meshnode"], outcomes["direct"], limit=98)


def body(run: Run, node: BenchNode, load: LoadProcess, effort: Effort) -> None:
    """A request of 20 MB: as a prompt, which the engine refuses as too long, and as a member that it passes over."""
    targets = [node.direct_target(), node.gateway_target()]
    kinds = {
        "a prompt of 20 MB": (chat(stream=False, max_tokens=1, content="{padding}"), 400),
        "20 MB beside the prompt": (chat(stream=True, max_tokens=1, user="{padding}"), 200),
    }
    for name, (text, status) in kinds.items():
        outcomes = paired(load, targets, Job([text], padding_bytes=BODY_BYTES), effort.bodies, status)
        ours, theirs = (
            [[value * 1000 for value in outcome.whole_s] for outcome in outcomes[side]]
            for side in ("meshnode", "direct")
        )
        added_in_pairs(run, f"added time, {name}, median", ours, theirs, limit=150)


def plain(run: Run, node: BenchNode, load: LoadProcess, effort: Effort) -> None:
    """Requests without `stream` for one token each: the most requests per second."""
    targets = [node.direct_target(), node.gateway_target()]
    job = Job([chat(stream=False, max_tokens=1)], requests=effort.plain_requests, concurrency=STREAMS, keep_alive=True)
    outcomes = paired(load, targets, job, effort.plain_rounds)
    rates = {name: [effort.plain_requests / outcome.wall_s for outcome in found] for name, found in outcomes.items()}
    direct = f"direct {statistics.median(rates['direct']):.0f} requests/s"
    value = statistics.median(rates["meshnode"])
    run.add(Figure("plain requests for one token, 16 at a time", value, "requests/s", note=direct))


def memory(run: Run, node: BenchNode, load: LoadProcess, effort: Effort) -> None:
    """Resident memory of the node while it answers; half of the requests are streamed, all on new connections."""
    target, process = node.gateway_target(), node.process
    half = Job([chat(stream=True, max_tokens=2)], requests=MEMORY_STEP // 2, concurrency=STREAMS)
    points: list[tuple[float, float]] = []
    for done in range(MEMORY_STEP, effort.memory_requests + 1, MEMORY_STEP):
        load.run(target, half).check(200)
        load.run(target, replace(half, bodies=[chat(stream=False, max_tokens=2)])).check(200)
        points.append((done, process.memory_info().rss / 1e6))
    run.raw["memory_mb"] = points
    value = 100 * growth(points, effort.memory_warm_up, effort.memory_requests)
    begin = next(size for done, size in points if done >= effort.memory_warm_up)
    name = f"growth of resident memory, request {effort.memory_warm_up:,} to {effort.memory_requests:,}"
    run.add(Figure(name, value, "%", 5, note=f"{begin:.1f} MB, then {points[-1][1]:.1f} MB"))


def large_model() -> Path:
    """The model of 1 GB, from the cache of this user; written when it is not there."""
    path = find_places().cache / "bench" / "random-1gb-q8_0.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"writing {path}", flush=True)
        write_model(path, size_bytes=LARGE_MODEL_BYTES)
    return path


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few requests of each kind; nothing is saved")
    parser.add_argument("--only", action="append", choices=PARTS, help="only this part (repeatable)")
    parser.add_argument("--pause-ms", type=float, default=0, help="rest before each request of the part latency (0)")
    parser.add_argument("--out", type=Path, help="folder for the result (bench/results)")
    options = parser.parse_args()
    effort = replace(QUICK if options.quick else Effort(), pause_s=options.pause_ms / 1000)
    wanted = options.only or PARTS
    if not commit():
        sys.exit("run it in a checkout, so that the result can name its commit")
    run = Run("gateway", quick=options.quick)
    small: dict[str, Callable[[Run, BenchNode, LoadProcess, Effort], Any]] = {
        "latency": latency,
        "streams": streams,
        "body": body,
        "plain": plain,
        "memory": memory,
    }
    with LoadProcess() as load:
        if set(wanted) & set(small):
            with BenchNode("demo", "--parallel", str(STREAMS)) as node:
                for name, part in small.items():
                    if name in wanted:
                        part(run, node, load, effort)
        if "large" in wanted:
            large(run, load, effort, large_model())
    run.finish(options.out)


if __name__ == "__main__":
    main()
