"""Recipes of the agents that write code in a terminal. All of them can be launched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from meshnode.agents.recipe import KEY_VARIABLE, NO_KEY, AgentModel, Endpoint, Launch, Recipe, RecipeFile

UNKNOWN_CONTEXT = 32768
"""Assumed where a node does not say how long the context of a model is."""
MOST_OUTPUT = 16384
PATIENCE_S = 3600
"""How long an agent waits for a first word: a model may still be loading, a prompt of 100,000 tokens being read."""


def _context(model: AgentModel) -> int:
    return model.context_length or UNKNOWN_CONTEXT


def _output(model: AgentModel) -> int:
    """Room for an answer: a quarter of the context, so that agents compact their history before it is full."""
    return min(MOST_OUTPUT, _context(model) // 4)


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _compact(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def goose(at: Endpoint) -> Recipe:
    """goose: the OpenAI provider by environment, or a custom provider (its declarative provider files)."""
    environment = {
        "GOOSE_PROVIDER": "openai",
        "GOOSE_MODEL": at.model.id,
        "GOOSE_FAST_MODEL": at.model.id,
        "GOOSE_CONTEXT_LIMIT": str(_context(at.model)),
        "OPENAI_HOST": at.base_url,
        "OPENAI_BASE_PATH": "v1/chat/completions",
        "OPENAI_API_KEY": at.key,
        "OPENAI_TIMEOUT": str(PATIENCE_S),
    }
    provider = {
        "name": "meshnode",
        "engine": "openai",
        "display_name": "meshnode",
        "description": "Models of this machine and its mesh",
        "api_key_env": KEY_VARIABLE if at.needs_key else "",
        "base_url": f"{at.v1}/chat/completions",
        "models": [{"name": model.id, "context_limit": _context(model)} for model in at.chat_models],
        "requires_auth": at.needs_key,
        "supports_streaming": True,
        "timeout_seconds": PATIENCE_S,
    }
    return Recipe(
        "goose",
        "goose",
        "An open agent for the terminal and the desktop",
        "https://github.com/aaif-goose/goose",
        at.model.id,
        environment=environment,
        command=("goose", "session"),
        files=(RecipeFile("~/.config/goose/custom_providers/meshnode.json", "json", _json(provider)),),
        notes=(f"with the file: GOOSE_PROVIDER=meshnode GOOSE_MODEL={at.model.id} goose session",),
        install="see https://github.com/aaif-goose/goose (Homebrew: brew install block-goose-cli)",
        launch=Launch("goose", environment, without_arguments=("session",)),
    )


def opencode(at: Endpoint) -> Recipe:
    """opencode: a provider of the kind @ai-sdk/openai-compatible in opencode.json, or the same JSON in a variable."""
    # opencode itself replaces {env:NAME} when it reads its configuration.
    key = f"{{env:{KEY_VARIABLE}}}" if at.needs_key else NO_KEY
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "meshnode",
        "options": {"baseURL": at.v1, "apiKey": key, "timeout": PATIENCE_S * 1000},
        "models": {
            model.id: {"name": model.id, "limit": {"context": _context(model), "output": _output(model)}}
            for model in at.chat_models
        },
    }
    name = f"meshnode/{at.model.id}"
    schema = {"$schema": "https://opencode.ai/config.json"}
    content = {**schema, "provider": {"meshnode": provider}, "model": name, "small_model": name}
    environment = {"OPENCODE_CONFIG_CONTENT": _compact(content)}
    return Recipe(
        "opencode",
        "opencode",
        "An open coding agent for the terminal",
        "https://opencode.ai",
        at.model.id,
        environment=environment,
        command=("opencode",),
        files=(
            RecipeFile(
                "~/.config/opencode/opencode.json", "json", _json({**schema, "provider": {"meshnode": provider}})
            ),
        ),
        notes=(f"with the file: opencode --model {name}",),
        install="npm install -g opencode-ai",
        launch=Launch("opencode", environment),
    )


def pi(at: Endpoint) -> Recipe:
    """pi: a provider in models.json; for one run an extension registers the same, and that file stays as it is."""
    # A command is the one form of a key that old and new versions read alike: the way to name a variable has changed.
    key = f"!printenv {KEY_VARIABLE}" if at.needs_key else NO_KEY
    compat = {
        "supportsDeveloperRole": False,
        "supportsReasoningEffort": False,
        "supportsUsageInStreaming": True,
        "maxTokensField": "max_tokens",
    }
    models: list[dict[str, Any]] = [
        {"id": model.id, "name": model.id, "contextWindow": _context(model), "maxTokens": _output(model)}
        for model in at.chat_models
    ]
    provider = {"baseUrl": at.v1, "api": "openai-completions", "apiKey": key, "compat": compat, "models": models}
    free = {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0}
    whole = [{**model, "reasoning": False, "input": ["text"], "cost": free, "compat": compat} for model in models]
    registered = {"baseUrl": at.v1, "api": "openai-completions", "apiKey": key, "models": whole}
    extension = f'export default function (pi) {{\n  pi.registerProvider("meshnode", {_compact(registered)});\n}}\n'
    choice = ("--provider", "meshnode", "--model", at.model.id)
    return Recipe(
        "pi",
        "pi",
        "A small coding agent for the terminal",
        "https://pi.dev",
        at.model.id,
        command=("pi", *choice),
        files=(RecipeFile("~/.pi/agent/models.json", "json", _json({"providers": {"meshnode": provider}})),),
        notes=(f"with the file: pi {' '.join(choice)}, or /model inside pi",),
        install="npm install -g @earendil-works/pi-coding-agent",
        launch=Launch("pi", arguments=("--extension", "{meshnode.js}", *choice), scratch={"meshnode.js": extension}),
    )


def claude(at: Endpoint) -> Recipe:
    """Claude Code: the Anthropic endpoint of the node. Its settings file is one of its own, used when it is named."""
    choice = {
        "ANTHROPIC_BASE_URL": at.base_url,
        "ANTHROPIC_MODEL": at.model.id,
        "ANTHROPIC_DEFAULT_OPUS_MODEL": at.model.id,
        "ANTHROPIC_DEFAULT_SONNET_MODEL": at.model.id,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": at.model.id,
        "CLAUDE_CODE_SUBAGENT_MODEL": at.model.id,
        "CLAUDE_CODE_AUTO_COMPACT_WINDOW": str(_context(at.model)),
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(_output(at.model)),
        # A line in front of the system prompt that changes, and would make every prompt a new one for the cache.
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "API_TIMEOUT_MS": str(PATIENCE_S * 1000),
    }
    # An ANTHROPIC_API_KEY of the user would be sent in place of the token.
    environment = {**choice, "ANTHROPIC_AUTH_TOKEN": at.key, "ANTHROPIC_API_KEY": ""}
    settings: dict[str, Any] = {"env": {**choice, "ANTHROPIC_AUTH_TOKEN": NO_KEY}}
    if at.needs_key:
        settings = {"apiKeyHelper": f"printenv {KEY_VARIABLE}", "env": choice}
    file = "~/.claude/meshnode.json"
    return Recipe(
        "claude",
        "Claude Code",
        "Anthropic's coding agent, with your models",
        "https://docs.claude.com/en/docs/claude-code",
        at.model.id,
        environment=environment,
        command=("claude",),
        files=(RecipeFile(file, "json", _json(settings)),),
        notes=(
            f"with the file: claude --settings {file} (your own settings stay as they are)",
            "/status inside Claude Code shows the address it uses",
        ),
        install="npm install -g @anthropic-ai/claude-code",
        launch=Launch("claude", environment),
    )


def codex(at: Endpoint) -> Recipe:
    """Codex CLI: a provider that speaks the Responses API, by -c overrides, or as a profile in a file of its own."""
    text = _toml_text
    provider = [f"name = {text('meshnode')}", f"base_url = {text(at.v1)}", 'wire_api = "responses"']
    if at.needs_key:
        provider.append(f"env_key = {text(KEY_VARIABLE)}")
    provider += ["requires_openai_auth = false", f"stream_idle_timeout_ms = {PATIENCE_S * 1000}"]
    choice = [
        f"model = {text(at.model.id)}",
        'model_provider = "meshnode"',
        f"model_context_window = {_context(at.model)}",
        'web_search = "disabled"',
        "check_for_update_on_startup = false",
    ]
    overrides = [line.replace(" = ", "=", 1) for line in choice]
    overrides += [f"model_providers.meshnode.{line.replace(' = ', '=', 1)}" for line in provider]
    overrides.append("analytics.enabled=false")
    arguments = tuple(part for override in overrides for part in ("-c", override))
    lines = [*choice, "", "[analytics]", "enabled = false", "", "[model_providers.meshnode]", *provider, ""]
    return Recipe(
        "codex",
        "Codex CLI",
        "OpenAI's coding agent, with your models",
        "https://developers.openai.com/codex",
        at.model.id,
        command=("codex", *arguments),
        files=(RecipeFile("~/.codex/meshnode.config.toml", "toml", "\n".join(lines)),),
        notes=(
            "with the file: codex --profile meshnode (your config.toml stays as it is)",
            "Codex says that it has no metadata for the model: it then assumes a plain one, which is right",
        ),
        install="npm install -g @openai/codex",
        launch=Launch("codex", arguments=arguments),
    )


def _toml_text(value: str) -> str:
    """A basic string of TOML; JSON's escapes are among those of TOML (v1.0.0, section String), but for DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def aider(at: Endpoint) -> Recipe:
    """aider: an OpenAI endpoint; a metadata file tells it how long the context is."""
    environment = {"OPENAI_API_BASE": at.v1, "OPENAI_API_KEY": at.key, "AIDER_TIMEOUT": str(PATIENCE_S)}
    metadata = {
        f"openai/{model.id}": {
            "max_input_tokens": _context(model) - _output(model),
            "max_output_tokens": _output(model),
            "max_tokens": _output(model),
            "input_cost_per_token": 0,
            "output_cost_per_token": 0,
            "litellm_provider": "openai",
            "mode": "chat",
        }
        for model in at.chat_models
    }
    name = f"openai/{at.model.id}"
    quiet = ("--no-check-update", "--no-show-model-warnings", "--analytics-disable")
    return Recipe(
        "aider",
        "aider",
        "Pair programming in the terminal",
        "https://aider.chat",
        at.model.id,
        environment=environment,
        command=("aider", "--model", name),
        files=(RecipeFile("~/.aider.model.metadata.json", "json", _json(metadata)),),
        notes=("the file tells aider how long the context is; address and model stay with the command",),
        install="python -m pip install aider-install && aider-install",
        launch=Launch(
            "aider",
            environment,
            arguments=("--model", name, "--model-metadata-file", "{metadata.json}", *quiet),
            scratch={"metadata.json": _json(metadata)},
        ),
    )
