"""A chain with play money, a relay, and the homes of people whose nodes pay each other: real processes on loopback.

    with play_world(folder) as world:
        client = world.home("client")
        client.run("wallet", "new", "--password-file", str(world.password_file))
        client.at_terminal("wallet", "policy", ..., answers={"Allow it?": "y"})
        client.start("--client", "--auto")

What a person types goes through a terminal of its own (pty), since that is what raising a bound asks for.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from eth_utils import to_checksum_address

from bench.counting import RESUMED, Heard, question
from tests.conftest import NodeProcess
from tests.e2e.nostr import relay_in_a_thread
from tests.lab.evm import Anvil, Deployment, deployed
from tests.loopback import LOOPBACK_ONLY
from tools.play_chain import CHAIN_ID, NAME, make_cheap, network_of

PASSWORD = "a password of play money"
COMMAND_LIMIT_S = 90.0
ANSWER_LIMIT_S = 90.0
ETHER = 10**18
COST = b": meshnode-cost-micros "
PUBLIC = {"x-meshnode-radius": "public", "content-type": "application/json"}

Tell = Callable[[str], None]
"""Takes a line of what is done, for those who look on."""


def untold(_: str) -> None:
    """Tells nobody."""


class Unanswered(Exception):
    """A request that was refused: its status, and the code and the message of the error."""

    def __init__(self, status: int, error: Mapping[str, Any]) -> None:
        super().__init__(f"{status} {error.get('code')}: {error.get('message')}")
        self.status = status
        self.code = str(error.get("code"))
        self.message = str(error.get("message"))


WRONG = (AssertionError, TimeoutError, Unanswered, pytest.fail.Exception)
"""What the parts of this module raise where something is not as it should be."""


@dataclass
class Paid(Heard):
    """An answer to `count from 1 to LAST`, and what it cost by its last comment (None: nothing was said)."""

    cost_micros: int | None = None
    resumed_at: int = 0
    """How many pieces had come when it went on elsewhere."""


@dataclass
class Home:
    """One person's machine: a home folder, the environment of its programs, and the node while one runs."""

    name: str
    folder: Path
    environment: dict[str, str]
    tell: Tell = untold
    node: NodeProcess | None = None
    earlier: list[NodeProcess] = field(default_factory=list)

    @property
    def running(self) -> NodeProcess:
        """The node that was started last."""
        assert self.node is not None, f"{self.name} has not been started"
        return self.node

    @property
    def variables(self) -> dict[str, str]:
        """All of the environment, for programs that are not nodes."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MESHNODE_")}
        return {**kept, **LOOPBACK_ONLY, **self.environment, "MESHNODE_HOME": str(self.folder)}

    # --- commands -------------------------------------------------------------------------------------------

    def run(self, *arguments: str, exit_code: int = 0, stdin: str = "", **environment: str) -> str:
        """`meshnode ARGUMENTS`: what it printed on stdout (on stderr, where it is to fail). Raises AssertionError."""
        self._told(arguments)
        done = subprocess.run(
            [sys.executable, "-m", "meshnode", *arguments],
            env={**self.variables, **environment},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_LIMIT_S,
        )
        said = f"{self.name}: meshnode {' '.join(arguments)} ended with {done.returncode}: {done.stdout}{done.stderr}"
        assert done.returncode == exit_code, said
        self._said(done.stdout + done.stderr, arguments)
        return done.stderr if exit_code else done.stdout

    def read(self, *arguments: str, **environment: str) -> Any:
        """The object that `meshnode ARGUMENTS --json` prints."""
        return json.loads(self.run(*arguments, "--json", exit_code=0, stdin="", **environment))

    def at_terminal(self, *arguments: str, answers: Mapping[str, str], exit_code: int = 0) -> str:
        """`meshnode ARGUMENTS` by a person: each answer is typed when its question stands there. All that was shown."""
        self._told(arguments, typed=answers)
        found, shown = typed([sys.executable, "-m", "meshnode", *arguments], self.variables, answers)
        assert found == exit_code, f"{self.name}: meshnode {' '.join(arguments)} ended with {found}: {shown}"
        self._said(shown, arguments)
        return shown

    def start(self, *arguments: str, **environment: str) -> NodeProcess:
        """`meshnode ARGUMENTS`, until it is ready."""
        self._told(arguments)
        if self.node is not None:
            self.earlier.append(self.node)
        everything = {**self.environment, **environment}
        fixed = ("--json", "--port", "0", "--console", "0")
        self.node = NodeProcess(*fixed, *arguments, home=self.folder, environment=everything)
        return self.node.wait_ready()

    def stop(self) -> None:
        """End the node in order, if it runs."""
        if self.node is not None and self.node.process.poll() is None:
            self.node.end()

    def kill(self) -> None:
        """End the node as a loss of power does."""
        self.tell(f"{self.name}$ kill -9 {self.running.process.pid}")
        self.running.end(signal.SIGKILL)

    # --- the node -------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The id of the node, 64 hex digits."""
        return str(json.loads((self.folder / "runtime.json").read_text())["node"])

    @property
    def token(self) -> str:
        """What every page of the console has."""
        return str(json.loads((self.folder / "runtime.json").read_text())["token"])

    def call(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """A call of the control API as a page of the console makes it: status and object."""
        return called(self.running.console_url, method, path, body, {"x-meshnode-token": self.token, **headers})

    def spending(self) -> dict[str, Any]:
        """What the node says of its money."""
        status, found = self.call("GET", "/api/spending")
        assert status == 200, found
        return dict(found)

    def count_to(self, last: int, *, each: Callable[[Paid], None] = lambda _: None, most_tokens: int = 0) -> Paid:
        """A streamed answer; `each` sees it grow. Raises Unanswered, and AssertionError for one that breaks off."""
        return counted_by(self.running.base_url, last, each=each, most_tokens=most_tokens or 3 * last + 20)

    def journal(self, question: str, *values: object) -> list[tuple[Any, ...]]:
        """Rows of the journal of money, read beside whoever writes it."""
        file = self.folder / "wallet" / "ledger.db"
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10)) as db:
            return list(db.execute(question, values))

    # --- for those who look on ------------------------------------------------------------------------------

    def _told(self, arguments: Sequence[str], typed: Mapping[str, str] | None = None) -> None:
        more = f"    (in a terminal, where it is answered: {', '.join(typed.values())})" if typed else ""
        self.tell(f"{self.name}$ meshnode {' '.join(arguments)}{more}")

    def _said(self, text: str, arguments: Sequence[str]) -> None:
        for line in text.splitlines() if "--json" not in arguments else ():
            self.tell(f"    {line}".rstrip())


@dataclass
class World:
    """Where people pay each other."""

    folder: Path
    chain: Anvil
    contracts: Deployment
    relay: str
    tell: Tell = untold
    homes: list[Home] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What says which chain and which relay."""
        return {
            "MESHNODE_NETWORK": NAME,
            "MESHNODE_NETWORK_FILE": str(self.folder / "network.json"),
            "MESHNODE_RPC": self.chain.url,
            "MESHNODE_NOSTR_RELAY": self.relay,
        }

    @property
    def password_file(self) -> Path:
        """A file with the password of all wallets here."""
        file = self.folder / "password"
        if not file.exists():
            file.touch(0o600)
            file.write_text(f"{PASSWORD}\n")
        return file

    def home(self, name: str, **environment: str) -> Home:
        """The machine of one more person."""
        found = Home(name, self.folder / name, {**self.environment, **environment}, self.tell)
        self.homes.append(found)
        return found

    def give(self, address: str, *, usd: int = 0, ether: int = 0) -> None:
        """Play money, and coins for fees, from nowhere."""
        what = " and ".join(f"{amount} play {unit}" for amount, unit in ((usd, "dollars"), (ether, "ether")) if amount)
        self.tell(f"# {what} to {address}")
        self.contracts.fund(address, eth_wei=ether * ETHER, usdc_micros=usd * 1_000_000)
        make_cheap(self.contracts)

    def has_micros(self, address: str) -> int:
        """What the chain says that an address has."""
        return self.contracts.balance(address)

    def has_wei(self, address: str) -> int:
        """Its coins for fees."""
        return int(self.contracts.web3.eth.get_balance(to_checksum_address(address)))

    def close(self) -> None:
        """End all nodes, also those of a story that went wrong."""
        for home in self.homes:
            home.stop()


@contextmanager
def play_world(folder: Path, tell: Tell = untold) -> Iterator[World]:
    """A chain with the contracts, a relay, and nobody yet; everything is ended with the block."""
    with ExitStack() as stack:
        chain = stack.enter_context(Anvil(CHAIN_ID))
        relay = stack.enter_context(relay_in_a_thread())
        contracts = deployed(chain.web3)
        make_cheap(contracts)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "network.json").write_text(json.dumps(network_of(contracts)))
        world = World(folder, chain, contracts, relay, tell)
        stack.callback(world.close)
        yield world


def fresh_address() -> str:
    """An address that never had anything, and whose key nobody has."""
    return f"0x{secrets.token_hex(20)}"


# --- a terminal -----------------------------------------------------------------------------------------------


def typed(command: Sequence[str], environment: Mapping[str, str], answers: Mapping[str, str]) -> tuple[int, str]:
    """Run a command in a terminal of its own, and type each answer once its question is shown.

    How it ended, and what was shown. Raises TimeoutError with that after COMMAND_LIMIT_S.
    """
    ours, its = os.openpty()
    shown, left = "", dict(answers)
    with closing(os.fdopen(ours, "r+b", buffering=0)) as terminal:
        process = subprocess.Popen(
            command, env=environment, stdin=its, stdout=its, stderr=its, start_new_session=True, close_fds=True
        )
        os.close(its)
        deadline = time.monotonic() + COMMAND_LIMIT_S
        try:
            while piece := _shown(terminal.fileno(), deadline):
                shown += piece
                for asks in [asks for asks in left if asks in shown]:
                    os.write(terminal.fileno(), f"{left.pop(asks)}\n".encode())
            return process.wait(max(0.1, deadline - time.monotonic())), shown
        except (TimeoutError, subprocess.TimeoutExpired):
            raise TimeoutError(f"{' '.join(command)} waits for something: {shown}") from None
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def _shown(terminal: int, deadline: float) -> str:
    """What is shown next; empty when the program has closed its end. Raises TimeoutError."""
    if not select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
        raise TimeoutError
    try:
        return os.read(terminal, 4096).decode("utf-8", "replace")
    except OSError:  # Linux says EIO where the other end is closed
        return ""


# --- requests -------------------------------------------------------------------------------------------------


def called(
    base_url: str, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
) -> tuple[int, Any]:
    """One call over HTTP: status and object."""
    target = urlsplit(base_url)
    with closing(http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)) as connection:
        text = None if body is None else json.dumps(body)
        connection.request(method, path, text, {"content-type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"null")


def counted_by(
    base_url: str, last: int, *, each: Callable[[Paid], None] = lambda _: None, most_tokens: int = 4096
) -> Paid:
    """Ask a node, from which everybody may be asked, to count; see Home.count_to."""
    heard = Paid("demo", last)
    target = urlsplit(base_url)
    body = json.dumps({**question("demo", last), "max_tokens": most_tokens})
    with closing(http.client.HTTPConnection(target.hostname or "", target.port, timeout=ANSWER_LIMIT_S)) as connection:
        connection.request("POST", "/v1/chat/completions", body, PUBLIC)
        answer = connection.getresponse()
        if answer.status != 200:
            raise Unanswered(answer.status, json.loads(answer.read())["error"])
        heard.node = answer.getheader("x-meshnode-node", "")
        for line in answer:
            _take(heard, line)
            each(heard)
    return heard


def _take(heard: Paid, line: bytes) -> None:
    if line.startswith(RESUMED):
        heard.resumed, heard.resumed_at = True, len(heard.pieces)
    elif line.startswith(COST):
        heard.cost_micros = int(line.removeprefix(COST))
    elif line.startswith(b"data: [DONE]"):
        heard.ended = True
    elif line.startswith(b"data: "):
        chunk = json.loads(line[6:])
        if "error" in chunk:
            raise Unanswered(200, chunk["error"])
        heard.take(chunk)
