"""The network and the peers."""

from __future__ import annotations

from meshnode.errors.root import MeshnodeError


class NetworkError(MeshnodeError):
    """The network did not give what was asked."""

    code = "network"
    http_status = 502
    exit_code = 5


class HubUnreachable(NetworkError):
    """The model hub cannot be reached."""

    code = "hub-unreachable"
    fix = "check the connection, HTTPS_PROXY and HF_ENDPOINT, then run the same command: the download resumes"


class HubRefused(NetworkError):
    """The model hub refuses this request."""

    code = "hub-refused"


class HubOffline(NetworkError):
    """The file is not on this disk, and offline mode forbids to fetch it."""

    code = "hub-offline"
    fix = "unset HF_HUB_OFFLINE, or use a model that `meshnode ls` shows"


class GatedRepository(NetworkError):
    """The owner of this model asks you to accept a licence first."""

    code = "gated-repository"
    http_status = 403


class DownloadCorrupt(NetworkError):
    """The downloaded file is not the one the hub announced."""

    code = "download-corrupt"
    fix = "run the same command again; the damaged part was thrown away"


class DownloadStopped(NetworkError):
    """The download was stopped."""

    code = "download-stopped"
    exit_code = 130
    fix = "run the same command again: it goes on where it stopped"


class WeightsUnavailable(NetworkError):
    """The files of the model cannot be had from the mesh."""

    code = "weights-unavailable"
    http_status = 503
    fix = "run the same command again: it goes on where it stopped; or fetch the model from the hub: meshnode pull X"


class PeerUnreachable(NetworkError):
    """The peer does not answer."""

    code = "peer-unreachable"
    http_status = 504
    fix = "it may be off, or a firewall may close its UDP port: run meshnode doctor there"


class PeerRefused(NetworkError):
    """The peer closed the connection.

    `close_code` is one of the close codes of the protocol.
    """

    code = "peer-refused"

    def __init__(self, detail: str = "", *, close_code: int = 0, fix: str = "") -> None:
        super().__init__(detail, fix=fix)
        self.close_code = close_code


class WrongPeer(PeerRefused):
    """Another node answers at the address of this peer."""

    code = "wrong-peer"


class LeaseDenied(NetworkError):
    """A member does not hold layers for this split.

    `lease_code` is one of the lease codes of the protocol, `free_bytes` what the member could give, 0 if it did not
    say.
    """

    code = "lease-denied"
    http_status = 503

    def __init__(
        self,
        detail: str = "",
        *,
        lease_code: int = 0,
        free_bytes: int = 0,
        fix: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail, fix=fix, retry_after_s=retry_after_s)
        self.lease_code = lease_code
        self.free_bytes = free_bytes


class WorkerLost(NetworkError):
    """A machine that was to hold layers of a split model does not."""

    code = "worker-lost"
    http_status = 503
    fix = "meshnode plan MODEL shows who could take part, and why others cannot"

    def __init__(self, detail: str = "", *, node: str = "", fix: str = "") -> None:
        super().__init__(f"{node[:10]}: {detail}" if node else detail, fix=fix)
        self.node = node


class InviteInvalid(NetworkError):
    """This invite cannot be used."""

    code = "invite-invalid"
    http_status = 400
    fix = "ask for a new one: meshnode invite, on a machine of that mesh"


class PairingFailed(NetworkError):
    """The two machines could not be paired."""

    code = "pairing-failed"
    fix = "run meshnode pair again on both machines: each code can be tried once"


class MayNotInvite(NetworkError):
    """This node may not invite others."""

    code = "may-not-invite"
    http_status = 403
    fix = "ask the founder of the mesh, or someone who was invited with --may-invite"


class NodeNotFound(NetworkError):
    """No such node in this mesh."""

    code = "node-not-found"
    http_status = 404
    fix = "meshnode peers shows the nodes, with their names and ids"


class NotInMesh(NetworkError):
    """This node belongs to no mesh."""

    code = "not-in-mesh"
    http_status = 409


class AlreadyInMesh(NetworkError):
    """This node belongs to another mesh."""

    code = "already-in-mesh"
    http_status = 409
    fix = "leave it first: meshnode leave; or use a second home: MESHNODE_HOME=DIR meshnode --join TOKEN"


class NoNostrRelay(NetworkError):
    """None of the Nostr relays answers."""

    code = "no-nostr-relay"
    http_status = 503
    fix = "look at the network; other relays: --nostr-relay wss://...; without any: --bootstrap HOST:PORT"


class NoPublicMesh(NetworkError):
    """There is no public mesh that this node can join."""

    code = "no-public-mesh"
    http_status = 503
    fix = "start one: meshnode --publish --model NAME"
