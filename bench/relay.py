"""What a node carries between two others that cannot reach each other, beside what they carry directly.

    python -m bench.relay                     all of it, about a minute
    python -m bench.relay --quick             does it work at all
    python -m bench.relay --only three        one part: one, three, switch

The same two ends send the same bytes directly and through a relay, in turns; all on loopback, with datagrams as on
Ethernet. In *one* process three endpoints share an event loop; in *three* the relay is a process of its own, on the
processor of the server. bench/README.md describes the method.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.figures import Rounds, interval, quantile, ratio
from bench.machine import commit
from bench.record import Figure, Run
from bench.relay_ends import (
    DATAGRAM_BYTES,
    Three,
    expect,
    no_attack,
    open_relay,
    opener,
    place_of,
    reach,
    reach_through,
    settle,
    until,
)
from bench.transport_ends import Client, serve_flow
from bench.transport_ways import open_ours

MB = 1e6
LEAST_MB_S = 10.0
WAYS = ("direct", "relayed")

Effort = dict[str, int]
FULL: Effort = {"rounds": 10, "bulk_bytes": 48 << 20, "trips": 1000, "switches": 40}
QUICK: Effort = {"rounds": 2, "bulk_bytes": 8 << 20, "trips": 100, "switches": 5}


def turns(rounds: int) -> list[str]:
    """Both ways once a round, in one order and then in the other (ABBA)."""
    return [way for number in range(rounds) for way in (WAYS if number % 2 == 0 else WAYS[::-1])]


def report(run: Run, where: str, rates: dict[str, Rounds], trips_ms: dict[str, list[float]]) -> None:
    """The figures of one arrangement."""
    run.raw[f"{where}_mb_s"] = rates
    middles = {way: statistics.median(value for values in rounds for value in values) for way, rounds in rates.items()}
    run.add(Figure(f"bulk, one stream, direct: {where}", middles["direct"], "MB/s"))
    run.add(Figure(f"bulk, one stream, relayed: {where}", middles["relayed"], "MB/s", LEAST_MB_S, at_least=True))
    low, high = interval(ratio, rates["relayed"], rates["direct"])
    share = ratio(rates["relayed"], rates["direct"])
    run.add(Figure(f"bulk, relayed over direct: {where}", 100 * share, "%", low=100 * low, high=100 * high))
    direct, relayed = (quantile(trips_ms[way], 0.5) for way in WAYS)
    name = f"round trip, 64 B, p50, relayed: {where}"
    run.add(Figure(name, relayed, "ms", note=f"direct {direct:.3f} ms"))


async def in_one_process(effort: Effort) -> tuple[dict[str, Rounds], dict[str, list[float]]]:
    """Server, relay and two clients in this event loop."""
    relay = await open_relay()
    server = await open_ours("fast", DATAGRAM_BYTES, serve_flow)
    server_to_relay = await reach(server, place_of(relay))
    direct, relayed = [await open_ours("fast", DATAGRAM_BYTES) for _ in WAYS]
    to_relay = await reach(relayed, place_of(relay))
    expect(server, server_to_relay, relayed.node_id)
    links = {
        "direct": await reach(direct, place_of(server)),
        "relayed": await reach_through(relayed, to_relay, server.node_id),
    }
    for link in links.values():
        await settle(link)
    clients = {way: Client(opener(link), no_attack) for way, link in links.items()}
    rates: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    trips: dict[str, list[float]] = {}
    size = effort["bulk_bytes"]
    for client in clients.values():
        await client.bulk(size // 4)
    for way in turns(effort["rounds"]):
        rates[way].append([size / (await clients[way].bulk(size))["wall_s"] / MB])
    for way in WAYS:
        trips[way] = [1000 * trip for trip in (await clients[way].ping(64, effort["trips"]))["trips_s"]]
    for endpoint in (direct, relayed, server, relay):
        await endpoint.close()
    return rates, trips


def one(run: Run, effort: Effort) -> None:
    """All in one process."""
    report(run, "one process", *asyncio.run(in_one_process(effort)))


def three(run: Run, effort: Effort) -> None:
    """Each in a process of its own."""
    size = effort["bulk_bytes"]
    with Three() as processes:
        clients = processes.clients
        for client in clients.values():
            client.run(job="bulk", size=size // 4)
        rates: dict[str, list[list[float]]] = {way: [] for way in WAYS}
        for way in turns(effort["rounds"]):
            rates[way].append([size / clients[way].run(job="bulk", size=size)["wall_s"] / MB])
        trips = {
            way: [1000 * trip for trip in clients[way].run(job="ping", size=64, count=effort["trips"])["trips_s"]]
            for way in WAYS
        }
    report(run, "three processes", rates, trips)


async def switching(effort: Effort) -> tuple[list[float], list[float]]:
    """Milliseconds for handshakes over a relay, and for links to go on directly while a transfer runs."""
    relay = await open_relay()
    server = await open_ours("fast", DATAGRAM_BYTES, serve_flow)
    server_to_relay = await reach(server, place_of(relay))
    handshakes, switches = [], []
    for _ in range(effort["switches"]):
        client = await open_ours("fast", DATAGRAM_BYTES)
        to_relay = await reach(client, place_of(relay))
        expect(server, server_to_relay, client.node_id)
        began_at = time.perf_counter()
        link = await reach_through(client, to_relay, server.node_id)
        handshakes.append(1000 * (time.perf_counter() - began_at))
        transfer = asyncio.create_task(Client(opener(link), no_attack).bulk(4 << 20))
        await asyncio.sleep(0.02)
        began_at = time.perf_counter()
        if not await link.redirect(server.address):
            raise RuntimeError("the direct way did not answer")
        switches.append(1000 * (time.perf_counter() - began_at))
        await transfer  # raises when bytes are missing
        await client.close()
        server.close_flow(client.node_id[:8])
        await until(lambda: not relay.forwarder)
    await server.close()
    await relay.close()
    return handshakes, switches


def switch(run: Run, effort: Effort) -> None:
    """From relay to direct in the middle of a transfer."""
    handshakes, switches = asyncio.run(switching(effort))
    run.add(Figure("handshake through a relay, p50", quantile(handshakes, 0.5), "ms"))
    worst = f"worst {max(switches):.1f} ms; {len(switches)} transfers, no byte lost"
    run.add(Figure("from relay to direct under load, p50", quantile(switches, 0.5), "ms", 100, note=worst))


PARTS: dict[str, Callable[[Run, Effort], Any]] = {"one": one, "three": three, "switch": switch}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a little of each kind; nothing is saved")
    parser.add_argument("--only", action="append", choices=PARTS, help="only this part (repeatable)")
    parser.add_argument("--out", type=Path, help="folder for the result (bench/results)")
    options = parser.parse_args()
    if not commit():
        sys.exit("run it in a checkout, so that the result can name its commit")
    run = Run("relay", quick=options.quick)
    for name, part in PARTS.items():
        if name in (options.only or PARTS):
            part(run, QUICK if options.quick else FULL)
    run.finish(options.out)


if __name__ == "__main__":
    main()
