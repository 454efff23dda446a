"""What a person can do with the files of owners and trust (ownership.py): make a key, sign, accept, trust, untrust.

Every method answers with plain facts, for `meshnode owner`. ValueError says that what was typed means nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from meshnode import identity
from meshnode.core.radius import Grant
from meshnode.errors import StateError
from meshnode.ownership import Entry, Kind, OwnerFiles, read_certificate, sign_for
from meshnode.wire import owners
from meshnode.wire.owners import OwnerCertificate, is_timely
from meshnode.wire.registry import LIMIT_NAME_CHARS, LIMIT_OWNER_TTL_S
from meshnode.wire.schema import can_be_shown
from meshnode.wire.signed import KEY_BYTES
from meshnode.wire.values import WireError

OWNER_MARK = "owner-"
"""Before the hex digits of an owner key, so that it is not taken for that of a node."""
LEAST_DIGITS = 8
DEFAULT_TTL_S = LIMIT_OWNER_TTL_S

Facts = dict[str, Any]


def key_text(kind: Kind, key: bytes) -> str:
    """A key as it is shown and typed."""
    return (OWNER_MARK if kind == "owner" else "") + key.hex()


def parse_key(text: str) -> tuple[Kind, bytes]:
    """What `key_text` wrote; spaces about it and case do not matter. Raises ValueError."""
    bare = text.strip().lower()
    kind: Kind = "owner" if bare.startswith(OWNER_MARK) else "node"
    digits = bare.removeprefix(OWNER_MARK)
    try:
        key = bytes.fromhex(digits)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES or key.hex() != digits:
        raise ValueError(
            f"neither the id of a node ({2 * KEY_BYTES} hex digits: `meshnode owner show` prints it there)"
            f" nor the key of an owner ({OWNER_MARK} and as many)"
        )
    return kind, key


class Owning:
    """The owner and the trust of one home folder. Every method raises StateError or HomeNotWritable for its files."""

    def __init__(self, home: Path, clock: Callable[[], float] = time.time) -> None:
        self._files = OwnerFiles(home)
        self._clock = clock

    # --- one's own machines -----------------------------------------------------------------------------------

    def init(self, *, replace: bool = False) -> Facts:
        """Make an owner key here, or take the one that is here, and sign this node for a year."""
        files = self._files
        node = bytes(identity.load_or_create(files.home / "node.key").node_id)
        held = files.load_owner()
        self._may_replace(node, None if held is None else bytes(held.node_id), replace)
        signed = sign_for(files.make_owner(), node, self._clock())
        files.keep_certificate(signed)
        return self._facts(node, read_certificate(signed, node)) | {"made": held is None}

    def show(self) -> Facts:
        """This node, whose it is, and until when."""
        node = self._node()
        held = self._files.load_certificate(node)
        return self._facts(node, held[1] if held else None)

    def sign(self, node_id: str, ttl_s: int = DEFAULT_TTL_S) -> Facts:
        """A certificate for another machine. Raises ValueError for what is no node, or too long a time."""
        kind, node = parse_key(node_id)
        if kind != "node":
            raise ValueError("that is the key of an owner, and machines are signed: give the id of a node")
        if not 0 < ttl_s <= LIMIT_OWNER_TTL_S:
            raise ValueError(f"a certificate counts for {LIMIT_OWNER_TTL_S // 86_400} days at most")
        key = self._files.load_owner()
        if key is None:
            fix = "make one: meshnode owner init; or sign where it is"
            raise StateError("the owner key is not on this machine", fix=fix)
        if bytes(key.node_id) == node:
            raise ValueError("that is the owner key itself")
        signed = sign_for(key, node, self._clock(), ttl_s)
        return {
            "node": node.hex(),
            "owner": key.node_id.hex(),
            "ends_at": owners.read(signed).not_after,
            "certificate": owners.to_text(signed),
        }

    def accept(self, text: str, *, replace: bool = False) -> Facts:
        """Take what `sign` wrote for this node. Raises ValueError for what does not count here and now."""
        node = self._node()
        try:
            signed = owners.to_bytes(text)
            found = read_certificate(signed, node)
        except WireError as error:
            raise ValueError(f"{error.reason}; where the owner key is: meshnode owner sign {node.hex()}") from None
        if not is_timely(found, self._clock()):
            raise ValueError("it is not the time of this certificate: look at the clock, or sign anew")
        self._may_replace(node, found.owner, replace)
        self._files.keep_certificate(signed)
        return self._facts(node, found)

    def _node(self) -> bytes:
        file = self._files.home / "node.key"
        try:
            return bytes(identity.load(file).node_id)
        except FileNotFoundError:
            raise StateError(
                f"there is no {file} yet", fix="start a node first: meshnode; or: meshnode owner init"
            ) from None

    def _may_replace(self, node: bytes, wanted: bytes | None, replace: bool) -> None:
        held = self._files.load_certificate(node)
        if held is None or held[1].owner == wanted or replace:
            return
        raise StateError(
            f"this node belongs to {key_text('owner', held[1].owner)}",
            fix="add --replace, if that is to change: the machines of that owner are then no longer yours",
        )

    def _facts(self, node: bytes, certificate: OwnerCertificate | None) -> Facts:
        key = self._files.load_owner()
        return {
            "node": node.hex(),
            "owner": certificate.owner.hex() if certificate else None,
            "ends_at": certificate.not_after if certificate else None,
            "counts": certificate is not None and is_timely(certificate, self._clock()),
            "owner_key_here": None if key is None else key.node_id.hex(),
            "owner_key_file": str(self._files.key_file),
        }

    # --- others -----------------------------------------------------------------------------------------------

    def trust(self, key: str, name: str, radius: Grant) -> Facts:
        """Count a node, or every node of an owner, as this near. Raises ValueError for what is no key or no name."""
        kind, raw = parse_key(key)
        if len(name) > LIMIT_NAME_CHARS or not can_be_shown(name):
            raise ValueError(f"a name has at most {LIMIT_NAME_CHARS} characters that can be shown")
        return self._put(Entry(raw, kind, name, radius))

    def untrust(self, key: str) -> Facts:
        """Count a key for nothing from now on. It may be named as in the list, by its name or its first digits.

        Raises ValueError for what means no key, or several.
        """
        entries = self._files.load_list()
        known = [
            entry for entry in entries if key == entry.name or key_text(entry.kind, entry.key) == key.strip().lower()
        ]
        if not known and len(key.strip()) >= LEAST_DIGITS:
            known = [entry for entry in entries if key_text(entry.kind, entry.key).startswith(key.strip().lower())]
        if len(known) > 1:
            raise ValueError(f"it means {len(known)} keys of the list: write the whole key")
        if known:
            return self._put(replace(known[0], radius="none"))
        kind, raw = parse_key(key)
        return self._put(Entry(raw, kind, "", "none"))

    def entries(self) -> list[Facts]:
        """The list of trust."""
        return [_entry_facts(entry) for entry in self._files.load_list()]

    def _put(self, entry: Entry) -> Facts:
        self._files.put(entry)
        return _entry_facts(entry)


def _entry_facts(entry: Entry) -> Facts:
    text = key_text(entry.kind, entry.key)
    return {"key": entry.key.hex(), "kind": entry.kind, "name": entry.name, "radius": entry.radius, "text": text}
