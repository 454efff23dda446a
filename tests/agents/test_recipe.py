from meshnode.agents.recipe import KEY_REFERENCE, NO_KEY, AgentModel, Endpoint, Launch, Recipe, RecipeFile

CHAT = AgentModel("a", 1000, ("completion", "chat"))
OTHER = AgentModel("b", 2000, ("chat",))
EMBEDDER = AgentModel("e", 500, ("embedding",))


def test_the_json_form_has_every_field_but_the_way_to_launch() -> None:
    file = RecipeFile("~/x.json", "json", "{}")
    launched = Recipe("x", "X", "s", "h", "m", files=(file,), launch=Launch("x", {"A": "1"}))
    facts = launched.as_dict()
    assert (facts["launchable"], facts["writable"], "launch" in facts) == (True, True, False)
    assert facts["files"] == ({"path": "~/x.json", "format": "json", "content": "{}"},)
    example = Recipe("x", "X", "s", "h", "m", files=(RecipeFile("", "text", "..."),))
    assert (example.launchable, example.writable) == (False, False)


def test_the_chosen_model_comes_first_and_only_models_that_chat_follow() -> None:
    endpoint = Endpoint("http://x:1", OTHER, (CHAT, OTHER, EMBEDDER), needs_key=False)
    assert endpoint.chat_models == [OTHER, CHAT]
    assert endpoint.v1 == "http://x:1/v1"


def test_a_key_is_named_and_never_there() -> None:
    assert Endpoint("http://x", CHAT, (), needs_key=True).key == KEY_REFERENCE == "$MESHNODE_API_KEY"
    assert Endpoint("http://x", CHAT, (), needs_key=False).key == NO_KEY
