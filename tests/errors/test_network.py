"""Errors of the network and peers: codes, statuses and exit codes are an interface, and do not change by accident."""

from __future__ import annotations

from meshnode.errors import network
from tests.errors.families import table_of

CODES = {
    "NetworkError": ("network", 502, 5),
    "HubUnreachable": ("hub-unreachable", 502, 5),
    "HubRefused": ("hub-refused", 502, 5),
    "HubOffline": ("hub-offline", 502, 5),
    "GatedRepository": ("gated-repository", 403, 5),
    "DownloadCorrupt": ("download-corrupt", 502, 5),
    "DownloadStopped": ("download-stopped", 502, 130),
    "WeightsUnavailable": ("weights-unavailable", 503, 5),
    "PeerUnreachable": ("peer-unreachable", 504, 5),
    "PeerRefused": ("peer-refused", 502, 5),
    "WrongPeer": ("wrong-peer", 502, 5),
    "LeaseDenied": ("lease-denied", 503, 5),
    "WorkerLost": ("worker-lost", 503, 5),
    "InviteInvalid": ("invite-invalid", 400, 5),
    "PairingFailed": ("pairing-failed", 502, 5),
    "MayNotInvite": ("may-not-invite", 403, 5),
    "NodeNotFound": ("node-not-found", 404, 5),
    "NotInMesh": ("not-in-mesh", 409, 5),
    "AlreadyInMesh": ("already-in-mesh", 409, 5),
    "NoNostrRelay": ("no-nostr-relay", 503, 5),
    "NoPublicMesh": ("no-public-mesh", 503, 5),
}


def test_codes_statuses_and_exit_codes() -> None:
    assert table_of(network) == CODES


def test_what_a_peer_said_goes_with_the_error() -> None:
    assert network.PeerRefused("x", close_code=0x110).close_code == 0x110
    assert network.WrongPeer("x").close_code == 0
    denied = network.LeaseDenied("x", lease_code=3, free_bytes=5, retry_after_s=2)
    assert (denied.lease_code, denied.free_bytes, denied.retry_after_s) == (3, 5, 2)
    lost = network.WorkerLost("gone", node="ab" * 32)
    assert (lost.node, lost.detail) == ("ab" * 32, "ababababab: gone")
