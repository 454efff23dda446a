"""Machines behind routers with NAT: how soon they reach each other, and what a relay in between carries.

A lab of namespaces (tests/lab/nat_lab.py): two relays in the open, a member behind each type of router, and for each
round new clients behind routers of their own, each a process that runs the mesh as a node does. Every contact is the
first between the two. Namespaces have no distance: what is measured is what the programs and the routers take.

    pairs     all 25 ordered pairs of types, one call at a time; those that guess ports go on beside
    loss      the same with a fifth of all packets lost, in both directions
    relay     a long answer between two symmetric routers, through the relay; and one that moves to a direct path
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from bench.figures import quantile
from bench.machine import commit
from bench.record import Figure, Run
from tests.lab.nat_lab import CARRIER, TYPES, why_not
from tests.lab.nat_mesh import Meeting, NatMesh, meet

PARTS = ("pairs", "loss", "relay", "carrier")
ROUNDS = 8
LOSS_PERCENT = 20
RELAYED_BYTES, ANSWERS = 64 << 20, 5
LIVE_PAUSE_S = 0.01
"""After each 64 KiB of the answer that moves: it goes on long after that."""
USABLE_S, CONE_S, MIXED_S, LOSS_S, RELAY_MB_S = 0.3, 0.5, 10.0, 3.0, 10.0


def rounds(mesh: NatMesh, count: int, types: Sequence[str], loss: int) -> list[Meeting]:
    """So many times a new client behind each type calls every member."""
    found: list[Meeting] = []
    for number in range(count):
        with mesh.visited_by(*types) as clients:
            mesh.lab.lose(loss)
            try:
                # With losses a call may take long, and a guess that was not heard is made again.
                bounds = {"call_s": 30.0, "direct_s": 30.0} if loss else {"call_s": 10.0, "direct_s": 11.0}
                met = meet(mesh, dict(zip(types, clients, strict=True)), **bounds)
            finally:
                mesh.lab.lose(0)
        found += met
        for each in met:
            if each.fault:
                print(f"{each.one} with {each.other}: {each.fault}", file=sys.stderr, flush=True)
        print(f"round {number + 1} of {count} at {loss} % loss", file=sys.stderr, flush=True)
    return found


def figures_of(meetings: Sequence[Meeting], loss: int) -> list[Figure]:
    """What the rounds amount to. A pair that was not connected counts as such and nowhere else."""
    name = f", {loss} % loss" if loss else ""
    share = 100 * sum(not each.fault for each in meetings) / len(meetings)
    met = [each for each in meetings if each.first and not each.fault]
    found = [Figure(f"pairs connected{name}", share, "%", 100, at_least=True, note=f"of {len(meetings)}")]
    again = sum(each.tries > 1 for each in met)
    found.append(Figure(f"asked again before the first answer{name}", 100 * again / max(1, len(met)), "%"))
    usable = [each.usable_s for each in met]
    cone, mixed = ([each for each in met if each.kind == kind] for kind in ("cone", "mixed"))
    found += [
        Figure(f"first answer, median{name}", quantile(usable, 0.5), "s"),
        Figure(f"first answer, p95{name}", quantile(usable, 0.95), "s", None if loss else USABLE_S),
    ]
    for title, each, limit in (
        ("no symmetric router", cone, LOSS_S if loss else CONE_S),
        ("one symmetric router", mixed, MIXED_S),
    ):
        direct = [one.direct_s for one in each if one.direct_s is not None]
        if not each:
            continue
        whole = 100 * len(direct) / len(each)
        found.append(Figure(f"direct in the end, {title}{name}", whole, "%", None if loss else 100, at_least=True))
        if direct:
            note = f"{len(direct)} contacts"
            found.append(Figure(f"direct, {title}, median{name}", quantile(direct, 0.5), "s", note=note))
            found.append(Figure(f"direct, {title}, p95{name}", quantile(direct, 0.95), "s", limit, note=note))
            found.append(Figure(f"direct, {title}, slowest{name}", max(direct), "s", note=note))
    return found


def raw_of(meetings: Sequence[Meeting]) -> list[dict[str, Any]]:
    """Every contact, in short: what is as usual is left out."""
    usual = {field.name: field.default for field in fields(Meeting)}
    return [{key: _short(value) for key, value in asdict(each).items() if value != usual[key]} for each in meetings]


def _short(value: object) -> object:
    return round(value, 4) if isinstance(value, float) else value


def relay(run: Run, mesh: NatMesh, size_bytes: int) -> None:
    """What passes through a relay, and through the same machines without one."""
    with mesh.visited_by("symmetric", "port_restricted") as (symmetric, cone):
        ways = {"through a relay": (symmetric, "symmetric", RELAY_MB_S), "direct": (cone, "masquerade", None)}
        for name, (client, kind, limit) in ways.items():
            node = mesh.members[kind].id
            client.ask("call", node=node, limit_s=10)
            client.ask("until_direct", node=node, limit_s=0 if kind == "symmetric" else 10)
            done = [client.ask("download", node=node, size_bytes=size_bytes) for _ in range(ANSWERS)]
            if not all(each["whole"] for each in done):
                raise RuntimeError(f"an answer {name} was not whole")
            paths = sorted({path for each in done for path in each["paths"]})
            note = f"median of {ANSWERS} answers of {size_bytes >> 20} MiB, {', '.join(paths)}"
            rate = quantile([size_bytes / 1e6 / each["s"] for each in done], 0.5)
            run.add(Figure(f"a long answer {name}", rate, "MB/s", limit, at_least=True, note=note))
        node = mesh.members["port_restricted"].id
        done = cone.ask("download", node=node, size_bytes=size_bytes, pause_s=LIVE_PAUSE_S)
        note = f"{' then '.join(done['paths'])}, {size_bytes / 1e6 / done['s']:.1f} MB/s"
        whole = 100.0 if done["whole"] else 0.0
        run.add(Figure("a running answer that moves to a direct path", whole, "%", 100, at_least=True, note=note))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round of each; nothing is saved")
    parser.add_argument("--only", action="append", choices=PARTS, help="only this part (repeatable)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds of the pairs ({ROUNDS})")
    parser.add_argument("--out", type=Path, help="folder for the result (bench/results)")
    options = parser.parse_args()
    count = 1 if options.quick else options.rounds
    wanted = options.only or PARTS
    if reason := why_not():
        sys.exit(f"bench: {reason}")
    if not commit():
        sys.exit("run it in a checkout, so that the result can name its commit")
    run = Run("traversal", quick=options.quick)
    with tempfile.TemporaryDirectory() as folder:
        with NatMesh(Path(folder) / "mesh", spare=2 * count + 1, fast_relays=True) as mesh:
            for part, loss in (("pairs", 0), ("loss", LOSS_PERCENT)):
                if part in wanted:
                    found = rounds(mesh, count, TYPES, loss)
                    run.raw[part] = raw_of(found)
                    for figure in figures_of(found, loss):
                        run.add(figure)
            if "relay" in wanted:
                relay(run, mesh, RELAYED_BYTES >> 3 if options.quick else RELAYED_BYTES)
        if "carrier" in wanted:
            carrier(run, Path(folder) / "carrier", count)
    run.finish(options.out)


def carrier(run: Run, folder: Path, count: int) -> None:
    """Homes behind the NAT of their carrier, with each other and with the two hardest of the others."""
    types = (CARRIER, "port_restricted", "symmetric")
    with NatMesh(folder, spare=count, types=types) as mesh:
        found = [each for each in rounds(mesh, count, types, 0) if CARRIER in (each.one, each.other)]
    run.raw["carrier"] = raw_of(found)
    for figure in figures_of(found, 0):
        run.add(Figure(f"carrier's NAT: {figure.name}", figure.value, figure.unit, note=figure.note))


if __name__ == "__main__":
    main()
