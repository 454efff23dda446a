"""One node of a mesh in a process of its own, told what to do: a real meshnode.mesh.Mesh, and no engine.

    python -m tests.lab.nat_node FOLDER member|client [--relay] [--fast-relay] [--map]

One JSON object a line on stdin, each with an `id`; each is answered by a line with that id, in whatever order they end.
What can be asked are the methods of `Node` below whose names begin with `do_`. It ends with stdin. With `--map` the
router is asked to forward the port.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

from meshnode.api.upstream import Exchange
from meshnode.errors import MeshnodeError
from meshnode.identity import NodeId, load_or_create, verify
from meshnode.mesh import clients
from meshnode.mesh.mesh import Mesh
from meshnode.mesh.options import MeshLimits, MeshOptions
from meshnode.mesh.relaying import RelayLimits
from meshnode.mesh.tunnel import TunnelReply
from meshnode.mesh.tunnel_request import TunnelRequest
from meshnode.mesh.vault import Vault
from meshnode.net.portmap import MapperOptions, PortMapper
from meshnode.wire import invites
from meshnode.wire.address import Address
from meshnode.wire.registry import LIMIT_INVITE_TTL_S, Role
from meshnode.wire.statements import Dynamic, ModelState, Offer

PATH = "/v1/completions"
PIECE_BYTES = 1 << 16
LOOK_S = 0.005
FAST_BYTES_S = 1_000_000_000
"""What `--fast-relay` carries for a flow: what the machine can do is to be measured, not the quota."""


class Node:
    """A mesh, and what may be asked of it."""

    def __init__(self, folder: Path, role: Role, *, relay: bool, fast: bool, map_port: bool) -> None:
        self._identity = load_or_create(folder / "node.key")
        self._vault = Vault(folder / "mesh", self._identity)
        self._name = folder.name
        self._role = role
        self._relay = relay
        self._limits = MeshLimits(
            relay=RelayLimits(bytes_per_s=FAST_BYTES_S, burst_bytes=1 << 24) if fast else RelayLimits()
        )
        self._mapper = PortMapper(options=MapperOptions(retry_s=1.0)) if map_port else None
        self._looking: dict[str, asyncio.Task[float]] = {}
        self._mesh: Mesh

    async def start(self, *, found: bool) -> None:
        if found:
            self._vault.found("lab")
        self._mesh = await Mesh.start(
            vault=self._vault,
            identity=self._identity,
            role=self._role,
            options=MeshOptions("::", 0, self._name, "test", relay=self._relay, mapped=self._mapped),
            answer=self._answer,
            admitted=frozenset({("POST", PATH)}),
            changed=lambda: None,
            limits=self._limits,
        )
        if self._mapper is not None:
            await self._mapper.start(self._mesh.addresses[0].port)
        offer = Offer(name=self._name, content_hash=bytes(16), state=ModelState.READY, context=4096, slots=4)
        self._mesh.publish(Dynamic(models=(offer,)))

    async def close(self) -> None:
        for task in self._looking.values():
            task.cancel()
        await self._mesh.close()
        if self._mapper is not None:
            await self._mapper.close()

    def _mapped(self) -> tuple[Address, ...]:
        return () if self._mapper is None else self._mapper.mapped

    async def _answer(self, request: TunnelRequest, reply: TunnelReply) -> None:
        """As many bytes as the request asks for, with as long a pause after each piece."""
        wanted = json.loads(request.body)
        await reply.head(200, [("content-type", "application/octet-stream")])
        for piece in pieces(wanted["size_bytes"]):
            await reply.body(piece)
            await asyncio.sleep(wanted["pause_s"])
        await reply.finish()

    # --- what may be asked --------------------------------------------------------------------------------------------

    async def do_start(self, found: bool = False) -> dict[str, Any]:
        await self.start(found=found)
        return {"node": self._identity.node_id.hex()}

    async def do_invite(self, role: str) -> dict[str, Any]:
        text, _ = self._vault.create_invite(
            role=Role[role.upper()], ttl_s=LIMIT_INVITE_TTL_S, uses=200, addresses=self._mesh.addresses
        )
        return {"token": text}

    async def do_join(self, token: str) -> dict[str, Any]:
        data = invites.to_bytes(token)
        await self._mesh.join(invites.read(data, lambda key, *rest: verify(NodeId(key), *rest)), data)
        return {}

    async def do_facts(self) -> dict[str, Any]:
        mesh = self._mesh
        nat = mesh.nat
        members = {
            node.hex(): {
                "nat": None if member.dynamic is None else member.dynamic.nat,
                "relay": member.dynamic is not None and member.dynamic.relay,
                "addresses": [] if member.identity is None else [str(address) for address in member.identity.addresses],
                "linked": member.linked,
                "state": member.state,
                "path": mesh.path_of(node),
            }
            for node, member in mesh.members().members.items()
        }
        facts = {
            "kind": nat.kind,
            "observed": [str(each) for each in nat.observed],
            "mapped": [str(each) for each in nat.mapped],
            "relays": nat.relays,
        }
        counters = {name: count for name, count in mesh.counters.items() if count}
        addresses = [str(address) for address in mesh.addresses]
        return {"nat": facts, "addresses": addresses, "members": members, "counters": counters}

    async def do_link(self, node: str) -> dict[str, Any]:
        """Be linked with a member."""
        await self._mesh.call(bytes.fromhex(node))
        return {}

    async def do_call(self, node: str, limit_s: float) -> dict[str, Any]:
        """First contact: seconds until a short answer came, over which path, and how often it was asked for."""
        peer = bytes.fromhex(node)
        linked = self._mesh.path_of(peer) is not None
        begun = monotonic()
        self._looking[node] = asyncio.create_task(self._until_direct(peer, begun))
        tries, reason = 0, ""
        whole: bool | None = None
        try:
            async with asyncio.timeout(limit_s):
                while whole is None:
                    tries += 1
                    try:
                        whole = await self._download(peer, 100)
                    except (MeshnodeError, OSError) as error:
                        reason = f"{type(error).__name__}: {error}"
        except TimeoutError:
            path = self._mesh.path_of(peer)
            raise TimeoutError(f"no answer in {limit_s} s and {tries} tries; path {path}; {reason}") from None
        return {
            "linked_before": linked,
            "usable_s": monotonic() - begun,
            "path": self._mesh.path_of(peer),
            "whole": whole,
            "tries": tries,
        }

    async def do_until_direct(self, node: str, limit_s: float) -> dict[str, Any]:
        """Seconds from `call` until the path was direct; None when it is not within `limit_s` from now."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                return {"direct_s": await asyncio.shield(self._looking[node])}
        return {"direct_s": None}

    async def _until_direct(self, peer: bytes, begun: float) -> float:
        while self._mesh.path_of(peer) != "direct":
            await asyncio.sleep(LOOK_S)
        return monotonic() - begun

    async def do_download(self, node: str, size_bytes: int, pause_s: float = 0.0) -> dict[str, Any]:
        """A long answer: how fast, over which paths while it came, and whether every byte was right."""
        begun = monotonic()
        paths: list[str | None] = []
        whole = await self._download(bytes.fromhex(node), size_bytes, pause_s, paths)
        return {"s": monotonic() - begun, "whole": whole, "paths": paths}

    async def _download(
        self, peer: bytes, size_bytes: int, pause_s: float = 0.0, paths: list[str | None] | None = None
    ) -> bool:
        """Whether exactly the bytes came that the peer was asked for; notes the paths they took. Raises OSError."""
        wanted = json.dumps({"size_bytes": size_bytes, "pause_s": pause_s}).encode()
        exchange = await Exchange.send(
            self._mesh.http(peer), "POST", PATH, api_key="", body=wanted, content_type="application/json"
        )
        found = hashlib.blake2b()
        try:
            async for data in exchange.body():
                found.update(data)
                path = self._mesh.path_of(peer)
                if paths is not None and path not in paths[-1:]:
                    paths.append(path)
        finally:
            exchange.close()
        expected = hashlib.blake2b()
        for piece in pieces(size_bytes):
            expected.update(piece)
        return exchange.status == 200 and found.digest() == expected.digest()


def pieces(size_bytes: int) -> Iterator[bytes]:
    """So many bytes, no two pieces alike."""
    for number, start in enumerate(range(0, size_bytes, PIECE_BYTES)):
        yield (number.to_bytes(8, "big") * (PIECE_BYTES // 8))[: size_bytes - start]


def meet_nobody_unasked() -> None:
    """A client is content with the access node that it joined at: it links whom it is told to, and nobody before."""
    clients.FEWEST_ACCESS_NODES = 1


async def serve(node: Node) -> None:
    """Do what is asked until nobody asks any more."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    running: set[asyncio.Task[None]] = set()
    while line := await reader.readline():
        order = json.loads(line)
        task = asyncio.create_task(_do(node, order.pop("id"), order.pop("do"), order))
        running.add(task)
        task.add_done_callback(running.discard)
    for task in running:
        task.cancel()
    await node.close()


async def _do(node: Node, number: int, name: str, given: dict[str, Any]) -> None:
    try:
        answer = await getattr(node, f"do_{name}")(**given)
    except (MeshnodeError, OSError, TimeoutError) as reason:
        answer = {"error": f"{type(reason).__name__}: {reason}"}
    print(json.dumps({"id": number, **answer}), flush=True)


if __name__ == "__main__":
    folder, role, *flags = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    meet_nobody_unasked()
    node = Node(
        Path(folder),
        Role[role.upper()],
        relay="--relay" in flags,
        fast="--fast-relay" in flags,
        map_port="--map" in flags,
    )
    asyncio.run(serve(node))
