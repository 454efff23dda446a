"""How this machine is reached from the internet: what its interfaces, its router and its running node say, and what
would help. Nobody else is asked: no server that says where we come from, no name that is looked up.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from meshnode.mesh.addresses import interface_hosts
from meshnode.net.gateway import find_gateway
from meshnode.net.nat import is_global
from meshnode.net.portmap import PortMapper
from meshnode.wire.address import Address

ASKING_LIMIT_S = 12.0
MOST_SHOWN = 8
NAT_WORDS = {
    "none": "none: peers see this machine as it sees itself",
    "cone": "cone: all peers see the same outside address, so that a direct path can be opened to most of them",
    "symmetric": "symmetric: every peer sees another outside port; other such nodes are reached through relays only",
    "unknown": "not known: it takes two peers elsewhere to tell",
}

Verdict = Literal["ok", "warn"]


@dataclass(frozen=True, slots=True)
class Connectivity:
    """All that is known. `mapping` is as PortMapper.facts; `peers` counts those of a running node by path.

    `nat` is none, cone, symmetric or unknown; `running` whether a node said it.
    """

    ipv4: tuple[str, ...] = ()
    ipv6: tuple[str, ...] = ()
    router: str | None = None
    running: bool = False
    nat: str = "unknown"
    observed: tuple[str, ...] = ()
    mapping: Mapping[str, Any] = field(default_factory=dict)
    relays: tuple[str, ...] = ()
    peers: Mapping[str, int] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """For --json."""
        return {**asdict(self), "mapping": dict(self.mapping), "peers": dict(self.peers), "reached": self.reached}

    @property
    def reached(self) -> bool:
        """Whether a stranger's first datagram arrives, as far as that can be known from here."""
        return self.nat == "none" or self.mapping.get("state") in ("mapped", "needless") or bool(_global(self.ipv4))


@dataclass(frozen=True, slots=True)
class Remark:
    """One line for people: what was looked at, what was seen, and what would help."""

    about: str
    verdict: Verdict
    seen: str
    fix: str = ""


def looked_up(status: Mapping[str, Any] | None = None) -> Connectivity:
    """What the system's tables and the status of a running node say. Reads both; sends nothing."""
    hosts = interface_hosts()
    gateway = find_gateway()
    found = Connectivity(
        ipv4=tuple(host for host in hosts if ":" not in host and not _is_local(host)),
        ipv6=tuple(host for host in hosts if ":" in host and not _is_local(host)),
        router=gateway.host if gateway else None,
    )
    return found if status is None else with_status(found, status)


def with_status(found: Connectivity, status: Mapping[str, Any]) -> Connectivity:
    """Together with what a running node says in /api/status: its public mesh first, else its private one."""
    sections = _parts(status, "swarm") + _parts(status, "mesh")
    views = [view for section in sections for view in _parts(section, "nat")]
    view = next((view for view in views if view.get("kind", "unknown") != "unknown"), views[0] if views else {})
    paths = [peer.get("path") for section in sections for peer in section.get("peers") or ()]
    mapped = [str(address) for each in views for address in each.get("mapped") or ()]
    mapping: dict[str, Any] = {"state": "off", "sentence": "the node has not asked for one (port_map)"}
    if mapped:
        sentence = f"the router forwards {', '.join(dict.fromkeys(mapped))} to the node"
        mapping = {"state": "mapped", "sentence": sentence, "external": mapped[0]}
    return replace(
        found,
        running=True,
        nat=str(view.get("kind", "unknown")),
        observed=tuple(str(address) for address in view.get("observed") or ())[:MOST_SHOWN],
        mapping=next((told for each in views for told in _parts(each, "mapping")), mapping),
        relays=tuple(str(relay) for each in views for relay in each.get("relays") or ())[:MOST_SHOWN],
        peers={path: paths.count(path) for path in ("direct", "relayed")},
    )


async def mapping_offer(port: int) -> dict[str, Any]:
    """Whether the router would forward `port`: it is asked to, and asked to stop. As PortMapper.facts."""
    mapper = PortMapper()
    await mapper.start(port)
    with suppress(TimeoutError):
        async with asyncio.timeout(ASKING_LIMIT_S):
            await mapper.settled()
    facts = mapper.facts
    await mapper.close()
    return facts


def remarks(found: Connectivity) -> list[Remark]:
    """The lines, in the order in which a person would ask."""
    return [_ipv4(found), _ipv6(found), _nat(found), _mapping(found), *_paths(found)]


def _ipv4(found: Connectivity) -> Remark:
    behind = f", behind the router {found.router}" if found.router and not _global(found.ipv4) else ""
    if not found.ipv4:
        return Remark("IPv4", "warn" if not found.ipv6 else "ok", "no address", "look at the network connection")
    return Remark("IPv4", "ok", f"{', '.join(found.ipv4[:MOST_SHOWN])}{behind}")


def _ipv6(found: Connectivity) -> Remark:
    usable = _global(found.ipv6)
    if usable:
        return Remark("IPv6", "ok", ", ".join(usable[:MOST_SHOWN]))
    return Remark("IPv6", "ok", "no address of the internet")


def _nat(found: Connectivity) -> Remark:
    kind = found.nat
    if kind == "unknown" and not found.running and _global(found.ipv4):
        return Remark("NAT", "ok", "none: this machine has an address of the internet itself")
    words = NAT_WORDS.get(kind, NAT_WORDS["unknown"])
    if found.observed:
        words += f" ({', '.join(found.observed)})"
    if kind == "unknown" and not found.running:
        return Remark("NAT", "ok", "not known: peers tell a node, and none runs here", "start one, then look again")
    if kind == "symmetric" and not found.reached:
        return Remark("NAT", "warn", words, _help(found))
    return Remark("NAT", "ok", words)


def _mapping(found: Connectivity) -> Remark:
    state = found.mapping.get("state", "off")
    sentence = str(found.mapping.get("sentence", "not asked for"))
    hidden = not found.reached and found.nat != "cone" and state in ("refused", "no-router")
    return Remark("port", "warn" if hidden else "ok", sentence, _help(found) if hidden else "")


def _paths(found: Connectivity) -> list[Remark]:
    if not found.running:
        return []
    relays = ", ".join(relay[:10] for relay in found.relays)
    through = f"reachable through {relays}" if relays else "none in use"
    lines = [Remark("relays", "ok", through)]
    direct, relayed = found.peers.get("direct", 0), found.peers.get("relayed", 0)
    if direct or relayed:
        lines.append(Remark("peers", "ok", f"{direct} reached directly, {relayed} through a relay"))
    return lines


def _help(found: Connectivity) -> str:
    six = "" if _global(found.ipv6) else ", or IPv6"
    return f"turn on UPnP or PCP at the router{six}; or forward the node's UDP port there by hand"


def _parts(facts: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """The object of that name, if there is one."""
    found = facts.get(name)
    return [found] if isinstance(found, Mapping) else []


def _global(hosts: Sequence[str]) -> list[str]:
    return [host for host in hosts if is_global(Address.of(host, 1))]


def _is_local(host: str) -> bool:
    """Of this machine or this one cable only."""
    found = ipaddress.ip_address(host)
    return found.is_loopback or found.is_link_local
