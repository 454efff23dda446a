"""Installs the agents and the JavaScript client that the tests use, in the versions of agents.json, with npm.

They go into ${XDG_CACHE_HOME:-~/.cache}/meshnode/agents/<versions>, outside of the checkout. What is there already
takes no time. A package that cannot be had is named, the others are installed all the same; exit status 1 then.

    python tools/install_agents.py          prints the folder; its node_modules/.bin has the programs
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

VERSIONS = Path(__file__).with_name("agents.json")
STAMP = "complete.json"
LIMIT_S = 900


def folder() -> Path:
    """Where these versions are, or would be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(VERSIONS.read_bytes()).hexdigest()[:12]
    return cache / "meshnode" / "agents" / digest


def installed(package: str) -> bool:
    """Whether a package is there, whole, in its version."""
    stamp = folder() / STAMP
    known = json.loads(stamp.read_text("utf-8")) if stamp.exists() else {}
    return bool(known.get(package) == json.loads(VERSIONS.read_text("utf-8"))[package])


def _npm(packages: list[str], target: Path) -> bool:
    options = ["--prefix", str(target), "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel", "error"]
    # The programs of some packages are put in place by their install scripts.
    done = subprocess.run(["npm", "install", *options, *packages], stdout=sys.stderr, timeout=LIMIT_S)
    return done.returncode == 0


def main() -> int:
    """Install what is missing."""
    versions: dict[str, str] = json.loads(VERSIONS.read_text("utf-8"))
    target = folder()
    missing = [package for package in versions if not installed(package)]
    failed: list[str] = []
    if missing:
        if shutil.which("npm") is None:
            print("npm is needed to install the agents", file=sys.stderr)
            return 1
        target.mkdir(parents=True, exist_ok=True)
        # npm looks for a package.json in the folders above when there is none here.
        manifest = target / "package.json"
        if not manifest.exists():
            manifest.write_text('{"private": true}\n', "utf-8")
        if not _npm([f"{package}@{versions[package]}" for package in missing], target):
            failed = [package for package in missing if not _npm([f"{package}@{versions[package]}"], target)]
        there = {package: version for package, version in versions.items() if package not in failed}
        stamp = target / STAMP
        stamp.with_suffix(".part").write_text(json.dumps(there), "utf-8")
        stamp.with_suffix(".part").replace(stamp)
    for package in failed:
        print(f"not installed: {package}@{versions[package]}", file=sys.stderr)
    print(target)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
