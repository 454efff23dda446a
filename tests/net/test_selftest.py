import pytest
from aioquic import tls as aioquic_tls

from meshnode.errors import NetworkError
from meshnode.net.selftest import pair, verify_authentication
from tests.net.nodes import IDENTITIES


def test_both_keys_are_proven() -> None:
    client, server = pair(IDENTITIES[0], IDENTITIES[1])
    assert client.is_confirmed and server.is_confirmed
    assert client.peer_id() == IDENTITIES[1].node_id
    assert server.peer_id() == IDENTITIES[0].node_id


def test_a_certificate_without_its_key_is_refused() -> None:
    client, server = pair(IDENTITIES[0], IDENTITIES[1], forged=True)
    assert not server.is_handshaken
    assert server.ending is not None
    assert server.ending.error_code == 0x100 + aioquic_tls.AlertDescription.decrypt_error


def test_this_version_passes() -> None:
    verify_authentication.__wrapped__()


def test_a_version_that_asks_for_no_certificate_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aioquic_tls, "push_certificate_request", lambda *_: None)
    with pytest.raises(NetworkError, match="does not prove"):
        verify_authentication.__wrapped__()


def test_a_version_that_checks_no_signature_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aioquic_tls.Context, "_check_certificate_verify_signature", lambda *_: None)
    with pytest.raises(NetworkError, match="does not prove"):
        verify_authentication.__wrapped__()
