"""The `model` field of a multipart form (RFC 7578), for audio uploads. The form itself is forwarded untouched."""

from __future__ import annotations

from email.parser import BytesHeaderParser

from meshnode.errors import BadRequest

MAX_PARTS = 64
MAX_MODEL_BYTES = 512


def model_field(body: bytes, content_type: str) -> str | None:
    """The value of the form field `model`, or None. Raises BadRequest for a body that is not such a form."""
    head = BytesHeaderParser().parsebytes(b"content-type: " + content_type.encode("latin-1", "replace") + b"\n\n")
    boundary = head.get_param("boundary")
    if head.get_content_type() != "multipart/form-data" or not isinstance(boundary, str) or not boundary:
        raise BadRequest("an audio request is sent as multipart/form-data")
    parts = body.split(b"--" + boundary.encode("latin-1", "replace"), MAX_PARTS + 1)
    if len(parts) < 3 or len(parts) > MAX_PARTS + 1:
        raise BadRequest("the form has no parts, or too many")
    for part in parts[1:-1]:
        part_head, _, value = part.partition(b"\r\n\r\n")
        fields = BytesHeaderParser().parsebytes(part_head.lstrip(b"\r\n") + b"\n\n")
        if fields.get_param("name", header="content-disposition") == "model":
            if len(value) > MAX_MODEL_BYTES:
                raise BadRequest("`model` is too long")
            return value.removesuffix(b"\r\n").decode("utf-8", "replace")
    return None
