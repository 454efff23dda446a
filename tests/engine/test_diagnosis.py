"""What llama-server said when it did not come up (recorded from the pinned version), and what the user reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshnode.engine.diagnosis import (
    address_was_taken,
    explain_load_failure,
    is_permanent,
    last_error,
    redact,
    worker_went_away,
)
from meshnode.engine.process import describe_exit
from meshnode.errors import (
    EngineCrashed,
    EngineIncompatible,
    MeshnodeError,
    ModelDoesNotFit,
    ModelFileInvalid,
    WorkerLost,
)

MODEL = Path("/m/model.gguf")
ENDING = (
    "0.00.004.969 E llama_model_load_from_file_impl: failed to load model",
    "0.00.004.980 E cmn  common_init_: failed to load model '/m/model.gguf'",
    "0.00.004.995 E srv    load_model: failed to load model, '/m/model.gguf'",
    "0.00.005.235 E srv  llama_server: exiting due to model loading error",
)
LOADER = (
    "0.00.004.286 E llama_model_load: error loading model: llama_model_loader: failed to load model from /m/model.gguf"
)

CASES = [
    (
        ["0.00.004.939 E llama_model_load: error loading model: tensor 'blk.2.ffn_up.weight' data is not within the "
         "file bounds, model is corrupted or incomplete", *ENDING],
        1, ModelFileInvalid, "/m/model.gguf: it is cut short: tensor blk.2.ffn_up.weight lies beyond its end",
    ),
    (["0.00.004.176 E gguf_init_from_reader: failed to read key-value pairs", LOADER, *ENDING],
     1, ModelFileInvalid, "/m/model.gguf: it is empty, cut short or damaged"),
    (["0.00.003.965 E gguf_init_from_reader: failed to read magic", LOADER, *ENDING],
     1, ModelFileInvalid, "/m/model.gguf: it is empty, cut short or damaged"),
    (["0.00.003.928 E gguf_init_from_reader: invalid magic characters: 'hell', expected 'GGUF'", LOADER, *ENDING],
     1, ModelFileInvalid, "/m/model.gguf: it is not a GGUF model"),
    (["0.00.003.930 E gguf_init_from_reader: this GGUF file is version 99 but this software only supports up to "
      "version 3", "0.00.003.952 E gguf_init_from_reader: failed to read header", LOADER, *ENDING],
     1, ModelFileInvalid, "/m/model.gguf: its GGUF version 99 is newer than this engine reads"),
    (["0.00.004.044 E gguf_init_from_file: failed to open GGUF file '/m/model.gguf' (No such file or directory)",
      LOADER, *ENDING], 1, ModelFileInvalid, "/m/model.gguf: it cannot be opened (No such file or directory)"),
    (["0.00.004.530 E llama_model_load: error loading model: unknown model architecture: 'zzama'", *ENDING],
     1, ModelFileInvalid, "/m/model.gguf: this engine does not know its architecture 'zzama'"),
    (["0.00.004.530 E llama_model_load: error loading model: key not found in model: llama.block_count", *ENDING],
     1, ModelFileInvalid, "/m/model.gguf: key not found in model: llama.block_count"),
    (["0.00.011.413 E gguf_init_from_reader: invalid magic characters: 'hell', expected 'GGUF'",
      "0.00.011.536 E srv    load_model: failed to load draft model, '/m/draft.gguf'"],
     1, ModelFileInvalid, "the draft model /m/draft.gguf: it is not a GGUF model"),
    (["0.00.518.701 E ggml_aligned_malloc: insufficient memory (attempted to allocate  19.73 MB)",
      "/src/ggml/src/ggml.c:1644: GGML_ASSERT(ctx->mem_buffer != NULL) failed"],
     -6, ModelDoesNotFit, "insufficient memory (attempted to allocate  19.73 MB)"),
    (["0.02.110.004 E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9216.00 MiB on device 0: cudaMalloc "
      "failed: out of memory", *ENDING], 1, ModelDoesNotFit, "allocating 9216.00 MiB on device 0"),
    ([], -9, ModelDoesNotFit, "the system ended the engine while loading"),
    (["error: invalid argument: --bogus"], 1, EngineIncompatible, "it does not accept --bogus"),
    (['error while handling argument "-dev": invalid device: CUDA0', "", "usage:"],
     1, EngineIncompatible, "it does not accept -dev: invalid device: CUDA0"),
    (["llama-server: error while loading shared libraries: libcudart.so.12: cannot open shared object file"],
     127, EngineIncompatible, "the library libcudart.so.12 is missing"),
    (["/e/llama-server could not be run: Permission denied"],
     127, EngineIncompatible, "/e/llama-server could not be run: Permission denied"),
    ([], -4, EngineIncompatible, "it was built for another processor"),
    (["/src/ggml/src/ggml-rpc/ggml-rpc.cpp:677: Remote RPC server crashed or returned malformed response"],
     -6, WorkerLost, "the worker went away while loading model.gguf"),
    (["/src/ggml/src/ggml-rpc/ggml-rpc.cpp:618: Failed to connect to 127.0.0.1:18201"],
     -6, WorkerLost, "the worker went away while loading model.gguf"),
    (["/src/ggml/src/ggml.c:99: GGML_ASSERT(false) failed"],
     -6, EngineCrashed, "ended by SIGABRT, it stopped itself after an internal error while loading model.gguf"),
    ([], -11, EngineCrashed, "ended by SIGSEGV, a fault in the engine while loading model.gguf"),
]  # fmt: skip


@pytest.mark.parametrize(("tail", "returncode", "kind", "words"), CASES)
def test_reasons(tail: list[str], returncode: int, kind: type[MeshnodeError], words: str) -> None:
    error = explain_load_failure(tail, describe_exit(returncode), MODEL)
    assert type(error) is kind
    assert words in error.detail and error.fix
    assert is_permanent(error) == (kind in (ModelFileInvalid, EngineIncompatible))


def test_a_worker_that_went_away_is_no_fault_of_the_engine() -> None:
    lost = ["/x/ggml-rpc.cpp:677: Remote RPC server crashed or returned malformed response"]
    assert worker_went_away([*ENDING, *lost], describe_exit(-6))
    assert not worker_went_away(lost, describe_exit(-6, asked=True))
    assert not worker_went_away(lost, describe_exit(0))
    assert not worker_went_away(list(ENDING), describe_exit(-6))
    assert not worker_went_away([*lost, *ENDING * 20], describe_exit(-6))
    assert redact(lost[0]) == lost[0]


def test_a_child_of_many_words_makes_a_short_sentence() -> None:
    tail = ["0.00.004.530 E llama_model_load: error loading model: " + "x" * 2000] * 200
    assert len(explain_load_failure(tail, describe_exit(1), MODEL).message) < 400


def test_last_error_drops_time_and_place() -> None:
    lines = [
        "0.00.001.000 W srv  llama_server: a warning",
        "0.00.004.995 E srv    load_model: failed to load model, 'x'",
    ]
    assert last_error(lines) == "failed to load model, 'x'"
    assert last_error(lines[:1]) == "" and last_error([]) == ""


def test_taken_address() -> None:
    line = "0.00.005.002 E srv         start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 18999"
    assert address_was_taken([line, "0.00.006.558 E srv  llama_server: exiting due to HTTP server error"])
    assert not address_was_taken(list(ENDING))


def test_quotes_of_a_request_are_cut() -> None:
    line = '0.01.516.741 W srv    operator(): got exception: {"error":{"message":"last read: \'my secret\'"}}'
    assert redact(line) == "0.01.516.741 W srv    operator(): got exception"
    assert redact(ENDING[0]) == ENDING[0]
    answer = "0.01.516.741 W common_chat_peg_parse: unparsed peg-simple output: my secret"
    assert redact(answer) == "0.01.516.741 W common_chat_peg_parse: unparsed peg-simple output"


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("parse: error parsing grammar: expecting name at my secret", ""),
        ("root ::= my secret", ""),
        ("/x/ggml/src/ggml.c:1200: GGML_ASSERT(a == b) failed", "/x/ggml/src/ggml.c:1200: GGML_ASSERT(a == b) failed"),
        ("CUDA error: out of memory", "CUDA error: out of memory"),
        ("terminate called after throwing an instance of 'X'", "terminate called after throwing an instance of 'X'"),
        ("  what():  vk::Queue::submit: ErrorDeviceLost", "  what():  vk::Queue::submit: ErrorDeviceLost"),
        ("  what():  last read: 'my secret'", "  what():  last read: "),
    ],
)
def test_lines_without_a_time_are_kept_only_when_they_are_last_words(line: str, kept: str) -> None:
    assert redact(line) == kept
