"""Memory and processors, and the cgroups of containers from trees like the kernel's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import psutil
import pytest

from meshnode.hardware.memory import FLAGS, read_memory, read_processor

DATA = Path(__file__).parent / "data"
MIB = 1 << 20


def tree(root: Path, **files: object) -> Path:
    """Files under `root`; `__` stands for `/` and `_dot_` for a dot in their names."""
    for name, value in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return root


def test_without_limits_it_is_the_machine(tmp_path: Path) -> None:
    memory = read_memory(tmp_path)
    assert memory.source == "machine" and memory.total_bytes == psutil.virtual_memory().total
    assert 0 < memory.available_bytes <= memory.total_bytes


def test_cgroup_v2(tmp_path: Path) -> None:
    base = tmp_path / "sys/fs/cgroup/user.slice"
    base.mkdir(parents=True)
    (base / "memory.max").write_text(f"{512 * MIB}\n")
    (base / "memory.current").write_text(f"{300 * MIB}\n")
    (base / "memory.stat").write_text(f"anon 5\ninactive_file {100 * MIB}\nactive_file 7\n")
    (base / "app").mkdir()
    (base / "app" / "memory.max").write_text("max\n")
    tree(tmp_path, proc__self__cgroup="0::/user.slice/app")
    memory = read_memory(tmp_path)
    assert (memory.total_bytes, memory.available_bytes, memory.source) == (512 * MIB, 312 * MIB, "cgroup")


def test_cgroup_v1_and_a_path_of_the_host(tmp_path: Path) -> None:
    tree(
        tmp_path,
        proc__self__cgroup="9:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/",
        sys__fs__cgroup__memory__memory_dot_limit_in_bytes=256 * MIB,
        sys__fs__cgroup__memory__memory_dot_usage_in_bytes=200 * MIB,
        sys__fs__cgroup__memory__memory_dot_stat=f"total_inactive_file {50 * MIB}",
    )
    memory = read_memory(tmp_path)
    assert (memory.total_bytes, memory.available_bytes, memory.source) == (256 * MIB, 106 * MIB, "cgroup")


@pytest.mark.parametrize("limit", ["9223372036854771712", "-1", "max", "", "many"])
def test_no_limit_in_many_spellings(tmp_path: Path, limit: str) -> None:
    tree(
        tmp_path,
        proc__self__cgroup="4:memory:/\n0::/",
        sys__fs__cgroup__memory__memory_dot_limit_in_bytes=limit,
        sys__fs__cgroup__memory_dot_max=limit if limit != "9223372036854771712" else "max",
    )
    assert read_memory(tmp_path).source == "machine"


def test_more_used_than_the_limit(tmp_path: Path) -> None:
    tree(
        tmp_path,
        proc__self__cgroup="0::/../../etc",
        sys__fs__cgroup__memory_dot_max=MIB,
        sys__fs__cgroup__memory_dot_current=9 * MIB,
    )
    assert read_memory(tmp_path).available_bytes == 0


@pytest.mark.parametrize(
    ("quota", "logical"), [("150000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("x y", None)]
)
def test_processor_quota(tmp_path: Path, quota: str, logical: int | None) -> None:
    tree(tmp_path, proc__self__cgroup="0::/", sys__fs__cgroup__cpu_dot_max=quota)
    processor = read_processor(tmp_path)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert processor.logical == (logical or usable)
    assert processor.physical is None or 1 <= processor.physical <= processor.logical


def test_processor_quota_of_v1(tmp_path: Path) -> None:
    tree(
        tmp_path,
        proc__self__cgroup="3:cpu:/",
        sys__fs__cgroup__cpu__cpu_dot_cfs_quota_us=100000,
        sys__fs__cgroup__cpu__cpu_dot_cfs_period_us=100000,
    )
    assert read_processor(tmp_path).logical == 1


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="cpuinfo is of Linux")
@pytest.mark.parametrize(
    ("name", "model", "flags"),
    [
        ("x86", "AMD Ryzen 9 7950X 16-Core Processor", {"avx2", "fma", "avx512_bf16"}),
        ("arm", None, {"asimd", "asimddp", "i8mm", "sve2"}),
    ],
)
def test_model_and_flags(tmp_path: Path, name: str, model: str | None, flags: set[str]) -> None:
    (tmp_path / "proc").mkdir()
    shutil.copy(DATA / f"cpuinfo_{name}.txt", tmp_path / "proc/cpuinfo")
    processor = read_processor(tmp_path)
    assert processor.model and (model is None or processor.model == model)
    assert flags <= processor.flags <= FLAGS and "fpu" not in processor.flags
