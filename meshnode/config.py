"""Settings of one node: flag > environment MESHNODE_* > config.toml > built-in; each value remembers its source.

A setting is one field of `Settings` with its help text beside it; the command line, the environment, the file and
`meshnode config show` are all derived from that one table. Values are parsed here and trusted elsewhere.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from meshnode.errors import SettingsError

MIB = 1 << 20
GIB = 1 << 30
MEMORY_UNITS = {"": GIB, "g": GIB, "gb": GIB, "gib": GIB, "m": MIB, "mb": MIB, "mib": MIB}
KV_TYPES = ("f16", "q8_0", "q4_0")
LONGEST_NAME = 40
RADII = ("local", "trusted", "public")
MOST_RELAYS = 16
MOST_ENDPOINTS = 4
MICROS = 1_000_000
PUBLIC_RELAYS = ("wss://relay.damus.io", "wss://nos.lol", "wss://relay.primal.net")
"""Where public meshes are listed unless other relays are named: asked only by a node that was told to go public."""
LOG_LEVELS = ("debug", "info", "warning", "error")


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError("expected some text")
    return value.strip()


def _texts(value: object) -> tuple[str, ...]:
    """A list; in the environment its items are separated by commas."""
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise ValueError("expected a list")
    return tuple(_text(item) for item in items if item != "")


def _counts(value: object) -> tuple[int, ...]:
    """Whole numbers; in text they are separated by commas."""
    parts = value if isinstance(value, list | tuple) else (value,)
    items = [item.strip() for part in parts for item in str(part).split(",")]
    if not all(item.isascii() and item.isdigit() and len(item) < 6 for item in items):
        raise ValueError("expected whole numbers separated by commas")
    return tuple(int(item) for item in items)


def _flag(value: object) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError("expected true or false")


def _whole(low: int, high: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError("expected a whole number")
        try:
            number = int(value)
        except ValueError:
            raise ValueError("expected a whole number") from None
        if not low <= number <= high:
            raise ValueError(f"expected a whole number from {low} to {high}")
        return number

    return parse


def _memory(value: object) -> int:
    """An amount of memory in bytes, from "8", "7.5GB" or "512MB"; a bare number is GB."""
    text = str(value).strip().lower()
    number = text.rstrip("bgim ")
    unit = text[len(number) :].strip()
    try:
        size = float(number) * MEMORY_UNITS[unit]
    except (ValueError, KeyError):
        raise ValueError("expected an amount of memory such as 8 (GB), 7.5GB or 512MB") from None
    if not 0 < size < 1 << 50:
        raise ValueError("expected an amount of memory above zero")
    return int(size)


def _micros(value: object) -> int:
    """An amount of US dollars such as 0.5 or 12.000001, in millionths."""
    text = str(value).strip().removeprefix("$")
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,7}(\.[0-9]{1,6})?", text):
        raise ValueError("expected US dollars such as 0.5, with at most six decimals")
    whole, _, part = text.partition(".")
    return int(whole) * MICROS + int(part.ljust(6, "0"))


def _endpoints(value: object) -> tuple[str, ...]:
    """URLs of endpoints of a chain; they may hold keys."""
    urls = _texts(value)
    if len(urls) > MOST_ENDPOINTS:
        raise ValueError(f"expected at most {MOST_ENDPOINTS} endpoints")
    for url in urls:
        if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", url) or len(url) > 300:
            raise ValueError("expected the URL of an endpoint such as https://rpc.example")
    return urls


def _chain_address(value: object) -> str:
    """An account of an EVM chain, in lower case."""
    text = _text(value)
    if not re.fullmatch(r"0x[0-9a-fA-F]{40}", text):
        raise ValueError("expected an address: 0x and 40 hex digits")
    return text.lower()


def _one_of(*choices: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
        return str(value)

    return parse


def _pairs(value: object) -> Mapping[str, str]:
    """A table of names; in the environment `name=target` pairs separated by commas."""
    if isinstance(value, str):
        value = dict(item.partition("=")[::2] for item in value.split(",") if item)
    if not isinstance(value, dict):
        raise ValueError("expected a table of name = target")
    return MappingProxyType({_text(name): _text(target) for name, target in value.items()})


def _path(value: object) -> Path:
    try:
        return Path(_text(value)).expanduser()
    except RuntimeError as reason:
        raise ValueError(f"{reason}") from None


def _host(value: object) -> str:
    """A literal address of this machine to listen on."""
    try:
        return str(ipaddress.ip_address(_text(value)))
    except ValueError:
        raise ValueError("expected an IP address such as 0.0.0.0, :: or 127.0.0.1") from None


def _when(value: object) -> str:
    """auto, on or off; `auto` means whatever fits the rest."""
    words = {"auto": "auto", "on": "on", "true": "on", "1": "on", "off": "off", "false": "off", "0": "off"}
    found = words.get(str(value).lower())
    if found is None:
        raise ValueError("expected auto, on or off")
    return found


def _relays(value: object) -> tuple[str, ...]:
    """URLs of Nostr relays."""
    urls = _texts(value)
    if len(urls) > MOST_RELAYS:
        raise ValueError(f"expected at most {MOST_RELAYS} relays")
    for url in urls:
        if not re.fullmatch(r"wss?://[^\s/@]+(/[^\s]*)?", url) or len(url) > 200:
            raise ValueError("expected the URL of a relay such as wss://relay.example")
    return urls


def _entries(value: object) -> tuple[str, ...]:
    """HOST:PORT of nodes; a host may be a name, as the user gives it and no peer does."""
    found = _texts(value)
    for entry in found:
        host, colon, port = entry.rpartition(":")
        if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
            raise ValueError("expected HOST:PORT")
    return found


def _short_text(value: object) -> str:
    text = _text(value)
    if len(text) > LONGEST_NAME or not text.isprintable():
        raise ValueError(f"expected a printable name of at most {LONGEST_NAME} characters")
    return text


def _show(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(value) or "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={target}" for name, target in value.items()) or "-"
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _setting(
    default: Any,
    parse: Callable[[object], Any],
    help: str,
    *,
    secret: bool = False,
    flag: bool = True,
    show: Callable[[Any], str] | None = None,
) -> Any:
    """`secret` values are never shown, others by `show`; without `flag` there is no option on the command line."""
    metadata = {"parse": parse, "help": help, "secret": secret, "flag": flag, "show": show or _show}
    return field(default=default, metadata=metadata)


def _dollars(default: int, help: str, *, flag: bool = True) -> Any:
    """A setting in millionths of a dollar that people read and write in dollars."""
    return _setting(default, _micros, help, flag=flag, show=_usd)


def _usd(micros: int) -> str:
    return f"{micros // MICROS}.{micros % MICROS:06d}".rstrip("0").rstrip(".")


def _table(help: str) -> Any:
    """A setting that is a table of names: only the file and the environment can give it."""
    metadata = {"parse": _pairs, "help": help, "secret": False, "flag": False, "show": _show}
    return field(default_factory=dict, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a node can be told. `sources[name]` says where the value of a field came from."""

    model: tuple[str, ...] = _setting(
        (),
        _texts,
        "model to serve (repeatable): a name from `meshnode search`, owner/repo:QUANT, a URL, or a .gguf file",
    )
    join: str | None = _setting(
        None, _text, "become a member of the mesh that this invite belongs to (- reads it from stdin)", secret=True
    )
    client: bool = _setting(False, _flag, "use the models of the mesh, serve none")
    solo: bool = _setting(False, _flag, "no mesh: open no UDP port and invite nobody")
    name: str | None = _setting(None, _short_text, "what other nodes call this one (default: the host name)")
    private_mesh_name: str | None = _setting(None, _short_text, "name of a private mesh that is founded here")
    auto: bool = _setting(False, _flag, "find the public mesh that suits best, and join it or start one")
    publish: bool = _setting(False, _flag, "offer the models of this node to strangers, in a public mesh")
    mesh_name: str | None = _setting(None, _short_text, "offer them in the public mesh of this name, new or not")
    region: str | None = _setting(None, _short_text, "where this node is, as listings say it, such as eu-west")
    max_clients: int = _setting(64, _whole(1, 192), "strangers that this node lets in at a time")
    nostr_relay: tuple[str, ...] = _setting(PUBLIC_RELAYS, _relays, "Nostr relay that lists public meshes (repeatable)")
    bootstrap: tuple[str, ...] = _setting((), _entries, "HOST:PORT of a node of a public mesh to begin at (repeatable)")
    public_port: int = _setting(
        9338, _whole(0, 65535), "UDP port on which strangers reach this node (0: any free port)"
    )
    port_map: str = _setting(
        "auto", _when, "ask the router to forward the UDP ports: auto (if this node goes public), on, off"
    )
    relay: str = _setting(
        "auto",
        _when,
        "carry datagrams between members that cannot reach each other: auto (friends always,"
        " strangers if this node publishes), on, off",
    )
    guess_ports: bool = _setting(
        True, _flag, "guess ports to reach a node behind a symmetric NAT (this option: do not)"
    )
    radius: str = _setting("trusted", _one_of(*RADII), "how far a request may go that does not say it itself")
    verify: str = _setting("off", _one_of("off", "spot"), "have answers of strangers checked by a second node")
    public_slots: int = _setting(2, _whole(1, 64), "requests of strangers that are answered at the same time")
    public_requests: int = _setting(30, _whole(1, 10_000), "requests that one stranger may make in a minute")
    public_tokens: int = _setting(100_000, _whole(1, 1 << 30), "tokens that one stranger may have in an hour")
    public_answer: int = _setting(4096, _whole(1, 1 << 20), "tokens of the longest answer for a stranger")
    price_in: int = _dollars(0, "USD that strangers pay here for a million tokens of their prompts")
    price_out: int = _dollars(0, "USD that strangers pay here for a million tokens of answers")
    kwh: int = _dollars(0, "USD for a kilowatt-hour here: prices then follow from it, with --watts and --margin")
    watts: int = _setting(0, _whole(0, 100_000), "what this machine draws while it answers, in watts")
    margin: int = _setting(20, _whole(0, 10_000), "percent that are asked above the price of the electricity")
    receiver: str | None = _setting(
        None, _chain_address, "where what strangers pay goes in the end (default: the wallet of this node)"
    )
    network: str = _setting("base-sepolia", _short_text, "chain on which strangers are paid; base is the real one")
    network_file: Path | None = _setting(None, _path, "further chains, as protocol/15-payments.md has them", flag=False)
    rpc: tuple[str, ...] = _setting(
        (), _endpoints, "endpoint of the chain (repeatable: of two, both must say the same)", secret=True
    )
    eth_usd: int = _dollars(3000 * MICROS, "USD for one ETH, to say what fees cost", flag=False)
    claim_at: int = _dollars(MICROS // 2, "USD of vouchers that are claimed at the latest", flag=False)
    wallet_password_file: Path | None = _setting(
        None, _path, "file with the password of the wallet, so that the node opens channels itself", flag=False
    )
    no_pay: bool = _setting(False, _flag, "pay nobody, whatever the policy of the wallet says", flag=False)
    x402: bool = _setting(
        False, _flag, "answer strangers over plain HTTP that pay by x402 (with --listen-all and a price)"
    )
    bind_host: str = _setting("::", _host, "address on which peers reach this node (UDP)")
    bind_port: int = _setting(9337, _whole(0, 65535), "UDP port on which peers reach this node (0: any free port)")
    lan: str = _setting("auto", _when, "say on the local network that a node is here: auto (private networks), on, off")
    port: int = _setting(9337, _whole(0, 65535), "port of the OpenAI-compatible API (0: any free port)")
    console: int = _setting(3131, _whole(0, 65535), "port of the console and the control API (0: any free port)")
    listen_all: bool = _setting(False, _flag, "accept API requests from other machines; demands MESHNODE_API_KEY")
    api_key: str | None = _setting(None, _text, "key that API callers must send", secret=True, flag=False)
    allowed_hosts: tuple[str, ...] = _setting((), _texts, "further names under which callers may address this node")
    allowed_origins: tuple[str, ...] = _setting((), _texts, "web pages (scheme://host:port) that may call the API")
    max_vram: int | None = _setting(
        None, _memory, "use no more than this much GPU memory (GB); of main memory where there is no GPU"
    )
    device: tuple[str, ...] = _setting((), _texts, "use only these devices (names as in `meshnode doctor`)")
    ctx_size: int | None = _setting(None, _whole(256, 16 << 20), "context length of one conversation, in tokens")
    parallel: int | None = _setting(None, _whole(1, 64), "how many requests one model answers at the same time")
    kv_type: str | None = _setting(None, _one_of(*KV_TYPES), "number format of the context memory")
    split: bool = _setting(False, _flag, "spread the model over several machines even where one could hold it")
    tensor_split: tuple[int, ...] = _setting(
        (), _counts, "layers for each device of a split, in the order of `meshnode plan`, such as 12,20"
    )
    half_activations: bool = _setting(False, _flag, "send what passes between the machines of a split as f16")
    lend: bool = _setting(True, _flag, "hold layers for models that other members host (this option: do not)")
    standby: bool = _setting(
        True, _flag, "without --model: load what the mesh asks for and nobody serves (this option: do not)"
    )
    share: bool = _setting(True, _flag, "give model files to other members of the mesh (this option: do not)")
    max_disk: int | None = _setting(None, _memory, "keep no more than this of model files fetched from peers (GB)")
    draft: str | None = _setting(None, _text, "small model that guesses ahead for the served one")
    no_draft: bool = _setting(False, _flag, "do not use a draft model, even where the catalog names one")
    threads: int | None = _setting(None, _whole(1, 1024), "processor threads of the engine")
    engine: Path | None = _setting(None, _path, "use this llama-server instead of the one meshnode builds")
    backend: str | None = _setting(None, _one_of("cpu", "cuda", "hip", "metal", "vulkan"), "build the engine for this")
    aliases: Mapping[str, str] = _table("other names for served models; `auto` is any")
    max_body: int = _setting(64 * MIB, _memory, "largest request body")
    queue: int = _setting(256, _whole(0, 100_000), "requests that may wait for a slot of one model")
    queue_timeout: int = _setting(300, _whole(1, 86_400), "seconds that a request may wait for a slot")
    ping_interval: int = _setting(10, _whole(1, 3600), "seconds between SSE comments while a stream is silent")
    stall_timeout: int = _setting(
        10, _whole(1, 3600), "seconds without a token after which an answer is continued by another node"
    )
    drain_timeout: int = _setting(60, _whole(0, 3600), "seconds that a stopping node lets running answers finish")
    log_level: str = _setting("info", _one_of(*LOG_LEVELS), "how much goes to the log")
    log_format: str = _setting("text", _one_of("text", "json"), "shape of a log line")
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def goes_public(self) -> bool:
        """Whether this node takes part in a public mesh."""
        return self.auto or self.publishes or (self.client and self.mesh_name is not None)

    @property
    def publishes(self) -> bool:
        """Whether strangers may use the models of this node."""
        return not self.client and (self.publish or self.mesh_name is not None)

    @property
    def price(self) -> tuple[int, int]:
        """What strangers pay here for a million tokens of prompts and of answers, in millionths of a dollar."""
        return self.price_in, self.price_out

    @property
    def sells(self) -> bool:
        """Whether strangers pay for the models of this node."""
        return self.publishes and (any(self.price) or self.is_priced_by_power)

    @property
    def is_priced_by_power(self) -> bool:
        """Whether prices follow from what electricity costs: where none is set."""
        return not any(self.price) and bool(self.kwh and self.watts)

    def as_rows(self) -> list[tuple[str, str, str, str]]:
        """(name, value, source, help) of every setting; a secret shows only that it is set."""
        rows = []
        for item in setting_fields():
            value = getattr(self, item.name)
            shown = "(set)" if item.metadata["secret"] and value else item.metadata["show"](value)
            rows.append((item.name, shown, self.sources.get(item.name, "built-in"), item.metadata["help"]))
        return rows


def settings_facts(settings: Settings, places: Places) -> dict[str, Any]:
    """Every setting with its source, and the folders, for the control API. Secrets are left out by `as_rows`."""
    secret = {item.name for item in setting_fields() if item.metadata["secret"]}
    rows = [
        {"name": name, "value": value, "source": source, "help": help, "secret": name in secret}
        for name, value, source, help in settings.as_rows()
    ]
    paths = {"home": str(places.home), "cache": str(places.cache), "file": str(places.config_file)}
    return {"settings": rows, "paths": paths}


def setting_fields() -> list[dataclasses.Field[Any]]:
    """The fields of Settings that a person can set, in the order of their declaration."""
    return [item for item in dataclasses.fields(Settings) if "parse" in item.metadata]


@dataclass(frozen=True, slots=True)
class Places:
    """Where this node keeps its things. `cache` is shared by all nodes of a user; `home` belongs to one node."""

    home: Path
    cache: Path
    config_file: Path

    @property
    def runtime_file(self) -> Path:
        """Process id, ports and control token of the running node (mode 0600)."""
        return self.home / "runtime.json"

    @property
    def lock_file(self) -> Path:
        """Held with flock for as long as the node runs."""
        return self.home / "node.lock"

    @property
    def logs(self) -> Path:
        """Folder of node.log and engine-*.log."""
        return self.home / "logs"


def find_places(environment: Mapping[str, str] = os.environ) -> Places:
    """Home, cache and configuration file from MESHNODE_HOME and MESHNODE_CACHE, else the folders of the platform.

    Raises SettingsError for a path that cannot be one.
    """
    import platformdirs

    def given(variable: str) -> Path | None:
        try:
            return _path(environment[variable]) if environment.get(variable) else None
        except ValueError as reason:
            raise SettingsError(f"{variable}: {reason}", fix="give it the path of a folder") from None

    given_home = given("MESHNODE_HOME")
    home = given_home or platformdirs.user_state_path("meshnode")
    cache = given("MESHNODE_CACHE") or platformdirs.user_cache_path("meshnode")
    folder = given_home or platformdirs.user_config_path("meshnode")
    return Places(home.absolute(), cache.absolute(), folder.absolute() / "config.toml")


def load(
    flags: Mapping[str, object], *, environment: Mapping[str, str], file: Path, file_required: bool = False
) -> Settings:
    """Merge the four sources into Settings.

    `flags` holds only what the user typed. Raises SettingsError naming the source and the nearest known key for a
    value that cannot be used, an unknown key of the file, or a combination that contradicts itself.
    """
    known = {item.name: item for item in setting_fields()}
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}

    def take(name: str, value: object, source: str) -> None:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else "meshnode config show lists the settings"
            raise SettingsError(f"{source} has an unknown key {name!r}", fix=hint)
        try:
            values[name] = known[name].metadata["parse"](value)
        except ValueError as reason:
            raise SettingsError(f"{name} from {source}: {reason}", fix=known[name].metadata["help"]) from None
        sources[name] = source

    for name, value in _read_file(file, required=file_required).items():
        take(name, value, str(file))
    for name in known:
        variable = f"MESHNODE_{name.upper()}"
        if environment.get(variable):
            take(name, environment[variable], variable)
    for name, value in flags.items():
        if value is not None and value != ():
            take(name, value, f"--{name.replace('_', '-')}")
    settings = Settings(**values, sources=MappingProxyType(sources))
    _check_together(settings)
    return settings


def _read_file(file: Path, *, required: bool) -> dict[str, object]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if required:
            raise SettingsError(f"{file} does not exist") from None
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as reason:
        raise SettingsError(f"{file} is not valid TOML: {reason}", fix="mend the line, or remove the file") from None
    except OSError as reason:
        raise SettingsError(f"{file} cannot be read: {reason.strerror}") from None


def _check_together(settings: Settings) -> None:
    if settings.listen_all and not settings.api_key:
        raise SettingsError(
            "--listen-all opens this node to other machines and so needs an API key",
            fix="export MESHNODE_API_KEY=$(openssl rand -hex 16), then run the command again",
        )
    if settings.client and settings.model:
        raise SettingsError("--client serves no models", fix="leave --client out, or --model")
    if bool(settings.kwh) != bool(settings.watts):
        raise SettingsError("--kwh and --watts say together what a token costs", fix="give both, or --price-out")
    if settings.client and any(settings.price):
        raise SettingsError(
            "--client serves no models, so nobody pays for them", fix="leave --client out, or the price"
        )
    if settings.x402 and not (settings.listen_all and settings.sells):
        raise SettingsError(
            "--x402 needs --listen-all and a price", fix="add --listen-all, --publish and --price-out USD"
        )
    if settings.client and settings.publish:
        raise SettingsError("--client has nothing to publish", fix="leave --client out, or --publish")
    for name in ("client", "join", "auto", "publish", "mesh_name"):
        if settings.solo and getattr(settings, name):
            raise SettingsError(f"--solo and --{name.replace('_', '-')} exclude each other")
    if settings.solo and settings.split:
        raise SettingsError("--solo and --split exclude each other")
    if settings.draft and settings.no_draft:
        raise SettingsError("--draft and --no-draft exclude each other")
    if settings.port and settings.port == settings.console:
        raise SettingsError(f"the API and the console cannot share port {settings.port}", fix="change --console")
