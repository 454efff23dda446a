"""A llama.cpp in miniature: a real sdist, found by a real pip, built by a real cmake, with the programs' names."""

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from meshnode.engine import source

PACKAGE, VERSION, ROOT = "tiny-llama-python", "1.0", "tiny_llama_python-1.0"
CMAKE_LISTS = """
cmake_minimum_required(VERSION 3.14)
project(tiny CXX)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_library(tiny SHARED tiny.cpp)
set_target_properties(tiny PROPERTIES VERSION 0.1.0 SOVERSION 0)
target_compile_definitions(tiny PRIVATE COMMIT="${LLAMA_BUILD_COMMIT}")
foreach(program llama-server ggml-rpc-server llama-quantize llama-bench llama-fit-params)
    add_executable(${program} main.cpp)
    target_link_libraries(${program} tiny)
endforeach()
"""
TINY_CPP = """#include <cstdio>
void version() {
    std::printf("version: 0.5.0-tiny (build 0, commit %s)\\n", COMMIT);
    std::printf("greeting: plain\\n");
}
"""
FILES = {
    "pyproject.toml": '[build-system]\nrequires = ["not-in-any-index"]\nbuild-backend = "tiny_backend.build"\n',
    "PKG-INFO": f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {VERSION}\n",
    "vendor/llama.cpp/CMakeLists.txt": CMAKE_LISTS,
    "vendor/llama.cpp/main.cpp": "void version();\nint main() { version(); }\n",
    "vendor/llama.cpp/tiny.cpp": TINY_CPP,
    "vendor/llama.cpp/LICENSE": "the licence\n",
    "vendor/llama.cpp/models/vocabulary.gguf": "of no use to a build\n",
    "vendor/llama.cpp/ggml/include/ggml-rpc.h": "#define RPC_PROTO_MAJOR_VERSION    7\n"
    "#define RPC_PROTO_MINOR_VERSION    0\n#define RPC_PROTO_PATCH_VERSION    3\n",
}
PATCH = """--- a/tiny.cpp
+++ b/tiny.cpp
@@ -1,5 +1,5 @@
 #include <cstdio>
 void version() {
     std::printf("version: 0.5.0-tiny (build 0, commit %s)\\n", COMMIT);
-    std::printf("greeting: plain\\n");
+    std::printf("greeting: patched\\n");
 }
"""


def write_archive(path: Path, files: dict[str, str], links: dict[str, str] | None = None) -> Path:
    """A .tar.gz of `files` (and symbolic `links`) as named, however hostile the names are."""
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return path


@pytest.fixture
def make_upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., source.Upstream]:
    """Put an sdist where pip finds it without a network, and pin it in a patches folder that the code then uses."""

    def make(
        changes: dict[str, str] | None = None, *, links: dict[str, str] | None = None, patch: str = PATCH
    ) -> source.Upstream:
        index, patches = tmp_path / "index", tmp_path / "patches"
        index.mkdir(exist_ok=True)
        patches.mkdir(exist_ok=True)
        files = {
            name if name.startswith("/") else f"{ROOT}/{name}": text for name, text in (FILES | (changes or {})).items()
        }
        archive = write_archive(index / f"{ROOT}.tar.gz", files, links)
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        (patches / "UPSTREAM").write_text(
            f'package = "{PACKAGE}"\nversion = "{VERSION}"\nsha256 = "{digest}"\n'
            f"size_bytes = {archive.stat().st_size}\n"
            'folder = "vendor/llama.cpp"\nbackend = "tiny_backend.build"\nllama_cpp = "0.5.0"\nrpc = "7.0.3"\n'
        )
        (patches / "series").write_text("# a comment\n\n0001-greeting.patch # greetings stay plain\n")
        (patches / "0001-greeting.patch").write_text(patch)
        monkeypatch.setattr(source, "patches_folder", lambda: patches)
        return source.read_upstream(patches)

    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return make


@pytest.fixture
def tiny_upstream(make_upstream: Callable[..., source.Upstream]) -> source.Upstream:
    """The miniature as it is."""
    return make_upstream()
