"""Recipes of programs with a window or a page, of the SDKs, and of curl. None of them is launched."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

from meshnode.agents.recipe import KEY_VARIABLE, NO_KEY, Endpoint, Recipe, RecipeFile

QUESTION = "count from 1 to 20"


def open_webui(at: Endpoint) -> Recipe:
    """Open WebUI: an OpenAI connection, given by environment at its first start."""
    port = urlsplit(at.base_url).port
    inside = f"http://host.docker.internal:{port}/v1" if port else at.v1
    environment = {
        "OPENAI_API_BASE_URL": at.v1,
        "OPENAI_API_KEY": at.key,
        "ENABLE_OLLAMA_API": "False",
        "AIOHTTP_CLIENT_TIMEOUT_MODEL_LIST": "30",
    }
    return Recipe(
        "openwebui",
        "Open WebUI",
        "A chat page for several people",
        "https://docs.openwebui.com",
        at.model.id,
        environment=environment,
        command=("open-webui", "serve"),
        notes=(
            "these count at the first start only: later change them under Admin Settings, Connections",
            f"in a container the address is {inside}, and the node must listen for it: "
            f"{KEY_VARIABLE}=... meshnode --listen-all; add --add-host=host.docker.internal:host-gateway on Linux",
        ),
        install="python -m pip install open-webui",
    )


def continue_dev(at: Endpoint) -> Recipe:
    """Continue (VS Code, JetBrains): models in config.yaml."""
    # A text in JSON is a text in YAML (1.2, section 10.3). Continue fills in ${{ secrets.NAME }} from ~/.continue/.env.
    key = f"${{{{ secrets.{KEY_VARIABLE} }}}}" if at.needs_key else NO_KEY
    lines = ["name: meshnode", "version: 1.0.0", "schema: v1", "models:"]
    for model in at.chat_models:
        lines += [
            f"  - name: {json.dumps(model.id, ensure_ascii=False)}",
            "    provider: openai",
            f"    model: {json.dumps(model.id, ensure_ascii=False)}",
            f"    apiBase: {at.v1}",
            f"    apiKey: {json.dumps(key)}",
            "    roles: [chat, edit, apply]",
        ]
        if model.context_length:
            lines += ["    defaultCompletionOptions:", f"      contextLength: {model.context_length}"]
    notes = ["the file is read anew when it is saved"]
    if at.needs_key:
        notes.append(f"put {KEY_VARIABLE}=... into ~/.continue/.env")
    return Recipe(
        "continue",
        "Continue",
        "An assistant inside VS Code and JetBrains",
        "https://docs.continue.dev",
        at.model.id,
        files=(RecipeFile("~/.continue/config.yaml", "yaml", "\n".join([*lines, ""])),),
        notes=tuple(notes),
        install="from the marketplace of the editor",
    )


def openai_python(at: Endpoint) -> Recipe:
    """The openai package for Python."""
    key = f'os.environ["{KEY_VARIABLE}"]' if at.needs_key else json.dumps(NO_KEY)
    lines = [
        *(["import os", ""] if at.needs_key else []),
        "from openai import OpenAI",
        "",
        f"client = OpenAI(base_url={json.dumps(at.v1)}, api_key={key})",
        "stream = client.chat.completions.create(",
        f"    model={json.dumps(at.model.id)},",
        f'    messages=[{{"role": "user", "content": "{QUESTION}"}}],',
        "    stream=True,",
        ")",
        "for chunk in stream:",
        '    print(chunk.choices[0].delta.content or "", end="", flush=True)',
        "",
    ]
    return Recipe(
        "openai-python",
        "OpenAI SDK for Python",
        "The openai package; everything it does works with a node",
        "https://github.com/openai/openai-python",
        at.model.id,
        files=(RecipeFile("", "text", "\n".join(lines)),),
        notes=(f"Anthropic's SDK works as well: Anthropic(base_url={json.dumps(at.base_url)})",),
        install="python -m pip install openai",
    )


def openai_javascript(at: Endpoint) -> Recipe:
    """The openai package for Node."""
    key = f"process.env.{KEY_VARIABLE}" if at.needs_key else json.dumps(NO_KEY)
    lines = [
        'import OpenAI from "openai";',
        "",
        f"const client = new OpenAI({{ baseURL: {json.dumps(at.v1)}, apiKey: {key} }});",
        "const stream = await client.chat.completions.create({",
        f"  model: {json.dumps(at.model.id)},",
        f'  messages: [{{ role: "user", content: "{QUESTION}" }}],',
        "  stream: true,",
        "});",
        'for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta?.content ?? "");',
        "",
    ]
    return Recipe(
        "openai-javascript",
        "OpenAI SDK for JavaScript",
        "The openai package for Node; save as ask.mjs",
        "https://github.com/openai/openai-node",
        at.model.id,
        files=(RecipeFile("", "text", "\n".join(lines)),),
        notes=("in a web page: name its origin in MESHNODE_ALLOWED_ORIGINS, and pass dangerouslyAllowBrowser",),
        install="npm install openai",
    )


def curl(at: Endpoint) -> Recipe:
    """Two lines for a terminal."""
    key = [f'-H "Authorization: Bearer ${KEY_VARIABLE}"'] if at.needs_key else []
    body = json.dumps(
        {"model": at.model.id, "stream": True, "messages": [{"role": "user", "content": QUESTION}]}, ensure_ascii=False
    ).replace("'", "'\\''")
    first = " ".join(["curl", "-s", *key, f"{at.v1}/models"])
    second = " ".join(["curl", "-N", *key, f"{at.v1}/chat/completions", "-d", f"'{body}'"])
    return Recipe(
        "curl",
        "curl",
        "The API by hand",
        "https://curl.se",
        at.model.id,
        files=(RecipeFile("", "text", f"{first}\n{second}\n"),),
    )
