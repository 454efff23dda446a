"""The hub client against a real server on loopback: what it answers, and every way it can fail."""

import threading
from dataclasses import replace

import pytest
from loopback_hub import LoopbackHub, noise

from meshnode.errors import (
    GatedRepository,
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


@pytest.mark.parametrize(("status", "sentence"), [(500, "status 500"), (429, "too many requests"), (403, "licence")])
def test_http_errors_become_sentences(store: ModelStore, hub_server: LoopbackHub, status: int, sentence: str) -> None:
    hub_server.add(REPO, {"m-Q4_K_M.gguf": noise(10)}, status=status)
    with pytest.raises((HubUnreachable, GatedRepository), match=sentence):
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


def test_the_environment_is_read_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    monkeypatch.setenv("HF_TOKEN", "hf_abc")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert Hub.from_environment() == Hub("https://mirror.example", "hf_abc", True)
    monkeypatch.delenv("HF_ENDPOINT")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert (Hub.from_environment().endpoint, Hub.from_environment().offline) == ("https://huggingface.co", False)
