"""Membership in simulation: how soon a crash is known, who is wrongly taken for dead, what it costs; and memberlist.

python -m bench.membership [--quick] [--only PART ...] [--node-hours 500]

The machine is the one that nodes run, over the simulated network of tests/sim; memberlist is a model of its timers
(bench/memberlist_model.py). Everything is seeded: the same figures come out on every machine, only the time it takes
differs. Parts that take long: `false` (node-hours of hunting) and `large` (ten thousand nodes).
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.memberlist_model import LAN, WAN, Memberlist, Settings
from bench.record import Figure, Run
from tests.sim.meshes import (
    Watch,
    agree,
    crashes,
    grown,
    percentile,
    publish_always,
    settled,
    stall_some,
    traffic,
    updates,
)
from tests.sim.world import World

DETECTION = {"avoided": (0.5, 1.5), "unreachable": (0.95, 3.0), "dead": (0.95, 8.5)}
TRAFFIC_LIMITS = {100: 5000.0, 1000: 8000.0, 10_000: 12_000.0}


@dataclass(frozen=True)
class Effort:
    """How much is simulated."""

    crashes: int = 20
    large: int = 10_000
    node_hours: float = 500.0
    sizes: tuple[int, ...] = (100, 1000)
    losses: tuple[float, ...] = (0.0, 0.05, 0.2)
    traffic_s: float = 60.0


QUICK = Effort(crashes=4, large=300, node_hours=1.0, sizes=(30, 60), losses=(0.0, 0.2), traffic_s=5.0)


def _mesh(seed: int, count: int, *, loss: float = 0.0, burst: float = 1.0) -> tuple[World, Watch]:
    gc.collect()
    world = World(seed, loss=loss, burst=burst)
    settled(world, count)
    world.run(3)
    return world, Watch(world)


def detection(run: Run, effort: Effort) -> None:
    """Crashes, one after the other."""
    for count in effort.sizes:
        for loss in effort.losses:
            world, watch = _mesh(101, count, loss=loss)
            victims = world.chance.sample(range(count), min(effort.crashes, count // 4))
            found = crashes(world, watch, victims, apart_s=3.0)
            for what, (share, limit) in DETECTION.items():
                name = f"crash -> {what}, N={count}, loss {loss:.0%}, p{share * 100:.0f}"
                run.add(Figure(name, percentile(found[what], share), "s", limit))
            run.add(Figure(f"false dead meanwhile, N={count}, loss {loss:.0%}", len(watch.false_dead), "", 1))


def farewells(run: Run, effort: Effort) -> None:
    """Nodes that leave on purpose."""
    for count in effort.sizes:
        world, watch = _mesh(102, count)
        times = []
        for subject in world.chance.sample(range(count), min(effort.crashes, count // 4)):
            at = world.now
            world.leave(subject)
            world.run(1.5)
            times.append(watch.known_to(0.99, subject, ("left",), at))
        run.add(Figure(f"leave known to 99 %, N={count}, p95", percentile(times, 0.95), "s", 0.6))


def false_dead(run: Run, effort: Effort) -> None:
    """The hunt for living nodes that somebody takes for dead."""
    for name, loss, burst, stalls in (
        ("loss 20 %", 0.2, 1.0, False),
        ("10 % of the nodes standing still for 2 to 4 s", 0.0, 1.0, True),
        ("loss 10 % in bursts of 4", 0.1, 4.0, False),
    ):
        count, hours, seed, wrong, doubted = 100, 0.0, 200, 0, 0
        while hours < effort.node_hours:
            world, watch = _mesh(seed, count, loss=loss, burst=burst)
            if stalls:
                stall_some(world)
            seconds = min(3600.0, (effort.node_hours - hours) * 3600 / count)
            world.run(seconds)
            hours += count * seconds / 3600
            wrong += len(watch.false_dead)
            doubted += sum(state == "unreachable" for _, state in watch.first)
            seed += 1
            print(f"  {name}: {hours:.0f} node-hours, {wrong} false dead", flush=True)
        note = f"{hours:.0f} node-hours, N=100, {doubted} unreachable for a while"
        run.add(Figure(f"false dead, {name}", wrong, "", 1, note=note))


def halves(run: Run, effort: Effort) -> None:
    """Half of the nodes die at once; a mesh in two halves grows together."""
    for count in effort.sizes:
        world, watch = _mesh(103, count)
        dying = world.chance.sample(range(count), count // 2)
        at = world.now
        for index in dying:
            world.crash(index)
        world.run(35)
        last = percentile((watch.known_to(1.0, index, ("dead",), at) for index in dying), 1)
        run.add(Figure(f"half dies at once, the last is evicted everywhere, N={count}", last, "s", 30))
        run.add(Figure(f"false dead meanwhile, N={count}", len(watch.false_dead), "", 1))
        if count > 300:
            continue
        world, _ = _mesh(104, count)
        world.cut(lambda one, other, middle=count // 2: (one < middle) != (other < middle))  # type: ignore[misc]
        world.run(60)
        world.heal()
        healed = world.now
        while not agree(world, range(count)) and world.now < healed + 120:
            world.run(0.5)
        run.add(Figure(f"healed after 60 s in halves, merged, N={count}", world.now - healed, "s", 35))


def steady(run: Run, effort: Effort) -> None:
    """What a node sends when everybody always has something new to say; and how long an update takes."""
    for count in effort.sizes:
        world, _ = _mesh(105, count)
        publish_always(world)
        world.run(effort.traffic_s / 2)
        acknowledged = sum(node.ack_bytes for node in world.nodes)
        sent = traffic(world, effort.traffic_s)
        acks = (sum(node.ack_bytes for node in world.nodes) - acknowledged) / count / effort.traffic_s
        limit = TRAFFIC_LIMITS.get(count)
        run.add(Figure(f"sent by a node, N={count}", sent, "B/s", limit, note=f"and {acks:.0f} B/s of pure QUIC ACKs"))
        world, _ = _mesh(106, count)
        times = updates(world, world.chance.sample(range(count), min(effort.crashes, count // 4)))
        limit = 0.6 + world.options.ihave_s / 2
        run.add(Figure(f"an update at 99 %, N={count}, p95", percentile(times, 0.95), "s", limit))


def joins(run: Run, effort: Effort) -> None:
    """Everybody joins through the first node, twenty a second."""
    for count in effort.sizes[:1]:
        world = World(107)
        grown(world, count, for_s=0.0)
        ended = world.now
        while not agree(world, range(count)) and world.now < ended + 60:
            world.run(0.25)
        run.add(Figure(f"after the last join all see all, N={count}", world.now - ended, "s", 5))


def large(run: Run, effort: Effort) -> None:
    """Ten thousand nodes."""
    count = effort.large
    world, watch = _mesh(108, count)
    victims = world.chance.sample(range(count), 3)
    found = crashes(world, watch, victims, apart_s=0.5)
    for what, (share, limit) in DETECTION.items():
        run.add(Figure(f"crash -> {what}, N={count}, p{share * 100:.0f}", percentile(found[what], share), "s", limit))
    publish_always(world, 10.0, 30.0)
    world.run(2)
    run.add(Figure(f"sent by a node, N={count}", traffic(world, 5.0), "B/s", TRAFFIC_LIMITS.get(count)))


def memberlist(run: Run, effort: Effort) -> None:
    """The model of memberlist in the same networks."""
    kinds: tuple[tuple[str, Settings, float], ...] = (("LAN", LAN, 40.0), ("WAN", WAN, 160.0))
    for name, settings, for_s in kinds:
        for count in effort.sizes:
            for loss in (effort.losses[0], effort.losses[-1]):
                gc.collect()
                world = World(109, loss=loss)
                model = Memberlist(world, count, settings)
                world.run(5)
                at = world.now
                victims = world.chance.sample(range(count), 5)
                for index in victims:
                    model.crash(index)
                world.run(for_s)
                times = [model.known_to(0.99, index, at) for index in victims]
                note = f"{model.false_dead} views of living nodes as dead"
                title = f"memberlist {name} model: crash -> dead at 99 %, N={count}, loss {loss:.0%}, p50"
                run.add(Figure(title, percentile(times, 0.5), "s", note=note))


PARTS: dict[str, Callable[[Run, Effort], None]] = {
    "detection": detection,
    "farewells": farewells,
    "halves": halves,
    "steady": steady,
    "joins": joins,
    "memberlist": memberlist,
    "false": false_dead,
    "large": large,
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few repetitions; nothing is saved")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="these parts")
    parser.add_argument("--node-hours", type=float, default=Effort.node_hours, help="how long to hunt for false dead")
    parser.add_argument("--out", type=Path, help="folder for the result (bench/results)")
    options = parser.parse_args()
    effort = QUICK if options.quick else Effort(node_hours=options.node_hours)
    run = Run("membership", quick=options.quick)
    for part in options.only:
        PARTS[part](run, effort)
    run.finish(options.out)


if __name__ == "__main__":
    main()
