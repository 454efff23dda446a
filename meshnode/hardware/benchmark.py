"""How fast a device is, measured once with llama-bench and kept, so that plans can predict tokens per second.

Two models without content are written for it: their tensors are holes in a file, zeros that cost no disk and no time
to write but as much memory traffic and arithmetic as any others. The *narrow* one has almost no weights: its time per
token is what a layer costs before it reads a byte (launches, barriers). The *wide* one has few layers and hundreds
of megabytes, beyond the caches of processors: what it takes longer is bandwidth. The shipped demo model would give
neither, it fits into a cache.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import struct
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from meshnode.errors import EngineCrashed
from meshnode.hardware.device import Device
from meshnode.telemetry import Progress, Report

FORMAT = 1
PROMPT_TOKENS = 128
DECODE_TOKENS = 64
# The wide model takes a processor 50-100 ms a token, long enough to measure few.
DECODE_TOKENS_PROCESSOR = 12
OUTPUT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of a model without content (llama architecture, Q8_0 weights). Widths are multiples of 32."""

    layers: int
    width: int
    hidden: int
    heads: int
    heads_kv: int
    words: int = 64


NARROW = Shape(layers=16, width=128, hidden=256, heads=2, heads_kv=2)
# 0.47 GB and 0.93 GB: on a fast GPU two layers are read in the time that the launches take.
WIDE_PROCESSOR = Shape(layers=2, width=4096, hidden=14336, heads=32, heads_kv=8)
WIDE_GPU = Shape(layers=4, width=4096, hidden=14336, heads=32, heads_kv=8)


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """What one device did with one engine.

    `bandwidth_bytes_per_s`: weights that one token's decoding gets through, beyond `layer_s`. `layer_s`: what each
    layer costs a token before any weight, in seconds. `flops_per_s`: arithmetic of prompt processing (two per
    weight and token). The two token rates are those of the wide model, of `model_bytes` weights. `measured_at` is
    wall time in seconds.
    """

    device: str
    device_name: str
    engine: str
    threads: int
    prompt_tokens_per_s: float
    decode_tokens_per_s: float
    model_bytes: int
    layer_s: float
    bandwidth_bytes_per_s: float
    flops_per_s: float
    measured_at: float


def predict_tokens_per_s(result: BenchmarkResult, active_weight_bytes: int, layers: int, kv_bytes: int = 0) -> float:
    """Decoding speed of one stream: 1 / (layers * layer_s + (weights read per token + KV read) / bandwidth).

    `active_weight_bytes` are those of one token (of a mixture: the shared part and the chosen experts), `kv_bytes`
    the cache that attention reads at the current length. Quantizations of fewer bits than Q8_0 come out somewhat
    slower than this on processors, which then wait for arithmetic.
    """
    return 1.0 / (layers * result.layer_s + (active_weight_bytes + kv_bytes) / result.bandwidth_bytes_per_s)


def predict_prompt_s(result: BenchmarkResult, active_parameters: int, prompt_tokens: int) -> float:
    """Seconds until a prompt is processed: two operations per active weight and token."""
    return 2.0 * active_parameters * prompt_tokens / result.flops_per_s


def measure(
    bench: Path,
    devices: Sequence[Device],
    report: Report,
    *,
    engine: str,
    threads: int,
    folder: Path,
    environ: Mapping[str, str],
    timeout_s: float = 120.0,
) -> list[BenchmarkResult]:
    """Measure each of `devices` with the program `bench` (llama-bench); blocking, a few seconds for each.

    `engine` names its version, `environ` is its whole environment, `folder` a place for temporary files (0.9 GB of
    holes). Raises EngineCrashed if it fails or takes longer than `timeout_s` seconds a run, OSError for `folder`.
    """
    results = []
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=folder) as temporary:
        for number, device in enumerate(devices):
            report(Progress("benchmark", f"measuring {device.name}", number, len(devices)))
            run = _Run(bench, device, threads, environ, timeout_s)
            wide = WIDE_PROCESSOR if device.kind == "cpu" else WIDE_GPU
            results.append(_result(run, Path(temporary), wide, engine))
    report(Progress("benchmark", "measured", len(devices), len(devices), finished=True))
    return results


def _result(run: _Run, folder: Path, wide: Shape, engine: str) -> BenchmarkResult:
    narrow_path, wide_path = folder / "narrow.gguf", folder / "wide.gguf"
    write_hollow_model(narrow_path, NARROW)
    wide_bytes, wide_weights = write_hollow_model(wide_path, wide)
    _, narrow_rate = run(narrow_path)
    wide_tokens = DECODE_TOKENS_PROCESSOR if run.device.kind == "cpu" else DECODE_TOKENS
    prompt_rate, decode_rate = run(wide_path, wide_tokens)
    layer_s, bandwidth = separate(1 / narrow_rate / NARROW.layers, wide.layers, wide_bytes, 1 / decode_rate)
    return BenchmarkResult(
        device=run.device.id,
        device_name=run.device.name,
        engine=engine,
        threads=run.threads,
        prompt_tokens_per_s=prompt_rate,
        decode_tokens_per_s=decode_rate,
        model_bytes=wide_bytes,
        layer_s=layer_s,
        bandwidth_bytes_per_s=bandwidth,
        flops_per_s=2.0 * wide_weights * prompt_rate,
        measured_at=time.time(),
    )


def separate(layer_s: float, layers: int, weight_bytes: int, token_s: float) -> tuple[float, float]:
    """Solve token_s = layers * layer_s + weight_bytes / bandwidth: returns (layer_s, bandwidth).

    `layer_s` comes from the narrow model and is taken as it is: its few weights stay in a cache. Where noise made it
    larger than the whole of `token_s` leaves room for, all the time goes to the bytes.
    """
    reading_s = token_s - layers * layer_s
    if reading_s < token_s / 4:
        return 0.0, weight_bytes / token_s
    return layer_s, weight_bytes / reading_s


@dataclass(frozen=True, slots=True)
class _Run:
    """llama-bench on one device."""

    bench: Path
    device: Device
    threads: int
    environ: Mapping[str, str]
    timeout_s: float

    def __call__(self, model: Path, decode_tokens: int = DECODE_TOKENS) -> tuple[float, float]:
        """Tokens per second of prompt processing and of decoding."""
        on_processor = self.device.kind == "cpu"
        argv = [str(self.bench), "--model", str(model), "--output", "json", "--repetitions", "3"]
        argv += ["--n-prompt", str(PROMPT_TOKENS), "--n-gen", str(decode_tokens), "--threads", str(self.threads)]
        argv += ["--device", "none" if on_processor else self.device.id]
        argv += ["--n-gpu-layers", "0" if on_processor else "99"]
        try:
            done = subprocess.run(
                argv, env=dict(self.environ), stdin=subprocess.DEVNULL, capture_output=True, timeout=self.timeout_s
            )
        except subprocess.TimeoutExpired:
            raise EngineCrashed(f"llama-bench took longer than {self.timeout_s:.0f} s on {self.device.name}") from None
        except OSError as error:
            raise EngineCrashed(f"{self.bench} could not be run: {error.strerror}") from error
        if done.returncode != 0:
            last = done.stderr[-2000:].decode("utf-8", "replace").strip().splitlines()[-1:]
            raise EngineCrashed(
                f"llama-bench ended with {done.returncode} on {self.device.name}: {''.join(last)[:300]}"
            )
        return read_rates(done.stdout[:OUTPUT_BYTES])


def read_rates(output: bytes) -> tuple[float, float]:
    """Prompt and decode rates, in tokens per second, from the JSON of llama-bench: the best of its repetitions.

    The best, because whatever else ran meanwhile can only have made it slower. Raises EngineCrashed for other text.
    """
    try:
        runs = json.loads(output)
        prompt = max(float(rate) for run in runs if run["n_gen"] == 0 for rate in run["samples_ts"])
        decode = max(float(rate) for run in runs if run["n_prompt"] == 0 for rate in run["samples_ts"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise EngineCrashed(f"the output of llama-bench cannot be read: {type(error).__name__}") from error
    if not (math.isfinite(prompt) and math.isfinite(decode) and prompt > 0 and decode > 0):
        raise EngineCrashed("llama-bench measured nothing")
    return prompt, decode


# --- models without content -----------------------------------------------------------------------------------

_ALIGNMENT = 32
_Q8_0 = 8
_F32 = 0


def write_hollow_model(path: Path, shape: Shape) -> tuple[int, int]:
    """Write a GGUF v3 file (ggml/docs/gguf.md) whose tensors are zeros. Returns bytes and number of its matrix weights.

    The tokenizer is "no_vocab": llama-bench needs none. Raises OSError.
    """
    tensors = list(_tensors(shape))
    body = b""
    offset = matrix_bytes = weights = 0
    for name, dimensions, kind in tensors:
        body += _string(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)
        count = math.prod(dimensions)
        # A block of Q8_0 holds 32 weights in 34 bytes.
        size = count // 32 * 34 if kind == _Q8_0 else count * 4
        offset += -(-size // _ALIGNMENT) * _ALIGNMENT
        # The embedding is looked up, not multiplied.
        if kind == _Q8_0 and name != "token_embd.weight":
            matrix_bytes, weights = matrix_bytes + size, weights + count
    pairs = list(_metadata(shape))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs) + body
    with path.open("wb") as file:
        file.write(head + b"\0" * (-len(head) % _ALIGNMENT))
        file.truncate(file.tell() + offset)
    return matrix_bytes, weights


def _tensors(shape: Shape) -> list[tuple[str, tuple[int, ...], int]]:
    width, hidden = shape.width, shape.hidden
    width_kv = width // shape.heads * shape.heads_kv
    tensors: list[tuple[str, tuple[int, ...], int]] = [
        ("token_embd.weight", (width, shape.words), _Q8_0),
        ("output_norm.weight", (width,), _F32),
        ("output.weight", (width, shape.words), _Q8_0),
    ]
    for layer in range(shape.layers):
        matrices = {
            "attn_q": (width, width), "attn_k": (width, width_kv), "attn_v": (width, width_kv),
            "attn_output": (width, width), "ffn_gate": (width, hidden), "ffn_up": (width, hidden),
            "ffn_down": (hidden, width),
        }  # fmt: skip
        tensors += [(f"blk.{layer}.{name}.weight", (width,), _F32) for name in ("attn_norm", "ffn_norm")]
        tensors += [(f"blk.{layer}.{name}.weight", sizes, _Q8_0) for name, sizes in matrices.items()]
    return tensors


def _metadata(shape: Shape) -> list[bytes]:
    texts = {"general.architecture": "llama", "tokenizer.ggml.model": "no_vocab"}
    numbers = {
        "block_count": shape.layers, "context_length": 4096, "embedding_length": shape.width,
        "feed_forward_length": shape.hidden, "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.heads_kv, "vocab_size": shape.words,
    }  # fmt: skip
    pairs = [_string(key) + struct.pack("<I", 8) + _string(text) for key, text in texts.items()]
    pairs += [_string(f"llama.{key}") + struct.pack("<II", 4, number) for key, number in numbers.items()]
    epsilon = _string("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-5)
    return [*pairs, epsilon]


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


# --- the cache ------------------------------------------------------------------------------------------------


def cache_file(folder: Path, device: Device, engine: str, threads: int) -> Path:
    """Where the result of a device with an engine is kept; `folder` is `<cache>/benchmarks`."""
    words = f"{engine}-{device.id}-{device.name}" + (f"-{threads}t" if device.kind == "cpu" else "")
    return folder / (re.sub(r"[^A-Za-z0-9._]+", "-", words)[:180].strip("-.") + ".json")


def load_cached(folder: Path, device: Device, engine: str, threads: int) -> BenchmarkResult | None:
    """The kept result, None if there is none that can be used (another format, damaged, not readable)."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        with cache_file(folder, device, engine, threads).open("rb") as file:
            kept = json.loads(file.read(65536))
        if kept.pop("format") == FORMAT:
            result = BenchmarkResult(**kept)
            rates = (result.bandwidth_bytes_per_s, result.flops_per_s, result.decode_tokens_per_s)
            same = (result.device_name, result.engine) == (device.name, engine)
            if same and result.layer_s >= 0 and all(math.isfinite(rate) and rate > 0 for rate in rates):
                return result
    return None


def store_cached(folder: Path, device: Device, result: BenchmarkResult) -> Path:
    """Keep a result, atomically. Returns the file. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = cache_file(folder, device, result.engine, result.threads)
    descriptor, temporary = tempfile.mkstemp(prefix=".benchmark-", dir=folder)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump({"format": FORMAT, **asdict(result)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
