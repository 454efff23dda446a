"""Honest Nostr relays on loopback: the one that nostr-sdk embeds, and PyPI's nostr-relay in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from nostr_sdk import LocalRelay, LocalRelayBuilder, RateLimit

START_LIMIT_S = 30
_CONFIG = """\
DEBUG: false
relay_name: test
storage:
  sqlalchemy.url: sqlite+aiosqlite:///{folder}/nostr.sqlite3
  validators: [nostr_relay.validators.is_not_too_large, nostr_relay.validators.is_signed]
gunicorn: {{bind: "127.0.0.1:{port}", workers: 1, loglevel: warning}}
purple: {{host: 127.0.0.1, port: {port}, workers: 1, disable_compression: true}}
authentication: {{enabled: false}}
"""


async def start_embedded(*, port: int = 0, notes_per_minute: int = 6000, work_bits: int = 0) -> LocalRelay:
    """A relay in threads of this process, which needs no event loop from then on. `shutdown()` ends it."""
    builder = (
        LocalRelayBuilder().addr("127.0.0.1").rate_limit(RateLimit(max_reqs=500, notes_per_minute=notes_per_minute))
    )
    if port:
        builder = builder.port(port)
    if work_bits:
        builder = builder.min_pow(work_bits)
    relay = builder.build()
    await relay.run()
    return relay


async def url_of(relay: LocalRelay) -> str:
    """Where an embedded relay is."""
    return str(await relay.url()).rstrip("/")


@asynccontextmanager
async def embedded_relay(**options: int) -> AsyncIterator[str]:
    """The URL of an embedded relay, as `start_embedded` has it."""
    relay = await start_embedded(**options)
    try:
        yield await url_of(relay)
    finally:
        relay.shutdown()


@contextmanager
def independent_relay(folder: Path) -> Iterator[str]:
    """The URL of another implementation, in Python, over SQLite in `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = folder / "relay.yaml"
    config.write_text(_CONFIG.format(folder=folder, port=port))
    command = [sys.executable, "-c", "from nostr_relay.cli import main; main()", "-c", str(config), "serve"]
    with (folder / "relay.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_listening(process, port, folder / "relay.log")
        yield f"ws://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _wait_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + START_LIMIT_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise AssertionError(f"the relay did not start: {log.read_text()[-2000:]}")


async def gone_url() -> str:
    """A URL at which nobody listens: a port that was free a moment ago."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return f"ws://127.0.0.1:{port}"
