"""Where one llama-server will listen: a Unix socket in a folder only this user can enter, or a free loopback port.

Each start gets a fresh address, so that nothing left by an earlier start is in its way.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from pathlib import Path

from meshnode.engine.commands import SOCKET_PATH_BYTES, Address

# "/000001.sock"
_NAME_BYTES = 12


class AddressBook:
    """Hands out addresses for one llama-server after another and removes what they leave behind.

    `folder` belongs to this book alone; sockets found in it are leftovers of a node that was killed. Where it
    cannot be used (too long a path, another owner, a file system without sockets) a temporary folder takes its
    place, and where that fails too, or with `unix=False`, loopback ports do.
    """

    def __init__(self, folder: Path, *, unix: bool = hasattr(socket, "AF_UNIX")) -> None:
        self._wanted = folder
        self._folder: Path | None = None
        self._temporary = False
        self._unix = unix
        self._given = 0

    def fresh(self) -> Address:
        """A new address. Raises OSError only if not even a loopback port can be had."""
        self._given += 1
        if self._unix and self._folder is None:
            self._folder = self._prepare()
            self._unix = self._folder is not None
        if self._folder is not None:
            return Address(socket=self._folder / f"{self._given % 1_000_000:06}.sock")
        # Between this close and the bind of the child another program may take the port; the caller tries again.
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return Address(port=probe.getsockname()[1])

    def release(self, address: Address) -> None:
        """Remove the socket of a llama-server that has ended: it leaves the file behind."""
        if address.socket is not None:
            with contextlib.suppress(OSError):
                address.socket.unlink()

    def close(self) -> None:
        """Remove the folder."""
        if self._folder is not None and self._temporary:
            shutil.rmtree(self._folder, ignore_errors=True)
        elif self._folder is not None:
            with contextlib.suppress(OSError):
                self._folder.rmdir()
        self._folder = None

    def _prepare(self) -> Path | None:
        try:
            if _is_short(self._wanted):
                self._wanted.mkdir(mode=0o700, parents=True, exist_ok=True)
                if _is_ours(self._wanted) and _takes_sockets(self._wanted):
                    return self._wanted
        except OSError:
            pass
        try:
            folder = Path(tempfile.mkdtemp(prefix="meshnode-"))
        except OSError:
            return None
        self._temporary = True
        if _is_short(folder) and _takes_sockets(folder):
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _is_short(folder: Path) -> bool:
    return len(os.fsencode(folder)) + _NAME_BYTES <= SOCKET_PATH_BYTES


def _is_ours(folder: Path) -> bool:
    """Make the folder private. False if it belongs to somebody else or is a link."""
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid != os.geteuid():
        return False
    folder.chmod(0o700)
    for leftover in folder.glob("*.sock"):
        leftover.unlink(missing_ok=True)
    return True


def _takes_sockets(folder: Path) -> bool:
    path = folder / "000000.sock"
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(str(path))
        path.unlink()
    except OSError:
        return False
    return True
