"""NVML from recordings: several cards, unified boards, no driver, and a driver that fails."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from meshnode.hardware.nvidia import NvidiaProbe

DATA = Path(__file__).parent / "data"


class FakeNvml:
    """The calls of pynvml that the probe makes, answered from a recording."""

    NVMLError_LibraryNotFound = pynvml.NVMLError_LibraryNotFound
    NVMLError_DriverNotLoaded = pynvml.NVMLError_DriverNotLoaded
    NVMLError_NotSupported = pynvml.NVMLError_NotSupported

    def __init__(self, recording: str = "nvml_two_cards", *, init: int | None = None, as_bytes: bool = False) -> None:
        self.recorded = json.loads((DATA / f"{recording}.json").read_text())
        self.init = init
        self.as_bytes = as_bytes
        self.open = 0

    def _text(self, text: str) -> str | bytes:
        return text.encode() if self.as_bytes else text

    def nvmlInit(self) -> None:
        if self.init is not None:
            raise pynvml.NVMLError(self.init)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str | bytes:
        return self._text(self.recorded["driver"])

    def nvmlDeviceGetCount(self) -> int:
        return len(self.recorded["devices"])

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, object]:
        return self.recorded["devices"][index]

    def nvmlDeviceGetName(self, handle: dict[str, str]) -> str | bytes:
        return self._text(handle["name"])

    def nvmlDeviceGetMemoryInfo(self, handle: dict[str, int]) -> SimpleNamespace:
        if error := handle.get("error"):
            raise pynvml.NVMLError(
                getattr(pynvml, {"NotSupported": "NVML_ERROR_NOT_SUPPORTED"}.get(str(error), str(error)))
            )
        return SimpleNamespace(total=handle["total"], free=handle["free"], used=handle["used"])


@pytest.mark.parametrize("as_bytes", [False, True])
def test_several_cards(as_bytes: bool) -> None:
    nvml = FakeNvml(as_bytes=as_bytes)
    first, second = NvidiaProbe(nvml).read()
    assert (first.name, first.total_bytes, first.free_bytes) == ("NVIDIA GeForce RTX 3090", 25769803776, 12210667520)
    assert (second.name, second.unified, second.driver) == ("NVIDIA GeForce RTX 4090", False, "580.95.05")
    assert nvml.open == 0


@pytest.mark.parametrize("recording", ["nvml_gb10", "nvml_orin"])
def test_boards_with_one_memory_report_none_of_their_own(recording: str) -> None:
    (reading,) = NvidiaProbe(FakeNvml(recording)).read()
    assert reading.unified and reading.total_bytes is None and reading.free_bytes is None


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
def test_no_driver_is_no_news(code: int) -> None:
    assert NvidiaProbe(FakeNvml(init=code)).read() == []


def test_a_driver_that_fails_is() -> None:
    with pytest.raises(pynvml.NVMLError_LibRmVersionMismatch):
        NvidiaProbe(FakeNvml(init=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)).read()


def test_nvml_is_closed_when_a_card_is_lost() -> None:
    nvml = FakeNvml()
    nvml.recorded["devices"][1]["error"] = "NVML_ERROR_GPU_IS_LOST"
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        NvidiaProbe(nvml).read()
    assert nvml.open == 0


def test_the_real_library_answers_or_is_absent() -> None:
    for reading in NvidiaProbe().read():
        assert reading.name and (reading.total_bytes is None or reading.total_bytes > 1 << 20)
