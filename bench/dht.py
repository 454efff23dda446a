"""The hash table in simulation: what is found while nodes come and go, what it costs, what a crowd around a key does.

python -m bench.dht [--quick] [--only PART ...]

The machine is the one that nodes run, over the simulated swarm of tests/sim/dht_swarm.py. Everything is seeded: the
same figures come out on every machine, only the time it takes differs. A search counts as successful when it names a
provider that is there at that moment.
"""

from __future__ import annotations

import argparse
import gc
from dataclasses import dataclass
from pathlib import Path

from bench.record import Figure, Run
from meshnode.wire.dht import model_key
from tests.sim.dht_swarm import Outcome, Swarm, churn, crowd, found, searches, settled

PER_HOUR = 0.2
PROVIDERS = 3


@dataclass(frozen=True)
class Effort:
    """How much is simulated."""

    nodes: int = 10_000
    models: int = 200
    hours: float = 0.5
    searches: int = 3000
    crowded_nodes: int = 1000
    sybils: int = 1000
    crowds: int = 3


QUICK = Effort(nodes=300, models=20, hours=0.2, searches=200, crowded_nodes=200, sybils=200, crowds=1)


def percentile(values: list[float], share: float) -> float:
    """The value below which that share of them lies."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def times(outcomes: list[Outcome]) -> list[float]:
    """How long the searches took, in seconds."""
    return [outcome.ended_at - outcome.began_at for outcome in outcomes if outcome.providers is not None]


def coming_and_going(run: Run, effort: Effort) -> None:
    """A fifth of the nodes leaves in an hour without a word, and as many come; providers stay, others do not."""
    gc.collect()
    swarm = Swarm(201)
    settled(swarm, effort.nodes)
    contents = [swarm.chance.randbytes(16) for _ in range(effort.models)]
    providers = swarm.chance.sample(swarm.alive, PROVIDERS * effort.models)
    for number, content in enumerate(contents):
        for node in providers[PROVIDERS * number : PROVIDERS * (number + 1)]:
            swarm.offer(node, content)
    swarm.run(60)
    churn(swarm, PER_HOUR, effort.hours * 3600)
    asked_before = swarm.questions
    outcomes = searches(swarm, contents, effort.searches, effort.hours * 3600)
    swarm.run(effort.hours * 3600 + 10)
    name = f"N={effort.nodes}, {PER_HOUR:.0%} leave per hour"
    note = f"{len(outcomes)} searches in {effort.hours:g} h"
    run.add(Figure(f"searches that find a live provider, {name}", 100 * found(outcomes), "%", 99, True, note=note))
    run.add(Figure(f"time of a search, p50, {name}", percentile(times(outcomes), 0.5), "s"))
    run.add(Figure(f"time of a search, p99, {name}", percentile(times(outcomes), 0.99), "s", 5.0))
    spent = [outcome.asked for outcome in outcomes]
    run.add(Figure(f"questions of a search, p50, {name}", percentile([float(each) for each in spent], 0.5), ""))
    run.add(Figure(f"questions of a search, most, {name}", max(spent), "", 61))
    rate = (swarm.questions - asked_before) / effort.nodes / (effort.hours * 60)
    run.add(Figure(f"questions of a node, {name}", rate, "/min", note="upkeep, offers and searches"))
    tables = [len(node.machine.table) for node in swarm.alive]
    stale = sum(contact.node not in swarm.nodes for node in swarm.alive for contact in node.machine.table)
    run.add(Figure(f"contacts that are gone, {name}", 100 * stale / sum(tables), "%"))
    run.raw["coming_and_going"] = {"table": sum(tables) / len(tables), "events": swarm.events}


def crowds(run: Run, effort: Effort) -> None:
    """Nodes of one /24 crowd around a key, before its provider publishes or after."""
    for first in (False, True):
        outcomes: list[Outcome] = []
        gone = 0
        for seed in range(effort.crowds):
            gc.collect()
            swarm = Swarm(300 + seed)
            settled(swarm, effort.crowded_nodes)
            honest = list(swarm.alive)
            content = swarm.chance.randbytes(16)
            provider = swarm.chance.choice(honest)
            if not first:
                swarm.offer(provider, content)
                swarm.run(20)
            rogues = {rogue.name for rogue in crowd(swarm, model_key(content), effort.sybils)}
            if first:
                swarm.offer(provider, content)
            swarm.run(20)
            outcomes += [swarm.search(node, content) for node in swarm.chance.sample(honest, 100)]
            swarm.run(10)
            gone = max(gone, *(sum(contact.node in rogues for contact in node.machine.table) for node in honest))
        when = "before its provider comes" if first else "after its provider has come"
        name = f"{effort.sybils} of one /24 around the key, {when}"
        run.add(
            Figure(
                f"searches that find it, {name}", 100 * found(outcomes), "%", 99, True, note=f"{len(outcomes)} searches"
            )
        )
        run.add(Figure(f"of them in one table, most, {name}", gone, "", 5))


PARTS = {"churn": coming_and_going, "crowds": crowds}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small and short: shows only that it works")
    parser.add_argument("--only", choices=sorted(PARTS), nargs="+", help="only these parts")
    parser.add_argument("--out", type=Path, help="a folder for the result")
    options = parser.parse_args()
    run = Run("dht", quick=options.quick)
    for name, part in PARTS.items():
        if not options.only or name in options.only:
            part(run, QUICK if options.quick else Effort())
    run.finish(options.out)


if __name__ == "__main__":
    main()
