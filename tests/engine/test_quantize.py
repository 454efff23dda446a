"""llama-quantize under supervision, played by a script: progress, names, room, failures, interruption."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest

from meshnode.engine import quantize as module
from meshnode.engine.job import JobCancelled
from meshnode.engine.quantize import QuantizeJob, quantize, quantize_argv
from meshnode.errors import CacheNotWritable, DiskFull, EngineError, ModelError
from meshnode.telemetry import Progress

GOOD = """
printf '[   1/   2] token_embd.weight                    - [ 64, 64,  1,  1], type =    f16, converting to q4_K .. '
printf 'size =     0.01 MiB ->     0.00 MiB\\n'
printf '[   2/   2] blk.0.attn_q.weight                  - [ 64, 64,  1,  1], type =    f16, size =    0.008 MiB\\n'
cp "$2" "$(dirname "$5")/types.seen"
printf made > "$5"
"""


def program(folder: Path, body: str) -> Path:
    """A llama-quantize: its arguments are --tensor-type-file FILE --allow-requantize SOURCE PARTIAL TYPE THREADS."""
    path = folder / "llama-quantize"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def job(folder: Path, **more: object) -> QuantizeJob:
    fields: dict[str, object] = {
        "source": folder / "source.gguf",
        "target": folder / "out" / "made.gguf",
        "nominal": "Q4_K_M",
        "overrides": ("^token_embd\\.weight$=q4_k", "^blk\\.0\\.attn_q\\.weight$=f16"),
        "needed_bytes": 1000,
        "weights": {"token_embd.weight": 300, "blk.0.attn_q.weight": 700},
        "requantise": True,
        "threads": 3,
    }
    return QuantizeJob(**{**fields, **more})  # type: ignore[arg-type]


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "out").iterdir()) if (folder / "out").exists() else []


def run(tool: Path, work: QuantizeJob, **more: object) -> None:
    quantize(tool, work, environ=os.environ, **more)  # type: ignore[arg-type]


def test_a_file_appears_whole_and_under_its_name(tmp_path: Path) -> None:
    told: list[Progress] = []
    checked: list[str] = []
    work = job(tmp_path)
    run(program(tmp_path, GOOD), work, report=told.append, check=lambda made: checked.append(made.read_text()))
    assert work.target.read_text() == "made" and checked == ["made"]
    assert left(tmp_path) == ["made.gguf", "types.seen"]
    assert (tmp_path / "out" / "types.seen").read_text().split() == list(work.overrides)
    assert [step.done for step in told] == [300, 1000, 1000]
    assert told[-1].finished and {step.unit for step in told} == {"bytes"}


def test_the_command_line() -> None:
    argv = quantize_argv(Path("/q"), job(Path("/m")), Path("/p"), Path("/t"))
    assert argv == ["/q", "--tensor-type-file", "/t", "--allow-requantize", "/m/source.gguf", "/p", "Q4_K_M", "3"]
    assert "--allow-requantize" not in quantize_argv(
        Path("/q"), job(Path("/m"), requantise=False), Path("/p"), Path("/t")
    )


def test_what_an_interrupted_run_left_is_written_over(tmp_path: Path) -> None:
    work = job(tmp_path)
    work.target.parent.mkdir()
    work.target.with_name(".made.gguf.partial").write_text("half of another")
    work.target.with_name(".made.gguf.types").write_text("x" * 9999)
    run(program(tmp_path, GOOD), work)
    assert left(tmp_path) == ["made.gguf", "types.seen"]
    assert (tmp_path / "out" / "types.seen").read_text().split() == list(work.overrides)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo 'llama_model_quantize: failed to quantize: requantizing from type q8_0 is disabled'; exit 1",
         "requantizing from type q8_0 is disabled"),
        ("echo 'this quantization requires an imatrix!'; exit 1", "importance matrix"),
        ("exit 3", "ended with code 3"),
        ("exit 0", "ended with code 0"),
    ],
)  # fmt: skip
def test_a_failure_leaves_nothing_but_words(tmp_path: Path, body: str, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        run(
            program(tmp_path, f'printf half > "$5" 2>/dev/null; {"rm -f $5;" if body == "exit 0" else ""} {body}'),
            job(tmp_path),
        )
    assert left(tmp_path) == []


def test_a_file_that_is_not_what_was_planned_gets_no_name(tmp_path: Path) -> None:
    def refuse(made: Path) -> None:
        raise ModelError("other than planned")

    with pytest.raises(ModelError, match="other than planned"):
        run(program(tmp_path, GOOD), job(tmp_path), check=refuse)
    assert left(tmp_path) == ["types.seen"]


def test_cancelled_in_the_middle(tmp_path: Path) -> None:
    cancelled = threading.Event()

    def stop(step: Progress) -> None:
        cancelled.set()

    with pytest.raises(JobCancelled):
        run(program(tmp_path, GOOD + "\nexec sleep 60"), job(tmp_path), report=stop, cancelled=cancelled)
    assert left(tmp_path) in ([], ["types.seen"])


def test_interrupted_by_the_keyboard(tmp_path: Path) -> None:
    def stop(step: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(program(tmp_path, GOOD + "\nexec sleep 60"), job(tmp_path), report=stop)
    assert left(tmp_path) in ([], ["types.seen"])


def test_a_target_that_is_there_stays(tmp_path: Path) -> None:
    work = job(tmp_path)
    work.target.parent.mkdir()
    work.target.write_text("mine")
    with pytest.raises(ModelError, match="there already"):
        run(program(tmp_path, GOOD), work)
    assert work.target.read_text() == "mine"


def test_a_target_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    work = job(tmp_path)
    with pytest.raises(ModelError, match="there already"):
        run(program(tmp_path, GOOD), work, check=lambda _: work.target.write_text("mine"))
    assert work.target.read_text() == "mine" and left(tmp_path) == ["made.gguf", "types.seen"]


def test_two_runs_for_one_file(tmp_path: Path) -> None:
    work, tool = job(tmp_path), program(tmp_path, GOOD)

    def again(_: Path) -> None:
        with pytest.raises(ModelError, match="another run"):
            run(tool, work)

    run(tool, work, check=again)
    assert work.target.read_text() == "made"


def test_room_is_checked_first(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(DiskFull, match="are needed"):
        run(program(tmp_path, "touch $5.ran"), job(tmp_path, needed_bytes=free))
    assert left(tmp_path) == []


def test_a_disk_that_fills_up_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "_sync", full)
    with pytest.raises(DiskFull, match="No space left"):
        run(program(tmp_path, GOOD), job(tmp_path))
    assert left(tmp_path) == ["types.seen"]


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(CacheNotWritable):
        run(program(tmp_path, GOOD), job(tmp_path))


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be run"):
        run(tmp_path / "none", job(tmp_path))
