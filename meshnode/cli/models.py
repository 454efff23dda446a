"""Commands for models: pull, ls, show, rm, search. None needs a running node, but for a pull that it does by itself.

Everything a command shows is first gathered as plain facts (what `--json` prints) and only then put into words.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from meshnode.cli.render import command_errors, emit, human_bytes, printable, progress_report, say, table

if TYPE_CHECKING:
    from meshnode.models.cache import LocalModel
    from meshnode.models.header import Header
    from meshnode.models.names import ModelRef
    from meshnode.models.shapes import ModelShape
    from meshnode.models.store import ModelStore, RemoteModel, SearchResult

# What `show` counts the cache for; agents ask for tens of thousands of tokens.
SHOWN_CONTEXT = 32768
as_json_option = click.option("--json", "as_json", is_flag=True, help="print one JSON object")


def open_store() -> ModelStore:
    """The models of this machine, as the HF_* variables say."""
    from meshnode.models.store import ModelStore

    return ModelStore.from_environment()


@click.command()
@click.argument("model")
@click.option("--dry-run", is_flag=True, help="only say what would be fetched")
@click.option("--background", is_flag=True, help="let the running node fetch it, and return at once")
@as_json_option
@command_errors
def pull(model: str, dry_run: bool, background: bool, as_json: bool) -> None:
    """Fetch MODEL from Hugging Face, or what is missing of it: an alias, owner/repo[:QUANT], a link."""
    if background and dry_run:
        raise click.UsageError("--background and --dry-run exclude each other")
    if background:
        return _pull_there(model, as_json=as_json)
    store = open_store()
    ref = store.resolve(model)
    if dry_run:
        return _dry_run(store, ref, as_json=as_json)
    with progress_report(quiet=as_json) as report:
        found = store.pull(ref, report)
    if as_json:
        emit(_facts(found))
    else:
        click.echo(str(found.path))
        say(f"serve it: meshnode --model {found.ref.short_name}")


@click.command(name="ls")
@click.option("--fit", is_flag=True, help="say what fits, as the running node sees its memory and its mesh")
@as_json_option
@command_errors
def ls(fit: bool, as_json: bool) -> None:
    """Models on this disk, also those that other programs fetched into the Hugging Face cache."""
    store = open_store()
    fits = _fits_there() if fit else {}
    models = store.list_local()
    if as_json:
        found = [_facts(model) | ({"fit": fits.get(model.ref.canonical)} if fit else {}) for model in models]
        return emit({"folder": str(store.folder), "models": found})
    rows = []
    for model in models:
        size = human_bytes(model.size_bytes)
        if model.incomplete:
            size = f"{size} of {human_bytes(model.total_bytes)}, incomplete"
        row = [model.ref.alias or "-", model.ref.canonical, size, _age(model.modified_s)]
        rows.append([*row, fits.get(model.ref.canonical, {}).get("sentence", "-")] if fit else row)
    table(["ALIAS", "MODEL", "SIZE", "CHANGED", *(["FIT"] if fit else [])], rows)
    if any(model.incomplete for model in models):
        say("finish an incomplete one with: meshnode pull MODEL")


@click.command()
@click.argument("model")
@click.option("--ctx-size", "context", type=click.IntRange(1, 1 << 24), help="count the cache for this context")
@as_json_option
@click.pass_context
@command_errors
def show(ctx: click.Context, model: str, context: int | None, as_json: bool) -> None:
    """What MODEL is, what it needs, and whether it fits here. Fetches only its header when it is not on this disk."""
    from meshnode.models.shapes import shape_of

    store = open_store()
    ref = store.resolve(model)
    local, remote, header = _read(store, ref)
    shape = shape_of(header)
    context = context or min(SHOWN_CONTEXT, header.context_length or SHOWN_CONTEXT)
    facts = {
        **(_facts(local) if local else _remote_facts(remote)),
        "header": _header_facts(header),
        "memory": _memory_facts(shape, context),
        "fit": _fit(ctx, shape),
    }
    if entry := store.catalog.find(ref.alias):
        facts["draft"] = entry.draft
    emit(facts) if as_json else _print_facts(facts)


@click.command()
@click.argument("model")
@click.option("-y", "--yes", is_flag=True, help="do not ask")
@as_json_option
@command_errors
def rm(model: str, yes: bool, as_json: bool) -> None:
    """Remove MODEL from this disk."""
    store = open_store()
    ref = store.resolve(model)
    found = store.find(ref)
    if found and not yes and not as_json and _is_terminal():
        click.confirm(f"remove {found.ref.canonical} ({human_bytes(found.size_bytes)})?", abort=True, err=True)
    freed = store.remove(ref, in_use=_is_served())
    if as_json:
        emit({"model": found.ref.canonical if found else ref.canonical, "freed_bytes": freed})
    else:
        say(f"{human_bytes(freed)} freed")


@click.command()
@click.argument("words", nargs=-1)
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="results from each side")
@as_json_option
@command_errors
def search(words: tuple[str, ...], limit: int, as_json: bool) -> None:
    """Find models by name: those meshnode knows well, then GGUF repositories of the hub, most downloaded first."""
    result = open_store().search(" ".join(words), limit)
    if result.problem and not result.catalog:
        raise result.problem
    if as_json:
        return emit(_search_facts(result))
    _print_search(result)


# --- facts ----------------------------------------------------------------------------------------------------


def _facts(model: LocalModel) -> dict[str, Any]:
    return {
        "model": model.ref.canonical,
        "alias": model.ref.alias,
        "name": model.name,
        "on_disk": not model.incomplete,
        "incomplete": model.incomplete,
        "size_bytes": model.size_bytes,
        "total_bytes": model.total_bytes,
        "path": str(model.path),
        "parts": [str(part) for part in model.parts],
        "mmproj": str(model.mmproj) if model.mmproj else None,
        "sha256": model.sha256 or None,
        "modified": round(model.modified_s, 3),
    }


def _remote_facts(remote: RemoteModel | None) -> dict[str, Any]:
    assert remote is not None
    return {
        "model": remote.ref.canonical,
        "alias": remote.ref.alias,
        "on_disk": False,
        "incomplete": False,
        "size_bytes": 0,
        "total_bytes": remote.size_bytes,
        "files": [{"name": file.name, "size_bytes": file.size_bytes, "sha256": file.oid} for file in remote.files],
        "gated": remote.listing.gated,
    }


def _header_facts(header: Header) -> dict[str, Any]:
    return {
        "architecture": header.architecture,
        "name": header.name,
        "quantisation": header.quantisation,
        "layers": header.layer_count,
        "context_length": header.context_length,
        "vocabulary": header.vocabulary_size,
        "parts": header.split_count,
        "chat_template": bool(header.chat_template),
        "pooling": header.pooling or None,
    }


def _memory_facts(shape: ModelShape, context: int) -> dict[str, Any]:
    return {
        "parameters": shape.parameters,
        "weights_bytes": shape.total_bytes,
        "layer_bytes": max(layer.weights_bytes for layer in shape.layers),
        "active_bytes": shape.active_bytes,
        "experts": shape.n_expert,
        "experts_used": shape.n_expert_used,
        "kv_bytes_per_token": shape.kv_bytes_per_token(),
        "state_bytes": shape.state_bytes,
        "context": context,
        "kv_bytes": {kind: shape.kv_bytes(context, cache_type=kind) for kind in ("f16", "q8_0", "q4_0")},
        "exact": shape.exact,
    }


def _search_facts(result: SearchResult) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "catalog": [asdict(entry) for entry in result.catalog],
        "hub": [asdict(found) for found in result.hub],
        "problem": result.problem.as_dict() if result.problem else None,
    }


def _read(store: ModelStore, ref: ModelRef) -> tuple[LocalModel | None, RemoteModel | None, Header]:
    """The header from the disk, or for a model that is not (wholly) there, from the hub."""
    local = store.find(ref)
    if local and (not local.incomplete or ref.kind != "hub"):
        return local, None, store.read(local)
    remote = store.look_up(ref)
    return local, remote, store.read_remote(remote)


def _fit(ctx: click.Context, shape: ModelShape) -> dict[str, Any]:
    """The planner's answer for this machine as it is now, with the settings that a node would start with."""
    from meshnode.cli.main import settings_of
    from meshnode.config import find_places
    from meshnode.engine.installed import list_devices
    from meshnode.engine.provision import find
    from meshnode.hardware import probe_all
    from meshnode.planning import describe_fit, known_speeds

    settings, cache = settings_of(ctx), find_places().cache
    engine = find(cache)
    inventory = probe_all((lambda: list_devices(engine)) if engine else None, settings.max_vram)
    speeds = known_speeds(engine, inventory, settings, cache) if engine else {}
    return describe_fit(shape, inventory, settings, speeds)


def _is_served() -> Callable[[str], bool]:
    """Tells whether the running node of this home folder serves a model; nothing is served when none runs."""
    from meshnode.cli.client import find_node
    from meshnode.errors import NodeNotRunning

    try:
        entries = find_node().call("GET", "/api/status")["models"]
    except NodeNotRunning:
        return lambda canonical: False
    served = {str(entry["canonical"]).lower() for entry in entries if entry["state"] != "failed"}
    return lambda canonical: canonical.lower() in served


def _fits_there() -> dict[str, dict[str, str]]:
    """What fits, by canonical name, as the running node says. Raises NodeNotRunning."""
    from meshnode.cli.client import find_node

    return {str(item["model"]): item["fit"] for item in find_node().call("GET", "/api/models")["on_disk"]}


def _pull_there(model: str, *, as_json: bool) -> None:
    """Hand a download to the running node. Raises NodeNotRunning, and what the node refuses with."""
    from meshnode.cli.client import find_node

    node = find_node()
    accepted = node.call("POST", "/api/pull", {"model": model})
    if as_json:
        emit(accepted)
    elif accepted["state"] == "done":
        say(f"{printable(accepted['model'])} is on this disk")
    else:
        say(f"{printable(accepted['model'])} is being fetched by the node; see {node.console}/#/models")


def _dry_run(store: ModelStore, ref: ModelRef, *, as_json: bool) -> None:
    if ref.kind != "hub":
        found = store.find(ref)
        return emit(_facts(found)) if as_json and found else say(f"{ref.canonical} is here already")
    remote = store.look_up(ref)
    if as_json:
        return emit(_remote_facts(remote))
    table(["FILE", "SIZE"], [[file.name, human_bytes(file.size_bytes)] for file in remote.files])
    say(f"{human_bytes(remote.size_bytes)} in all" + (", behind a licence" if remote.listing.gated else ""))


# --- words ----------------------------------------------------------------------------------------------------


def _print_search(result: SearchResult) -> None:
    known = [
        [entry.alias, human_bytes(entry.size_bytes), str(entry.context_length), " ".join(entry.capabilities)]
        for entry in result.catalog
    ]
    if known:
        table(["ALIAS", "SIZE", "CONTEXT", "CAN"], known)
    if known and result.hub:
        click.echo()
    if result.hub:
        hub = [[found.repo, f"{found.downloads:,}", "licence" if found.gated else ""] for found in result.hub]
        table(["REPOSITORY", "DOWNLOADS", "NEEDS"], hub)
    if result.problem:
        say(f"the hub was not asked: {result.problem.message}")
    elif not known and not result.hub:
        say("nothing found")


def _print_facts(facts: dict[str, Any]) -> None:
    header, memory, fit = facts["header"], facts["memory"], facts["fit"]
    where = facts.get("path") or f"not on this disk ({human_bytes(facts['total_bytes'])} to fetch)"
    if facts["incomplete"]:
        where = f"incomplete: {human_bytes(facts['size_bytes'])} of {human_bytes(facts['total_bytes'])}"
    experts = f", {memory['experts_used']} of {memory['experts']} experts at a time" if memory["experts"] else ""
    kv = memory["kv_bytes"]
    cache = f"{human_bytes(kv['f16'])} at {memory['context']} tokens ({human_bytes(kv['q8_0'])} as q8_0)"
    state = f", {human_bytes(memory['state_bytes'])} fixed for each conversation" if memory["state_bytes"] else ""
    lines = [
        ("model", f"{facts['model']}{'  (' + facts['alias'] + ')' if facts['alias'] else ''}"),
        ("name", printable(header["name"])),
        (
            "kind",
            f"{printable(header['architecture'])}, {_count(memory['parameters'])} parameters, {header['quantisation']}",
        ),
        ("layers", f"{header['layers']}, up to {human_bytes(memory['layer_bytes'])} each{experts}"),
        ("context", f"{header['context_length']} tokens"),
        ("use", _use(facts)),
        ("weights", human_bytes(memory["weights_bytes"])),
        ("cache", f"{human_bytes(memory['kv_bytes_per_token'])} a token{state}; {cache}"),
        ("disk", where),
        ("draft", facts.get("draft") or ""),
        ("here", fit["sentence"]),
    ]
    for label, text in lines:
        if text:
            click.echo(f"{label:<9}{text}")
    if not memory["exact"]:
        say("the cache of this architecture is an estimate")


def _use(facts: dict[str, Any]) -> str:
    pooling = facts["header"]["pooling"]
    if pooling:
        return "reranking" if pooling == "rank" else "embeddings"
    return ("chat" if facts["header"]["chat_template"] else "plain completion") + (
        ", images" if facts.get("mmproj") else ""
    )


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def _age(modified_s: float) -> str:
    seconds = max(0.0, time.time() - modified_s)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return "just now"


def _is_terminal() -> bool:
    import sys

    return sys.stdin.isatty() and sys.stderr.isatty()
