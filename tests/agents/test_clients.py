from __future__ import annotations

import ast
import json
import shlex

import pytest

from meshnode.agents import clients
from meshnode.agents.recipe import AgentModel, Endpoint

MODEL = AgentModel('it\'s "odd"', 4096, ("chat",))
OPEN = Endpoint("http://localhost:9337", MODEL, (MODEL,), needs_key=False)
KEYED = Endpoint("http://localhost:9337", MODEL, (MODEL,), needs_key=True)


@pytest.mark.parametrize("endpoint", [OPEN, KEYED])
def test_the_python_example_compiles_and_names_the_model(endpoint: Endpoint) -> None:
    tree = ast.parse(clients.openai_python(endpoint).files[0].content)
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert {MODEL.id, "http://localhost:9337/v1"} <= texts
    assert ("MESHNODE_API_KEY" in texts) is endpoint.needs_key


def test_the_javascript_example_reads_the_key_from_the_environment() -> None:
    assert "process.env.MESHNODE_API_KEY" in clients.openai_javascript(KEYED).files[0].content
    assert 'apiKey: "meshnode"' in clients.openai_javascript(OPEN).files[0].content


def test_curl_survives_a_shell() -> None:
    first, second = clients.curl(OPEN).files[0].content.splitlines()
    assert shlex.split(first) == ["curl", "-s", "http://localhost:9337/v1/models"]
    assert json.loads(shlex.split(second)[-1])["model"] == MODEL.id
    assert 'Authorization: Bearer $MESHNODE_API_KEY"' in clients.curl(KEYED).files[0].content


def test_continue_quotes_names_and_takes_the_key_from_its_secrets() -> None:
    text = clients.continue_dev(KEYED).files[0].content
    assert f"model: {json.dumps(MODEL.id)}" in text and "contextLength: 4096" in text
    assert 'apiKey: "${{ secrets.MESHNODE_API_KEY }}"' in text


def test_open_webui_says_how_a_container_reaches_the_node() -> None:
    made = clients.open_webui(OPEN)
    assert made.environment["OPENAI_API_BASE_URL"] == "http://localhost:9337/v1"
    assert any("http://host.docker.internal:9337/v1" in note and "--listen-all" in note for note in made.notes)
    assert not made.writable
