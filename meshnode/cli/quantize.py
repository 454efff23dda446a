"""`meshnode quantize`: a model file with fewer bits for each weight, made here from one with more."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meshnode.cli.models import as_json_option, open_store
from meshnode.cli.render import command_errors, emit, human_bytes, progress_report, say, table
from meshnode.errors import EngineNotBuilt, ModelNotFound, SettingsError

if TYPE_CHECKING:
    from meshnode.engine.installed import Engine
    from meshnode.models.cache import LocalModel
    from meshnode.precision import QuantisationPlan

_UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30,
    "k": 10**3, "m": 10**6, "g": 10**9,
}  # fmt: skip
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([a-zA-Z]{0,3})")
_LAYERS = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?=([A-Za-z0-9_]{1,16})")


@click.command()
@click.argument("model")
@click.option("--type", "mix", metavar="TYPE", help="Q8_0, Q6_K, Q5_K_M, Q4_K_M (the default), Q3_K_M, Q2_K ...")
@click.option("--fit", metavar="SIZE", help="the best that makes a file of at most this size: 4500000000, 4.5GB, 4GiB")
@click.option("--layers", multiple=True, metavar="A-B=TYPE", help="another type for these layers, from 0: 0-11=Q3_K_M")
@click.option("--output", metavar="FILE", help="where to put it; else MODEL-TYPE.gguf beside the source or here")
@click.option("--requantize", is_flag=True, help="accept a source that was quantised before, and the double loss")
@click.option("--dry-run", is_flag=True, help="only say what would come of it")
@as_json_option
@click.pass_context
@command_errors
def quantize(
    ctx: click.Context,
    model: str,
    mix: str | None,
    fit: str | None,
    layers: tuple[str, ...],
    output: str | None,
    requantize: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make a file of MODEL that is smaller, of one on this disk with more bits (F16, BF16, F32)."""
    from meshnode.precision import plan_for, quantise

    if fit is not None and (mix or layers):
        raise SettingsError("--fit chooses the types itself", fix="leave --type and --layers out, or leave --fit out")
    local = _find(model)
    header = open_store().read(local)
    plan = plan_for(header, mix=mix or "", layers=_layers_of(layers), fit_bytes=_bytes_of(fit) if fit else None)
    target = _target(local, plan, output)
    facts = _facts(local, plan, target)
    if dry_run:
        return emit({**facts, "written": False}) if as_json else _print(facts)
    engine = _engine(ctx)
    if not as_json:
        _print(facts)
    with progress_report(quiet=as_json) as report:
        size = quantise(local, header, plan, target, engine, requantise=requantize, threads=_threads(), report=report)
    if as_json:
        return emit({**facts, "file_bytes": size, "written": True})
    click.echo(str(target))
    say(f"serve it: meshnode --model {target}")


def _find(model: str) -> LocalModel:
    store = open_store()
    ref = store.resolve(model)
    found = store.find(ref)
    if found is None or found.incomplete:
        what = "only half on this disk" if found else "not on this disk"
        raise ModelNotFound(f"{ref.short_name} is {what}", fix=f"fetch it first: meshnode pull {ref.short_name}")
    return found


def _engine(ctx: click.Context) -> Engine:
    from meshnode.cli.main import settings_of
    from meshnode.config import find_places
    from meshnode.engine import provision

    settings, cache = settings_of(ctx), find_places().cache
    found = provision.ensure(cache, given=settings.engine) if settings.engine else provision.find(cache)
    if found is None:
        raise EngineNotBuilt
    return found


def _threads() -> int:
    import os

    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _bytes_of(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None or not 0 < float(match[1]) * unit < 1 << 50:
        raise SettingsError(f"--fit {text!r} is not a size", fix="write bytes, or 4.5GB, 4GiB, 800MB")
    return int(float(match[1]) * unit)


def _layers_of(texts: tuple[str, ...]) -> dict[int, str]:
    """`0-11=Q4_K` and `5=Q8_0`, several with commas between; a later one wins."""
    found: dict[int, str] = {}
    for text in (part.strip() for whole in texts for part in whole.split(",")):
        match = _LAYERS.fullmatch(text)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if match is None or first > last:
            raise SettingsError(f"--layers {text!r} is not understood", fix="write FIRST-LAST=TYPE, such as 0-11=Q4_K")
        found.update(dict.fromkeys(range(first, last + 1), match[3]))
    return found


def _target(local: LocalModel, plan: QuantisationPlan, output: str | None) -> Path:
    from meshnode.models.names import quant_of

    if output:
        path = Path(output).expanduser()
        return path if path.suffix.lower() == ".gguf" else path.with_name(f"{path.name}.gguf")
    stem, quant = local.name, quant_of(local.path.name)
    at = stem.lower().rfind(quant.lower()) if quant else -1
    stem = (stem[:at] + stem[at + len(quant) :]).strip("-._") if at > 0 else stem
    name = f"{stem}-{plan.base}{'-mixed' if plan.layers else ''}.gguf"
    # What lies in the cache is named by content; only a file of the user's own gets company.
    return (local.path.parent if local.ref.kind == "file" else Path.cwd()) / name


# --- facts and words ----------------------------------------------------------------------------------------------


def _facts(local: LocalModel, plan: QuantisationPlan, target: Path) -> dict[str, Any]:
    types: dict[str, list[int]] = {}
    for tensor in plan.tensors:
        count = types.setdefault(tensor.target, [0, 0])
        count[0] += 1
        count[1] += tensor.n_bytes
    return {
        "model": local.ref.canonical,
        "source": str(local.path),
        "source_bytes": local.total_bytes,
        "output": str(target),
        "type": plan.base,
        "layers": _ranges(dict(plan.layers)),
        "file_bytes": plan.file_bytes,
        "bits_per_weight": round(plan.bits_per_weight, 3),
        "loss": round(plan.loss, 4),
        "requantizes": plan.requantises,
        "types": {name: {"tensors": count, "bytes": size} for name, (count, size) in sorted(types.items())},
    }


def _ranges(layers: dict[int, str]) -> dict[str, str]:
    """Neighbours with one type together: {"0-11": "Q4_K_M"}."""
    found: list[tuple[int, int, str]] = []
    for number, mix in sorted(layers.items()):
        if found and found[-1][1] == number - 1 and found[-1][2] == mix:
            found[-1] = (found[-1][0], number, mix)
        else:
            found.append((number, number, mix))
    return {(f"{first}-{last}" if last > first else str(first)): mix for first, last, mix in found}


def _print(facts: dict[str, Any]) -> None:
    from meshnode.precision import describe_loss

    rows = [[name, str(part["tensors"]), human_bytes(part["bytes"])] for name, part in facts["types"].items()]
    table(["TYPE", "TENSORS", "SIZE"], sorted(rows, key=lambda row: -facts["types"][row[0]]["bytes"]))
    say(
        f"{human_bytes(facts['source_bytes'])} become {human_bytes(facts['file_bytes'])}, "
        f"{facts['bits_per_weight']:.2f} bits a weight: {describe_loss(facts['loss'])}"
    )
    if facts["layers"]:
        say("layers " + ", ".join(f"{where} as {mix}" for where, mix in facts["layers"].items()))
    if facts["requantizes"]:
        say("the source is quantised already: both losses add up")
