"""Which llama.cpp backend this machine can build and use, and which instruction sets of its processor.

Everything is read from files and PATH: no process is started, so that a node that looks for its engine loses no
time. The tag of a choice is part of the engine's folder name: machines that share a cache folder but not
a processor or a GPU each find their own build.
"""

from __future__ import annotations

import platform
import re
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from meshnode.errors import SettingsError

Kind = Literal["cpu", "cuda", "hip", "metal", "vulkan"]
KINDS: tuple[str, ...] = get_args(Kind)

CPUINFO_BYTES = 64 << 10

# (name in the tag, cmake option, flags in /proc/cpuinfo that must all be there); ggml/src/ggml-cpu/CMakeLists.txt.
_X86 = (
    ("sse42", "GGML_SSE42", ("sse4_2",)),
    ("avx", "GGML_AVX", ("avx",)),
    ("f16c", "GGML_F16C", ("f16c",)),
    ("fma", "GGML_FMA", ("fma",)),
    ("bmi2", "GGML_BMI2", ("bmi2",)),
    ("avx2", "GGML_AVX2", ("avx2",)),
    ("avxvnni", "GGML_AVX_VNNI", ("avx_vnni",)),
    ("avx512", "GGML_AVX512", ("avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl")),
    ("vbmi", "GGML_AVX512_VBMI", ("avx512vbmi",)),
    ("vnni", "GGML_AVX512_VNNI", ("avx512_vnni",)),
    ("bf16", "GGML_AVX512_BF16", ("avx512_bf16",)),
)
_NEEDS = {"vbmi": "avx512", "vnni": "avx512", "bf16": "avx512", "avxvnni": "avx2", "avx512": "avx2"}
# Names that another name in the tag says already.
_IMPLIED = {"avx2": ("sse42", "avx", "f16c", "fma", "bmi2"), "avx512": ("avx2",)}
# (name in the tag, what gcc and clang call it, Linux feature, macOS sysctl)
_ARM = (
    ("dotprod", "dotprod", "asimddp", "hw.optional.arm.FEAT_DotProd"),
    ("fp16", "fp16", "asimdhp", "hw.optional.arm.FEAT_FP16"),
    ("i8mm", "i8mm", "i8mm", "hw.optional.arm.FEAT_I8MM"),
)


@dataclass(frozen=True, slots=True)
class Backend:
    """What to build. `flags` go to cmake, `tag` names the choice, `reason` says why it was taken."""

    kind: Kind
    tag: str
    flags: tuple[str, ...]
    reason: str
    path: tuple[str, ...] = ()
    """Folders that must be on PATH while it is built."""
    usable: bool = True
    """Whether a device for it is here; without one it is built only when asked for."""


def choose_backend(asked: str | None = None, *, root: Path = Path("/"), search_path: str | None = None) -> Backend:
    """The best backend whose compiler and device are both here, or the one `asked` for.

    `root` and `search_path` stand in for the file system and PATH of another machine. Raises SettingsError for a
    backend that does not exist or whose compiler is missing.
    """
    if asked is not None and asked not in KINDS:
        raise SettingsError(f"there is no backend {asked!r}", fix=f"choose one of {', '.join(KINDS)}")
    cpu = _processor(root)
    probes = {"metal": _metal, "cuda": _cuda, "hip": _hip, "vulkan": _vulkan}
    for kind, probe in probes.items():
        if asked not in (None, kind):
            continue
        found = probe(root, search_path)
        if isinstance(found, Backend):
            if found.usable or asked == kind:
                tag = f"{found.tag}-{cpu.tag.removeprefix('cpu-')}"
                return replace(found, tag=tag, flags=(*found.flags, *_without_metal(cpu.flags, kind)))
        elif asked == kind:
            raise SettingsError(
                f"the backend {kind} cannot be built here: {found}",
                fix="install what is missing, or build for the processor: meshnode engine build --backend cpu",
            )
    return cpu


def _without_metal(flags: tuple[str, ...], kind: str) -> tuple[str, ...]:
    return tuple(flag for flag in flags if kind != "metal" or not flag.startswith("-DGGML_METAL="))


def _processor(root: Path) -> Backend:
    machine = platform.machine().lower()
    features = _linux_features(root) if sys.platform != "darwin" or root != Path("/") else None
    metal_off = ("-DGGML_METAL=OFF",) if sys.platform == "darwin" else ()
    if machine in ("x86_64", "amd64"):
        names = _x86_names(features if features is not None else _mac_x86_features())
        flags = tuple(f"-D{option}={'ON' if name in names else 'OFF'}" for name, option, _ in _X86)
        implied = {name for stronger in names for name in _IMPLIED.get(stronger, ())}
        shown = [name for name in names if name not in implied]
        tag = "-".join(["cpu", "x86_64", *(shown or ["baseline"])])
        return Backend("cpu", tag, (*flags, *metal_off), "no GPU with its compiler was found")
    if machine in ("aarch64", "arm64"):
        names = [
            name for name, _, linux, mac in _ARM if (linux in features if features is not None else _sysctl(mac) == 1)
        ]
        march = "+".join(["armv8.2-a" if names else "armv8-a", *names])
        tag = "-".join(["cpu", "arm64", *(names or ["baseline"])])
        return Backend("cpu", tag, (f"-DGGML_CPU_ARM_ARCH={march}", *metal_off), "no GPU with its compiler was found")
    return Backend("cpu", f"cpu-{machine}", (), "no GPU with its compiler was found")


def _x86_names(features: set[str]) -> list[str]:
    names: list[str] = []
    for name, _, needed in _X86:
        if features.issuperset(needed) and _NEEDS.get(name, name) in (name, *names):
            names.append(name)
    return names


def _linux_features(root: Path) -> set[str]:
    """The feature words of the first processor in /proc/cpuinfo ("flags" on x86, "Features" on ARM)."""
    try:
        with (root / "proc/cpuinfo").open("rb") as file:
            head = file.read(CPUINFO_BYTES).decode("ascii", "replace")
    except OSError:
        return set()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", head, re.MULTILINE)
    return set(found[1].split()) if found else set()


def _mac_x86_features() -> set[str]:
    names = {
        "sse4_2": "hw.optional.sse4_2", "avx": "hw.optional.avx1_0", "f16c": "hw.optional.f16c",
        "fma": "hw.optional.fma", "bmi2": "hw.optional.bmi2", "avx2": "hw.optional.avx2_0",
    }  # fmt: skip
    return {feature for feature, name in names.items() if _sysctl(name) == 1}


def _sysctl(name: str) -> int:
    """A numeric sysctl of macOS, 0 where it does not exist."""
    import ctypes

    value, size = ctypes.c_int64(0), ctypes.c_size_t(8)
    try:
        failed = ctypes.CDLL(None).sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0)
    except (AttributeError, OSError):
        return 0
    return 0 if failed else value.value


def _metal(root: Path, search_path: str | None) -> Backend | str:
    if sys.platform != "darwin" or platform.machine() != "arm64":
        return "Metal needs a Mac with an Apple processor"
    return Backend("metal", "metal", ("-DGGML_METAL=ON", "-DGGML_METAL_EMBED_LIBRARY=ON"), "an Apple GPU")


def _cuda(root: Path, search_path: str | None) -> Backend | str:
    compiler = shutil.which("nvcc", path=search_path) or _first(root, "usr/local/cuda/bin/nvcc", "opt/cuda/bin/nvcc")
    if compiler is None:
        return "nvcc, the CUDA compiler, was not found"
    driver = _first(root, "proc/driver/nvidia/version", "dev/nvidiactl", "usr/lib/wsl/lib/libcuda.so.1")
    names = sorted({_gpu_name(file) for file in (root / "proc/driver/nvidia/gpus").glob("*/information")} - {""})
    flags = ["-DGGML_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={compiler}"]
    flags.append(f"-DCMAKE_CUDA_ARCHITECTURES={'native' if driver else 'all-major'}")
    tag = "-".join(["cuda", *(names or ["any"])])[:60].rstrip("-")
    reason = "an NVIDIA driver and nvcc" if driver else "nvcc is here, but no NVIDIA driver"
    return Backend("cuda", tag, tuple(flags), reason, (str(Path(compiler).parent),), bool(driver))


def _gpu_name(information: Path) -> str:
    try:
        text = information.read_text("utf-8", "replace")[:4096]
    except OSError:
        return ""
    model = re.search(r"^Model:\s*(.+)$", text, re.MULTILINE)
    words = re.findall(r"[a-z0-9]+", model[1].lower()) if model else []
    return "-".join(word for word in words if word not in ("nvidia", "geforce"))


def _hip(root: Path, search_path: str | None) -> Backend | str:
    compiler = shutil.which("hipcc", path=search_path) or _first(root, "opt/rocm/bin/hipcc")
    if compiler is None:
        return "hipcc, the ROCm compiler, was not found"
    device = _first(root, "dev/kfd")
    reason = "an AMD GPU and ROCm" if device else "hipcc is here, but no AMD GPU"
    rocm = Path(compiler).resolve().parent.parent
    flags = ("-DGGML_HIP=ON", f"-DCMAKE_PREFIX_PATH={rocm}", f"-DCMAKE_HIP_COMPILER_ROCM_ROOT={rocm}")
    return Backend("hip", "hip", flags, reason, (str(rocm / "bin"), str(rocm / "llvm" / "bin")), bool(device))


def _vulkan(root: Path, search_path: str | None) -> Backend | str:
    if shutil.which("glslc", path=search_path) is None:
        return "glslc, the Vulkan shader compiler, was not found"
    if _first(root, "usr/include/vulkan/vulkan.h", "usr/local/include/vulkan/vulkan.h") is None:
        return "the Vulkan headers were not found"
    device = next(iter((root / "dev/dri").glob("renderD*")), None)
    reason = "a GPU and the Vulkan SDK" if device else "the Vulkan SDK is here, but no GPU"
    return Backend("vulkan", "vulkan", ("-DGGML_VULKAN=ON",), reason, usable=bool(device))


def _first(root: Path, *names: str) -> str | None:
    return next((str(root / name) for name in names if (root / name).exists()), None)
