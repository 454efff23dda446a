"""Vaults of several nodes with one clock, for tests."""

from __future__ import annotations

from pathlib import Path

from meshnode.identity import Identity, load_or_create
from meshnode.mesh.vault import Vault
from meshnode.wire import invites
from meshnode.wire.address import Address
from meshnode.wire.registry import Role

HERE = (Address("192.0.2.2", 9337),)
NOW_S = 1_800_000_000.0
DAY_S = 86_400


class Clock:
    """Wall time that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


class Node:
    """The home folder of one node: a key and a vault."""

    def __init__(self, home: Path, clock: Clock) -> None:
        self.home = home
        self.clock = clock
        self.identity: Identity = load_or_create(home / "node.key")
        self.vault = Vault(home / "mesh", self.identity, clock)

    @property
    def id(self) -> bytes:
        return self.identity.node_id

    def reopened(self) -> Node:
        """The same home after the end of the process."""
        return Node(self.home, self.clock)

    def invite(self, *, role: Role = Role.MEMBER, uses: int = 5, ttl_s: int = DAY_S, may_invite: bool = False) -> bytes:
        """The bytes of a new invite."""
        text, _ = self.vault.create_invite(role=role, uses=uses, ttl_s=ttl_s, may_invite=may_invite, addresses=HERE)
        return invites.to_bytes(text)

    def join(self, issuer: Node, token: bytes, role: Role = Role.MEMBER) -> bytes:
        """Become a member; returns the certificate."""
        mine = issuer.vault.credentials
        assert mine is not None
        certificate = issuer.vault.redeem(token, self.id, role)
        self.vault.accept(mine.mesh, mine.mesh_name, certificate)
        return certificate


class Village:
    """A founder, and others who join."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = Clock()
        self.founder = self.stranger("founder")
        self.founder.vault.found("home")

    def stranger(self, name: str) -> Node:
        return Node(self.folder / name, self.clock)

    def member(self, name: str, *, issuer: Node | None = None, may_invite: bool = False) -> Node:
        node = self.stranger(name)
        node.join(issuer or self.founder, (issuer or self.founder).invite(may_invite=may_invite))
        return node
