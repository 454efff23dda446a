"""Real pip runs against a folder, a dead port, and environments without pip."""

import errno
import hashlib
import os
import socket
import stat
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from meshnode.engine import packages
from meshnode.engine.job import JobCancelled
from meshnode.engine.packages import FetchFailed, fetch_sdist, install_wheels, pip_command
from meshnode.engine.source import Upstream


def fetch(upstream: Upstream, folder: Path, *, sha256: str = "", **options: object) -> Path:
    folder.mkdir(exist_ok=True)
    return fetch_sdist(
        (upstream.package, upstream.version),
        sha256=sha256 or upstream.sha256,
        build_backend=upstream.backend,
        folder=folder,
        **options,  # type: ignore[arg-type]
    )


def test_the_file_comes_without_its_build_backend(tiny_upstream: Upstream, tmp_path: Path) -> None:
    sizes: list[int] = []
    file = fetch(tiny_upstream, tmp_path / "to", on_bytes=sizes.append)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == tiny_upstream.sha256
    assert [path.name for path in (tmp_path / "to").iterdir()] == [file.name]
    assert sizes == sorted(sizes)


def test_code_of_the_package_is_not_run(make_upstream, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    trap = tmp_path / "sprung"
    upstream = make_upstream(
        {
            "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "tiny_backend.build"\n',
            "setup.py": f"open({str(trap)!r}, 'w')\n",
            "tiny_backend/__init__.py": f"open({str(trap)!r}, 'w')\n",
        }
    )
    fetch(upstream, tmp_path / "to")
    assert not trap.exists()


def test_another_file_is_refused_with_its_hash(tiny_upstream: Upstream, tmp_path: Path) -> None:
    with pytest.raises(FetchFailed) as caught:
        fetch(tiny_upstream, tmp_path / "to", sha256="0" * 64)
    assert caught.value.got_sha256 == tiny_upstream.sha256
    assert list((tmp_path / "to").iterdir()) == []


def test_a_package_that_is_not_there_is_told_in_the_words_of_pip(
    tiny_upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(FetchFailed, match="No matching distribution found for tiny-llama-python"):
        fetch(tiny_upstream, tmp_path / "to")


def test_no_network_is_told_as_such(tiny_upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed.getsockname()[1]}/simple")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
        with pytest.raises(FetchFailed, match="cannot be reached"):
            fetch(tiny_upstream, tmp_path / "to")


def test_a_full_disk_is_the_error_that_it_is(
    tiny_upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "pip"
    program.write_text("#!/bin/sh\necho 'ERROR: Could not install: [Errno 28] No space left on device'; exit 1\n")
    program.chmod(stat.S_IRWXU)
    monkeypatch.setattr(packages, "pip_command", lambda: [str(program)])
    with pytest.raises(OSError) as caught:
        fetch(tiny_upstream, tmp_path / "to")
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "to")


def test_a_fetch_can_be_cancelled(tiny_upstream: Upstream, tmp_path: Path) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(JobCancelled):
        fetch(tiny_upstream, tmp_path / "to", cancelled=cancelled)
    assert list((tmp_path / "to").iterdir()) == []


def test_without_pip_the_bundled_one_is_run(
    tiny_upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled = packages._bundled_pip()
    if bundled is None:
        pytest.skip("this Python has no ensurepip")
    monkeypatch.setattr(packages.importlib.util, "find_spec", _without(packages.importlib.util.find_spec, "pip"))
    command = pip_command()
    assert command == [sys.executable, f"{bundled}/pip"]
    assert subprocess.run([*command, "--version"], capture_output=True, check=True).stdout.startswith(b"pip ")
    assert fetch(tiny_upstream, tmp_path / "to").is_file()


def test_the_pip_on_path_is_the_last_resort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchFailed, match="no pip"):
        pip_command()
    (tmp_path / "pip3").write_text("#!/bin/sh\n")
    (tmp_path / "pip3").chmod(stat.S_IRWXU)
    assert pip_command() == [str(tmp_path / "pip3")]


def _without(find, missing):  # type: ignore[no-untyped-def]
    return lambda name: None if name == missing else find(name)


def write_wheel(folder: Path) -> None:
    """A wheel with one module and one executable."""
    info = "tinytool-2.0.dist-info"
    with zipfile.ZipFile(folder / "tinytool-2.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tinytool/__init__.py", "")
        script = zipfile.ZipInfo("tinytool-2.0.data/scripts/tinytool")
        script.external_attr = 0o100755 << 16
        wheel.writestr(script, "#!/bin/sh\necho tinytool 2.0\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinytool\nVersion: 2.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_a_wheel_is_installed_whole_or_not_at_all(tiny_upstream: Upstream, tmp_path: Path) -> None:
    write_wheel(tmp_path / "index")
    folder = tmp_path / "tools" / "tinytool-2.0"
    install_wheels(["tinytool==2.0"], folder=folder)
    assert os.access(folder / "bin" / "tinytool", os.X_OK)
    with pytest.raises(FetchFailed, match="tinytool==9.9"):
        install_wheels(["tinytool==9.9"], folder=folder)
    assert (folder / "tinytool" / "__init__.py").is_file()
    assert [path.name for path in folder.parent.iterdir()] == ["tinytool-2.0"]


def test_source_is_never_built(tiny_upstream: Upstream, tmp_path: Path) -> None:
    with pytest.raises(FetchFailed):
        install_wheels([f"{tiny_upstream.package}=={tiny_upstream.version}"], folder=tmp_path / "tools" / "x")
    assert not (tmp_path / "tools" / "x").exists()
