"""Between the gateway and the mesh: what this node offers to others, and what others offer, as models with hosts.

Translations only: from the views of serving and hardware to wire values, and from the members of the mesh to the
models that callers see. Nothing here waits or decides; the order of hosts is the router's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from meshnode.api.served import Host, Served, ServedState
from meshnode.api.upstream import Connect
from meshnode.core.effects import Member
from meshnode.core.placement import HOST
from meshnode.core.prices import Price
from meshnode.core.radius import LOCAL, PUBLIC, TRUSTED, furthest, nearest
from meshnode.hardware import Inventory
from meshnode.hardware.benchmark import BenchmarkResult
from meshnode.mesh.ledger import InviteEntry
from meshnode.mesh.sessions import Peer
from meshnode.mesh.traversal import NatView
from meshnode.wire.registry import LIMIT_DEVICES, LIMIT_MODEL_NAME_CHARS, LIMIT_MODELS, LIMIT_NAME_CHARS, Role
from meshnode.wire.schema import MAX_U32, can_be_shown, showable
from meshnode.wire.statements import (
    CONTENT_HASH_BYTES,
    SHORT_ID_BYTES,
    Capability,
    Device,
    ModelState,
    Offer,
    PlanClaim,
)

MEMORY_STEP_BYTES = 256 << 20
"""Free memory is told in steps: every page that comes and goes would be news otherwise."""
PROCESSOR = "CPU"
"""What the engine calls the processor, whose memory is HOST."""
MEGABYTE = 1_000_000
MICROSECONDS = 1_000_000
UNKNOWN_RTT_S = 0.05
MAX_OFFERED_NAMES = 4
_DEVICE_FACTS = tuple(item.name for item in dataclasses.fields(Device))

_STATES: dict[str, int] = {
    "loading": ModelState.LOADING,
    "ready": ModelState.READY,
    "restarting": ModelState.RESTARTING,
    "failed": ModelState.FAILED,
}
_WORDS: dict[int, ServedState] = {
    ModelState.LOADING: "loading",
    ModelState.READY: "ready",
    ModelState.RESTARTING: "restarting",
    ModelState.FAILED: "failed",
}

Speed = Callable[[str], tuple[float | None, float | None]]
"""Model -> tokens per second while answering and while reading a prompt; None where nothing was measured."""
RadiusOf = Callable[[Member], str]


# --- what this node offers ------------------------------------------------------------------------------------


def devices_of(
    inventory: Inventory | None,
    *,
    usable: Mapping[str, int] | None = None,
    speeds: Mapping[str, BenchmarkResult] | None = None,
) -> tuple[Device, ...]:
    """The devices of this machine that can hold layers; the processor's memory stands last.

    `usable` are the bytes that a plan may take now, by device (HOST: main memory): a device that is not among them is
    not for others. Without it the free memory is told. `speeds` are what was measured, by device.
    """
    if inventory is None:
        return ()
    memory = inventory.memory
    if usable is None:
        free = {gpu.id: gpu.free_bytes or 0 for gpu in inventory.accelerators} | {HOST: memory.available_bytes}
        usable = {name: _stepped(size) for name, size in free.items()}
    measured = dict(speeds or {})
    found = [
        Device(
            showable(gpu.name, LIMIT_NAME_CHARS),
            gpu.total_bytes or 0,
            usable[gpu.id],
            *_speed(measured.get(gpu.id)),
        )
        for gpu in inventory.accelerators
        if gpu.id in usable
    ]
    host = Device(HOST, memory.total_bytes, usable.get(HOST, 0), *_speed(measured.get(PROCESSOR)))
    return (*found[: LIMIT_DEVICES - 1], host)


def _speed(result: BenchmarkResult | None) -> tuple[int, int]:
    """Bandwidth in MB/s and what a layer costs in µs; zeros where nothing was measured."""
    if result is None:
        return 0, 0
    bandwidth = max(1, round(result.bandwidth_bytes_per_s / MEGABYTE))
    return min(bandwidth, MAX_U32), min(round(result.layer_s * MICROSECONDS), MAX_U32)


def offers_of(models: Iterable[Served], entries: Sequence[dict[str, Any]], speed: Speed) -> tuple[Offer, ...]:
    """The models of this node as others hear of them. `entries` are those of /api/status, for queue and state."""
    queues = {entry["id"]: entry for entry in entries}
    found = []
    for model in models:
        host = model.local
        if host is None or model.state == "failed":
            continue
        entry = queues.get(model.id, {})
        answering, reading = speed(model.id)
        found.append(
            Offer(
                name=showable(model.id, LIMIT_MODEL_NAME_CHARS) or "model",
                content_hash=bytes.fromhex(host.content_hash or "00" * CONTENT_HASH_BYTES)[:CONTENT_HASH_BYTES],
                state=_STATES[model.state],
                context=model.context_length,
                slots=model.slots,
                busy=min(int(entry.get("busy", 0)), model.slots),
                waiting=int(entry.get("waiting", 0)),
                capabilities=_flags(model.capabilities),
                decode_speed=round(10 * (answering or entry.get("predicted_tokens_per_s") or 0)),
                prompt_speed=round(10 * (reading or 0)),
                size_bytes=model.size_bytes,
                names=tuple(_fitting(model.names)),
            )
        )
    return tuple(found[:LIMIT_MODELS])


def priced(offers: Iterable[Offer], price: Callable[[str], Price], chain: int) -> tuple[Offer, ...]:
    """Offers with what they cost strangers, to be paid over a chain."""
    found = []
    for offer in offers:
        costs = price(offer.name)
        if not costs.is_free:
            offer = dataclasses.replace(offer, price_in=costs.tokens_in, price_out=costs.tokens_out, chain=chain)
        found.append(offer)
    return tuple(found)


def _fitting(names: Iterable[str]) -> list[str]:
    """Names that mean something elsewhere: no paths of this machine."""
    fitting = [name for name in names if 0 < len(name) <= LIMIT_MODEL_NAME_CHARS and can_be_shown(name)]
    return [name for name in fitting if name[0] not in "/.~"][:MAX_OFFERED_NAMES]


def _flags(capabilities: Iterable[str]) -> int:
    known = {flag.name.lower(): flag for flag in Capability if flag.name}
    return int(sum(known[name] for name in capabilities if name in known))


def _stepped(size: int) -> int:
    return size // MEMORY_STEP_BYTES * MEMORY_STEP_BYTES


# --- what others offer ----------------------------------------------------------------------------------------


def _trusted(_: Member) -> str:
    """Where the members of a private mesh are as long as nobody says more of them."""
    return TRUSTED


def served_over_mesh(
    local: Sequence[Served],
    members: Iterable[Member],
    connect: Callable[[bytes], Connect],
    *,
    radius: RadiusOf = _trusted,
    claims: Sequence[PlanClaim] = (),
    connect_paid: Callable[[bytes], Connect] | None = None,
) -> list[Served]:
    """The models in `local` and of every reachable member, those of one name as one model with several hosts.

    `local` are those of this node, or what another mesh has. `radius` tells where a member is. Whoever holds layers of
    a split sees what passes through them: such a host is as far away as the furthest of its workers. `claims` are the
    splits that this node hosts. What a stranger wants to be paid counts where `connect_paid` opens a stream to do so.
    """
    known = list(members)
    by_short = {member.node[:SHORT_ID_BYTES]: member for member in known}

    def of_workers(workers: Iterable[bytes]) -> str:
        return furthest(radius(by_short[worker]) if worker in by_short else TRUSTED for worker in workers)

    def of_host(member: Member, offer: Offer) -> str:
        held = member.dynamic.claims if member.dynamic else ()
        return furthest((radius(member), of_workers(_workers(held, offer.content_hash))))

    found: dict[str, Served] = {}
    for model in local:
        here = model.local
        if here is not None and here.content_hash and claims:
            there = of_workers(_workers(claims, bytes.fromhex(here.content_hash)))
            model = _with_radius(model, furthest((here.radius, there)))
        found[model.id] = model
    for member in known:
        if member.state != "alive" or not member.reachable or member.dynamic is None:
            continue
        for offer in member.dynamic.models:
            host = _host(member, offer, connect, of_host(member, offer))
            if host.radius == PUBLIC and connect_paid is not None and not offer.is_free:
                host = _selling(host, offer, connect_paid(member.node))
            model_there = found.get(offer.name)
            found[offer.name] = _with_host(model_there, host) if model_there else _remote(offer, host)
    return list(found.values())


def _workers(claims: Iterable[PlanClaim], content_hash: bytes) -> set[bytes]:
    """The short ids of those who hold layers of a model, by what its host claims."""
    return {worker for claim in claims if claim.content_hash == content_hash for worker in claim.workers}


def _with_radius(model: Served, radius: str) -> Served:
    hosts = (dataclasses.replace(host, radius=radius) if host.here else host for host in model.hosts)
    return dataclasses.replace(model, hosts=tuple(hosts))


def _host(member: Member, offer: Offer, connect: Callable[[bytes], Connect], radius: str) -> Host:
    rtt_s = member.rtt_s if member.rtt_s is not None else member.estimated_rtt_s
    return Host(
        node=member.node.hex(),
        connect=connect(member.node),
        state=_WORDS[offer.state],
        slots=offer.slots,
        busy=offer.busy,
        waiting=offer.waiting,
        context_length=offer.context,
        content_hash=offer.content_hash.hex() if any(offer.content_hash) else "",
        capabilities=capability_names(offer.capabilities),
        rtt_s=UNKNOWN_RTT_S if rtt_s is None else rtt_s,
        tokens_per_s=offer.decode_speed / 10 or None,
        prompt_tokens_per_s=offer.prompt_speed / 10 or None,
        radius=radius,
    )


def _selling(host: Host, offer: Offer, connect_paid: Connect) -> Host:
    price = Price(offer.price_in, offer.price_out)
    return dataclasses.replace(host, price=price, chain=offer.chain, connect_paid=connect_paid)


def capability_names(flags: int) -> tuple[str, ...]:
    """The words of a set of Capability flags; unknown bits are passed over."""
    return tuple(flag.name.lower() for flag in Capability if flag.name and flags & flag)


def _remote(offer: Offer, host: Host) -> Served:
    return Served(
        id=offer.name,
        state=host.state,
        names=offer.names,
        slots=host.slots,
        context_length=host.context_length,
        capabilities=host.capabilities,
        size_bytes=offer.size_bytes,
        hosts=(host,),
    )


def _with_host(model: Served, host: Host) -> Served:
    if host.radius == PUBLIC and model.near:  # what a stranger states says nothing of the model that others have
        return dataclasses.replace(model, hosts=(*model.hosts, host))
    here = model.local is not None
    return dataclasses.replace(
        model,
        state=model.state if here or model.state == "ready" else host.state,
        context_length=max(model.context_length, host.context_length),
        capabilities=model.capabilities or host.capabilities,
        hosts=(*model.hosts, host),
    )


# --- how a member is shown ------------------------------------------------------------------------------------


def peer_facts(
    member: Member, address: str | None, *, radius: str = TRUSTED, path: str | None = None
) -> dict[str, Any]:
    """A member for /api/status. Names are what the peer says of itself: untrusted text. `path` is how it is linked."""
    identity, dynamic = member.identity, member.dynamic
    devices = dynamic.devices if dynamic else ()
    rtt_s = member.rtt_s
    return {
        "id": member.node.hex(),
        "short": member.node.hex()[:10],
        "name": identity.name if identity else "",
        "state": member.state,
        "reachable": member.reachable,
        "role": Role(member.role).name.lower() if member.role else "member",
        "address": address,
        "path": path or ("direct" if member.linked else None),
        "radius": radius,
        "linked": member.linked,
        "rtt_ms": None if rtt_s is None else round(rtt_s * 1e3, 2),
        "estimated_rtt_ms": None if member.estimated_rtt_s is None else round(member.estimated_rtt_s * 1e3, 2),
        "software": identity.software if identity else "",
        "models": [_offer_facts(offer) for offer in dynamic.models] if dynamic else [],
        "memory": {
            "total_bytes": sum(device.total_bytes for device in devices),
            "free_bytes": sum(device.free_bytes for device in devices),
        },
        # Not asdict, which copies deeply: a thousand peers are shown many times a minute.
        "devices": [{name: getattr(device, name) for name in _DEVICE_FACTS} for device in devices],
    }


def client_facts(client: Peer, *, radius: str = TRUSTED, path: str | None = None) -> dict[str, Any]:
    """A client-only node that is connected here, in the form of `peer_facts`."""
    seen = Member(
        node=client.node,
        state="alive",
        incarnation=0,
        role=Role.CLIENT,
        identity=None,
        dynamic=None,
        demand=None,
        linked=True,
        reachable=not client.link.silent,
        rtt_s=client.link.rtt_s,
        estimated_rtt_s=None,
        since=client.link.opened_at,
        heard_at=client.link.opened_at,
    )
    return peer_facts(seen, str(client.link.address), radius=radius, path=path) | {
        "name": client.session.name,
        "software": client.session.software,
    }


def _offer_facts(offer: Offer) -> dict[str, Any]:
    return {
        "id": offer.name,
        "state": _WORDS[offer.state],
        "context_length": offer.context,
        "slots": offer.slots,
        "busy": offer.busy,
        "waiting": offer.waiting,
        "tokens_per_s": offer.decode_speed / 10 or None,
        "content_hash": offer.content_hash.hex() if any(offer.content_hash) else "",
        "price": None if offer.is_free else {"in": offer.price_in, "out": offer.price_out, "chain": offer.chain},
    }


def has_replica(model: Served) -> bool:
    """Another host could go on with every answer of this node's engine: it holds the same weights and is ready. A
    stranger could only with those that may go there.
    """
    here = model.local
    if here is None or not here.content_hash:
        return False
    others = (host for host in model.hosts if not host.here and host.radius != PUBLIC)
    return any(other.ready and other.content_hash == here.content_hash for other in others)


def mesh_entries(models: Iterable[Served]) -> list[dict[str, Any]]:
    """The models that only other nodes run, as entries of /api/status beside those of this node."""
    return [
        {
            "id": model.id,
            "canonical": model.id,
            "state": model.state,
            "detail": model.detail,
            "error": None,
            "since": None,
            "where": f"{'mesh' if model.near else 'public'} ({len(model.hosts)})",
            "radius": nearest(host.radius for host in model.hosts) if model.hosts else LOCAL,
            "size_bytes": model.size_bytes,
            "quantisation": "",
            "context_length": model.context_length,
            "parallel": sum(host.slots for host in model.hosts),
            "busy": sum(host.busy for host in model.hosts),
            "waiting": sum(host.waiting for host in model.hosts),
            "capabilities": list(model.capabilities),
            "draft": "",
            "predicted_tokens_per_s": max((host.tokens_per_s or 0 for host in model.hosts), default=0) or None,
            "plan": None,
            "engine": None,
        }
        for model in models
        if model.local is None
    ]


def invite_facts(entry: InviteEntry) -> dict[str, Any]:
    """An entry of the ledger as it is shown: never the token."""
    return {
        "id": entry.id,
        "role": Role(entry.role).name.lower(),
        "expires_at": entry.expires_at,
        "uses": entry.uses,
        "uses_left": entry.uses_left,
        "revoked": entry.revoked,
        "may_invite": entry.may_invite,
    }


def nat_facts(nat: NatView) -> dict[str, Any]:
    """What is between this node and the others, for /api/status."""
    return {
        "kind": nat.kind,
        "observed": [str(address) for address in nat.observed],
        "mapped": [str(address) for address in nat.mapped],
        "relays": list(nat.relays),
    }
