"""Which nodes of the hash table this node knows: few that are far, many that are near (Kademlia, section 2.4).

A bucket holds the nodes whose distance has the same number of bits. Who has been known for long and still answers
stays; who is new waits among the spares until somebody fails. Against a crowd from one network (an eclipse attack,
Singh et al. 2006) at most two nodes of a prefix are in a bucket, and at most four in the table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from meshnode.core.dht_space import KEY_BITS, Scope, far_key, least_told, most, nearest_scope, place, prefix, told_to
from meshnode.core.randomness import Randomness
from meshnode.wire.address import Address
from meshnode.wire.dht import DhtPeer
from meshnode.wire.registry import LIMIT_DHT_PEERS

BUCKET = LIMIT_DHT_PEERS
SPARES = 8
A_PREFIX_IN_THE_TABLE = 4
A_PREFIX_IN_A_BUCKET = 2
FAILURES = 2
"""So often in a row must a node not answer before it is dropped, if nobody waits for its place."""
ADDRESSES = 4


@dataclass(slots=True, eq=False)
class Contact:
    """A node that has answered, or asked. `at` is where it was seen, `peer` says where it can be dialled, and `reach`
    from where at least."""

    node: bytes
    key: int
    at: Address
    peer: DhtPeer
    reach: Scope
    heard_at: float
    failures: int = 0

    def told_to(self, other: Address) -> DhtPeer | None:
        """The node as a peer at `other` may be told of it."""
        if self.reach >= least_told(other):
            return self.peer
        addresses = told_to(self.peer.addresses, other)
        return DhtPeer(self.node, addresses) if addresses else None


class Table:
    """The contacts of a node. Bounded: 256 buckets of 20, in practice some twenty for each doubling of the mesh."""

    def __init__(self, own: bytes) -> None:
        self._own = own
        self.key = place(own)
        self._buckets: dict[int, dict[bytes, Contact]] = {}
        self._spares: dict[int, dict[bytes, Contact]] = {}
        self._contacts: dict[bytes, Contact] = {}
        self._prefixes: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._contacts)

    def __contains__(self, node: bytes) -> bool:
        return node in self._contacts

    def __iter__(self) -> Iterator[Contact]:
        return iter(self._contacts.values())

    # --- what is learned ------------------------------------------------------------------------------------------

    def heard(self, node: bytes, at: Address, addresses: tuple[Address, ...], now: float) -> bool:
        """A node was heard at an address that it has proven. Whether it is in the table now."""
        if node == self._own:
            return False
        known = self._contacts.get(node)
        addresses = addresses[:ADDRESSES]
        if known is not None and prefix(known.at) == prefix(at):
            known.at, known.heard_at, known.failures = at, now, 0
            if known.peer.addresses != addresses:
                known.peer, known.reach = DhtPeer(node, addresses), nearest_scope(addresses)
            return True
        if known is not None:
            self._remove(known)
        contact = Contact(node, place(node), at, DhtPeer(node, addresses), nearest_scope(addresses), now)
        if self._insert(contact):
            return True
        self._keep_as_spare(contact)
        return False

    def failed(self, node: bytes) -> None:
        """A node did not answer. It goes if somebody waits for its place, or when it does so again."""
        contact = self._contacts.get(node)
        bits = self._bits(node) if contact is None else self._distance_bits(contact)
        if contact is None:
            self._spares.get(bits, {}).pop(node, None)
            return
        contact.failures += 1
        if contact.failures >= FAILURES or self._spares.get(bits):
            self.forget(node)

    def forget(self, node: bytes) -> None:
        """A node is gone, or lies. The newest spare that fits takes its place."""
        contact = self._contacts.get(node)
        if contact is None:
            return
        self._remove(contact)
        spares = self._spares.get(self._distance_bits(contact), {})
        for spare in sorted(spares.values(), key=lambda spare: -spare.heard_at):
            if self._insert(spare):
                del spares[spare.node]
                return

    # --- what is asked --------------------------------------------------------------------------------------------

    def nearest(self, key: int, count: int, without: bytes = b"") -> list[Contact]:
        """The contacts nearest to a key, nearest first.

        The bucket to which the key belongs holds the nearest; then come those below it, then those above, one by one.
        """
        buckets = self._buckets
        found: list[Contact] = []
        top = (key ^ self.key).bit_length()
        found += buckets.get(top, {}).values()
        if len(found) <= count:
            for bits, bucket in buckets.items():
                if bits < top:
                    found += bucket.values()
        if len(found) <= count:
            for bits in sorted(bits for bits in buckets if bits > top):
                found += buckets[bits].values()
                if len(found) > count:
                    break
        found.sort(key=lambda contact: contact.key ^ key)
        return [contact for contact in found[: count + 1] if contact.node != without][:count]

    def is_near(self, key: int, nearest: Sequence[Contact]) -> bool:
        """Whether this node is among the twenty nearest to the key, of which it knows these."""
        return len(nearest) < BUCKET or self.key ^ key < nearest[-1].key ^ key

    def stalest(self, count: int, before: float) -> list[Contact]:
        """Contacts that were not heard since `before`, the longest silent first."""
        silent = [contact for contact in self if contact.heard_at < before]
        return sorted(silent, key=lambda contact: contact.heard_at)[:count]

    def key_to_look_for(self, random: Randomness) -> int:
        """A key in one of the buckets that this node could fill: the far half of the table, as the near one is full of
        neighbours."""
        fewest = min(self._buckets, default=KEY_BITS)
        bits = KEY_BITS - int(random.random() * (KEY_BITS - fewest + 1))
        return far_key(self.key, bits, random)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _bits(self, node: bytes) -> int:
        return (place(node) ^ self.key).bit_length()

    def _distance_bits(self, contact: Contact) -> int:
        return (contact.key ^ self.key).bit_length()

    def _insert(self, contact: Contact) -> bool:
        bits = self._distance_bits(contact)
        bucket = self._buckets.get(bits, {})
        network = prefix(contact.at)
        if len(bucket) >= BUCKET or self._prefixes[network] >= most(contact.at, A_PREFIX_IN_THE_TABLE):
            return False
        if _of_network(network, bucket.values()) >= most(contact.at, A_PREFIX_IN_A_BUCKET):
            return False
        self._buckets[bits] = bucket
        bucket[contact.node] = self._contacts[contact.node] = contact
        self._prefixes[network] += 1
        return True

    def _keep_as_spare(self, contact: Contact) -> None:
        spares = self._spares.setdefault(self._distance_bits(contact), {})
        network = prefix(contact.at)
        spares.pop(contact.node, None)
        if _of_network(network, spares.values()) >= most(contact.at, A_PREFIX_IN_A_BUCKET):
            return
        spares[contact.node] = contact
        if len(spares) > SPARES:
            del spares[next(iter(spares))]

    def _remove(self, contact: Contact) -> None:
        bits = self._distance_bits(contact)
        bucket = self._buckets[bits]
        del bucket[contact.node], self._contacts[contact.node]
        if not bucket:
            del self._buckets[bits]
        network = prefix(contact.at)
        self._prefixes[network] -= 1
        if not self._prefixes[network]:
            del self._prefixes[network]


def _of_network(network: str, contacts: Collection[Contact]) -> int:
    return sum(prefix(contact.at) == network for contact in contacts)
