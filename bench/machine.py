"""What the figures were measured on: processor, memory, system, versions, commit, and how busy the machine was.

python -m bench.machine
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("uvicorn", "starlette", "httptools", "aioquic")


def describe() -> dict[str, Any]:
    """The machine as JSON values; what cannot be found out is left out."""
    facts = {
        "processor": _processor(),
        "architecture": platform.machine(),
        "cores": psutil.cpu_count(logical=False) or 0,
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": _system(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "commit": commit(),
        "load_1min": round(os.getloadavg()[0], 2),
    }
    return {name: value for name, value in facts.items() if value}


def commit() -> str:
    """The commit of this checkout, with `+` when files that are measured differ from it; "" outside of one."""
    head = _git("rev-parse", "--short=10", "HEAD")
    return head + ("+" if _git("status", "--porcelain", "--", "meshnode", "llama.cpp-patches") else "") if head else ""


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _system() -> str:
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        name = ""
    return ", ".join(part for part in (name, f"{platform.system()} {platform.release()}") if part)


if __name__ == "__main__":
    print(json.dumps(describe(), indent=2))
