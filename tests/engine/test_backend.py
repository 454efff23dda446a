"""The choice of backend on machines laid out as files: processors, GPUs, drivers, SDKs."""

import platform
import stat
import sys
from pathlib import Path

import pytest

from meshnode.engine.backend import KINDS, choose_backend
from meshnode.errors import SettingsError

SANDY_BRIDGE = "fpu sse sse2 ssse3 sse4_1 sse4_2 popcnt avx"
HASWELL = f"{SANDY_BRIDGE} f16c fma bmi1 bmi2 avx2"
SKYLAKE_X = f"{HASWELL} avx512f avx512dq avx512cd avx512bw avx512vl"
ZEN_4 = f"{SKYLAKE_X} avx512vbmi avx512_vnni avx512_bf16"
ALDER_LAKE = f"{HASWELL} avx_vnni"

pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="a Mac asks its kernel, not files")


class Machine:
    """A file system and a PATH."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self._monkeypatch = monkeypatch
        (root / "programs").mkdir()
        self.processor("x86_64", HASWELL)

    def processor(self, machine: str, features: str) -> None:
        self._monkeypatch.setattr(platform, "machine", lambda: machine)
        name = "flags\t\t" if machine == "x86_64" else "Features\t"
        self.file("proc/cpuinfo", f"processor\t: 0\nmodel name\t: any\n{name}: {features}\n\nprocessor\t: 1\n")

    def file(self, name: str, text: str = "") -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)

    def program(self, name: str) -> None:
        self.file(f"programs/{name}", "#!/bin/sh\n")
        (self.root / "programs" / name).chmod(stat.S_IRWXU)

    def choose(self, asked: str | None = None):  # type: ignore[no-untyped-def]
        return choose_backend(asked, root=self.root, search_path=str(self.root / "programs"))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("features", "tag", "on"),
    [
        ("fpu sse sse2", "cpu-x86_64-baseline", set()),
        (SANDY_BRIDGE, "cpu-x86_64-sse42-avx", {"SSE42", "AVX"}),
        (HASWELL, "cpu-x86_64-avx2", {"SSE42", "AVX", "F16C", "FMA", "BMI2", "AVX2"}),
        (ALDER_LAKE, "cpu-x86_64-avx2-avxvnni", {"SSE42", "AVX", "F16C", "FMA", "BMI2", "AVX2", "AVX_VNNI"}),
        (SKYLAKE_X, "cpu-x86_64-avx512", {"SSE42", "AVX", "F16C", "FMA", "BMI2", "AVX2", "AVX512"}),
        (
            ZEN_4,
            "cpu-x86_64-avx512-vbmi-vnni-bf16",
            {"SSE42", "AVX", "F16C", "FMA", "BMI2", "AVX2", "AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16"},
        ),
        (ZEN_4.replace("avx512cd", ""), "cpu-x86_64-avx2", {"SSE42", "AVX", "F16C", "FMA", "BMI2", "AVX2"}),
    ],
)
def test_an_x86_processor_gets_what_it_has_and_no_more(machine: Machine, features: str, tag: str, on: set[str]) -> None:
    machine.processor("x86_64", features)
    backend = machine.choose()
    assert (backend.kind, backend.tag) == ("cpu", tag)
    assert {flag.removeprefix("-DGGML_")[:-3] for flag in backend.flags if flag.endswith("=ON")} == on
    assert len(backend.flags) == 11, "each instruction set is switched on or off, none is left to a default"


@pytest.mark.parametrize(
    ("features", "tag", "march"),
    [
        ("fp asimd evtstrm", "cpu-arm64-baseline", "armv8-a"),
        ("fp asimd asimdhp asimddp", "cpu-arm64-dotprod-fp16", "armv8.2-a+dotprod+fp16"),
        ("fp asimd asimdhp asimddp sve i8mm bf16", "cpu-arm64-dotprod-fp16-i8mm", "armv8.2-a+dotprod+fp16+i8mm"),
    ],
)
def test_an_arm_processor_gets_its_extensions(machine: Machine, features: str, tag: str, march: str) -> None:
    machine.processor("aarch64", features)
    backend = machine.choose()
    assert (backend.tag, backend.flags) == (tag, (f"-DGGML_CPU_ARM_ARCH={march}",))


def test_an_unknown_processor_gets_defaults(machine: Machine) -> None:
    machine.processor("riscv64", "")
    assert machine.choose().tag == "cpu-riscv64"


def test_a_machine_without_cpuinfo_gets_the_baseline(machine: Machine) -> None:
    (machine.root / "proc/cpuinfo").unlink()
    assert machine.choose().tag == "cpu-x86_64-baseline"


def test_cuda_needs_the_compiler_and_the_driver(machine: Machine) -> None:
    machine.program("nvcc")
    assert machine.choose().kind == "cpu", "a compiler alone is no GPU"
    machine.file("proc/driver/nvidia/version", "NVRM version: ...")
    machine.file("proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t\t NVIDIA GeForce RTX 4090\nIRQ: 1\n")
    backend = machine.choose()
    assert backend.tag == "cuda-rtx-4090-x86_64-avx2"
    assert "-DCMAKE_CUDA_ARCHITECTURES=native" in backend.flags and "-DGGML_AVX2=ON" in backend.flags
    assert backend.path == (str(machine.root / "programs"),)
    (machine.root / "programs/nvcc").unlink()
    assert machine.choose().kind == "cpu", "a GPU alone is no compiler"


def test_cuda_can_be_asked_for_where_no_gpu_is(machine: Machine) -> None:
    machine.program("nvcc")
    backend = machine.choose("cuda")
    assert backend.tag == "cuda-any-x86_64-avx2"
    assert "-DCMAKE_CUDA_ARCHITECTURES=all-major" in backend.flags


def test_the_processor_can_be_asked_for_where_a_gpu_is(machine: Machine) -> None:
    machine.program("nvcc")
    machine.file("dev/nvidiactl")
    assert machine.choose().kind == "cuda"
    assert machine.choose("cpu").kind == "cpu"


def test_a_nvcc_outside_path_is_found(machine: Machine) -> None:
    machine.file("usr/local/cuda/bin/nvcc")
    machine.file("dev/nvidiactl")
    assert f"-DCMAKE_CUDA_COMPILER={machine.root}/usr/local/cuda/bin/nvcc" in machine.choose().flags


def test_hip_needs_rocm_and_a_device(machine: Machine) -> None:
    machine.program("hipcc")
    assert machine.choose().kind == "cpu"
    machine.file("dev/kfd")
    assert machine.choose().tag == "hip-x86_64-avx2"


def test_vulkan_needs_the_shader_compiler_the_headers_and_a_device(machine: Machine) -> None:
    machine.program("glslc")
    machine.file("dev/dri/renderD128")
    assert machine.choose().kind == "cpu"
    machine.file("usr/include/vulkan/vulkan.h")
    assert machine.choose().tag == "vulkan-x86_64-avx2"
    (machine.root / "dev/dri/renderD128").unlink()
    assert machine.choose().kind == "cpu"


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"cpu"}))
def test_a_backend_that_cannot_be_built_says_what_is_missing(machine: Machine, kind: str) -> None:
    with pytest.raises(SettingsError, match=f"the backend {kind} cannot be built here: .+") as caught:
        machine.choose(kind)
    assert "--backend cpu" in caught.value.fix


def test_a_backend_that_does_not_exist_names_those_that_do(machine: Machine) -> None:
    with pytest.raises(SettingsError, match="no backend 'cdua'") as caught:
        machine.choose("cdua")
    assert "cpu, cuda, hip, metal, vulkan" in caught.value.fix
