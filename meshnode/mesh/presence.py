"""What this node says of itself: its greeting, its identity statement, and the addresses in both."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from meshnode.mesh.addresses import Observed, advertised, interface_hosts
from meshnode.mesh.options import MeshOptions
from meshnode.mesh.vault import Vault
from meshnode.wire.address import Address
from meshnode.wire.messages import Hello
from meshnode.wire.registry import LIMIT_ADDRESSES, VERSION, Role
from meshnode.wire.statements import Identity


class Presence:
    """`refresh` reads the interfaces of the machine, and must be called once `bound` is known."""

    def __init__(self, vault: Vault, role: Role, options: MeshOptions) -> None:
        self._vault = vault
        self._role = role
        self._options = options
        self._observed = Observed()
        self.bound = Address("127.0.0.1", 0)
        self.addresses: tuple[Address, ...] = ()

    async def refresh(self) -> bool:
        """Find out the addresses of this node. Whether they have changed."""
        if self._options.advertise:
            found = self._options.advertise[:LIMIT_ADDRESSES]
        else:
            hosts: Sequence[str] = await asyncio.to_thread(interface_hosts)
            found = advertised(self.bound, hosts, self._observed.agreed())
        changed = found != self.addresses
        self.addresses = found
        return changed

    def seen_at(self, address: Address, by: bytes) -> None:
        """A peer has told where it sees this node."""
        self._observed.note(by, address)

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
        return Identity(mine.certificate, self.addresses, self._options.name, self._options.software)
