"""The machine's memory and processors, and what a container leaves of them (cgroup v1 and v2).

A container sees the machine's totals everywhere but in its cgroup; an engine that plans with the machine's 64 GB in
a container of 4 GB is killed, and one with 64 spinning threads on a quota of two processors crawls.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from meshnode.hardware.device import Memory, Processor

# cgroup v1 says "no limit" with the largest page-aligned number.
NO_LIMIT_BYTES = 1 << 60
FLAGS = {
    "sse4_2", "avx", "avx2", "f16c", "fma", "bmi2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
    "avx512_vbmi", "avx512_bf16", "amx_tile", "amx_int8", "asimd", "asimddp", "asimdhp", "i8mm", "sve", "sve2", "bf16",
}  # fmt: skip


def read_memory(root: Path = Path("/")) -> Memory:
    """Total and available memory in bytes, within the limits of the cgroup. `root` stands in for / in tests."""
    import psutil

    machine = psutil.virtual_memory()
    total, available, source = int(machine.total), int(machine.available), "machine"
    for limit, used in _memory_limits(root):
        if limit < total or limit - used < available:
            total, available, source = min(total, limit), min(available, max(0, limit - used)), "cgroup"
    return Memory(total, available, source)


def read_processor(root: Path = Path("/")) -> Processor:
    """The processor, within affinity and cgroup quota. `root` stands in for / in tests."""
    import psutil

    affinity = len(os.sched_getaffinity(0)) if sys.platform == "linux" else None
    logical = affinity or os.cpu_count() or 1
    for quota in _processor_quotas(root):
        # Rounded down: a thread for half a processor would hold up the others at every barrier.
        logical = min(logical, max(1, int(quota)))
    physical = psutil.cpu_count(logical=False)
    model, flags = _model_and_flags(root)
    return Processor(model, logical, min(physical, logical) if physical else None, flags)


def _model_and_flags(root: Path) -> tuple[str, frozenset[str]]:
    if sys.platform == "darwin":
        from meshnode.hardware.apple import parse_sysctl, run_sysctl

        model = parse_sysctl(run_sysctl(["machdep.cpu.brand_string"])).get("machdep.cpu.brand_string", "")
        return model or platform.machine(), frozenset()
    try:
        with (root / "proc/cpuinfo").open("rb") as file:
            text = file.read(65536).decode("utf-8", "replace")
    except OSError:
        text = ""
    model = _field(text, "model name|Hardware|Model") or platform.processor() or platform.machine() or "processor"
    return model[:200], frozenset(FLAGS & set(_field(text, "flags|Features").split()))


def _field(text: str, names: str) -> str:
    found = re.search(rf"^(?:{names})[ \t]*: (.*)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) of every cgroup that this process is in. Reclaimable file cache does not count as used."""
    for folder in _cgroup_folders(root, "memory"):
        if (limit := _number(folder / "memory.max")) is not None:
            used = _number(folder / "memory.current") or 0
            yield limit, max(0, used - _statistic(folder / "memory.stat", "inactive_file"))
        elif (limit := _number(folder / "memory.limit_in_bytes")) is not None and limit < NO_LIMIT_BYTES:
            used = _number(folder / "memory.usage_in_bytes") or 0
            yield limit, max(0, used - _statistic(folder / "memory.stat", "total_inactive_file"))


def _processor_quotas(root: Path) -> Iterator[float]:
    """The quota of every cgroup that this process is in, in processors."""
    for folder in _cgroup_folders(root, "cpu"):
        quota, _, period = _line(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            yield int(quota) / int(period)
        length = _number(folder / "cpu.cfs_quota_us")
        if length is not None and (span := _number(folder / "cpu.cfs_period_us")):
            yield length / span


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's cgroup and of all above it, for a controller of v1 and for v2."""
    try:
        lines = (root / "proc/self/cgroup").read_text(errors="replace")[:65536].splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        parts = [part for part in path.split("/") if part not in ("", "..")][:64]
        # In a container the path may be the host's, of which only the mount itself is visible here.
        for depth in range(len(parts), -1, -1):
            yield mount.joinpath(*parts[:depth])


def _line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(256).decode("ascii", "replace").split("\n")[0].strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    """The number in a file; None for `max`, -1, or no such file."""
    text = _line(path)
    return int(text) if text.isdigit() and len(text) < 20 else None


def _statistic(path: Path, name: str) -> int:
    try:
        with path.open("rb") as file:
            text = file.read(65536).decode("ascii", "replace")
    except OSError:
        return 0
    found = re.search(rf"^{name} (\d{{1,19}})$", text, re.MULTILINE)
    return int(found[1]) if found else 0
