"""The comparison with LiteLLM: its arithmetic, without LiteLLM."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from bench import compare_litellm
from bench.compare_litellm import MOST_TIMES, LiteLLM, closer, install, times
from bench.figures import difference
from bench.load import Target
from bench.record import Run


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"), [(10, 2, 5), (10, 0, MOST_TIMES), (10, -1, MOST_TIMES), (1, 4, 0.25)]
)
def test_times(theirs: float, ours: float, expected: float) -> None:
    assert times(theirs, ours) == expected


def test_closer_compares_distances_not_times() -> None:
    run = Run("litellm", quick=True, machine={})
    sides = {
        "direct": [[10.0], [20.0], [30.0]],
        "meshnode": [[11.0], [21.0], [31.0]],
        "litellm": [[18.0], [28.0], [38.0]],
    }
    closer(run, "x", sides, partial(difference, share=0.5))
    (figure,) = run.figures
    assert figure.value == pytest.approx(8)
    assert figure.reached is True and figure.at_least


def test_the_configuration_names_model_address_and_key() -> None:
    proxy = LiteLLM(Path("/nowhere"), Target("direct", model="demo", port=1234, key="k"))
    config = Path(proxy._argv[proxy._argv.index("--config") + 1]).read_text()
    proxy._scratch.cleanup()
    assert all(part in config for part in ("model: openai/demo", "http://127.0.0.1:1234/v1", "api_key: k"))
    assert proxy.target.port and proxy.target.key.startswith("sk-") and proxy.target.model == "demo"


def test_a_proxy_that_does_not_start_says_why(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "litellm"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho no such thing\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(RuntimeError, match="no such thing"), LiteLLM(tmp_path, Target("direct", model="demo", port=1)):
        pytest.fail("it cannot have started")


def test_what_is_installed_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHNODE_CACHE", str(tmp_path))
    there = tmp_path / "bench" / "litellm" / "lib" / "python3.11" / "site-packages" / "litellm-1.2.3.dist-info"
    there.mkdir(parents=True)
    monkeypatch.setattr(compare_litellm.venv, "create", lambda *_, **__: pytest.fail("installed again"))
    assert install("1.2.3") == tmp_path / "bench" / "litellm"
