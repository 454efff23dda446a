"""Plans of quantisation against the real llama-quantize: every type of every family, and the file to the byte."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshnode.config import find_places
from meshnode.core.precision import Holding
from meshnode.core.quantisation import LADDER
from meshnode.engine.installed import Engine
from meshnode.engine.provision import find
from meshnode.errors import ModelFileInvalid, SettingsError
from meshnode.models.cache import LocalModel
from meshnode.models.catalog import DEMO_TARGET
from meshnode.models.gguf import read_model
from meshnode.models.header import Header
from meshnode.models.names import ModelRef, file_ref
from meshnode.models.shapes import shape_of
from meshnode.models.variants import Variant
from meshnode.precision import choose_variant, facts_of, header_as_planned, plan_for, quantise
from tests.e2e.small_models import many_bits_model

sys.path.insert(0, str(Path(__file__).parent / "models"))

import gguf_samples as samples

MIB = 1 << 20
_LINE = re.compile(r"\[\s*\d+/\s*\d+\] (\S+)\s+- \[[^\]]*\], type =\s*(\S+), size =.*?MiB(?: -> .*?\((\S+)\))?\n")
FAMILIES = [
    samples.llama, samples.gemma3, samples.gpt_oss, samples.deepseek2, samples.glm4moe, samples.mamba, samples.qwen35,
    samples.lfm2, samples.falcon_h1, samples.cohere2, samples.granite_hybrid, samples.nemotron_h,
]  # fmt: skip


@pytest.fixture(scope="module")
def engine(engine_bin: Path) -> Engine:
    found = find(find_places().cache)
    assert found is not None and found.quantize is not None
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    """The demo with its weights as F16: small, and it still answers."""
    return local(many_bits_model(tmp_path_factory.mktemp("plain") / "demo-F16.gguf"))


def local(path: Path) -> LocalModel:
    size = path.stat().st_size
    return LocalModel(file_ref(path), path, (path,), size, size)


def dry_run(engine: Engine, path: Path, mix: str, *options: str) -> dict[str, str]:
    """The type of each tensor as llama-quantize itself would have it."""
    argv = [str(engine.quantize), "--dry-run", *options, str(path), mix]
    text = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout
    return {name: (new or old).upper() for name, old, new in _LINE.findall(text)}


@pytest.mark.engine
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_the_rules_are_those_of_the_engine(family: Callable[[Path], Path], engine: Engine, tmp_path: Path) -> None:
    path = family(tmp_path / "m.gguf")
    header = read_model(path)
    for mix in LADDER:
        planned = {tensor.name: tensor.target for tensor in plan_for(header, mix=mix).tensors}
        assert dry_run(engine, path, mix) == planned, mix


@pytest.mark.engine
@pytest.mark.parametrize(
    "wanted", [{"mix": "Q4_K_M"}, {"mix": "Q8_0", "layers": {0: "Q4_K_S", 5: "F16"}}, {"fit_bytes": 5_000_000}]
)
def test_the_file_is_what_was_planned_and_answers(
    wanted: dict[str, Any], plain: LocalModel, engine: Engine, tmp_path: Path
) -> None:
    header = read_model(plain.path)
    plan = plan_for(header, **wanted)
    target = tmp_path / "made.gguf"
    size = quantise(plain, header, plan, target, engine)
    assert size == target.stat().st_size
    assert abs(size - plan.file_bytes) < 1024
    made = read_model(target)
    assert shape_of(made).total_bytes == shape_of(header_as_planned(header, plan)).total_bytes
    assert made.quantisation == plan.nominal
    if "fit_bytes" in wanted:
        assert size <= wanted["fit_bytes"]
    text = answer(engine, target)
    assert len(text) > 20 and text.isprintable()


def answer(engine: Engine, model: Path) -> str:
    """What the model writes, greedily."""
    argv = [
        str(engine.server),
        "-m",
        str(model),
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "-c",
        "512",
        "-t",
        "1",
        "-fit",
        "off",
    ]
    with subprocess.Popen([*argv, "--no-ui"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stderr is not None
            port = next(match[1] for line in server.stderr if (match := re.search(r"http://127.0.0.1:(\d+)", line)))
            body = json.dumps({"prompt": "The sea", "n_predict": 24, "temperature": 0}).encode()
            request = urllib.request.Request(f"http://127.0.0.1:{port}/completion", body)
            with urllib.request.urlopen(request, timeout=20) as reply:
                return str(json.load(reply)["content"])
        finally:
            server.kill()


@pytest.mark.engine
def test_a_quantised_source_is_refused_unless_that_is_accepted(engine: Engine, tmp_path: Path) -> None:
    source, target = local(DEMO_TARGET), tmp_path / "made.gguf"
    header = read_model(DEMO_TARGET)
    plan = plan_for(header, mix="Q4_K_M")
    with pytest.raises(ModelFileInvalid, match="quantised already"):
        quantise(source, header, plan, target, engine)
    assert not target.exists()
    quantise(source, header, plan, target, engine, requantise=True)
    assert read_model(target).quantisation == "Q4_K_M"


# --- without the engine -------------------------------------------------------------------------------------------


def hollow(tmp_path: Path) -> Header:
    return read_model(samples.llama(tmp_path / "m.gguf", kind="F16"))


def test_what_cannot_be_planned(tmp_path: Path) -> None:
    header = hollow(tmp_path)
    with pytest.raises(SettingsError, match="not a type"):
        plan_for(header, mix="Q9_Z")
    with pytest.raises(SettingsError, match="no layer 12"):
        plan_for(header, layers={12: "Q4_K"})
    with pytest.raises(SettingsError, match="Q2_K takes"):
        plan_for(header, fit_bytes=1000)


def test_a_header_as_it_would_be(tmp_path: Path) -> None:
    header = hollow(tmp_path)
    plan = plan_for(header, mix="Q4_K_S")
    planned = header_as_planned(header, plan)
    assert planned.quantisation == "Q4_K_S" and planned.vocabulary_digest == header.vocabulary_digest
    assert 0.25 < shape_of(planned).total_bytes / shape_of(header).total_bytes < 0.35
    assert facts_of(planned).layers == 12


def test_the_variant_that_is_held() -> None:
    ref = ModelRef("o/m", "hub", repo="o/m")
    variants = [Variant(ref.with_quant(quant), quant, size, 0) for quant, size in (("Q4_K_M", 5), ("Q8_0", 9))]
    usual, better = variants
    assert choose_variant(usual, variants, lambda _: Holding.WHOLE) == (usual, "")
    taken, sentence = choose_variant(usual, variants, lambda _: Holding.WELL)
    assert taken == better and "no loss that shows" in sentence
    taken, sentence = choose_variant(better, [usual], lambda variant: Holding(4 * (variant.size_bytes < 6)))
    assert taken == usual and "Q8_0" in sentence
    taken, sentence = choose_variant(better, [], lambda _: Holding.NOT)
    assert taken is None and "not even Q8_0" in sentence
