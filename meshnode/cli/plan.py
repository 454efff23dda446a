"""meshnode plan: where a model would be served, what every node can do for it, and why. Asks the running node."""

from __future__ import annotations

from typing import Any

import click

from meshnode.cli.client import find_node
from meshnode.cli.render import command_errors, emit, human_bytes, printable, table, write_line
from meshnode.errors import ModelDoesNotFit

ANSWER_S = 120
"""A model that is not on this disk is looked up first."""
_FIRST = ("solo", "host", "worker", "spare", "rejected")


@click.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@command_errors
def plan(model: str, as_json: bool) -> None:
    """Where MODEL would be served: on which machines, how fast, and why not on others."""
    facts = find_node().call("POST", "/api/plan", {"model": model}, timeout_s=ANSWER_S)
    if as_json:
        emit(facts)
    else:
        show_plan(facts)
    if facts["decision"]["refusal"]:
        raise SystemExit(ModelDoesNotFit.exit_code)


def show_plan(facts: dict[str, Any]) -> None:
    """/api/plan for people: the candidates, those that take part first, and the decision as a sentence."""
    decision = facts["decision"]
    candidates = decision["candidates"]
    order = _stage_order(decision["split"])
    rows = [
        [
            printable(candidate["name"]) or candidate["node"][:10],
            _milliseconds(candidate["rtt_s"]),
            human_bytes(candidate["memory_bytes"]),
            _rate(candidate["predicted_tokens_per_s"]),
            candidate["verdict"],
            candidate["reason"],
        ]
        for candidate in sorted(candidates, key=lambda each: (_rank(each["verdict"]), order.get(each["node"], 0)))
    ]
    table(["NODE", "RTT", "MEMORY", "TOKENS/S", "VERDICT", "REASON"], rows)
    variants = facts.get("variants", [])
    if len(variants) > 1:
        write_line("")
        table(["QUANTISATION", "SIZE", "FITS", "TOKENS/S", ""], [_variant_row(variant) for variant in variants])
    write_line(f"\n{facts['sentence']}")
    if facts.get("precision"):
        write_line(f"chosen: {facts['precision']}" if any(v["chosen"] for v in variants) else facts["precision"])
    if facts.get("fix"):
        write_line(f"to do: {facts['fix']}")


def _variant_row(variant: dict[str, Any]) -> list[str]:
    notes = [word for word, holds in (("chosen", variant["chosen"]), ("on this disk", variant["on_disk"])) if holds]
    return [
        printable(variant["quantisation"]),
        human_bytes(variant["size_bytes"]),
        variant["fits"],
        _rate(variant["predicted_tokens_per_s"]),
        ", ".join(notes),
    ]


def _rank(verdict: str) -> int:
    return _FIRST.index(verdict) if verdict in _FIRST else len(_FIRST)


def _stage_order(split: dict[str, Any] | None) -> dict[str, int]:
    """The place of each worker in the pipeline."""
    stages = split["stages"] if split else []
    return {stage["node"]: stage["first_layer"] for stage in reversed(stages)}


def _milliseconds(rtt_s: float | None) -> str:
    return "-" if rtt_s is None else f"{rtt_s * 1e3:.3g} ms"


def _rate(tokens_per_s: float | None) -> str:
    return "-" if tokens_per_s is None else f"{tokens_per_s:.3g}"
