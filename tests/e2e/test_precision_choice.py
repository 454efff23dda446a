"""A model with too many bits: the refusal names a command, the command makes a file, the file is served."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from meshnode.core.placement import Budget, SoloPlan, Wishes, plan_solo
from meshnode.models.catalog import DEMO_TARGET
from meshnode.models.gguf import read_model
from meshnode.models.shapes import shape_of
from tests.conftest import StartNode
from tests.e2e.small_models import many_bits_model
from tests.models.loopback_hub import LoopbackHub

pytestmark = pytest.mark.engine
CONTEXT = 512
SPARE_BYTES = 500_000
"""What is known only by the size of its file is estimated to less than this."""
OPTIONS = ("--ctx-size", str(CONTEXT), "--parallel", "1", "--solo")


def too_little_bytes(path: Path) -> int:
    """The most main memory with which a model is just not served."""
    shape, low, high = shape_of(read_model(path)), 0, 1 << 33
    while high - low > 1:
        middle = (low + high) // 2
        fits = isinstance(plan_solo(shape, Budget(middle), Wishes(CONTEXT, 1)), SoloPlan)
        low, high = (low, middle) if fits else (middle, high)
    return low


def test_the_command_of_the_refusal_makes_what_is_then_served(start_node: StartNode, tmp_path: Path) -> None:
    source = many_bits_model(tmp_path / "wordy-F16.gguf")
    limit = ("--max-vram", f"{too_little_bytes(source) / (1 << 30):.9f}")
    refused = start_node("--model", str(source), *OPTIONS, *limit, wait=False)
    out, words = refused.process.communicate(timeout=60)
    assert refused.process.returncode == 4, words
    error = json.loads(out.splitlines()[-1])["error"]
    assert error["code"] == "model-does-not-fit" and "short" in error["message"]
    said, _, command = error["fix"].partition(" and serve that: ")
    assert "bits a weight" in said and "MB" in said
    program, *arguments = shlex.split(command)
    assert program == "meshnode" and arguments[:2] == ["quantize", str(source)]

    made = refused.command(*arguments)
    assert made.returncode == 0, made.stderr
    file = Path(made.stdout.splitlines()[-1])
    assert file.parent == tmp_path and file.stat().st_size < source.stat().st_size
    node = start_node("--model", str(file), *OPTIONS, *limit)
    (model,) = node.status()["models"]
    assert model["state"] == "ready" and model["size_bytes"] == file.stat().st_size


def test_of_a_repository_one_that_fits_is_fetched(start_node: StartNode, tmp_path: Path) -> None:
    source = many_bits_model(tmp_path / "wordy-F16.gguf")
    hub = LoopbackHub()
    try:
        hub.add("owner/wordy", {"w-F16.gguf": source.read_bytes(), "w-Q6_K.gguf": DEMO_TARGET.read_bytes()})
        limit = ("--max-vram", f"{(too_little_bytes(source) - SPARE_BYTES) / (1 << 30):.9f}")
        environment = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
        arguments = ("--ctx-size", str(CONTEXT), "--parallel", "1", *limit)
        node = start_node("--model", "owner/wordy", *arguments, environment=environment)
        (model,) = node.status()["models"]
        assert (model["id"], model["canonical"], model["state"]) == ("owner/wordy", "owner/wordy:Q6_K", "ready")
        assert model["size_bytes"] == DEMO_TARGET.stat().st_size
        planned = json.loads(node.command("plan", "owner/wordy", "--json").stdout)
        assert [(each["quantisation"], each["fits"]) for each in planned["variants"]] == [
            ("Q6_K", "solo"),
            ("F16", "no"),
        ]
    finally:
        hub.close()
