"""A node that others reach through a relay alone, whatever they learn of its addresses.

The node is bound to ::1 and the relay listens on 127.0.0.1: a node that is bound to 127.0.0.1 cannot send to ::1, nor
the other way round. An invite that names the relay is signed by the node itself, with the key in its home.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

from meshnode.identity import load
from meshnode.wire import invites
from meshnode.wire.address import Address
from tests.conftest import NodeProcess, StartNode
from tests.e2e.meshes import SMALL, invite_of
from tests.lab.rogue_peer import what_it_says
from tests.lab.udp_relay import UdpRelay


def why_not() -> str:
    """Why that cannot be done here; empty when it can."""
    try:
        free_port()
    except OSError:
        return "this machine has no ::1"
    return ""


def free_port() -> int:
    """A UDP port on ::1 that is free at the moment."""
    with closing(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)) as probe:
        probe.bind(("::1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def relay_to(
    start: StartNode, *arguments: str, record: bool = False, mesh_name: str = "home", name: str = "behind"
) -> Iterator[tuple[NodeProcess, UdpRelay]]:
    """A new node behind a new relay. The relay ends with the block, the node with its fixture."""
    port = free_port()
    environment = {**SMALL, "MESHNODE_BIND_HOST": "::1", "MESHNODE_BIND_PORT": str(port)}
    node = start(*arguments, "--private-mesh-name", mesh_name, "--name", name, environment=environment)
    with UdpRelay(server=("::1", port), front=("127.0.0.1", 0), record=record) as relay:
        yield node, relay


def invite_through(node: NodeProcess, relay: UdpRelay) -> str:
    """The invite that the node printed, with the relay as the only address."""
    said = replace(what_it_says(invite_of(node)), addresses=(Address(*relay.address),))
    return invites.write(said, load(node.home / "node.key").sign)
