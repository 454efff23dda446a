"""A new key for a node that does not run: written, vouched for by the old one, and put in its place.

    1  node.key.next           the new key
    2  mesh/membership.next    its certificate, signed by the old key (mesh/credentials.py)
    3  node.key                replaced by node.key.next: from here on the node is the new one
    4  mesh/membership         replaced by membership.next

A crash before step 3 leaves the old identity, one after it the new one, each with a certificate: the start of a node
does step 4 by itself. Peers that see the new certificate refuse the old key from then on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from meshnode import durable, identity
from meshnode.errors import StateError
from meshnode.identity import NodeId
from meshnode.mesh.vault import Vault


def rotate(home: Path, clock: Callable[[], float] = time.time) -> tuple[NodeId, NodeId]:
    """Give the node of this home folder a new key; the old id and the new one. The caller holds the home's lock.

    Raises StateError when there is no key yet or the membership cannot be handed on, HomeNotWritable.
    """
    key_file = home / "node.key"
    next_file = home / "node.key.next"
    try:
        old = identity.load(key_file)
    except FileNotFoundError:
        raise StateError(f"there is no key in {home}", fix="start a node first: meshnode --model demo") from None
    vault = Vault(home / "mesh", old, clock)
    new = identity.create(next_file)
    vault.prepare_succession(new.node_id)
    durable.rename(next_file, key_file)
    Vault(home / "mesh", new, clock)
    return old.node_id, new.node_id
