import pytest

from meshnode.api.endpoints import COUNTING_ENDPOINTS, ENDPOINTS, PEER_ENDPOINTS, PUBLIC_ENDPOINTS, allowed


def test_peers_reach_what_callers_reach_and_the_tokenizer() -> None:
    assert set(PEER_ENDPOINTS) - set(ENDPOINTS) == {"/tokenize"}
    assert all(allowed("POST", path) for path in PEER_ENDPOINTS)
    assert not PEER_ENDPOINTS["/tokenize"].takes_slot


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/chat/completions"),
        ("post", "/v1/chat/completions"),
        ("POST", "/slots"),
        ("POST", "/slots/0?action=erase"),
        ("POST", "/v1/chat/completions?x"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "/v1/../slots"),
        ("POST", "//v1/chat/completions"),
        ("POST", "/v1/chat%2Fcompletions"),
        ("POST", "http://169.254.169.254/v1/chat/completions"),
        ("POST", "/v1/chat/completions\r\nX: y"),
        ("POST", ""),
        ("CONNECT", "127.0.0.1:22"),
    ],
)
def test_everything_else_is_out_of_sight(method: str, path: str) -> None:
    assert not allowed(method, path)


def test_strangers_reach_only_what_takes_a_slot_and_can_be_bounded() -> None:
    assert set(PUBLIC_ENDPOINTS) < set(ENDPOINTS)
    assert all(endpoint.takes_slot and not endpoint.multipart for endpoint in PUBLIC_ENDPOINTS.values())
    assert not {"/tokenize", "/v1/rerank", "/v1/messages/count_tokens"} & set(PUBLIC_ENDPOINTS)
    assert "/tokenize" in COUNTING_ENDPOINTS and not any(each.takes_slot for each in COUNTING_ENDPOINTS.values())
