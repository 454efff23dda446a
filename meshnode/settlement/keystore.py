"""The keys of a wallet on disk: a folder (0700) with one keystore of version 3 for each name (<name>.json, 0600).

The form of the files is that of foundry and geth, so a key can be brought and taken away by copying its file. Nothing
here replaces a key that is there: it may be the only copy of what holds the money. All that derives a key from a
password takes up to a second (keystore_v3): callers of an event loop use a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from meshnode import durable
from meshnode.errors import HomeNotWritable, KeystoreInvalid, NoWallet, SettingsError, StateError
from meshnode.settlement import keystore_v3
from meshnode.settlement.keys import VoucherKey
from meshnode.settlement.keystore_v3 import KDFS, MOST_TEXT_BYTES, Kdf

_SUFFIX = ".json"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_LOCK = ".lock"


@dataclass(frozen=True, slots=True)
class Account:
    """A key of the folder. `address` is None where its file names none, as foundry's do not."""

    name: str
    address: bytes | None


class Keystore:
    """The folder. It is made with the first key; no other method touches it before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def accounts(self) -> tuple[Account, ...]:
        """The keys that are there, by name. Files that are no keystores are in `damaged` instead."""
        return tuple(account for _, account in self._listed() if account is not None)

    def damaged(self) -> tuple[str, ...]:
        """The names whose files cannot be used."""
        return tuple(name for name, account in self._listed() if account is None)

    def add(self, name: str, key: VoucherKey, password: bytes, kdf: Kdf = KDFS["scrypt"]) -> Account:
        """Keep a key under a name that is free.

        Raises SettingsError for a name that cannot be one, StateError when it is taken, HomeNotWritable, or
        KeystoreInvalid where the memory for scrypt is not there.
        """
        file = self._file(name)
        text = keystore_v3.sealed(key, password, kdf)
        with self._locked():
            if file.exists():
                raise StateError(
                    f"there is a key named {name} already, and keys are never replaced", fix="name it otherwise"
                )
            durable.write(file, text.encode("ascii"))
        return Account(name, key.address)

    def take(
        self,
        name: str,
        text: str | bytes,
        password: bytes,
        new_password: bytes | None = None,
        kdf: Kdf = KDFS["scrypt"],
    ) -> Account:
        """Keep a key that another tool has sealed, sealed anew; `new_password` None: with the same password.

        Raises WrongPassword, and what `add` raises.
        """
        key = keystore_v3.opened(text, password)
        return self.add(name, key, password if new_password is None else new_password, kdf)

    def export(self, name: str) -> str:
        """The text of a key, still locked. Raises NoWallet, KeystoreInvalid, StateError."""
        text = self._read(name)
        keystore_v3.address_in(text)
        return text.decode("utf-8")

    def unlock(self, name: str, password: bytes) -> VoucherKey:
        """The key of a name. Raises NoWallet, WrongPassword, KeystoreInvalid, StateError when others can read it."""
        return keystore_v3.opened(self._read(name), password)

    def _file(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise SettingsError("the name of a key has 1 to 64 small letters, digits, - and _")
        return self.folder / f"{name}{_SUFFIX}"

    def _read(self, name: str) -> bytes:
        file = self._file(name)
        try:
            with file.open("rb") as opened:
                mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
                text = opened.read(MOST_TEXT_BYTES + 1)
        except FileNotFoundError:
            raise NoWallet(f"there is no key named {name}") from None
        except OSError as reason:
            raise StateError(f"{file} cannot be read: {reason.strerror}") from None
        if mode & 0o077:
            raise StateError(f"others can read the key {file}", fix=f"chmod 600 {file}")
        return text

    def _listed(self) -> Iterator[tuple[str, Account | None]]:
        for file in sorted(self.folder.glob(f"*{_SUFFIX}")):
            name = file.name.removesuffix(_SUFFIX)
            if not _NAME.fullmatch(name):
                continue
            try:
                yield name, Account(name, keystore_v3.address_in(self._read(name)))
            except (KeystoreInvalid, StateError, NoWallet):
                yield name, None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Between looking for a name and taking it, no other process may take it."""
        try:
            self.folder.mkdir(mode=durable.PRIVATE_FOLDER, parents=True, exist_ok=True)
            self.folder.chmod(durable.PRIVATE_FOLDER)
            lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, durable.PRIVATE_FILE)
        except OSError as reason:
            raise HomeNotWritable(f"{self.folder}: {reason.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)
