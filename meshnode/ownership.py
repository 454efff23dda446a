"""What a person has said of keys, on disk: the owner key, the certificate of this node, and the list of trust.

    owner.key     the owner key (Ed25519, PKCS #8 in PEM); on one machine of the owner, and in a backup
    owner.cert    who owns this node, as the text of wire/owners.py; on every machine of the owner
    trust.json    [{"key": hex, "kind": "owner" | "node", "name": text, "radius": "local" | "trusted" | "none"}]

Commands write these files, also while the node runs; the node only reads them (trust.py). All are for their user alone
(0600) and written durably. A damaged file is told in words and never counts in part: what cannot be read gives no
trust.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

from meshnode import durable, identity
from meshnode.core.radius import Grant, TrustList
from meshnode.errors import HomeNotWritable, StateError
from meshnode.identity import Identity, NodeId
from meshnode.wire import owners
from meshnode.wire.owners import BACKDATED_S, OwnerCertificate
from meshnode.wire.registry import LIMIT_NAME_CHARS, LIMIT_OWNER_TTL_S
from meshnode.wire.schema import can_be_shown
from meshnode.wire.signed import KEY_BYTES
from meshnode.wire.values import WireError

Kind = Literal["owner", "node"]
KINDS: Final[tuple[Kind, ...]] = ("owner", "node")
GRANTS: Final[tuple[Grant, ...]] = ("local", "trusted", "none")
MOST_ENTRIES = 1000
MOST_BYTES = 512 << 10
MEMBERS = frozenset({"key", "kind", "name", "radius"})


@dataclass(frozen=True, slots=True)
class Entry:
    """What was said of one key. `name` is the person's own word for it; `radius` `none` means: trusted no more."""

    key: bytes
    kind: Kind
    name: str
    radius: Grant


@dataclass(frozen=True, slots=True)
class OwnerFiles:
    """The files of one home folder."""

    home: Path

    @property
    def key_file(self) -> Path:
        """The owner key."""
        return self.home / "owner.key"

    @property
    def certificate_file(self) -> Path:
        """The certificate of this node."""
        return self.home / "owner.cert"

    @property
    def list_file(self) -> Path:
        """The list of trust."""
        return self.home / "trust.json"

    # --- the owner key --------------------------------------------------------------------------------------

    def load_owner(self) -> Identity | None:
        """The owner key; None where it is not on this machine. Raises StateError."""
        try:
            return identity.load(self.key_file)
        except FileNotFoundError:
            return None
        except StateError as error:
            if not error.detail.endswith("is not the key of a node"):
                raise
            fix = "restore it from a backup; without one: remove it, `meshnode owner init`, and sign your machines anew"
            raise StateError(f"{self.key_file} is not the key of an owner", fix=fix) from None

    def make_owner(self) -> Identity:
        """The owner key, made on first use. Raises StateError, HomeNotWritable."""
        with self._alone():
            return self.load_owner() or identity.create(self.key_file)

    # --- the certificate of this node -----------------------------------------------------------------------

    def load_certificate(self, node: bytes) -> tuple[bytes, OwnerCertificate] | None:
        """The certificate of this node, signed and read, whatever its time; None without one, or with one of a key
        that the node had before. Raises StateError for a file that no owner has signed.
        """
        text = _read_private(self.certificate_file)
        if text is None:
            return None
        try:
            signed = owners.to_bytes(text.decode("ascii", "replace"))
            # That of the key before the last `meshnode rotate-key` is no damage, and gives nothing.
            certificate = read_certificate(signed, owners.read(signed).node)
        except WireError as error:
            fix = f"remove {self.certificate_file}, and accept a new one: meshnode owner accept CERT"
            raise StateError(f"{self.certificate_file} is damaged ({error.reason})", fix=fix) from None
        return (signed, certificate) if certificate.node == node else None

    def keep_certificate(self, signed: bytes) -> None:
        """Keep the certificate of this node; whoever calls has checked it. Raises HomeNotWritable."""
        durable.write(self.certificate_file, owners.to_text(signed).encode() + b"\n")

    # --- the list of trust ----------------------------------------------------------------------------------

    def load_list(self) -> list[Entry]:
        """What was said of which key, in the order in which it was first said. Raises StateError."""
        data = _read_private(self.list_file)
        return [] if data is None else self._parse(data)

    def put(self, entry: Entry) -> None:
        """Say this of a key, in place of what was said of it before. Raises StateError, HomeNotWritable."""
        with self._alone():
            entries = self.load_list()
            same = [known for known in entries if (known.kind, known.key) == (entry.kind, entry.key)]
            if same:
                entries[entries.index(same[0])] = entry
            elif len(entries) < MOST_ENTRIES:
                entries.append(entry)
            else:
                raise StateError(f"{self.list_file} has {MOST_ENTRIES} entries, as many as it may", fix="remove some")
            plain = [{**asdict(known), "key": known.key.hex()} for known in entries]
            durable.write(self.list_file, json.dumps(plain, indent=1, ensure_ascii=False).encode() + b"\n")

    def _parse(self, data: bytes) -> list[Entry]:
        def damaged(why: str) -> NoReturn:
            fix = f"mend it, or remove {self.list_file}: then nothing but membership in your mesh gives trust"
            raise StateError(f"{self.list_file} is damaged ({why})", fix=fix)

        try:
            found = json.loads(data, object_pairs_hook=_members)
        except (ValueError, RecursionError) as reason:
            damaged(f"no JSON: {reason}"[:200])
        if not isinstance(found, list) or len(found) > MOST_ENTRIES:
            damaged(f"it must be a list of at most {MOST_ENTRIES} entries")
        entries = []
        for number, plain in enumerate(found, 1):
            try:
                entries.append(_entry(plain))
            except ValueError as reason:
                damaged(f"entry {number}: {reason}")
        if len({(entry.kind, entry.key) for entry in entries}) < len(entries):
            damaged("a key is there twice")
        return entries

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One command at a time changes these files: what one has said must not be lost to another."""
        try:
            self.home.mkdir(mode=durable.PRIVATE_FOLDER, parents=True, exist_ok=True)
            opened = (self.home / "owner.lock").open("a+b")
        except OSError as reason:
            raise HomeNotWritable(f"{self.home}: {reason.strerror}") from None
        with opened:
            fcntl.flock(opened, fcntl.LOCK_EX)
            yield


def trust_list(entries: list[Entry]) -> TrustList:
    """The same for core/radius."""
    nodes, of_owners = (
        {entry.key: entry.radius for entry in entries if entry.kind == kind} for kind in ("node", "owner")
    )
    return TrustList(nodes, of_owners)


def sign_for(owner: Identity, node: bytes, now_s: float, ttl_s: int = LIMIT_OWNER_TTL_S) -> bytes:
    """A certificate of the owner for a node, for so many seconds from now. Raises ValueError beyond owner_ttl_s."""
    if not 0 < ttl_s <= LIMIT_OWNER_TTL_S:
        raise ValueError(f"from 1 to {LIMIT_OWNER_TTL_S} seconds")
    start = max(0, int(now_s) - BACKDATED_S)
    return owners.issue(OwnerCertificate(bytes(owner.node_id), node, start, int(now_s) + ttl_s), owner.sign)


def read_certificate(signed: bytes, node: bytes) -> OwnerCertificate:
    """The certificate, if its owner signed it for this node, whatever its time. Raises WireError."""
    return owners.read_genuine(signed, node=node, verify=_verify)


def _verify(key: bytes, signature: bytes, message: bytes) -> bool:
    return identity.verify(NodeId(key), signature, message)


def _read_private(file: Path) -> bytes | None:
    try:
        with file.open("rb") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            data = opened.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as reason:
        raise StateError(f"{file} cannot be read: {reason.strerror}") from None
    if mode & 0o077:
        raise StateError(f"others can read or change {file}", fix=f"look at what it says, then: chmod 600 {file}")
    if len(data) > MOST_BYTES:
        raise StateError(f"{file} has more than {MOST_BYTES} bytes", fix="restore it from a backup, or remove it")
    return data


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a member is there twice")
    return found


def _entry(plain: Any) -> Entry:
    if not isinstance(plain, dict) or set(plain) != MEMBERS:
        raise ValueError(f"it must have {', '.join(sorted(MEMBERS))} and nothing else")
    key, kind, name, radius = plain["key"], plain["kind"], plain["name"], plain["radius"]
    if not isinstance(key, str) or len(key) != 2 * KEY_BYTES or key != key.lower():
        raise ValueError(f"a key has {2 * KEY_BYTES} hex digits")
    if kind not in KINDS or radius not in GRANTS:
        raise ValueError(f"a kind is one of {', '.join(KINDS)}, a radius one of {', '.join(GRANTS)}")
    if not isinstance(name, str) or len(name) > LIMIT_NAME_CHARS or not can_be_shown(name):
        raise ValueError(f"a name has at most {LIMIT_NAME_CHARS} characters that can be shown")
    raw = bytes.fromhex(key)
    if raw.hex() != key:
        raise ValueError(f"a key has {2 * KEY_BYTES} hex digits")
    return Entry(raw, kind, name, radius)
