"""Writes the results section of bench/README.md from the newest result of each benchmark.

python -m bench.report                        from bench/results/
python -m bench.report some/folder/*.json     from these files
python -m bench.report --check                fails when the README is not what the results say
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.record import FOLDER, SCHEMA, bounds, limit, number

README = Path(__file__).resolve().parent / "README.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
ORDER = (
    *("gateway", "mesh", "split", "swarm", "verify", "transport", "relay", "traversal", "membership", "dht", "litellm"),
    *("paid_stream", "vouchers", "startup", "console"),
)
MARKS = {True: "yes", False: "**no**", None: ""}

Result = dict[str, Any]


def newest(files: Iterable[Path]) -> list[Result]:
    """The newest complete run of each benchmark, in a fixed order. Raises ValueError for a file of another kind."""
    found: dict[str, Result] = {}
    for file in files:
        result = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(result, dict) or result.get("schema") != SCHEMA:
            raise ValueError(f"{file} is no result of these benchmarks")
        name = result["benchmark"]
        if name not in found or found[name]["date"] < result["date"]:
            found[name] = result
    known = [name for name in ORDER if name in found]
    return [found[name] for name in known + sorted(set(found) - set(known))]


def section(result: Result) -> str:
    """One benchmark as a heading, a sentence and a table."""
    quick = ", **a quick run: its figures mean little**" if result["quick"] else ""
    lines = [
        f"### {result['benchmark']}",
        "",
        f"{result['date'][:16].replace('T', ' ')} UTC, commit {result['machine'].get('commit', 'unknown')}, "
        f"{result['duration_s'] / 60:.0f} minutes, "
        f"load {result['machine'].get('load_1min', '?')} when it began{quick}.",
        "",
        "| figure | value | bounds | must be | reached | how |",
        "|---|---:|---|---|---|---|",
    ]
    for figure in result["figures"]:
        value = f"{number(figure['value'])} {figure['unit']}"
        cells = (figure["name"], value, bounds(figure), limit(figure), MARKS[figure["reached"]], figure["note"])
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def machine_sentence(machine: dict[str, Any]) -> str:
    """The machine as one paragraph."""
    packages = ", ".join(f"{name} {version}" for name, version in machine.get("packages", {}).items())
    return (
        f"{machine.get('processor', 'unknown processor')} ({machine.get('architecture', '?')}), "
        f"{machine.get('threads', '?')} threads on {machine.get('cores', '?')} cores, "
        f"{machine.get('memory_bytes', 0) / 1e9:.0f} GB memory; {machine.get('system', '?')}; "
        f"{machine.get('python', '?')}; {packages}."
    )


def render(results: list[Result]) -> str:
    """The whole section, without its markers."""
    if not results:
        return "No results yet: run the benchmarks, then this command."
    machines = {json.dumps(_lasting(result["machine"]), sort_keys=True): result["machine"] for result in results}
    sentences = "\n\n".join(machine_sentence(machine) for machine in machines.values())
    return "\n\n".join([f"Machine: {sentences}", *(section(result) for result in results)])


def _lasting(machine: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in machine.items() if name not in ("commit", "load_1min")}


def replaced(text: str, results: str) -> str:
    """`text` with the part between the markers exchanged. Raises ValueError when they are not there once each."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"expected one {BEGIN} and one {END}")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{results}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="result files (all of bench/results)")
    parser.add_argument("--check", action="store_true", help="change nothing; fail when the README is out of date")
    parser.add_argument("--readme", type=Path, default=README)
    options = parser.parse_args()
    before = options.readme.read_text(encoding="utf-8")
    try:
        after = replaced(before, render(newest(options.files or sorted(FOLDER.glob("*.json")))))
    except (ValueError, KeyError) as reason:
        sys.exit(f"report: {reason}")
    if options.check and before != after:
        sys.exit(f"report: {options.readme} is out of date; run python -m bench.report")
    if before != after:
        options.readme.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
