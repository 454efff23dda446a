"""One model from the moment it is asked for until it answers: how the gateway, /api/status and callers see it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest

from meshnode.core.fair_queue import QueueSnapshot
from meshnode.core.placement import Share, SoloPlan
from meshnode.engine.commands import Address
from meshnode.engine.server import EngineProperties, LlamaServer, ServerSnapshot
from meshnode.errors import ModelDoesNotFit
from meshnode.models.cache import LocalModel
from meshnode.models.header import Header
from meshnode.models.names import ModelRef
from meshnode.models.shapes import LayerShape, ModelShape
from meshnode.units import Unit, capabilities_of, context_of, entry_of, names_of, served_of

NODE = "ab" * 32
REF = ModelRef("owner/seven:Q4_K_M", "hub", alias="seven", repo="owner/seven", quant="Q4_K_M")
PLAN = SoloPlan(
    context=8192,
    parallel=4,
    kv_type="q8_0",
    gpu_layers=1,
    tensor_split=(),
    shares=(Share("CUDA0", 1, 100, 20, 3, 1000), Share("host", 1, 90, 10, 2, 2000)),
    prompt_cache_bytes=0,
)
SHAPE = ModelShape(
    name="seven",
    architecture="llama",
    layers=(LayerShape(100, 10, 10), LayerShape(90, 10, 10)),
    embedding_bytes=5,
    output_bytes=5,
    other_bytes=0,
    context_train=131072,
    n_embd=64,
    n_ff=256,
    n_vocab=32000,
    n_expert=0,
    n_expert_used=0,
    parameters=7_000_000_000,
    active_bytes=200,
)
READY = ServerSnapshot(
    alias="seven",
    state="ready",
    since=5.0,
    pid=77,
    address=Address(port=8080),
    restarts=2,
    load_s=1.5,
    properties=EngineProperties(context=6144, slots=4),
)
IDLE = QueueSnapshot(slots=4, busy=0, waiting=0)


@dataclass
class Standing:
    """Stands for a LlamaServer: what is known of it."""

    known: ServerSnapshot
    api_key: str = "engine-key"

    @property
    def address(self) -> Address | None:
        return self.known.address

    def snapshot(self) -> ServerSnapshot:
        return self.known


def server(**changes: Any) -> LlamaServer:
    return cast(LlamaServer, Standing(replace(READY, **changes)))


def header(chat_template: str = "{{ messages }}") -> Header:
    metadata: dict[str, Any] = {"general.file_type": 15}
    if chat_template:
        metadata["tokenizer.chat_template"] = chat_template
    return Header(3, metadata, {}, (), file_bytes=4000, data_offset=100)


def asked() -> Unit:
    """A model that was asked for a moment ago."""
    return Unit("seven", REF, "Seven!", 1_790_000_000.25)


def answering(**changes: Any) -> Unit:
    """A model that answers."""
    file = Path("/models/Seven-Q4_K_M.gguf")
    unit = asked()
    unit.state, unit.detail = "ready", ""
    unit.local = LocalModel(REF, file, (file,), size_bytes=4000, total_bytes=4100)
    unit.header, unit.shape, unit.plan, unit.server = header(), SHAPE, PLAN, server()
    unit.content_hash = "0123456789abcdef" * 4
    for name, value in changes.items():
        setattr(unit, name, value)
    return unit


def test_a_model_is_found_by_all_its_names() -> None:
    assert names_of(answering()) == {"Seven!", "owner/seven:Q4_K_M", "seven", "Seven-Q4_K_M"}
    nameless = Unit("x", ModelRef("file:x", "file"), "x", 0.0)
    assert names_of(nameless) - {""} == {"x", "file:x"}


def test_the_gateway_gets_the_further_names_only_and_in_order() -> None:
    assert served_of(answering(), node=NODE).names == ("Seven!", "Seven-Q4_K_M", "owner/seven:Q4_K_M")
    nameless = Unit("x", ModelRef("file:x", "file"), "x", 0.0)
    assert served_of(nameless, node=NODE).names == ("file:x",)


# --- capabilities and context ---------------------------------------------------------------------------------


def test_what_a_model_can_do_is_known_bit_by_bit() -> None:
    unit = asked()
    assert capabilities_of(unit) == ("completion",)
    unit.header = header()
    assert capabilities_of(unit) == ("completion", "chat")
    able = EngineProperties(4096, 4, frozenset({"tools", "system"}), frozenset({"vision", "audio", "smell"}))
    unit.server = server(properties=replace(able, chat_capabilities=frozenset({"supports_tools"})))
    assert capabilities_of(unit) == ("completion", "chat", "tools", "audio", "vision")
    unit.server = server(properties=able)
    assert "tools" not in capabilities_of(unit)
    unit.server = server(properties=None)
    assert capabilities_of(unit) == ("completion", "chat")


def test_a_model_without_a_chat_template_only_completes() -> None:
    assert capabilities_of(answering(header=header(""))) == ("completion",)


@pytest.mark.parametrize("mode", ["embedding", "rerank"])
def test_a_model_of_another_kind_does_that_alone(mode: str) -> None:
    assert capabilities_of(answering(mode=mode)) == (mode,)


def test_the_context_is_what_the_engine_says_else_what_was_planned() -> None:
    assert context_of(asked()) == 0
    assert context_of(answering(server=None)) == 8192
    assert context_of(answering(server=server(properties=None))) == 8192
    assert context_of(answering()) == 6144


# --- as the gateway sees it -----------------------------------------------------------------------------------


def test_a_draft_model_takes_memory_where_it_runs() -> None:
    unit = asked()
    assert unit.taken() == {}
    unit.plan, unit.draft_bytes = PLAN, {"CUDA0": 50}
    assert unit.taken() == {"CUDA0": 173, "host": 102}
    unit.draft_bytes = {"host": 7}
    assert unit.taken() == {"CUDA0": 123, "host": 109}


def test_a_model_that_was_just_asked_for_cannot_answer() -> None:
    served = served_of(asked(), node=NODE)
    assert (served.state, served.slots, served.context_length, served.detail) == ("loading", 1, 0, "waiting")
    assert served.created == 1_790_000_000 and served.size_bytes == 0 and served.facts == {}
    host = served.local
    assert host is not None and not host.ready and host.connect is None and host.api_key == ""


def test_a_model_that_answers_has_this_node_as_its_host() -> None:
    served = served_of(answering(), node=NODE)
    assert (served.id, served.state, served.slots, served.context_length) == ("seven", "ready", 4, 6144)
    assert served.size_bytes == 4100
    assert served.facts == {"n_params": 7_000_000_000, "n_vocab": 32000, "n_ctx_train": 131072}
    (host,) = served.hosts
    assert host.here and host.ready and (host.node, host.api_key, host.slots) == (NODE, "engine-key", 4)
    assert host.content_hash == "0123456789abcdef" * 2, "as long as in the statements of nodes"
    assert "engine-key" not in repr(served)


def test_an_engine_that_is_down_is_restarting_until_it_listens_again() -> None:
    down = server(state="restarting", address=None)
    served = served_of(answering(server=down), node=NODE)
    assert served.state == "restarting" and not served.ready
    assert served_of(answering(server=None), node=NODE).state == "restarting"
    failed = answering(server=down, state="failed", detail="it crashed four times")
    assert (served_of(failed, node=NODE).state, served_of(failed, node=NODE).detail) == (
        "failed",
        "it crashed four times",
    )
    assert served_of(answering(state="loading"), node=NODE).state == "loading"


@pytest.mark.anyio
async def test_the_host_is_connected_to_where_the_engine_listens(tmp_path: Path) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    listener = await asyncio.start_unix_server(greet, tmp_path / "engine.sock")
    async with listener:
        unit = answering(server=server(address=Address(socket=tmp_path / "engine.sock")))
        host = served_of(unit, node=NODE).local
        assert host is not None and host.connect is not None
        pipe = await host.connect()
        assert await asyncio.wait_for(pipe.read(100), 5) == b"hello"
        pipe.abort()
        await asyncio.sleep(0)  # a connection is closed at the next turn of the loop


# --- as /api/status shows it ----------------------------------------------------------------------------------


def test_a_model_that_was_just_asked_for_is_shown_with_what_is_known() -> None:
    entry = entry_of(asked(), IDLE)
    assert (entry["id"], entry["canonical"], entry["state"], entry["where"]) == (
        "seven",
        "owner/seven:Q4_K_M",
        "loading",
        "here",
    )
    assert (entry["size_bytes"], entry["quantisation"], entry["parallel"]) == (0, "", 0)
    assert entry["plan"] is entry["engine"] is entry["error"] is entry["predicted_tokens_per_s"] is None


def test_a_model_that_answers_is_shown_in_full() -> None:
    entry = entry_of(answering(predicted=31.5, draft="tiny"), QueueSnapshot(slots=4, busy=3, waiting=2))
    assert (entry["busy"], entry["waiting"], entry["parallel"], entry["context_length"]) == (3, 2, 4, 6144)
    assert (entry["size_bytes"], entry["quantisation"], entry["since"]) == (4100, "Q4_K_M", 1_790_000_000.25)
    assert (entry["draft"], entry["predicted_tokens_per_s"]) == ("tiny", 31.5)
    assert entry["capabilities"] == ["completion", "chat"]
    assert entry["engine"] == {"pid": 77, "state": "ready", "restarts": 2, "load_s": 1.5}
    assert entry["plan"]["kv_type"] == "q8_0" and [share["layers"] for share in entry["plan"]["shares"]] == [1, 1]
    assert "engine-key" not in json.dumps(entry), "it can be sent as it is, and holds no secret"


def test_a_failure_is_shown_with_its_code_and_fix() -> None:
    error = ModelDoesNotFit("needs 9 GB", fix="a smaller one")
    entry = entry_of(answering(state="failed", detail="needs 9 GB", error=error, server=None), IDLE)
    assert entry["error"] == error.as_dict() and entry["error"]["fix"] == "a smaller one"
    assert entry["state"] == "failed" and entry["engine"] is None


def test_entries_of_every_stage_have_the_same_members() -> None:
    assert entry_of(asked(), IDLE).keys() == entry_of(answering(), IDLE).keys()
