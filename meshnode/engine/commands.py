"""The command line of llama-server for a plan. Pure: values in, a list of strings out.

What fits into memory is decided elsewhere (core/placement.py); this only spells the decision in the flags of the
pinned llama.cpp (common/arg.cpp). Whatever is left to a default of llama-server here is a default that was looked
at; the others are always passed, so that neither `-fit` nor an `LLAMA_ARG_*` variable can change a plan.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

MIB = 1 << 20
# sun_path holds 104 bytes on macOS and 108 on Linux, one of them the final zero.
SOCKET_PATH_BYTES = 100
# Tensors by regular expression. Models without an output matrix of their own use the embedding of the tokens.
_OUTPUT_HEAD, _NO_TENSOR = "^(output|token_embd)", "^$"

Mode = Literal["chat", "embedding", "rerank"]
Pooling = Literal["none", "mean", "cls", "last", "rank"]
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]
FlashAttention = Literal["on", "off", "auto"]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a llama-server listens: the path of a Unix socket, or a port on the loopback address."""

    socket: Path | None = None
    port: int = 0
    host: str = "127.0.0.1"

    def __str__(self) -> str:
        return f"unix:{self.socket}" if self.socket else f"http://{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Draft:
    """A draft model for speculative decoding (`--spec-type draft-simple`).

    `devices` is ("none",) for the processor. It is always passed: without it the draft follows the devices of the
    target, the remote ones included. `tokens_max` is how many tokens are drafted at once.
    """

    model: Path
    devices: tuple[str, ...] = ("none",)
    gpu_layers: int | None = None
    tokens_max: int = 3
    tokens_min: int = 0
    probability_min: float = 0.0


@dataclass(frozen=True, slots=True)
class NgramDraft:
    """Guesses from the conversation itself (`--spec-type ngram-simple`), for a model without a draft model.

    Where the last `match` tokens stood before, the `tokens_max` that followed there are guessed. TRAP: the engine drops
    guesses of fewer than `match` tokens, so `tokens_max` below it would guess nothing.
    """

    match: int = 8
    tokens_max: int = 16


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """Which layers are computed elsewhere: those that `tensor_split` gives to the devices of `servers`.

    `servers` are rpc-servers or tunnels to them, "127.0.0.1:port", in the order of the layers; their devices come
    before those of this machine. `reference_sha256` is the digest, in hex, under which the tunnels know the model: its
    weights are then sent by name, "" sends their bytes. `push` lets tunnels move activations among themselves.
    `output_on_host` keeps the output head here: it returns a vector of the vocabulary's length for each token.
    """

    servers: tuple[str, ...]
    reference_sha256: str = ""
    push: bool = False
    output_on_host: bool = True


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """A plan for one llama-server. Sizes in bytes; None leaves the choice to llama-server.

    `context` is the whole context in tokens, shared by `parallel` slots: each gets context/parallel, or any part
    of it with `kv_unified`. `gpu_layers` None means every layer. `devices` names devices as `--list-devices` does,
    () takes all of them and ("none",) only the processor. `prompt_cache_bytes` bounds the host prompt cache, whose
    own default is 8 GiB; 0 turns it off. `split` spreads the layers over other machines; flash attention is on and the
    prompt cache off then, since both would cross the network. `extra` is appended unread, for what a later plan needs.
    """

    model: Path
    alias: str
    context: int
    parallel: int
    threads: int
    threads_batch: int | None = None
    mode: Mode = "chat"
    pooling: Pooling | None = None
    mmproj: Path | None = None
    mmproj_on_gpu: bool = True
    draft: Draft | None = None
    ngram: NgramDraft | None = None
    devices: tuple[str, ...] = ()
    gpu_layers: int | None = None
    tensor_split: tuple[float, ...] = ()
    kv_type_k: CacheType = "f16"
    kv_type_v: CacheType = "f16"
    kv_unified: bool = False
    flash_attention: FlashAttention = "auto"
    prompt_cache_bytes: int = 0
    slot_similarity: float | None = None
    batch: int | None = None
    ubatch: int | None = None
    warmup: bool = True
    log_verbosity: int = 2
    split: SplitOptions | None = None
    extra: tuple[str, ...] = ()


def server_argv(engine_server: Path, options: ServerOptions, address: Address) -> list[str]:
    """The command line that runs `options` on `address`. The API key travels as LLAMA_API_KEY, never here.

    Raises ValueError for a plan that llama-server cannot be told: a socket path that is too long or does not end
    in `.sock`, a context of less than a token per slot, no slot or no thread, a split without exact counts of layers.
    """
    if options.context < options.parallel or options.parallel < 1 or options.threads < 1:
        raise ValueError(f"context {options.context}, parallel {options.parallel}, threads {options.threads}")
    if (split := options.split) is not None:
        if not split.servers or options.gpu_layers is None or not options.tensor_split:
            raise ValueError("a split needs its servers, the number of layers on devices and their shares")
        options = replace(options, flash_attention="on", prompt_cache_bytes=0)
    return [
        str(engine_server),
        *("--model", str(options.model)),
        # A comma would make two names of one.
        *("--alias", options.alias.replace(",", "-")),
        *_listen(address),
        *_sizes(options),
        *_split(options.split),
        *_placement(options),
        *_mode(options),
        *_draft(options.draft, options.ngram),
        # `fit` rewrites what was left unset; `offline` keeps a model that names another file from downloading it.
        *("-fit", "off", "--offline", "--no-slots", "--no-ui", "--metrics"),
        # The gateway sends its own pings, and no browser talks to this address.
        *("--sse-ping-interval", "-1", "--cors-origins", "localhost", "--no-cors-credentials"),
        # From 3 on each request logs six lines; from 5 on prompts and answers are logged whole.
        *("--log-verbosity", str(min(options.log_verbosity, 4)), "--log-colors", "off"),
        *([] if options.warmup else ["--no-warmup"]),
        *options.extra,
    ]


def _listen(address: Address) -> list[str]:
    if address.socket is None:
        return ["--host", address.host, "--port", str(address.port)]
    path = str(address.socket)
    if not path.endswith(".sock") or len(path.encode()) > SOCKET_PATH_BYTES:
        raise ValueError(f"not usable as a socket path: {path}")
    return ["--host", path]


def _sizes(options: ServerOptions) -> list[str]:
    argv = ["--ctx-size", str(options.context), "--parallel", str(options.parallel)]
    argv += ["--threads", str(options.threads)]
    argv += ["--threads-batch", str(options.threads_batch or options.threads)]
    argv += ["--cache-type-k", options.kv_type_k, "--cache-type-v", options.kv_type_v]
    argv += ["--kv-unified" if options.kv_unified else "--no-kv-unified"]
    argv += ["--flash-attn", options.flash_attention]
    # A cache of less than a mebibyte would round to 0, which turns it off: that is what is meant.
    argv += ["--cache-ram", str(options.prompt_cache_bytes // MIB)]
    if options.prompt_cache_bytes < MIB:
        argv += ["--no-cache-idle-slots"]
    if options.slot_similarity is not None:
        argv += ["--slot-prompt-similarity", f"{options.slot_similarity:g}"]
    if options.batch is not None:
        argv += ["--batch-size", str(options.batch)]
    if options.ubatch is not None:
        argv += ["--ubatch-size", str(options.ubatch)]
    return argv


def _split(split: SplitOptions | None) -> list[str]:
    if split is None:
        return []
    # Devices are numbered in the order in which they are met, so this comes before all flags that name some. Any
    # override turns the pipeline of copies off, which would hold four masks a device and gains nothing over a network.
    kept = _OUTPUT_HEAD if split.output_on_host else _NO_TENSOR
    return ["--rpc", ",".join(split.servers), "--override-tensor", f"{kept}=CPU"]


def split_environment(options: ServerOptions) -> dict[str, str]:
    """What a llama-server with our patches reads about a split from its environment; empty without a split."""
    if (split := options.split) is None:
        return {}
    environment = {"GGML_NO_BACKTRACE": "1"}
    if split.push:
        environment["GGML_RPC_TUNNEL_PUSH"] = "1"
    if split.reference_sha256:
        environment["GGML_RPC_TUNNEL_REF"] = split.reference_sha256
    return environment


def _placement(options: ServerOptions) -> list[str]:
    argv = ["--gpu-layers", "all" if options.gpu_layers is None else str(options.gpu_layers)]
    if options.devices:
        argv += ["--device", ",".join(options.devices)]
    if options.tensor_split:
        argv += ["--tensor-split", ",".join(f"{share:g}" for share in options.tensor_split)]
    return argv


def _mode(options: ServerOptions) -> list[str]:
    argv = {"chat": ["--jinja"], "embedding": ["--embedding"], "rerank": ["--reranking"]}[options.mode]
    if options.pooling is not None:
        argv = [*argv, "--pooling", options.pooling]
    if options.mmproj is not None:
        argv = [*argv, "--mmproj", str(options.mmproj)]
        argv += [] if options.mmproj_on_gpu else ["--no-mmproj-offload"]
    return argv


def _draft(draft: Draft | None, ngram: NgramDraft | None) -> list[str]:
    """Where both are given the engine asks the conversation first, and the model where that knows nothing."""
    # The option counts once only: several kinds are separated by commas.
    kinds = (["ngram-simple"] if ngram else []) + (["draft-simple"] if draft else [])
    argv = ["--spec-type", ",".join(kinds)] if kinds else []
    if ngram is not None:
        argv += ["--spec-ngram-simple-size-n", str(ngram.match)]
        argv += ["--spec-ngram-simple-size-m", str(ngram.tokens_max)]
    if draft is None:
        return argv
    argv += ["--spec-draft-model", str(draft.model)]
    argv += ["--spec-draft-device", ",".join(draft.devices)]
    argv += ["--spec-draft-n-max", str(draft.tokens_max), "--spec-draft-n-min", str(draft.tokens_min)]
    if draft.probability_min:
        argv += ["--spec-draft-p-min", f"{draft.probability_min:g}"]
    if draft.gpu_layers is not None:
        argv += ["--spec-draft-ngl", str(draft.gpu_layers)]
    return argv


def plan_threads(logical: int, physical: int | None) -> int:
    """How many threads the engine gets on `logical` usable processors of which `physical` are cores.

    A second thread on one core adds nothing to arithmetic that is bound by memory. ggml's threads wait for each
    other in a spinning barrier: as soon as anything else needs a core that one of them holds, all wait a whole
    scheduler slice per layer (2,500 tokens/s fell to 2 with two threads on two cores). So at least one logical
    processor stays free for the node; with hyperthreads the second halves of the cores already are.
    """
    return max(1, min(physical or logical, logical - 1))
