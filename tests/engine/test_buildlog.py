"""Logs of failed builds, as the tools write them, and the sentence each becomes."""

from pathlib import Path

import pytest

from meshnode.engine.buildlog import failure_from_log, first_error
from meshnode.errors import BuildFailed, DiskFull

GCC = """[12/223] Building CXX object src/CMakeFiles/llama.dir/llama.cpp.o
FAILED: src/CMakeFiles/llama.dir/llama.cpp.o
/usr/bin/c++ -O3 -o llama.cpp.o -c /home/ann/.cache/x/source/1/src/llama.cpp
/home/ann/.cache/x/source/1/src/llama.cpp:10:1: warning: something else
In file included from /home/ann/.cache/x/source/1/src/llama.cpp:3:
/home/ann/.cache/x/source/1/src/llama.cpp:12:5: error: 'foo' was not declared in this scope
/home/ann/.cache/x/source/1/src/llama.cpp:13:5: error: 'bar' was not declared in this scope
ninja: build stopped: subcommand failed.
"""
CLANG = "/x/ggml/src/ggml.c:7:10: fatal error: 'omp.h' file not found\n#include <omp.h>\n1 error generated.\n"
GCC_HEADER = "/x/common/a.cpp:1:10: fatal error: sys/thing.h: No such file or directory\n"
NVCC = '/x/ggml/src/ggml-cuda/fattn.cu(88): error: identifier "__hmax2" is undefined\n\n1 error detected\n'
NVCC_HOST = (
    "/usr/include/crt/host_config.h:143:2: error: #error -- unsupported GNU version! gcc versions later than 13 are"
    " not supported!\n"
)
NVCC_ARCH = "nvcc fatal   : Unsupported gpu architecture 'compute_121a'\n"
CMAKE = """-- The C compiler identification is GNU 12.2.0
CMake Error at ggml/src/ggml-vulkan/CMakeLists.txt:8 (find_package):
  Could NOT find Vulkan (missing: Vulkan_LIBRARY)

-- Configuring incomplete, errors occurred!
"""
CMAKE_BROKEN_OFF = """CMake Error at ggml/src/ggml-cuda/CMakeLists.txt:178 (target_link_libraries):
  Target "ggml-cuda" links to:

    CUDA::cublas

  but the target was not found.  Possible reasons include:
"""
CMAKE_SHORT = 'CMake Error: CMake was unable to find a build program corresponding to "Ninja".\n'
KILLED = "c++: fatal error: Killed signal terminated program cc1plus\ncompilation terminated.\n"
LINKER = "/usr/bin/ld: cannot find -lgomp: No such file or directory\ncollect2: error: ld returned 1 exit status\n"
UNDEFINED = "/usr/bin/ld: src/x.o: in function `main':\nx.cpp:(.text+0x5): undefined reference to `ggml_init'\n"
OLD_GCC = "c++: error: unrecognized command-line option '-mavx512bf16'\n"
NINJA = "ninja: error: loading 'build.ninja': No such file or directory\n"


@pytest.mark.parametrize(
    ("log", "first", "fix"),
    [
        (GCC, "src/llama.cpp:12:5: 'foo' was not declared in this scope", "another compiler"),
        (CLANG, "ggml/src/ggml.c:7:10: 'omp.h' file not found", "system header is missing"),
        (GCC_HEADER, "common/a.cpp:1:10: sys/thing.h: No such file or directory", "system header is missing"),
        (NVCC, 'ggml/src/ggml-cuda/fattn.cu(88): identifier "__hmax2" is undefined', "another compiler"),
        (NVCC_HOST, "/usr/include/crt/host_config.h:143:2: #error -- unsupported GNU version!", "CC=gcc-12"),
        (NVCC_ARCH, "nvcc: Unsupported gpu architecture 'compute_121a'", "update CUDA"),
        (CMAKE, "ggml/src/ggml-vulkan/CMakeLists.txt:8: Could NOT find Vulkan", "--backend cpu"),
        (
            CMAKE_BROKEN_OFF,
            'ggml/src/ggml-cuda/CMakeLists.txt:178: Target "ggml-cuda" links to: CUDA::cublas',
            "install what is missing",
        ),
        (CMAKE_SHORT, "cmake: CMake was unable to find a build program", "another compiler"),
        (KILLED, "c++: Killed signal terminated program cc1plus", "--jobs 1"),
        (LINKER, "/usr/bin/ld: cannot find -lgomp", "another compiler"),
        (UNDEFINED, "x.cpp: undefined reference to `ggml_init'", "another compiler"),
        (OLD_GCC, "c++: unrecognized command-line option '-mavx512bf16'", "update the compiler"),
        (NINJA, "ninja: loading 'build.ninja'", "another compiler"),
        ("", "the compile step ended with status 1", "another compiler"),
        ("\x00\x01 no words at all", "the compile step ended with status 1", "another compiler"),
    ],
)
def test_the_first_error_and_its_fix(tmp_path: Path, log: str, first: str, fix: str) -> None:
    (tmp_path / "build.log").write_text(log)
    error = failure_from_log(tmp_path / "build.log", step="compile", returncode=1)
    assert isinstance(error, BuildFailed)
    assert error.detail.startswith(first)
    assert str(tmp_path / "build.log") in error.detail
    assert fix in error.fix


def test_a_gpu_build_that_fails_offers_the_processor(tmp_path: Path) -> None:
    (tmp_path / "build.log").write_text(GCC)
    cpu, cuda = (
        failure_from_log(tmp_path / "build.log", step="c", returncode=1, kind=kind) for kind in ("cpu", "cuda")
    )
    assert "--backend cpu" not in cpu.fix and "--backend cpu" in cuda.fix


def test_a_full_disk_is_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "build.log").write_text("/x/a.cpp:1:1: error: z\ncc1plus: fatal error: a.o: No space left on device\n")
    assert isinstance(failure_from_log(tmp_path / "build.log", step="compile", returncode=1), DiskFull)


def test_a_log_that_is_gone_still_makes_a_sentence(tmp_path: Path) -> None:
    error = failure_from_log(tmp_path / "nowhere.log", step="configure", returncode=2)
    assert "the configure step ended with status 2" in error.message


def test_a_word_like_error_is_not_an_error() -> None:
    assert first_error(["-- error: none of these is at its place", "warning: error", "[1/2] making error.o"]) is None


def test_a_very_long_error_is_cut(tmp_path: Path) -> None:
    (tmp_path / "b.log").write_text("a.cpp:1:1: error: " + "x" * 10_000)
    assert len(failure_from_log(tmp_path / "b.log", step="compile", returncode=1).detail) < 600
