"""What holds for every recipe: it names the node and the model, and no key."""

from __future__ import annotations

import json
import tomllib

import pytest

from meshnode.agents.recipe import AgentModel
from meshnode.agents.recipes import LAUNCHABLE, MAKERS, agents_facts, recipe, recipes

BASE = "http://localhost:9337"
MODELS = [
    AgentModel("e", 512, ("embedding",)),
    AgentModel("owner/repo:Q4_K_M", 40960, ("completion", "chat", "tools")),
    AgentModel("other", 0, ("chat",)),
]
SECRET = "s3cret-canary"


def everything(made: object) -> str:
    return repr(made)


def test_all_are_there_in_their_order() -> None:
    made = recipes(BASE, MODELS, key=None)
    ids = "goose opencode pi claude codex aider openwebui continue openai-python openai-javascript curl"
    assert [item.id for item in made] == ids.split() == list(MAKERS)
    assert tuple(item.id for item in made if item.launchable) == LAUNCHABLE
    assert all(item.title and item.summary and item.homepage.startswith("https://") for item in made)


@pytest.mark.parametrize("name", MAKERS)
def test_each_names_the_node_and_the_first_model_that_chats(name: str) -> None:
    made = recipe(name, BASE, MODELS, key=None)
    assert made.model == "owner/repo:Q4_K_M"
    assert (
        BASE in everything(made)
        and made.model in everything((made.files, made.environment, made.command, name))
        or (name == "openwebui")
    )
    assert made.files or made.environment
    assert (made.install != "") is (name != "curl")


@pytest.mark.parametrize("name", MAKERS)
def test_a_key_never_appears_and_its_variable_does(name: str) -> None:
    with_key = recipe(name, BASE, MODELS, key=SECRET)
    assert SECRET not in everything(with_key)
    assert "MESHNODE_API_KEY" in everything(with_key)
    if name != "openwebui":
        assert "MESHNODE_API_KEY" not in everything(recipe(name, BASE, MODELS, key=None))


@pytest.mark.parametrize("name", MAKERS)
def test_files_are_valid_in_their_format_also_for_odd_names(name: str) -> None:
    odd = AgentModel('a "b" \\ \u007f é$(x)`', 8192, ("chat",))
    for file in recipe(name, BASE, [odd], key=SECRET).files:
        if file.format == "json":
            assert odd.id in repr(json.loads(file.content)) or repr(odd.id)[1:-1] in repr(json.loads(file.content))
        elif file.format == "toml":
            assert tomllib.loads(file.content)["model"] == odd.id
        assert file.path == "" or file.path.startswith("~/")
        assert file.content.endswith("\n")


def test_a_model_can_be_named_and_none_may_be_there() -> None:
    assert recipe("pi", BASE, MODELS, key=None, model="other").model == "other"
    assert recipe("pi", BASE, MODELS, key=None, model="coming").model == "coming"
    assert recipe("pi", BASE, [], key=None).model == "MODEL"


@pytest.mark.parametrize("given", [BASE, f"{BASE}/", f"{BASE}/v1"])
def test_the_base_url_may_come_with_its_end(given: str) -> None:
    assert json.loads(recipe("pi", given, MODELS, key=None).files[0].content)["providers"]["meshnode"]["baseUrl"] == (
        f"{BASE}/v1"
    )


def test_facts_for_the_console_are_json() -> None:
    facts = json.loads(json.dumps(agents_facts(f"{BASE}/v1", MODELS, True)))
    assert facts["base_url"] == BASE
    assert facts["models"] == ["e", "owner/repo:Q4_K_M", "other"]
    assert [agent["id"] for agent in facts["agents"]] == list(MAKERS)
    assert {"environment", "command", "files", "notes", "install", "launchable", "title"} <= set(facts["agents"][0])
    assert "$MESHNODE_API_KEY" in json.dumps(facts)
    assert "$MESHNODE_API_KEY" not in json.dumps(agents_facts(BASE, MODELS, False))
