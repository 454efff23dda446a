"""What the HTTP API answers to a caller."""

from __future__ import annotations

from meshnode.errors.root import MeshnodeError


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
