"""`meshnode plan` as a person and as a script meet it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from meshnode.cli.plan import plan
from meshnode.errors import EngineError, HubUnreachable, MeshnodeError, ModelFileInvalid, ModelNotFound
from tests.cli.conftest import ScriptedNode

COLUMNS = ["NODE", "RTT", "MEMORY", "TOKENS/S", "VERDICT", "REASON"]


def run(home: Path, *arguments: str) -> Result:
    return CliRunner(env={"MESHNODE_HOME": str(home), "NO_COLOR": "1"}).invoke(plan, arguments)


def candidate(**changes: Any) -> dict[str, Any]:
    made = {
        "node": "3f9a1c02be" + "0" * 54,
        "name": "studio",
        "rtt_s": None,
        "memory_bytes": 24_000_000_000,
        "predicted_tokens_per_s": 14.32,
        "verdict": "host",
        "reason": "39 layers on its GPU, output head",
    }
    return made | changes


def answer(*candidates: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What POST /api/plan says."""
    decision = {"solo": None, "split": None, "candidates": list(candidates), "refusal": None, **changes}
    return {"model": "hf.co/a/b", "decision": decision, "sentence": "b  split: layers studio 39 + attic 41"}


def cells(result: Result) -> list[list[str]]:
    header, *rows = result.stdout.splitlines()
    starts = [header.index(name) for name in COLUMNS]
    ends = [*starts[1:], None]
    return [[row[start:end].strip() for start, end in zip(starts, ends, strict=True)] for row in rows if row][:-1]


def test_a_table_with_those_that_take_part_first_in_the_order_of_the_pipeline(
    scripted: ScriptedNode, tmp_path: Path
) -> None:
    stages = [{"node": "b", "first_layer": 0}, {"node": "b", "first_layer": 9}, {"node": "a", "first_layer": 20}]
    scripted.answer_with(
        "/api/plan",
        answer(
            candidate(name="far", rtt_s=0.142, verdict="rejected", predicted_tokens_per_s=None, reason="142 ms away"),
            candidate(node="a", name="attic", rtt_s=0.0104, verdict="worker", reason="layers 20-40 on CUDA0"),
            candidate(node="b", name="barn", rtt_s=0.000412, verdict="worker", reason="layers 0-19 on CPU"),
            candidate(),
            split={"stages": stages},
        ),
    )
    result = run(tmp_path, "hf.co/a/b")
    assert result.exit_code == 0
    assert cells(result) == [
        ["studio", "-", "24 GB", "14.3", "host", "39 layers on its GPU, output head"],
        ["barn", "0.412 ms", "24 GB", "14.3", "worker", "layers 0-19 on CPU"],
        ["attic", "10.4 ms", "24 GB", "14.3", "worker", "layers 20-40 on CUDA0"],
        ["far", "142 ms", "24 GB", "-", "rejected", "142 ms away"],
    ]
    assert result.stdout.splitlines()[-1] == "b  split: layers studio 39 + attic 41"
    assert scripted.calls == [("/api/plan", {"model": "hf.co/a/b"})]


def test_json_is_what_the_node_said(scripted: ScriptedNode, tmp_path: Path) -> None:
    said = answer(candidate())
    scripted.answer_with("/api/plan", said)
    result = run(tmp_path, "b", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"schema": 1, **said}


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_model_that_fits_nowhere_ends_with_4(
    scripted: ScriptedNode, tmp_path: Path, options: tuple[str, ...]
) -> None:
    refusal = {"needed_bytes": 2, "available_bytes": 1, "reason": "short"}
    scripted.answer_with("/api/plan", answer(candidate(verdict="rejected"), refusal=refusal))
    result = run(tmp_path, "b", *options)
    assert result.exit_code == 4
    assert "rejected" in result.stdout


def test_a_mesh_of_nobody_has_only_a_sentence(scripted: ScriptedNode, tmp_path: Path) -> None:
    scripted.answer_with("/api/plan", answer())
    assert run(tmp_path, "b").stdout.splitlines()[-1].startswith("b  split")


def test_a_hostile_name_steers_no_terminal_and_a_verdict_of_a_newer_node_comes_last(
    scripted: ScriptedNode, tmp_path: Path
) -> None:
    hostile = candidate(name="\x1b]0;owned\x07\u202e", verdict="perhaps", reason="\x1b[2J")
    scripted.answer_with("/api/plan", answer(hostile, candidate()))
    out = run(tmp_path, "b").stdout
    assert "\x1b" not in out and "\u202e" not in out
    assert out.index("studio") < out.index("perhaps")
    scripted.answer_with("/api/plan", answer(candidate(name="")))
    assert "3f9a1c02be " in run(tmp_path, "b").stdout


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (ModelNotFound("nothing is called b", fix="did you mean c?"), 4),
        (ModelFileInvalid("b-00001-of-00002.gguf: 1 of 2 parts is missing"), 4),
        (HubUnreachable(), 5),
        (EngineError("the engine of this node is not ready yet", fix="try again in a moment"), 6),
    ],
)
def test_errors_are_those_of_the_node(
    scripted: ScriptedNode, tmp_path: Path, error: MeshnodeError, exit_code: int
) -> None:
    scripted.answer_with("/api/plan", error)
    result = run(tmp_path, "b")
    assert result.exit_code == exit_code and result.stdout == ""
    assert error.code in result.stderr and error.detail in result.stderr and error.fix in result.stderr
    result = run(tmp_path, "b", "--json")
    assert result.exit_code == exit_code
    assert json.loads(result.stdout)["error"] == error.as_dict()


def variant(quantisation: str, size_bytes: int, **changes: Any) -> dict[str, Any]:
    facts = {"name": f"o/b:{quantisation}", "quantisation": quantisation, "size_bytes": size_bytes, "on_disk": False}
    return {**facts, "fits": "no", "predicted_tokens_per_s": None, "chosen": False, **changes}


def test_the_quantisations_and_what_was_chosen(scripted: ScriptedNode, tmp_path: Path) -> None:
    variants = [
        variant("Q3_K_M", 4_000_000_000, fits="solo", predicted_tokens_per_s=21.04, chosen=True, on_disk=True),
        variant("Q4_K_M", 4_900_000_000, fits="split", predicted_tokens_per_s=9.5),
        variant("F16", 16_000_000_000),
    ]
    said = answer(candidate()) | {"variants": variants, "precision": "Q3_K_M, 4.0 GB; a loss that shows", "fix": ""}
    scripted.answer_with("/api/plan", said)
    result = run(tmp_path, "b")
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["QUANTISATION", "SIZE", "FITS", "TOKENS/S"] in lines
    assert ["Q3_K_M", "4.0", "GB", "solo", "21", "chosen,", "on", "this", "disk"] in lines
    assert ["Q4_K_M", "4.9", "GB", "split", "9.5"] in lines and ["F16", "16", "GB", "no", "-"] in lines
    assert result.stdout.endswith("chosen: Q3_K_M, 4.0 GB; a loss that shows\n")
    scripted.answer_with("/api/plan", said | {"variants": variants[:1], "precision": ""})
    assert "QUANTISATION" not in run(tmp_path, "b").stdout


def test_where_nothing_fits_it_says_what_to_do(scripted: ScriptedNode, tmp_path: Path) -> None:
    refusal = {"needed_bytes": 2, "available_bytes": 1, "reason": "short"}
    said = answer(candidate(verdict="rejected"), refusal=refusal)
    said |= {"variants": [], "precision": "not even F16 is held here", "fix": "meshnode quantize b --fit 7400000"}
    scripted.answer_with("/api/plan", said)
    result = run(tmp_path, "b")
    assert result.exit_code == 4
    assert result.stdout.splitlines()[-2:] == ["not even F16 is held here", "to do: meshnode quantize b --fit 7400000"]


def test_without_a_node_it_says_so(tmp_path: Path) -> None:
    assert run(tmp_path, "b").exit_code == 3
