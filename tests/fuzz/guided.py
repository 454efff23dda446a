"""Fuzzing guided by coverage, with atheris, which nothing else here needs:

    python -m tests.fuzz.guided fuzz TARGET FOLDER [libFuzzer options, as -max_total_time=60]
    python -m tests.fuzz.guided keep TARGET FOLDER

The first fills FOLDER with the kept inputs and adds those that reach new code, until a finding or the end of the time.
The second makes the kept inputs those of FOLDER.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from tests.fuzz.corpus import keep, kept

WATCHED = [
    "meshnode.wire",
    "meshnode.core",
    "meshnode.mesh.tunnel_request",
    "meshnode.mesh.control",
    "meshnode.discovery.pairing",
    "meshnode.models.manifest",
]


def main() -> None:
    """Do what the first argument says."""
    command, name, folder, *options = sys.argv[1:]
    if command == "keep":
        keep(name, [path.read_bytes() for path in Path(folder).iterdir()])
        return
    import atheris  # type: ignore[import-not-found]

    with atheris.instrument_imports(include=WATCHED):
        from tests.fuzz import targets

    def once(data: bytes) -> None:
        targets.run(name, data)

    Path(folder).mkdir(parents=True, exist_ok=True)
    for data in kept(name):
        (Path(folder) / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    atheris.Setup([sys.argv[0], *options, folder], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
