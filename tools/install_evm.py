"""Installs the Solidity compiler and the local Ethereum node that the tests use, as locked in tools/evm, with npm.

They go into ${XDG_CACHE_HOME:-~/.cache}/meshnode/evm/<lock>, outside of the checkout. What is there already takes no
time. Versions and hashes of every package stand in tools/evm/package-lock.json; no script of a package is run. The
local node comes as a program for Linux on x86-64; elsewhere an `anvil` on the PATH is used, or its tests are skipped.

    python tools/install_evm.py          prints the folder
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

LOCKED = Path(__file__).with_name("evm")
FILES = ("package.json", "package-lock.json")
STAMP = "complete"
LIMIT_S = 300
ANVIL = "node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil"


def folder() -> Path:
    """Where these versions are, or would be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(b"".join((LOCKED / name).read_bytes() for name in FILES)).hexdigest()[:12]
    return cache / "meshnode" / "evm" / digest


def compiler() -> Path | None:
    """The folder of the `solc` package, or None where it is not installed or there is no node to run it."""
    ready = (folder() / STAMP).exists() and shutil.which("node") is not None
    return folder() / "node_modules" / "solc" if ready else None


def anvil() -> Path | None:
    """The local Ethereum node: the installed one, else one on the PATH, else None."""
    installed = folder() / ANVIL
    if (folder() / STAMP).exists() and installed.exists():
        return installed
    found = shutil.which("anvil")
    return Path(found) if found else None


def main() -> int:
    """Install what is missing."""
    target = folder()
    if not (target / STAMP).exists():
        if shutil.which("npm") is None:
            print("npm is needed to install the compiler and the local node", file=sys.stderr)
            return 1
        target.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copyfile(LOCKED / name, target / name)
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel", "error"]
        done = subprocess.run(["npm", "ci", *options], cwd=target, stdout=sys.stderr, timeout=LIMIT_S)
        if done.returncode != 0:
            print("not installed: see the lines of npm above", file=sys.stderr)
            return 1
        (target / STAMP).touch()
    print(target)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
