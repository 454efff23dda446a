"""The root command: options from the settings, subcommands on demand, and a fast start."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from meshnode import __version__
from meshnode.cli.main import COMMANDS, SYNONYMS, root, settings_of
from meshnode.config import setting_fields


def test_version_and_help_import_nothing_heavy() -> None:
    for flag in ("--version", "--help"):
        script = (
            "import sys\n"
            "from meshnode.cli.main import root\n"
            f"try: root.main(['{flag}'], prog_name='meshnode')\n"
            "except SystemExit: pass\n"
            "heavy = {'rich', 'starlette', 'uvicorn', 'huggingface_hub', 'web3', 'nostr_sdk', 'aioquic',"
            " 'cryptography', 'prometheus_client', 'psutil', 'asyncio'}\n"
            "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "HEAVY []"
    assert __version__ in CliRunner().invoke(root, ["--version"]).output


def test_every_setting_has_its_flag_unless_it_may_not_stand_on_a_command_line() -> None:
    flags = {flag for parameter in root.params for flag in parameter.opts}
    for item in setting_fields():
        switch_off = "no-" if item.default is True else ""
        has_flag = f"--{switch_off}{item.name.replace('_', '-')}" in flags
        assert has_flag == item.metadata["flag"], item.name


@pytest.mark.parametrize("name", [*COMMANDS, *SYNONYMS])
def test_every_command_is_there_and_explains_itself(name: str) -> None:
    result = CliRunner().invoke(root, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output


def test_help_lists_every_command_with_a_text() -> None:
    output = CliRunner().invoke(root, ["--help"]).output
    for name, (_, text) in COMMANDS.items():
        assert f"  {name} " in output and text[:20] in output


def test_a_mistyped_command_gets_a_suggestion() -> None:
    result = CliRunner().invoke(root, ["statsu"])
    assert result.exit_code == 2
    assert "Did you mean 'status'?" in result.output


def test_settings_come_from_the_flags_of_the_root(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHNODE_HOME", str(tmp_path))
    monkeypatch.setenv("MESHNODE_QUEUE", "7")
    context = click.Context(root)
    context.obj = {"flags": {"port": "9400", "model": ("demo", "x"), "draft": None}, "config_file": None}
    settings = settings_of(context)
    assert (settings.port, settings.queue, settings.model) == (9400, 7, ("demo", "x"))
    assert settings.sources["port"] == "--port" and settings.sources["queue"] == "MESHNODE_QUEUE"


def test_a_bad_value_is_a_usage_error_with_a_sentence(tmp_path: object) -> None:
    result = CliRunner().invoke(root, ["--port", "many"], env={"MESHNODE_HOME": str(tmp_path)})
    assert result.exit_code == 2
    assert "port from --port: expected a whole number" in result.output
