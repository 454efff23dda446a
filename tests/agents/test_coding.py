"""The shapes that each program reads; tests/e2e/test_agents.py hands them to the programs themselves."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest

from meshnode.agents import coding
from meshnode.agents.recipe import AgentModel, Endpoint, Recipe

MODEL = AgentModel("qwen", 40960, ("chat",))
SHORT = AgentModel("tiny", 4096, ("chat",))
OPEN = Endpoint("http://localhost:9337", MODEL, (MODEL, SHORT), needs_key=False)
KEYED = Endpoint("http://localhost:9337", MODEL, (MODEL, SHORT), needs_key=True)


def content(made: Recipe) -> Any:
    (file,) = made.files
    return tomllib.loads(file.content) if file.format == "toml" else json.loads(file.content)


def test_goose() -> None:
    made = coding.goose(OPEN)
    assert made.environment["OPENAI_HOST"] == "http://localhost:9337"
    # Without it goose asks for a small model of OpenAI beside the one that was chosen.
    assert made.environment["GOOSE_FAST_MODEL"] == "qwen"
    provider = content(made)
    assert provider["name"] == "meshnode" and provider["engine"] == "openai"
    assert provider["base_url"] == "http://localhost:9337/v1/chat/completions"
    assert provider["models"] == [{"name": "qwen", "context_limit": 40960}, {"name": "tiny", "context_limit": 4096}]
    assert (provider["requires_auth"], provider["api_key_env"]) == (False, "")
    keyed = content(coding.goose(KEYED))
    assert (keyed["requires_auth"], keyed["api_key_env"]) == (True, "MESHNODE_API_KEY")


def test_opencode() -> None:
    made = coding.opencode(OPEN)
    inline = json.loads(made.environment["OPENCODE_CONFIG_CONTENT"])
    assert inline["model"] == inline["small_model"] == "meshnode/qwen"
    provider = inline["provider"]["meshnode"]
    assert provider["npm"] == "@ai-sdk/openai-compatible"
    assert provider["options"]["baseURL"] == "http://localhost:9337/v1"
    assert provider["models"]["qwen"]["limit"] == {"context": 40960, "output": 10240}
    # The file adds a provider; which model is the default stays the user's choice.
    assert set(content(made)) == {"$schema", "provider"}
    assert content(made)["provider"] == inline["provider"]
    keyed = json.loads(coding.opencode(KEYED).environment["OPENCODE_CONFIG_CONTENT"])
    assert keyed["provider"]["meshnode"]["options"]["apiKey"] == "{env:MESHNODE_API_KEY}"


def test_pi() -> None:
    made = coding.pi(KEYED)
    provider = content(made)["providers"]["meshnode"]
    assert provider["api"] == "openai-completions" and provider["baseUrl"] == "http://localhost:9337/v1"
    assert provider["compat"]["maxTokensField"] == "max_tokens"
    assert [model["id"] for model in provider["models"]] == ["qwen", "tiny"]
    assert provider["apiKey"] == "!printenv MESHNODE_API_KEY"
    assert made.launch and made.launch.arguments[:2] == ("--extension", "{meshnode.js}")
    script = made.launch.scratch["meshnode.js"]
    registered = json.loads(script[script.index("{", script.index("registerProvider")) : script.rindex(");")])
    assert registered["models"][1]["contextWindow"] == 4096 and registered["apiKey"] == provider["apiKey"]


def test_claude() -> None:
    made = coding.claude(OPEN)
    assert made.environment["ANTHROPIC_BASE_URL"] == "http://localhost:9337"
    assert made.environment["ANTHROPIC_API_KEY"] == ""
    names = [name for name in made.environment if name.endswith("_MODEL")]
    assert {made.environment[name] for name in names} == {"qwen"} and len(names) == 5
    settings = content(made)
    assert made.files[0].path == "~/.claude/meshnode.json"
    assert settings["env"]["ANTHROPIC_AUTH_TOKEN"] == "meshnode"
    keyed = content(coding.claude(KEYED))
    assert keyed["apiKeyHelper"] == "printenv MESHNODE_API_KEY" and "ANTHROPIC_AUTH_TOKEN" not in keyed["env"]
    assert coding.claude(KEYED).environment["ANTHROPIC_AUTH_TOKEN"] == "$MESHNODE_API_KEY"


@pytest.mark.parametrize("endpoint", [OPEN, KEYED])
def test_codex_says_the_same_by_file_and_by_flags(endpoint: Endpoint) -> None:
    made = coding.codex(endpoint)
    profile = content(made)
    assert profile["model_providers"]["meshnode"]["wire_api"] == "responses"
    assert profile["model_providers"]["meshnode"].get("env_key") == ("MESHNODE_API_KEY" if endpoint.needs_key else None)
    assert profile["model_context_window"] == 40960
    assert made.launch and set(made.launch.arguments[::2]) == {"-c"}
    assert tomllib.loads("\n".join(made.launch.arguments[1::2])) == profile


def test_aider() -> None:
    made = coding.aider(OPEN)
    assert made.environment["OPENAI_API_BASE"] == "http://localhost:9337/v1"
    assert made.command == ("aider", "--model", "openai/qwen")
    metadata = content(made)
    assert metadata["openai/qwen"]["max_input_tokens"] + metadata["openai/qwen"]["max_output_tokens"] == 40960
    assert made.launch and json.loads(made.launch.scratch["metadata.json"]) == metadata


def test_a_model_of_unknown_length_gets_a_careful_one() -> None:
    unknown = AgentModel("new")
    made = coding.goose(Endpoint("http://x", unknown, (), needs_key=False))
    assert made.environment["GOOSE_CONTEXT_LIMIT"] == "32768"
