"""The `model` field of a multipart form (RFC 7578), for audio uploads. The form itself is forwarded untouched.

A form library would be longer than this: only one small field is looked for, in a body that is in memory anyway.
"""

from __future__ import annotations

from email.message import Message
from email.parser import BytesHeaderParser

from meshnode.errors import BadRequest

MAX_PARTS = 64
MAX_PART_HEAD_BYTES = 8 << 10
MAX_MODEL_BYTES = 512


def model_field(body: bytes, content_type: str) -> str | None:
    """The value of the form field `model`, or None.

    Raises BadRequest for a body that is not a whole form, or that names two models: whoever reads the form next
    might take the other one.
    """
    head = _headers(b"content-type: " + content_type.encode("latin-1", "replace"))
    boundary = head.get_param("boundary")
    if head.get_content_type() != "multipart/form-data" or not isinstance(boundary, str) or not boundary:
        raise BadRequest("an audio request is sent as multipart/form-data with a boundary")
    # A delimiter begins on a line of its own (RFC 2046, 5.1.1); the first may stand at the very beginning.
    preamble, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1", "replace"), MAX_PARTS + 1)
    if len(parts) > MAX_PARTS or preamble:
        raise BadRequest(f"the form has more than {MAX_PARTS} parts, or does not begin with its boundary")
    if not parts or not parts[-1].startswith(b"--"):
        raise BadRequest("the form is cut short")
    names = [value for part in parts[:-1] if (value := _model_of(part)) is not None]
    if len(names) > 1:
        raise BadRequest("the form names two models")
    return names[0] if names else None


def _model_of(part: bytes) -> str | None:
    end = part.find(b"\r\n\r\n", 0, MAX_PART_HEAD_BYTES)
    if end < 0 or not part.startswith(b"\r\n"):
        raise BadRequest("a part of the form has no headers")
    if _headers(part[2:end]).get_param("name", header="content-disposition") != "model":
        return None
    if len(part) - end > MAX_MODEL_BYTES:
        raise BadRequest("`model` is too long")
    return part[end + 4 :].decode("utf-8", "replace")


def _headers(lines: bytes) -> Message:
    return BytesHeaderParser().parsebytes(lines + b"\r\n\r\n")
