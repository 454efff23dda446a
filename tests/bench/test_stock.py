"""The other side of the comparison: the same command lines with other addresses, and a library without our patches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.place import Place
from bench.stock import LIBRARY, Line, StockSplit, stock_folder, with_values
from meshnode.models.catalog import DEMO_TARGET

SERVER = ["llama-server", "--model", "m", "--host", "a", "--rpc", "b:1", "--spec-type", "draft-simple", "-c", "99"]


def line(server: Sequence[str], workers: Sequence[Sequence[str]] = (), hosts: Sequence[str] = ()) -> Line:
    return Line(server, workers, dict(os.environ, GGML_NO_BACKTRACE="1", GGML_RPC_TUNNEL_PUSH="1"), hosts)


def test_only_what_is_named_changes() -> None:
    assert with_values(SERVER, {"--host": "x", "--rpc": "y", "--other": "z"}) == [
        *("llama-server", "--model", "m", "--host", "x", "--rpc", "y", "--spec-type", "draft-simple", "-c", "99")
    ]


def test_without_a_draft_nothing_else_is_missing() -> None:
    assert list(line(SERVER).without_draft().server) == [
        *("llama-server", "--model", "m", "--host", "a", "--rpc", "b:1", "-c", "99")
    ]
    assert list(line(SERVER).server) == SERVER


@pytest.mark.engine
def test_the_library_has_none_of_our_patches(engine_bin: Path) -> None:
    folder = stock_folder(engine_bin)
    stock, ours = (folder / LIBRARY).read_bytes(), (engine_bin / LIBRARY).read_bytes()
    assert b"ggml_backend_rpc_init" in stock and b"GGML_RPC_TUNNEL" not in stock
    assert b"GGML_RPC_TUNNEL" in ours
    assert stock_folder(engine_bin) == folder


@pytest.mark.engine
def test_a_split_of_stock_llama_cpp_counts(engine_bin: Path) -> None:
    server = [
        *(str(engine_bin / "llama-server"), "--model", str(DEMO_TARGET), "--host", "", "--rpc", ""),
        *("--ctx-size", "1024", "--parallel", "1", "--threads", "1", "-ngl", "13", "-ts", "6,7", "-fit", "off"),
        *("--no-ui", "--jinja"),
    ]
    worker = [str(engine_bin / "ggml-rpc-server"), "-H", "", "-p", "", "-d", "CPU", "-t", "1"]
    with Place(["host", "w1", "w2"]) as place, StockSplit(line(server, [worker] * 2, place.names), place) as split:
        answer = split.llama.decode(20, prompt="count from 1 to 30")
        assert split.load_s > 0
    assert answer.text.startswith("1, 2, 3, 4")
