"""pull, ls, show, rm and search as a person and as a script meet them, against a hub on loopback."""

import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

import gguf_samples as samples
from loopback_hub import LoopbackHub, noise

from meshnode.cli.main import root
from meshnode.errors import TooManyRequests
from meshnode.models import transfer
from tests.cli.conftest import ScriptedNode

REPO = "owner/tiny-GGUF"
Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "FIRST_WAIT_S", 0.01)


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    server = LoopbackHub()
    yield server
    server.close()


@pytest.fixture
def environment(hub: LoopbackHub, tmp_path: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "",
        "HF_TOKEN": "",
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "MESHNODE_HOME": str(tmp_path / "home"),
        "MESHNODE_CACHE": str(tmp_path / "cache"),
        "NO_COLOR": "1",
    }


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    def call(*arguments: str, **more: str) -> Result:
        return CliRunner(env={**environment, **more}).invoke(root, arguments)

    return call


@pytest.fixture
def tiny(hub: LoopbackHub, tmp_path: Path) -> bytes:
    path = samples.llama(tmp_path / "source.gguf", layers=2, kind="Q4_0")
    data = path.read_bytes()[:60_000] + random.Random(1).randbytes(path.stat().st_size - 60_000)
    hub.add(REPO, {"tiny-Q4_0.gguf": data, "tiny-Q2_K.gguf": noise(10)})
    return data


def facts(result: Result) -> dict[str, object]:
    assert result.stdout.count("\n") == 1, result.stdout
    value = json.loads(result.stdout)
    assert value.pop("schema") == 1
    return dict(value)


def test_pull_prints_the_path_alone_and_talks_on_stderr(run: Run, tiny: bytes) -> None:
    result = run("pull", f"{REPO}:Q4_0")
    assert result.exit_code == 0
    assert Path(result.stdout.strip()).read_bytes() == tiny
    assert "download" in result.stderr and f"meshnode --model {REPO}:Q4_0" in result.stderr


@pytest.mark.parametrize("word", ["pull", "download"])
def test_pull_as_json(run: Run, tiny: bytes, word: str) -> None:
    found = facts(run(word, f"{REPO}:q4_0", "--json"))
    assert (found["model"], found["size_bytes"], found["on_disk"]) == (f"{REPO}:Q4_0", len(tiny), True)
    assert len(str(found["sha256"])) == 64


def test_a_dry_run_fetches_nothing(run: Run, tiny: bytes, hub: LoopbackHub) -> None:
    result = run("pull", f"{REPO}:Q4_0", "--dry-run")
    assert "tiny-Q4_0.gguf" in result.stdout and "in all" in result.stderr
    assert facts(run("pull", f"{REPO}:Q4_0", "--dry-run", "--json"))["total_bytes"] == len(tiny)
    assert facts(run("pull", "demo", "--dry-run", "--json"))["model"] == "demo"
    assert hub.ranges() == []


def test_ls_shows_the_demo_and_half_models(run: Run, tiny: bytes, hub: LoopbackHub) -> None:
    run("pull", f"{REPO}:Q4_0")
    hub.add("owner/half-GGUF", {"half-Q8_0.gguf": noise(400_000)}, drops=[200_000], status=0)
    hub.repositories["owner/half-GGUF"].drops += [0] * 20
    assert run("pull", "owner/half-GGUF").exit_code == 5
    result = run("ls")
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["ALIAS", "MODEL", "SIZE", "CHANGED"]
    assert any(line.startswith("demo") for line in lines)
    assert any("owner/half-GGUF:Q8_0" in line and "of 400 kB, incomplete" in line for line in lines)
    assert "finish an incomplete one" in result.stderr
    models = facts(run("ls", "--json"))["models"]
    assert isinstance(models, list)
    assert {model["model"]: model["incomplete"] for model in models} == {
        "demo": False,
        f"{REPO}:Q4_0": False,
        "owner/half-GGUF:Q8_0": True,
    }


def test_show_before_and_after_the_download(run: Run, tiny: bytes, hub: LoopbackHub) -> None:
    before = facts(run("show", f"{REPO}:Q4_0", "--json"))
    assert before["on_disk"] is False and before["total_bytes"] == len(tiny)
    run("pull", f"{REPO}:Q4_0")
    after = facts(run("show", f"{REPO}:Q4_0", "--json"))
    assert after["on_disk"] is True
    assert after["header"] == before["header"] and after["memory"] == before["memory"]
    memory = after["memory"]
    assert isinstance(memory, dict)
    assert memory["kv_bytes_per_token"] == 2 * 512 * 2
    assert memory["context"] == 32768 and memory["kv_bytes"]["f16"] == 32768 * 2 * 512 * 2
    assert isinstance(after["fit"], dict) and after["fit"]["fits"] is True


def test_show_for_people(run: Run, tiny: bytes) -> None:
    result = run("show", f"{REPO}:Q4_0", "--ctx-size", "4096")
    assert result.exit_code == 0, result.output
    for word in ("llama", "Q4_0", "2.0 kB a token", "8.4 MB at 4096 tokens", "not on this disk", "\nhere "):
        assert word in result.stdout, result.stdout


def test_show_the_demo(run: Run) -> None:
    shown = facts(run("show", "demo", "--json"))
    assert shown["model"] == "demo" and shown["on_disk"] is True


def test_show_cannot_be_made_to_steer_a_terminal(run: Run, tmp_path: Path) -> None:
    keys = samples.base_keys(1)
    path = samples.write_gguf(
        tmp_path / "evil.gguf",
        "llama",
        keys,
        samples.ends(),
        raw_keys={"general.name": "\x1b]0;own\x07\x1b[2J\nfits"},
    )
    result = run("show", str(path))
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout and "\x07" not in result.stdout


@pytest.mark.parametrize("word", ["rm", "drop"])
def test_rm(run: Run, tiny: bytes, word: str) -> None:
    run("pull", f"{REPO}:Q4_0")
    assert facts(run(word, f"{REPO}:Q4_0", "--json")) == {"model": f"{REPO}:Q4_0", "freed_bytes": len(tiny)}
    again = run(word, f"{REPO}:Q4_0")
    assert again.exit_code == 4 and "is not on this disk" in again.stderr


def test_rm_of_the_demo_is_refused(run: Run) -> None:
    result = run("rm", "demo", "--yes")
    assert result.exit_code == 4 and "ships with meshnode" in result.stderr


def test_search(run: Run, hub: LoopbackHub) -> None:
    hub.add("someone/qwen3-tuned-GGUF", {}, gated=True)
    result = run("search", "qwen3", "--limit", "3")
    assert "qwen3-0.6b" in result.stdout and "someone/qwen3-tuned-GGUF" in result.stdout
    found = facts(run("search", "qwen3", "--json"))
    assert isinstance(found["hub"], list) and found["hub"][0]["gated"] is True
    assert "nothing found" in run("search", "zzzz").stderr


def test_search_without_a_hub(run: Run) -> None:
    offline = run("search", "qwen3", HF_HUB_OFFLINE="1")
    assert offline.exit_code == 0 and "qwen3-8b" in offline.stdout and "the hub was not asked" in offline.stderr
    nothing = run("search", "zzzz", "--json", HF_HUB_OFFLINE="1")
    assert nothing.exit_code == 5
    assert facts(nothing)["error"]["code"] == "hub-offline"  # type: ignore[index]


@pytest.mark.parametrize(
    ("arguments", "code", "name"),
    [
        (("pull", "qwen3-8"), 4, "model-not-found"),
        (("pull", "owner/absent"), 4, "model-not-found"),
        (("show", "llama3.2:3b"), 4, "model-not-found"),
        (("pull", "owner/gated-GGUF"), 5, "gated-repository"),
        (("pull", "owner/lying-GGUF"), 5, "download-corrupt"),
        (("show", "owner/lying-GGUF"), 4, "model-file-invalid"),
    ],
)
def test_errors_have_words_a_fix_and_an_exit_code(
    run: Run, hub: LoopbackHub, arguments: tuple[str, ...], code: int, name: str
) -> None:
    hub.add("owner/gated-GGUF", {"m-Q4_K_M.gguf": noise(10)}, gated=True)
    hub.add("owner/lying-GGUF", {"m-Q4_K_M.gguf": noise(10)}, announced={"m-Q4_K_M.gguf": "b" * 64})
    result = run(*arguments)
    assert result.exit_code == code
    assert result.stdout == ""
    first, fix = [line for line in result.stderr.splitlines() if not line.startswith("download")][:2]
    assert first.startswith("error: ") and first.endswith(f"({name})") and fix.startswith("  ")
    as_json = run(*arguments, "--json")
    assert as_json.exit_code == code
    assert facts(as_json)["error"]["code"] == name  # type: ignore[index]


@pytest.mark.parametrize(
    "arguments", [("pull",), ("show",), ("search", "--limit", "0"), ("show", "x", "--ctx-size", "0")]
)
def test_usage_errors_are_2(run: Run, arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


def test_a_model_that_is_served_is_not_removed(run: Run, tiny: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    from meshnode.cli import models

    run("pull", f"{REPO}:Q4_0")
    monkeypatch.setattr(models, "_is_served", lambda: lambda canonical: canonical == f"{REPO}:Q4_0")
    result = run("rm", f"{REPO}:Q4_0", "--yes")
    assert result.exit_code == 4 and "meshnode unload" in result.stderr


def test_a_running_node_fetches_in_the_background(scripted: ScriptedNode, run: Run, tmp_path: Path) -> None:
    there = {"MESHNODE_HOME": str(tmp_path)}
    scripted.answer_with("/api/pull", {"model": "qwen3-8b", "state": "running"}, {"model": "demo", "state": "done"})
    begun = run("pull", "qwen3-8b", "--background", **there)
    assert begun.exit_code == 0 and begun.stdout == ""
    assert "is being fetched by the node" in begun.stderr and "/#/models" in begun.stderr
    assert "on this disk" in run("pull", "demo", "--background", **there).stderr
    assert facts(run("download", "demo", "--background", "--json", **there)) == {"model": "demo", "state": "done"}
    assert scripted.calls == [("/api/pull", {"model": name}) for name in ("qwen3-8b", "demo", "demo")]


def test_the_background_needs_a_node_and_tells_why_it_refuses(scripted: ScriptedNode, run: Run, tmp_path: Path) -> None:
    assert run("pull", "demo", "--background").exit_code == 3
    assert run("pull", "demo", "--background", "--dry-run").exit_code == 2
    scripted.answer_with("/api/pull", TooManyRequests("16 downloads are waiting already", fix="stop one"))
    refused = run("pull", "qwen3-8b", "--background", MESHNODE_HOME=str(tmp_path))
    assert refused.exit_code == 1 and "16 downloads" in refused.stderr and "stop one" in refused.stderr


def test_ls_tells_what_fits_as_the_running_node_sees_it(scripted: ScriptedNode, run: Run, tmp_path: Path) -> None:
    fit = {"verdict": "split", "sentence": "needs 2 nodes: it takes 9.1 GiB"}
    scripted.answer_with("/api/models", {"on_disk": [{"model": "demo", "fit": fit}], "catalog": []})
    there = {"MESHNODE_HOME": str(tmp_path)}
    shown = run("ls", "--fit", **there).stdout.splitlines()
    assert shown[0].split()[-1] == "FIT" and shown[1].endswith("needs 2 nodes: it takes 9.1 GiB")
    models = facts(run("ls", "--fit", "--json", **there))["models"]
    assert isinstance(models, list) and models[0]["fit"] == fit
    assert "fit" not in facts(run("ls", "--json"))["models"][0]  # type: ignore[index]
    scripted.answer_with("/api/models", {"on_disk": [], "catalog": []})
    assert run("ls", "--fit", **there).stdout.splitlines()[1].endswith(" -")
    assert run("ls", "--fit").exit_code == 3
