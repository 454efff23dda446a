"""AMD cards from a tree like the one the amdgpu driver shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshnode.hardware.amd import AmdProbe

GIB = 1 << 30


def card(root: Path, name: str, **files: object) -> None:
    device = root / "sys/class/drm" / name / "device"
    device.mkdir(parents=True)
    for file, value in {"vendor": "0x1002", **files}.items():
        (device / file).write_text(f"{value}\n")


def test_cards_in_order_without_connectors_and_strangers(tmp_path: Path) -> None:
    card(tmp_path, "card10", mem_info_vram_total=16 * GIB, mem_info_vram_used=GIB, device="0x744c")
    card(tmp_path, "card2", mem_info_vram_total=24 * GIB, mem_info_vram_used=2 * GIB, mem_info_gtt_total=31 * GIB,
         product_name="Radeon RX 7900 XTX")  # fmt: skip
    card(tmp_path, "card0", vendor="0x10de")
    (tmp_path / "sys/class/drm/card2-DP-1").mkdir()
    (tmp_path / "sys/class/drm/renderD128").mkdir()
    version = tmp_path / "sys/module/amdgpu/version"
    version.parent.mkdir(parents=True)
    version.write_text("6.12.12\n")
    first, second = AmdProbe(tmp_path).read()
    assert (first.name, first.total_bytes, first.free_bytes) == ("Radeon RX 7900 XTX", 24 * GIB, 22 * GIB)
    assert (second.name, second.free_bytes, second.driver) == ("AMD GPU 0x744c", 15 * GIB, "6.12.12")
    assert not first.unified and first.backends == ("ROCm", "Vulkan")


def test_an_apu_shares_the_memory_of_the_machine(tmp_path: Path) -> None:
    card(tmp_path, "card0", mem_info_vram_total=GIB // 2, mem_info_vram_used=GIB // 4, mem_info_gtt_total=15 * GIB)
    (reading,) = AmdProbe(tmp_path).read()
    assert reading.unified and reading.total_bytes is None and reading.free_bytes is None


def test_more_used_than_there_is(tmp_path: Path) -> None:
    card(tmp_path, "card0", mem_info_vram_total=8 * GIB, mem_info_vram_used=9 * GIB)
    assert AmdProbe(tmp_path).read()[0].free_bytes == 0


def test_an_old_driver_reports_nothing(tmp_path: Path) -> None:
    card(tmp_path, "card0", device="0x67df")
    (reading,) = AmdProbe(tmp_path).read()
    assert (reading.name, reading.total_bytes, reading.free_bytes) == ("AMD GPU 0x67df", None, None)


def test_a_card_that_does_not_answer_raises(tmp_path: Path) -> None:
    card(tmp_path, "card0", mem_info_vram_total="busy", mem_info_vram_used=1)
    with pytest.raises(ValueError):
        AmdProbe(tmp_path).read()


def test_no_such_driver(tmp_path: Path) -> None:
    assert AmdProbe(tmp_path).read() == []
