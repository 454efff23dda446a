"""meshnode discover: which public meshes there are, how far away, what they have shown, and how the relays behaved.

Needs no running node and publishes nothing: it asks the relays of the settings and the meshes that they list.
"""

from __future__ import annotations

from typing import Any

import click

from meshnode.cli.render import command_errors, emit, human_bytes, printable, say, table
from meshnode.config import find_places, setting_fields

MOST_MODELS_SHOWN = 3
_amount = next(item.metadata["parse"] for item in setting_fields() if item.name == "max_vram")


class _Memory(click.ParamType[int]):
    """An amount of memory as settings have it: 8 (GB), 7.5GB, 512MB."""

    name = "GB"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return int(_amount(value))
        except ValueError as reason:
            self.fail(str(reason), param, ctx)


@click.command()
@click.option("--model", "models", multiple=True, metavar="NAME", help="meshes that serve this model (repeatable: any)")
@click.option("--region", default="", metavar="TEXT", help="prefer meshes of this region, such as eu-west")
@click.option("--min-vram", type=_Memory(), metavar="GB", help="meshes that show this much GPU memory")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@click.pass_context
@command_errors
def discover(ctx: click.Context, models: tuple[str, ...], region: str, min_vram: int | None, as_json: bool) -> None:
    """Public meshes that can be joined, the best first."""
    from meshnode.cli.main import settings_of
    from meshnode.discovering import discover_here

    settings, places = settings_of(ctx), find_places()
    key_file = places.home / "public" / "nostr.key"
    found = discover_here(settings, key_file, models=models, region=region, vram=min_vram or 0)
    facts = found.facts()
    if as_json:
        emit(facts)
    else:
        show_discovery(facts)
    if found.problem is not None:
        if as_json:
            raise SystemExit(found.problem.exit_code)
        raise found.problem


def show_discovery(facts: dict[str, Any]) -> None:
    """The facts for people: meshes on stdout; relays, and what they sent that does not hold, on stderr."""
    for relay in facts["relays"]:
        count = relay["count"]
        listings = f"{count} listing{'' if count == 1 else 's'}" if count else ""
        told = ", ".join(text for text in (relay["state"], listings, relay["text"]) if text)
        say(f"{relay['url']}: {printable(told, 160)} ({relay['elapsed_s'] * 1e3:.0f} ms)")
    if facts["drops"]:
        say(f"left out: {', '.join(facts['drops'])}")
    if facts["meshes"]:
        columns = ["NAME", "MODELS", "NODES", "FREE", "MEMORY", "PRICE", "REGION", "RTT", "SCORE", "WHY"]
        table(columns, [_row(mesh) for mesh in facts["meshes"]])


def _row(mesh: dict[str, Any]) -> list[str]:
    """What was shown; of a mesh that did not answer what is listed, in brackets."""
    listed, shown = mesh["listed"], mesh["shown"]
    names = shown["models"] if shown else [model["name"] for model in listed["models"]]
    cells = [
        _names(names),
        str(shown["nodes"] if shown else listed["nodes"]),
        str(shown["free_slots"]) if shown else "-",
        human_bytes(shown["vram_bytes"] if shown else listed["vram_bytes"]),
    ]
    why = mesh["refusal"] or ", ".join(mesh["reasons"])
    return [
        printable(mesh["name"]),
        *(cells if shown else [cell if cell == "-" else f"({cell})" for cell in cells]),
        _price(listed["models"]),
        printable(mesh["region"]) or "-",
        f"{shown['rtt_s'] * 1e3:.3g} ms" if shown else "-",
        "-" if mesh["refusal"] else f"{mesh['score']:.0f}",
        why,
    ]


def _price(models: list[dict[str, Any]]) -> str:
    """Of the cheapest model that has a price, in dollars for a million tokens; what is listed binds nobody."""
    from meshnode.policies import usd

    prices = [(model["price_in"], model["price_out"]) for model in models]
    if not any(map(any, prices)):
        return "free"
    low_in, low_out = min(price for price in prices if any(price))
    some = "" if all(map(any, prices)) else ", some free"
    return f"{usd(low_in)} in, {usd(low_out)} out{some}"


def _names(names: list[str]) -> str:
    more = len(names) - MOST_MODELS_SHOWN
    return ", ".join(names[:MOST_MODELS_SHOWN]) + (f" and {more} more" if more > 0 else "") or "-"
