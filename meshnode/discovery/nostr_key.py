"""The Nostr key of this node, on disk and in use: it publishes listings and is bound to the node key by each of them.

The file holds 64 hex digits, mode 0600, written and synced before the key is used for the first time. nostr_sdk has the
curve (BIP 340) and the search for work (NIP-13); it is imported when a key or a signature is needed, and never before.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from meshnode import durable
from meshnode.errors import StateError
from meshnode.wire.nostr import Event, read_event, to_json

KEY_DIGITS = 64
MAX_KEY_FILE_BYTES = 4096


class NostrKey:
    """A key that signs events. What is secret in it is never shown."""

    def __init__(self, keys: Any) -> None:
        """`keys` are nostr_sdk.Keys."""
        self._keys = keys

    @property
    def public(self) -> bytes:
        """The public key, 32 bytes."""
        return bytes.fromhex(self._keys.public_key().to_hex())

    def sign(self, kind: int, tags: list[list[str]], content: str, created_at: int, *, work_bits: int = 0) -> Event:
        """An event of this key, with so much work behind it.

        Blocks for as long as that takes: 20 ms for 16 bits as a rule, ten times as long with bad luck.
        """
        from nostr_sdk import EventBuilder, Kind, SingleThreadPow, Tag, Timestamp

        builder = EventBuilder(Kind(kind), content).tags([Tag.parse(tag) for tag in tags])
        unsigned = builder.custom_created_at(Timestamp.from_secs(created_at)).finalize_unsigned(self._keys.public_key())
        if work_bits:
            unsigned = unsigned.mine(SingleThreadPow(), work_bits)
        return read_event(json.loads(unsigned.sign(self._keys).as_json()))

    def __repr__(self) -> str:
        return f"NostrKey({self.public.hex()[:10]})"


def load_or_create(file: Path) -> NostrKey:
    """The key in `file`, made on first use.

    Raises StateError for a file that is no key or that others may read, HomeNotWritable when it cannot be written.
    """
    from nostr_sdk import Keys, NostrSdkError

    try:
        with file.open("rb") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            text = opened.read(MAX_KEY_FILE_BYTES).decode("ascii", "replace").strip()
    except FileNotFoundError:
        keys = Keys.generate()
        durable.write(file, f"{keys.secret_key().to_hex()}\n".encode("ascii"))
        return NostrKey(keys)
    except OSError as reason:
        raise StateError(f"{file} cannot be read: {reason.strerror}") from None
    if mode & 0o077:
        raise StateError(f"others can read the key {file}", fix=f"chmod 600 {file}")
    try:
        if len(text) != KEY_DIGITS:
            raise ValueError
        return NostrKey(Keys.parse(text))
    except (ValueError, NostrSdkError):
        # Not chained: the reason could quote what stands in the file.
        raise StateError(f"{file} is not a Nostr key", fix="remove it: the node then makes a new one") from None


def is_genuine(event: Event) -> bool:
    """Whether the id of the event is that of its content, and its publisher has signed it (wire.nostr.Genuine)."""
    from nostr_sdk import Event as SignedEvent
    from nostr_sdk import NostrSdkError

    try:
        return bool(SignedEvent.from_json(json.dumps(to_json(event))).verify())
    except NostrSdkError:
        return False
