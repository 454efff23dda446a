"""Fetches the libraries of the web console and puts them, changed as little as can be, into `static/vendor/`.

Run it with `just vendor-console`; it needs npm, and only people who change a version below need it. Packages come as
tarballs through `npm pack`, and each must have the sha512 (npm's `integrity`) that stands here. What is changed in a
file: bare imports become relative ones, as the page has no import map; references to source maps go, as the maps do
not ship; and a library that has no minified ES module build gets its minified script with an export at its end.
`VENDOR.json` has the hashes before and after; tests/console/test_vendor.py holds the files to them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

VENDOR = Path(__file__).parent.parent / "meshnode" / "console" / "static" / "vendor"


@dataclass(frozen=True, slots=True)
class Package:
    """A pinned package. `files` maps paths inside the tarball to names in vendor/; `licences` are paths inside it."""

    name: str
    version: str
    licence: str
    integrity: str
    files: dict[str, str]
    licences: tuple[str, ...] = ("package/LICENSE",)
    export: str = ""
    """A line to add at the end, for a script that leaves its object in the global scope."""


PACKAGES = (
    Package(
        name="preact",
        version="11.2.0",
        licence="MIT",
        integrity="sha512-/HfHI/7N84e6GrWBJ3J280z3mLaRJiDcSvj/A+y/4AbLnND/1UlGHe1sR6oYuTGwId0nP7dqDU9OnLxMPZ7xBg==",
        files={"package/dist/preact.mjs": "preact.js", "package/hooks/dist/hooks.mjs": "hooks.js"},
    ),
    Package(
        name="@preact/signals-core",
        version="1.14.5",
        licence="MIT",
        integrity="sha512-vcRv7Ityz5JVmeiVqIluLFzT/PDS/AlhHUpw3/aUWqcVUs6bDGIPXE/6RSC4evBNWYvnniozg5Syfj33al3gkg==",
        files={"package/dist/signals-core.mjs": "signals-core.js"},
    ),
    Package(
        name="@preact/signals",
        version="2.11.4",
        licence="MIT",
        integrity="sha512-Rb+5RPo9gWSaHtzJeauhHxiC8KP/IF2DEPkHPEOGOnuy2wnJzRqyeLRankUCYd6ADqtxS6GnWGv6Ie343d8aYw==",
        files={"package/dist/signals.mjs": "signals.js"},
    ),
    Package(
        name="htm",
        version="3.1.1",
        licence="Apache-2.0",
        integrity="sha512-983Vyg8NwUE7JkZ6NmOqpCZ+sh1bKv2iYTlUkzlWmA5JD2acKoxd4KVxbMmxX/85mtfdnDmTFoNKcg5DGAvxNQ==",
        files={"package/dist/htm.mjs": "htm.js"},
    ),
    Package(
        name="marked",
        version="18.2.1",
        licence="MIT",
        integrity="sha512-ii4bxCTCqqwpT86XZWgJNs+ZnAIZksmLGYMViWA7PDIXYIeNo1x6cDdX3JOip9NM/cI6p8z57FxliACboTruMA==",
        files={"package/lib/marked.esm.js": "marked.js"},
    ),
    Package(
        name="dompurify",
        version="3.4.18",
        licence="MPL-2.0 OR Apache-2.0",
        integrity="sha512-ofe3wI/uNm68HInABYFJYqQxRw1EaKAjNdrFVKqjUY+UZurvNd2L/HuQe097s/4RivWiZyP6tT7aoT8atjfhwg==",
        files={"package/dist/purify.min.js": "purify.js"},
        licences=("package/LICENSE", "package/LICENSE-MPL"),
        export="export default globalThis.DOMPurify;\n",
    ),
)
BARE_IMPORTS = {
    "preact": "./preact.js",
    "preact/hooks": "./hooks.js",
    "@preact/signals-core": "./signals-core.js",
}
_IMPORT = re.compile(r"""(\bfrom\s*|\bimport\s*)(["'])([^"'.][^"']*)\2""")
_SOURCE_MAP = re.compile(r"\n?//[#@] sourceMappingURL=\S*\s*\Z")


def digest(content: bytes) -> str:
    """The sha256 in hex digits."""
    return hashlib.sha256(content).hexdigest()


def rewrite(text: str, export: str = "") -> str:
    """The text of a module as it ships. Raises KeyError for a bare import that has no file here."""
    text = _SOURCE_MAP.sub("", text).rstrip("\n") + "\n"
    return _IMPORT.sub(lambda found: f"{found[1]}{found[2]}{BARE_IMPORTS[found[3]]}{found[2]}", text) + export


def fetch(package: Package, folder: Path) -> Path:
    """The tarball of a package; ends the program when its content is not what is pinned."""
    before = set(folder.iterdir())
    command = ["npm", "pack", "--silent", f"{package.name}@{package.version}", "--pack-destination", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (tarball,) = set(folder.iterdir()) - before
    found = "sha512-" + base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    if found != package.integrity:
        sys.exit(f"{package.name}@{package.version} has {found}, but {package.integrity} is pinned")
    return tarball


def main() -> None:
    """Replace everything in vendor/."""
    VENDOR.mkdir(parents=True, exist_ok=True)
    for old in VENDOR.iterdir():
        old.unlink()
    entries, licences = [], []
    with tempfile.TemporaryDirectory() as name:
        for package in PACKAGES:
            with tarfile.open(fetch(package, Path(name))) as archive:

                def content(path: str, archive: tarfile.TarFile = archive) -> bytes:
                    file = archive.extractfile(path)
                    if file is None:
                        sys.exit(f"{path} is no file")
                    return file.read()

                files = []
                for path, target in package.files.items():
                    before = content(path)
                    after = rewrite(before.decode(), package.export).encode()
                    (VENDOR / target).write_bytes(after)
                    hashes = {"sha256_before": digest(before), "sha256": digest(after)}
                    files.append({"file": target, "from": path.removeprefix("package/"), **hashes})
                head = f"{package.name} {package.version} ({package.licence})"
                texts = "\n\n".join(content(path).decode().strip() for path in package.licences)
                licences.append(f"{head}\n{'=' * len(head)}\n\n{texts}\n")
            entries.append(
                {
                    "name": package.name,
                    "version": package.version,
                    "licence": package.licence,
                    "integrity": package.integrity,
                    "files": files,
                }
            )
    (VENDOR / "LICENSES").write_text("\n\n".join(licences), "utf-8")
    (VENDOR / "VENDOR.json").write_text(json.dumps({"packages": entries}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
