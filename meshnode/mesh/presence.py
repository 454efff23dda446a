"""What this node says of itself: its greeting, its identity statement, the addresses in both, and what kind of NAT is
before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Sequence

from meshnode.core.traversal import network_of
from meshnode.mesh.addresses import Observed, advertised, interface_hosts
from meshnode.mesh.options import MeshOptions
from meshnode.mesh.vault import Vault
from meshnode.net.nat import classify
from meshnode.wire.address import Address
from meshnode.wire.messages import Hello
from meshnode.wire.registry import LIMIT_ADDRESSES, LIMIT_CANDIDATES, VERSION, Nat, Role
from meshnode.wire.statements import Identity


class Presence:
    """`refresh` reads the interfaces of the machine, and must be called once `bound` is known."""

    def __init__(self, vault: Vault, role: Role, options: MeshOptions) -> None:
        self._vault = vault
        self._role = role
        self._options = options
        self._observed = Observed()
        self._hosts: Sequence[str] = ()
        self._linked: Container[bytes] = ()
        self.bound = Address("127.0.0.1", 0)
        self.addresses: tuple[Address, ...] = ()
        self.nat = Nat.UNKNOWN

    async def refresh(self) -> bool:
        """Find out the addresses of this node. Whether they have changed."""
        if not self._options.advertise:
            hosts = await asyncio.to_thread(interface_hosts)
            if hosts != self._hosts:
                self._hosts = hosts
                self.nat = Nat.UNKNOWN  # another network, another router
        return self._name()

    def look(self, linked: Container[bytes]) -> bool:
        """Make something of what peers have told; those that are `linked` know how this node is seen now.

        Whether anything has changed that others are told.
        """
        self._linked = linked
        before = self.told_nat
        found = classify(self._observed.of(linked), self._local())
        if found is not Nat.UNKNOWN:  # what was known stays known when a witness goes
            self.nat = found
        return self._name() or self.told_nat is not before

    def _name(self) -> bool:
        if self._options.advertise:
            found = self._options.advertise[:LIMIT_ADDRESSES]
        else:
            found = advertised(self.bound, self._hosts, [*self.mapped, *self._observed.agreed()])
        changed = found != self.addresses
        self.addresses = found
        return changed

    def _local(self) -> set[Address]:
        return {self.bound, *(Address(host.partition("%")[0], self.bound.port) for host in self._hosts)}

    def seen_at(self, address: Address, by: bytes, observer: Address) -> None:
        """A peer, which we reach at `observer`, has told where it sees this node."""
        if network_of(address.host) is not None and network_of(observer.host) is not None:
            self._observed.note(by, address, observer)

    @property
    def mapped(self) -> tuple[Address, ...]:
        """What the router forwards to this node."""
        return tuple(address for address in self._options.mapped() if network_of(address.host) is not None)

    @property
    def observed(self) -> tuple[Address, ...]:
        """Where peers see this node, the last that was told first."""
        told = [observation.seen for observation in self._observed.of(self._linked)]
        return tuple(dict.fromkeys(reversed(told)))

    @property
    def told_nat(self) -> Nat:
        """What others are told: where a port is forwarded, or the owner says where the node is, it can be dialled as if
        there were no NAT.
        """
        return Nat.NONE if self.mapped or self._options.advertise else self.nat

    def candidates(self) -> tuple[Address, ...]:
        """Wherever a peer may find this node: what the router forwards, what is advertised, what peers see."""
        known = dict.fromkeys([*self.mapped, *self.addresses, *self.observed])
        return tuple(address for address in known if network_of(address.host) is not None)[:LIMIT_CANDIDATES]

    def hello(self, *, mesh: bytes = b"", invite: bytes = b"") -> Hello | None:
        """Our greeting: with our certificate, or to join `mesh` with an invite. None where we have neither."""
        mine = self._vault.credentials
        if mine is None and not invite:
            return None
        return Hello(
            VERSION,
            mesh if mine is None else mine.mesh,
            self._role,
            certificate=b"" if mine is None else mine.certificate,
            invite=invite,
            addresses=self.addresses,
            name=self._options.name,
            software=self._options.software,
        )

    def identity(self) -> Identity | None:
        """Our identity statement; None in no mesh."""
        mine = self._vault.credentials
        if mine is None:
            return None
        # In an open mesh everybody could tell which strangers are one person.
        owner = b"" if self._vault.is_open else self._options.owner()
        return Identity(mine.certificate, self.addresses, self._options.name, self._options.software, owner)
