"""The text of the files that start a node: a systemd user unit (systemd.service(5)), an agent (launchd.plist(5)).

Pure: a Service in, text out. Each file carries a mark with a hash of the rest, by which a file that somebody edited is
known from one that can be written anew.
"""

from __future__ import annotations

import hashlib
import plistlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

UNIT = "meshnode.service"
LABEL = "io.meshnode.node"
STOP_MARGIN_S = 30
"""Beyond the drain timeout: goodbyes to the peers, and the end of the engines."""
RESTART_S = 10
USAGE_EXIT = 2
"""The exit code of a node whose settings cannot be used: starting it again changes nothing."""
_MARK = re.compile(r"meshnode wrote this; ([0-9a-f]{16})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What is to be started. `command` begins with an absolute path and holds no secret; `environment` is public,
    `secrets_file` holds `NAME=value` lines that are not; `stop_s` is the node's drain timeout.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets_file: Path | None = None
    log_file: Path | None = None
    stop_s: int = 60


# --- systemd ----------------------------------------------------------------------------------------------------


def systemd_unit(service: Service) -> str:
    """The unit. It goes without namespaces of its own (ProtectSystem and the like), which a user's manager may not
    make everywhere. Raises ValueError for a program whose path systemd cannot hold.
    """
    program, *options = service.command
    if not program.startswith("/") or set(program) & set("$\n\0"):
        raise ValueError(f"systemd cannot start {program!r}")
    command = " ".join([_quoted(program), *(_quoted(option).replace("$", "$$") for option in options)])
    environment = [f"Environment={_quoted(f'{name}={value}')}" for name, value in sorted(service.environment.items())]
    if service.secrets_file is not None:
        environment.append(f"EnvironmentFile=-{str(service.secrets_file).replace('%', '%%')}")
    lines = [
        "[Unit]",
        "Description=meshnode, a node that serves language models",
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        f"ExecStart={command}",
        *environment,
        "# The first start may build the engine and fetch a model.",
        "TimeoutStartSec=infinity",
        "# Only the node is told to stop; it ends its engines when their answers are given.",
        "KillMode=mixed",
        f"TimeoutStopSec={service.stop_s + STOP_MARGIN_S}",
        "Restart=on-failure",
        f"RestartSec={RESTART_S}",
        f"RestartPreventExitStatus={USAGE_EXIT}",
        "# An engine that runs out of memory is started again by the node.",
        "OOMPolicy=continue",
        "UMask=0077",
        "NoNewPrivileges=yes",
        "LockPersonality=yes",
        "RestrictRealtime=yes",
        "RestrictSUIDSGID=yes",
        "RestrictNamespaces=yes",
        "SystemCallArchitectures=native",
        "",
        "[Install]",
        "WantedBy=default.target",
    ]
    body = "\n".join(lines) + "\n"
    return f"# {_mark(body)}\n# To change it: systemctl --user edit meshnode\n{body}"


def _quoted(word: str) -> str:
    """A word in systemd's quotes (systemd.syntax(7)): C escapes, and no specifiers."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    plain = "".join(escapes.get(letter, letter) for letter in word).replace("%", "%%")
    if word and re.fullmatch(r"[\w@%+=:,./-]+", word):
        return plain
    return f'"{plain}"'


def secrets_text(secrets: Mapping[str, str]) -> str:
    """The lines of a systemd EnvironmentFile. Raises ValueError for a value with a line end."""
    if any(set(value) & set("\n\r\0") for value in secrets.values()):
        raise ValueError("a secret cannot have a line end")
    escaped = {name: re.sub(r'([\\"`$])', r"\\\1", value) for name, value in secrets.items()}
    return "".join(f'{name}="{value}"\n' for name, value in sorted(escaped.items()))


# --- launchd ----------------------------------------------------------------------------------------------------


def launchd_plist(service: Service) -> str:
    """The agent. launchd reads no file of secrets, so they stand in it: write it with mode 0600."""
    facts = {
        "Label": LABEL,
        "ProgramArguments": list(service.command),
        "EnvironmentVariables": {**service.environment, **service.secrets},
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": RESTART_S,
        "ExitTimeOut": service.stop_s + STOP_MARGIN_S,
        "Umask": 0o077,
    }
    if service.log_file is not None:
        facts |= {"StandardOutPath": str(service.log_file), "StandardErrorPath": str(service.log_file)}
    head, begin, body = plistlib.dumps(facts).decode().partition("<plist")
    return f"{head}<!-- {_mark(begin + body)} -->\n{begin}{body}"


# --- what somebody edited ---------------------------------------------------------------------------------------


def _mark(body: str) -> str:
    return f"meshnode wrote this; {_hash(body)}"


def _hash(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def is_ours(text: str) -> bool:
    """Whether a file is as it was written here: it has a mark, and nothing of it was changed since."""
    found = _MARK.search(text)
    if found is None:
        return False
    begin = max(text.find("[Unit]"), text.find("<plist"))
    return begin > found.end() and _hash(text[begin:]) == found[1]
