"""meshnode quantize: what it says beforehand, what it makes, and what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

import gguf_samples as samples

from meshnode.cli.quantize import quantize
from meshnode.config import find_places
from meshnode.models.catalog import DEMO_TARGET
from meshnode.models.gguf import read_model

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    environment = {
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "MESHNODE_HOME": str(tmp_path / "home"),
        "MESHNODE_CACHE": str(find_places().cache),
        "NO_COLOR": "1",
    }
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Result:
        return CliRunner(env=environment).invoke(quantize, arguments)

    return call


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return samples.llama(tmp_path / "models-F16.gguf", layers=4, kind="F16")


def facts(result: Result) -> dict[str, object]:
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert value.pop("schema") == 1
    return dict(value)


def test_a_dry_run_says_what_would_come_of_it(run: Run, source: Path) -> None:
    result = run(str(source), "--dry-run")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].split() == ["TYPE", "TENSORS", "SIZE"]
    assert "become" in result.stderr and "rule of thumb" in result.stderr
    found = facts(run(str(source), "--dry-run", "--json"))
    assert (found["type"], found["written"], found["layers"]) == ("Q4_K_M", False, {})
    assert found["output"] == str(source.with_name("models-Q4_K_M.gguf"))
    assert not source.with_name("models-Q4_K_M.gguf").exists()
    assert 4.5 < float(str(found["bits_per_weight"])) < 6


def test_types_for_layers(run: Run, source: Path) -> None:
    found = facts(run(str(source), "--type", "q8_0", "--layers", "0-1=Q3_K,3=Q2_K", "--dry-run", "--json"))
    assert (found["type"], found["layers"]) == ("Q8_0", {"0-1": "Q3_K_M", "3": "Q2_K"})
    assert str(found["output"]).endswith("models-Q8_0-mixed.gguf")
    assert "layers 0-1 as Q3_K_M, 3 as Q2_K" in run(str(source), "--layers", "0-1=Q3_K,3=Q2_K", "--dry-run").stderr


@pytest.mark.parametrize(("size", "limit"), [("20MB", 20_000_000), ("24MiB", 24 << 20), ("30000000", 30_000_000)])
def test_a_size_to_fit(run: Run, source: Path, size: str, limit: int) -> None:
    found = facts(run(str(source), "--fit", size, "--dry-run", "--json"))
    assert 0.9 * limit < int(str(found["file_bytes"])) <= limit


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--type", "Q9"], 2, "not a type"),
        (["--layers", "4=Q4_K"], 2, "no layer 4"),
        (["--layers", "2-1=Q4_K"], 2, "not understood"),
        (["--layers", "all=Q4_K"], 2, "not understood"),
        (["--fit", "much"], 2, "not a size"),
        (["--fit", "1TB", "--type", "Q8_0"], 2, "--fit chooses"),
        (["--fit", "1kB"], 2, "as small as 1,000 bytes"),
    ],
)
def test_what_is_refused(run: Run, source: Path, arguments: list[str], code: int, words: str) -> None:
    result = run(str(source), "--dry-run", *arguments)
    assert result.exit_code == code and words in result.stderr


def test_a_model_that_is_not_here(run: Run) -> None:
    result = run("qwen3-8b", "--dry-run")
    assert result.exit_code == 4 and "meshnode pull qwen3-8b" in result.stderr


@pytest.mark.engine
def test_the_file_is_made(run: Run, engine_bin: Path, tmp_path: Path) -> None:
    refused = run(str(DEMO_TARGET), "--output", "small")
    assert refused.exit_code == 4 and "--requantize" in refused.stderr
    made = run(str(DEMO_TARGET), "--output", "small", "--requantize")
    assert made.exit_code == 0 and made.stdout.splitlines()[-1] == "small.gguf"
    assert "serve it: meshnode --model small.gguf" in made.stderr
    assert read_model(tmp_path / "small.gguf").quantisation == "Q4_K_M"
    again = run(str(DEMO_TARGET), "--output", "small", "--requantize")
    assert again.exit_code == 4 and "there already" in again.stderr
    found = facts(run("demo", "--requantize", "--json"))
    assert found["written"] is True and found["output"] == str(tmp_path / "target-Q4_K_M.gguf")
    assert (tmp_path / "target-Q4_K_M.gguf").stat().st_size == found["file_bytes"]
