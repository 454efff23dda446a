"""The files of docker/, as far as they can be checked without a container: their commands against the real program.

What starts a node in a container is run here as a process, with real nodes; images are not built.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from meshnode.cli.main import root
from meshnode.config import Settings, load, setting_fields
from tests.conftest import NodeProcess, StartNode
from tests.e2e.meshes import SMALL, invite_for, mesh_of
from tests.e2e.waiting import eventually

yaml = pytest.importorskip("yaml", reason="PyYAML comes with huggingface_hub")

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE = DOCKER / "compose.yaml"
KEY = {"MESHNODE_API_KEY": "k"}


def settings_of(words: list[str], **environment: str) -> Settings:
    """What a node makes of these options, or of a command that is none of a node. Raises when it would not start."""
    context = click.Context(root, info_name="meshnode")
    values, rest, _ = root.make_parser(context).parse_args(list(words))
    assert not rest, rest
    fields = {item.name for item in setting_fields()}
    assert set(values) <= fields
    return load(values, environment=environment, file=Path(os.devnull))


def filled_in(text: str) -> str:
    """`${NAME:-default}` and `${NAME:?reason}` as compose does it, with nothing but the key set."""
    text = re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)
    assert not re.search(r"\$(?!\{)", text)
    return re.sub(r"\$\{(\w+)(?::-([^}]*)|:\?[^}]*)?\}", lambda found: KEY.get(found[1], found[2] or ""), text)


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    return dict(yaml.safe_load(filled_in(COMPOSE.read_text()))["services"])


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    lines = re.sub(r"\\\n\s*", "", (DOCKER / "Dockerfile").read_text()).splitlines()
    return [(line.split()[0], line.partition(" ")[2]) for line in lines if line and not line.startswith("#")]


def variables(instructions: list[tuple[str, str]]) -> dict[str, str]:
    (text,) = [rest for name, rest in instructions if name == "ENV"]
    return dict(word.split("=", 1) for word in shlex.split(text))


# --- the image ------------------------------------------------------------------------------------------------


def test_everything_that_is_copied_is_there(instructions: list[tuple[str, str]]) -> None:
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    copied = [
        word for name, rest in instructions if name == "COPY" and "--from" not in rest for word in rest.split()[:-1]
    ]
    assert {"meshnode", "llama.cpp-patches", "pyproject.toml", "docker/entrypoint.sh"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists() and f"!{source}" in ignored
    assert os.access(DOCKER / "entrypoint.sh", os.X_OK)


def test_a_wheel_can_be_made_of_what_is_copied(instructions: list[tuple[str, str]], tmp_path: Path) -> None:
    """The build stage's own command, but for the dependencies."""
    hidden = shutil.ignore_patterns("__pycache__")
    for name, rest in instructions:
        *sources, target = rest.split()
        for source in sources if name == "COPY" and target.startswith("/source") else ():
            place = tmp_path / target[1:] / ("" if (ROOT / source).is_dir() else source)
            place.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=hidden)
            else:
                shutil.copy(ROOT / source, place)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    wheel = [*pip, "--wheel-dir", str(tmp_path), str(tmp_path / "source")]
    done = subprocess.run(wheel, capture_output=True, text=True)
    if "No module named 'hatchling'" in done.stderr or "Cannot import 'hatchling" in done.stderr:
        done = subprocess.run(
            [word for word in wheel if word != "--no-build-isolation"], capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("meshnode-*.whl"))


def test_the_image_runs_as_nobody_special(instructions: list[tuple[str, str]]) -> None:
    names = [name for name, _ in instructions]
    assert ("USER", "mesh") in instructions and names.index("USER") < names.index("ENTRYPOINT")
    made = next(rest for name, rest in instructions if name == "RUN" and "useradd" in rest)
    environment = variables(instructions)
    for name in ("MESHNODE_HOME", "MESHNODE_CACHE", "HF_HOME"):
        assert environment[name] in made.split(), f"{environment[name]} must belong to the user of the image"
    volumes = json.loads(next(rest for name, rest in instructions if name == "VOLUME"))
    assert set(volumes) == {environment["MESHNODE_HOME"], environment["HF_HOME"]}


def test_the_commands_of_the_image_are_commands(instructions: list[tuple[str, str]]) -> None:
    (start,) = [json.loads(rest) for name, rest in instructions if name == "CMD"]
    settings = {name: value for name, value in variables(instructions).items() if name.startswith("MESHNODE_")}
    assert settings_of(start, **settings).model == ("demo",)
    known = {f"MESHNODE_{item.name.upper()}" for item in setting_fields()} | {"MESHNODE_HOME", "MESHNODE_CACHE"}
    assert set(settings) <= known
    (build,) = [rest for name, rest in instructions if name == "RUN" and rest.startswith("meshnode ")]
    assert build == "meshnode engine build --backend ${BACKEND}"
    group: Any = root.get_command(click.Context(root), "engine")
    (backend,) = [option for option in group.commands["build"].params if option.name == "backend"]
    defaults = dict(rest.split("=", 1) for name, rest in instructions if name == "ARG" and "=" in rest)
    cuda = yaml.safe_load((DOCKER / "compose.cuda.yaml").read_text())["services"]["founder"]["build"]["args"]
    assert {defaults["BACKEND"], cuda["BACKEND"]} <= set(backend.type.choices) and set(cuda) <= set(defaults)


@pytest.mark.engine
def test_the_health_check_sees_a_model_that_answers(
    demo_server: NodeProcess, instructions: list[tuple[str, str]]
) -> None:
    (check,) = [rest for name, rest in instructions if name == "HEALTHCHECK"]
    _, command = check.split(" CMD ")
    port = demo_server.base_url.rpartition(":")[2]
    for wanted, healthy in ((port, True), ("1", False)):
        words = [word.replace(":9337", f":{wanted}") for word in json.loads(command)]
        words[0] = sys.executable
        assert (subprocess.run(words, capture_output=True).returncode == 0) is healthy
    assert ("EXPOSE", "9337/tcp 9337/udp") in instructions


# --- the mesh of three ----------------------------------------------------------------------------------------


def test_every_service_starts_with_options_that_there_are(services: dict[str, dict[str, Any]]) -> None:
    assert set(services) == {"founder", "inviter", "member", "client"}
    founder, member, client = (
        settings_of(services[name]["command"], **{k: v for k, v in services[name].get("environment", {}).items()})
        for name in ("founder", "member", "client")
    )
    assert founder.model == member.model == ("demo",), "two replicas"
    assert client.client and client.listen_all and client.api_key == "k"
    assert services["client"]["ports"] == ["127.0.0.1:9337:9337/tcp"]
    (script,) = services["inviter"]["command"]
    words = shlex.split(script.partition(";")[2].partition(">")[0])
    assert words[:2] == ["meshnode", "invite"]
    command: Any = root.get_command(click.Context(root), "invite")
    with command.make_context("invite", words[2:]) as context:
        assert context.params["uses"] >= 2


def test_no_service_has_more_rights_than_it_needs(services: dict[str, dict[str, Any]]) -> None:
    for service in services.values():
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
        assert not {"privileged", "user", "cap_add", "pid", "ipc"} & set(service)
        assert service["init"] is True
        assert service["stop_grace_period"] == "90s" and Settings().drain_timeout < 90
    assert "ports" not in services["founder"] and services["inviter"]["network_mode"] == "service:founder"


def test_the_invite_goes_from_hand_to_hand(services: dict[str, dict[str, Any]]) -> None:
    file = services["member"]["environment"]["INVITE_FILE"]
    (script,) = services["inviter"]["command"]
    assert script.endswith(file)
    for name in ("member", "client"):
        assert services[name]["depends_on"] == {"inviter": {"condition": "service_completed_successfully"}}
        assert "invite:/invite:ro" in services[name]["volumes"] and services[name]["environment"]["INVITE_FILE"] == file
    assert services["inviter"]["depends_on"] == {"founder": {"condition": "service_healthy"}}
    homes = [volume for name in ("founder", "member", "client") for volume in services[name]["volumes"]]
    assert len({volume for volume in homes if volume.endswith(":/var/lib/meshnode")}) == 3
    declared = yaml.safe_load(filled_in(COMPOSE.read_text()))["volumes"]
    used = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())}
    assert used == set(declared)


def test_compose_accepts_its_files() -> None:
    works = shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True)
    if not works or works.returncode != 0:
        pytest.skip("docker compose is not installed")
    for more in ([], ["-f", str(DOCKER / "compose.cuda.yaml")]):
        command = ["docker", "compose", "-f", str(COMPOSE), *more, "config", "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **KEY})
        assert done.returncode == 0, done.stderr


# --- what starts a node in a container ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def founder(start_shared_node: StartNode) -> Iterator[NodeProcess]:
    node = start_shared_node("--model", "demo", environment=SMALL)
    yield node
    node.end()


class Contained(NodeProcess):
    """A node that the script of the image starts."""

    def __init__(self, *arguments: str, home: Path, invite: Path) -> None:
        program = home / "bin" / "meshnode"
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m meshnode "$@"\n')
        program.chmod(0o755)
        path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
        begin = subprocess.Popen

        def popen(command: list[str], **options: Any) -> subprocess.Popen[str]:
            assert command[:3] == [sys.executable, "-m", "meshnode"]
            return begin([str(DOCKER / "entrypoint.sh"), *command[3:]], cwd=ROOT, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(subprocess, "Popen", popen)
            super().__init__(
                *("--json", "--port", "0", "--console", "0", *arguments),
                home=home,
                environment={"PATH": path, "INVITE_FILE": str(invite)},
            )


@pytest.mark.engine
def test_a_node_joins_by_its_file_and_comes_back_without(founder: NodeProcess, tmp_path: Path) -> None:
    invite = tmp_path / "token"
    invite.write_text(f"{invite_for(founder, 1)}\n")
    first = Contained("--client", home=tmp_path / "home", invite=invite).wait_ready()
    mesh = mesh_of(first)
    assert mesh["id"] == mesh_of(founder)["id"] and mesh["role"] == "client"
    command_line = Path(f"/proc/{first.process.pid}/cmdline")
    if command_line.exists():
        assert b"mn1" not in command_line.read_bytes(), "the invite shows in no list of processes"
    first.end(signal.SIGTERM)
    invite.unlink()
    again = Contained("--client", home=tmp_path / "home", invite=invite).wait_ready()
    eventually(lambda: mesh_of(again)["state"] == "joined")
    assert mesh_of(again)["id"] == mesh["id"]
    again.end()


def test_without_a_file_it_is_the_command_itself(tmp_path: Path) -> None:
    program = tmp_path / "meshnode"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "MESHNODE_HOME": str(tmp_path)}
    command = [str(DOCKER / "entrypoint.sh"), "peers", "a b"]
    assert subprocess.run(command, env=environment, capture_output=True, text=True).stdout == "peers\na b\n"
    environment["INVITE_FILE"] = str(tmp_path / "none")
    assert subprocess.run(command, env=environment, capture_output=True).returncode != 0
