"""Command lines: every flag exists in the pinned llama-server, and a plan is spelled completely."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from meshnode.engine.commands import (
    Address,
    Draft,
    NgramDraft,
    ServerOptions,
    SplitOptions,
    plan_threads,
    server_argv,
    split_environment,
)

BINARY = Path("/engine/llama-server")
PLAIN = ServerOptions(Path("/m/model.gguf"), "model", context=8192, parallel=2, threads=3)
FULL = ServerOptions(
    Path("/m/model.gguf"), "model", context=8192, parallel=2, threads=3, threads_batch=6, pooling="last",
    mmproj=Path("/m/mmproj.gguf"), mmproj_on_gpu=False,
    draft=Draft(Path("/m/draft.gguf"), ("CUDA0",), gpu_layers=9, tokens_max=8, tokens_min=1, probability_min=0.5),
    devices=("CUDA0", "CUDA1"), gpu_layers=33, tensor_split=(3, 1.5), kv_type_k="q8_0", kv_type_v="q4_0",
    kv_unified=True, flash_attention="on", prompt_cache_bytes=600 << 20, slot_similarity=0.25, batch=1024, ubatch=256,
    warmup=False, extra=("--ctx-checkpoints", "0"),
)  # fmt: skip
SOCKET = Address(socket=Path("/run/m/1.sock"))
SPLIT = replace(
    PLAIN, gpu_layers=9, tensor_split=(4, 5), prompt_cache_bytes=600 << 20,
    split=SplitOptions(("127.0.0.1:5001", "127.0.0.1:5002"), reference_sha256="ab" * 32, push=True),
)  # fmt: skip


def value(argv: list[str], flag: str) -> str:
    assert argv.count(flag) == 1, flag
    return argv[argv.index(flag) + 1]


def test_a_plain_plan() -> None:
    argv = server_argv(BINARY, PLAIN, SOCKET)
    assert argv[0] == str(BINARY)
    expected = {
        "--model": "/m/model.gguf", "--alias": "model", "--host": "/run/m/1.sock", "--ctx-size": "8192",
        "--parallel": "2", "--threads": "3", "--threads-batch": "3", "--cache-ram": "0", "--gpu-layers": "all",
        "--flash-attn": "auto", "--cache-type-k": "f16", "--cache-type-v": "f16", "-fit": "off", "--log-verbosity": "2",
    }  # fmt: skip
    assert {flag: value(argv, flag) for flag in expected} == expected
    assert {"--jinja", "--no-slots", "--no-ui", "--metrics", "--offline", "--no-kv-unified"} <= set(argv)
    assert not {"--port", "--device", "--mmproj", "--spec-draft-model", "--no-warmup", "--api-key"} & set(argv)


def test_a_full_plan() -> None:
    argv = server_argv(BINARY, FULL, Address(port=4711))
    expected = {
        "--host": "127.0.0.1", "--port": "4711", "--threads-batch": "6", "--cache-ram": "600", "--gpu-layers": "33",
        "--device": "CUDA0,CUDA1", "--tensor-split": "3,1.5", "--cache-type-k": "q8_0", "--cache-type-v": "q4_0",
        "--mmproj": "/m/mmproj.gguf", "--spec-type": "draft-simple", "--spec-draft-model": "/m/draft.gguf",
        "--spec-draft-device": "CUDA0", "--spec-draft-n-max": "8", "--spec-draft-n-min": "1",
        "--spec-draft-p-min": "0.5",
        "--spec-draft-ngl": "9", "--batch-size": "1024", "--ubatch-size": "256", "--slot-prompt-similarity": "0.25",
        "--pooling": "last",
    }  # fmt: skip
    assert {flag: value(argv, flag) for flag in expected} == expected
    assert {"--kv-unified", "--no-mmproj-offload", "--no-warmup"} <= set(argv)
    assert argv[-2:] == ["--ctx-checkpoints", "0"]


def test_guesses_from_the_conversation() -> None:
    ngram = NgramDraft(match=8, tokens_max=12)
    argv = server_argv(BINARY, replace(PLAIN, ngram=ngram), SOCKET)
    assert value(argv, "--spec-type") == "ngram-simple"
    assert value(argv, "--spec-ngram-simple-size-n") == "8"
    assert value(argv, "--spec-ngram-simple-size-m") == "12"
    assert "--spec-draft-n-max" not in argv
    both = server_argv(BINARY, replace(PLAIN, ngram=ngram, draft=Draft(Path("/m/d.gguf"))), SOCKET)
    assert both.count("--spec-type") == 1 and value(both, "--spec-type") == "ngram-simple,draft-simple"


def test_a_split_places_each_layer_and_keeps_the_network_free() -> None:
    argv = server_argv(BINARY, SPLIT, SOCKET)
    expected = {
        "--rpc": "127.0.0.1:5001,127.0.0.1:5002", "--gpu-layers": "9", "--tensor-split": "4,5", "-fit": "off",
        "--flash-attn": "on", "--cache-ram": "0", "--override-tensor": "^(output|token_embd)=CPU",
        "--cache-type-k": "f16",
    }  # fmt: skip
    assert {flag: value(argv, flag) for flag in expected} == expected
    assert "--no-cache-idle-slots" in argv and argv.index("--rpc") < argv.index("--gpu-layers")


def test_a_split_never_makes_copies_for_a_pipeline() -> None:
    split = SplitOptions(("127.0.0.1:5001",), output_on_host=False)
    name, _, buffer = value(server_argv(BINARY, replace(SPLIT, split=split), SOCKET), "--override-tensor").partition(
        "="
    )
    assert buffer == "CPU" and not any(
        re.search(name, tensor) for tensor in ("output.weight", "blk.0.attn_q.weight", "x")
    )


def test_the_environment_of_a_split() -> None:
    everything = {"GGML_NO_BACKTRACE": "1", "GGML_RPC_TUNNEL_PUSH": "1", "GGML_RPC_TUNNEL_REF": "ab" * 32}
    assert split_environment(SPLIT) == everything
    assert split_environment(replace(SPLIT, split=SplitOptions(("127.0.0.1:5001",)))) == {"GGML_NO_BACKTRACE": "1"}
    assert split_environment(PLAIN) == {}


def test_a_draft_never_spreads_over_the_devices_of_the_target() -> None:
    argv = server_argv(BINARY, replace(PLAIN, draft=Draft(Path("/m/d.gguf"))), SOCKET)
    assert value(argv, "--spec-draft-device") == "none"


@pytest.mark.parametrize(
    ("mode", "flag"), [("chat", "--jinja"), ("embedding", "--embedding"), ("rerank", "--reranking")]
)
def test_modes(mode: str, flag: str) -> None:
    argv = server_argv(BINARY, replace(PLAIN, mode=mode), SOCKET)
    assert {"--jinja", "--embedding", "--reranking"} & set(argv) == {flag}


def test_prompts_are_never_logged_and_one_alias_stays_one() -> None:
    argv = server_argv(BINARY, replace(PLAIN, log_verbosity=9, alias="a,b"), SOCKET)
    assert value(argv, "--log-verbosity") == "4"
    assert value(argv, "--alias") == "a-b"


@pytest.mark.parametrize(
    ("options", "address"),
    [
        (PLAIN, Address(socket=Path("/run/1.socket"))),
        (PLAIN, Address(socket=Path("/" + "x" * 100 + ".sock"))),
        (replace(PLAIN, parallel=0), SOCKET),
        (replace(PLAIN, threads=0), SOCKET),
        (replace(PLAIN, context=1), SOCKET),
        (replace(SPLIT, gpu_layers=None), SOCKET),
        (replace(SPLIT, tensor_split=()), SOCKET),
        (replace(SPLIT, split=SplitOptions(())), SOCKET),
    ],
)
def test_plans_that_cannot_be_told(options: ServerOptions, address: Address) -> None:
    with pytest.raises(ValueError):
        server_argv(BINARY, options, address)


@pytest.mark.engine
@pytest.mark.parametrize("options", [PLAIN, FULL, SPLIT, replace(FULL, mode="embedding"), replace(FULL, mode="rerank")])
def test_every_flag_is_one_of_the_pinned_llama_server(options: ServerOptions, engine_bin: Path) -> None:
    listed = subprocess.run([engine_bin / "llama-server", "--help"], capture_output=True, text=True, timeout=30).stdout
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", listed))
    for address in (SOCKET, Address(port=1)):
        flags = [word for word in server_argv(BINARY, options, address) if re.match(r"--?[a-z]", word)]
        assert len(flags) > 15
        assert [flag for flag in flags if flag not in known] == []


@pytest.mark.parametrize(
    ("logical", "physical", "threads"),
    [
        (1, 1, 1), (2, 2, 1), (2, 1, 1), (4, 4, 3), (4, 2, 2), (8, 8, 7), (16, 8, 8), (8, None, 7), (1, None, 1),
        (128, 64, 64), (6, 8, 5), (0, 0, 1),
    ],
)  # fmt: skip
def test_threads(logical: int, physical: int | None, threads: int) -> None:
    assert plan_threads(logical, physical) == threads
