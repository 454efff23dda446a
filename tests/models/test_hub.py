"""The hub client against a real server on loopback: what it answers, and every way it can fail."""

import threading
from dataclasses import replace

import pytest
from loopback_hub import COMMIT, LoopbackHub, noise

from meshnode.errors import (
    GatedRepository,
    HubRefused,
    HubUnreachable,
    ModelNotFound,
)
from meshnode.models.hub import Hub
from meshnode.models.store import ModelStore

REPO = "owner/tiny-GGUF"


def test_a_gated_repository_names_the_page_and_the_login(store: ModelStore, hub_server: LoopbackHub) -> None:
    hub_server.add(REPO, {"m-Q4_K_M.gguf": noise(1000)}, gated=True)
    with pytest.raises(GatedRepository) as caught:
        store.pull(store.resolve(REPO))
    assert f"{hub_server.endpoint}/{REPO}" in caught.value.fix and "hf auth login" in caught.value.fix
    member = replace(store, hub=replace(store.hub, token="hf_secret"))
    assert not member.pull(member.resolve(REPO)).incomplete
    assert hub_server.tokens[-1] == "Bearer hf_secret"


@pytest.mark.parametrize(
    ("status", "sentence"), [(500, "status 500"), (429, "too many requests"), (418, "status 418"), (403, "licence")]
)
def test_http_errors_become_sentences(store: ModelStore, hub_server: LoopbackHub, status: int, sentence: str) -> None:
    hub_server.add(REPO, {"m-Q4_K_M.gguf": noise(10)}, status=status)
    with pytest.raises((HubUnreachable, HubRefused, GatedRepository), match=sentence):
        store.pull(store.resolve(REPO))


def test_a_dead_hub(store: ModelStore, hub_server: LoopbackHub) -> None:
    hub_server.close()
    with pytest.raises(HubUnreachable) as caught:
        store.pull(store.resolve(REPO))
    assert "127.0.0.1" in caught.value.detail and "HF_ENDPOINT" in caught.value.fix
    result = store.search("qwen3")
    assert result.catalog and not result.hub and isinstance(result.problem, HubUnreachable)


def test_a_hub_whose_name_does_not_resolve(store: ModelStore) -> None:
    lost = replace(store, hub=Hub("http://hub.invalid", timeout_s=2))
    with pytest.raises(HubUnreachable, match=r"hub\.invalid"):
        lost.pull(lost.resolve(REPO))


def test_a_hub_that_does_not_answer_in_time(store: ModelStore, hub_server: LoopbackHub) -> None:
    release = threading.Event()
    hub_server.add(REPO, {"m-Q4_K_M.gguf": noise(10)})
    hub_server.before_chunk = lambda: release.wait(20)  # type: ignore[assignment,return-value]
    slow = replace(store, hub=replace(store.hub, timeout_s=0.05))
    with pytest.raises(HubUnreachable, match="in time"):
        slow.pull(slow.resolve(REPO))
    release.set()


@pytest.mark.parametrize("body", [b"<html>log in to the hotel</html>", b"[]", b'{"id": 1}', b"\xff\xfe"])
def test_a_page_that_is_no_hub(store: ModelStore, hub_server: LoopbackHub, body: bytes) -> None:
    hub_server.listing = body
    with pytest.raises(HubUnreachable) as caught:
        store.pull(store.resolve(REPO))
    assert "HF_ENDPOINT" in caught.value.fix


@pytest.mark.parametrize(
    "name",
    ["../../evil-Q4_K_M.gguf", "/etc/evil-Q4_K_M.gguf", "a/../b-Q4_K_M.gguf", "a\nb-Q4_K_M.gguf", "C:\\b-Q4_K_M.gguf"],
)
def test_hostile_file_names_never_become_paths(store: ModelStore, hub_server: LoopbackHub, name: str) -> None:
    hub_server.add(REPO, {name: noise(10)})
    with pytest.raises(ModelNotFound, match="no GGUF"):
        store.pull(store.resolve(REPO))


def test_hostile_hashes_and_commits_never_become_paths(store: ModelStore, hub_server: LoopbackHub) -> None:
    repo = hub_server.add(REPO, {"m-Q4_K_M.gguf": noise(10)}, announced={"m-Q4_K_M.gguf": "../../../x"})
    with pytest.raises(ModelNotFound):
        store.pull(store.resolve(REPO))
    repo.announced.clear()
    repo.commit = "../../.."
    with pytest.raises(HubUnreachable):
        store.pull(store.resolve(REPO))


def test_headers_of_a_model_that_is_only_on_the_hub(
    store: ModelStore, hub_server: LoopbackHub, model_bytes: bytes
) -> None:
    hub_server.add(REPO, {"m-Q4_K_M.gguf": model_bytes})
    remote = store.look_up(store.resolve(REPO))
    assert remote.size_bytes == len(model_bytes)
    assert store.read_remote(remote).tensors == store.read(store.pull(remote.ref)).tensors


def test_the_environment_is_read_when_asked(hub_server: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_server.add(REPO, {}, private=True)
    monkeypatch.setenv("HF_ENDPOINT", f"{hub_server.endpoint}/")
    monkeypatch.setenv("HF_TOKEN", "hf_abc")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "3")
    hub = Hub.from_environment()
    assert hub == Hub(hub_server.endpoint, None, False, 3.0)
    assert hub.listing(REPO).commit == COMMIT
    assert hub_server.tokens == ["Bearer hf_abc"]
    monkeypatch.delenv("HF_ENDPOINT")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "soon")
    assert Hub.from_environment() == Hub("https://huggingface.co", None, True, 10.0)


def test_the_token_is_not_shown_to_the_content_network(store: ModelStore, hub_server: LoopbackHub) -> None:
    network = LoopbackHub()
    try:
        network.add(REPO, {"m-Q4_K_M.gguf": noise(1000)})
        hub_server.add(REPO, {"m-Q4_K_M.gguf": noise(1000)}, redirects_to=network.endpoint)
        member = replace(store, hub=replace(store.hub, token="hf_secret"))
        assert member.pull(member.resolve(REPO)).path.read_bytes() == noise(1000)
        assert set(hub_server.tokens) == {"Bearer hf_secret"}
        assert network.ranges() == ["bytes=0-999"]
        # Another port is another origin.
        assert network.tokens == [""]
        network.repositories[REPO].status = 403
        with pytest.raises(HubUnreachable, match="expired"):
            member.pull(replace(member.resolve(REPO), revision=other_commit(hub_server)))
    finally:
        network.close()


def other_commit(server: LoopbackHub) -> str:
    """Give the repository a new commit with new bytes, and return it."""
    repo = server.repositories[REPO]
    repo.commit = "d" * 40
    repo.files = {"m-Q4_K_M.gguf": noise(1000, 2)}
    return repo.commit


def test_a_token_that_is_not_accepted(store: ModelStore, hub_server: LoopbackHub) -> None:
    hub_server.add(REPO, {"m-Q4_K_M.gguf": noise(10)}, status=401)
    with pytest.raises(HubRefused, match="does not accept this token"):
        store.pull(store.resolve(REPO))
    assert len(hub_server.ranges()) == 1


def test_a_password_in_the_endpoint_stays_secret(store: ModelStore) -> None:
    lost = replace(store, hub=Hub("http://user:secret@hub.invalid", timeout_s=2))
    with pytest.raises(HubUnreachable) as caught:
        lost.pull(lost.resolve(REPO))
    assert "hub.invalid" in caught.value.message and "secret" not in f"{caught.value.message}{caught.value.fix}"
