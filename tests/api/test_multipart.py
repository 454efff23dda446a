import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.api.multipart import MAX_MODEL_BYTES, MAX_PARTS, model_field
from meshnode.errors import BadRequest

TYPE = "multipart/form-data; boundary=xyz"


def form(*parts: tuple[str, bytes], end: bytes = b"--xyz--\r\n") -> bytes:
    body = b""
    for name, value in parts:
        file = b'; filename="a\xc3\xa9.wav"\r\nContent-Type: audio/wav' if name == "file" else b""
        body += b'--xyz\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (name.encode(), file, value)
    return body + end


def test_the_model_is_found_wherever_it_stands() -> None:
    sound = b"RIFF\x00--xyz--\r\n\r\n\r\n--xy"
    assert model_field(form(("file", sound), ("model", b"demo")), TYPE) == "demo"
    assert model_field(form(("model", "dé/mo:Q4".encode()), ("file", sound)), TYPE) == "dé/mo:Q4"
    assert model_field(form(("file", sound), ("language", b"model")), TYPE) is None
    assert model_field(form(("model", b"a\r\nb")), TYPE) == "a\r\nb"
    assert model_field(form(("model", b"")), TYPE) == ""
    quoted = 'Multipart/Form-Data; charset=utf-8; BOUNDARY="xyz"'
    assert model_field(form(("model", b"demo")), quoted) == "demo"
    bare = b"--xyz\r\ncontent-disposition: form-data; name=model\r\n\r\ndemo\r\n--xyz--"
    assert model_field(bare, TYPE) == "demo"


@pytest.mark.parametrize(
    ("body", "kind", "part"),
    [
        (b"{}", "application/json", "multipart/form-data"),
        (b"", "", "multipart/form-data"),
        (form(("model", b"a")), "multipart/form-data", "boundary"),
        (form(("model", b"a")), "multipart/form-data; boundary=", "boundary"),
        (form(("model", b"a")), "multipart/mixed; boundary=xyz", "multipart/form-data"),
        (form(("model", b"a")), "multipart/form-data; boundary=other", "begin"),
        (b"", TYPE, "begin"),
        (b"junk" + form(("model", b"a")), TYPE, "begin"),
        (form(("model", b"a"), end=b""), TYPE, "cut short"),
        (form(("model", b"a"), end=b"--xyz"), TYPE, "cut short"),
        (form(("model", b"a"), ("model", b"b")), TYPE, "two models"),
        (form(("model", b"a" * (MAX_MODEL_BYTES + 1))), TYPE, "too long"),
        (form(*[("x", b"")] * (MAX_PARTS + 1)), TYPE, "more than 64"),
        (b"--xyz\r\nno headers\r\n--xyz--\r\n", TYPE, "no headers"),
        (b"--xyzcontent: a\r\n\r\n\r\n--xyz--\r\n", TYPE, "no headers"),
        (b"--xyz\r\nA: " + b"a" * 10_000 + b"\r\n\r\n\r\n--xyz--\r\n", TYPE, "no headers"),
    ],
)
def test_what_is_no_whole_form_is_refused(body: bytes, kind: str, part: str) -> None:
    with pytest.raises(BadRequest, match=part):
        model_field(body, kind)


@given(st.binary(max_size=200), st.text(max_size=60))
def test_whatever_comes_is_a_name_nothing_or_a_bad_request(body: bytes, kind: str) -> None:
    for content_type in (kind, TYPE):
        for text in (body, form(("file", body)), form(("model", body)), body + b"\r\n--xyz--"):
            with contextlib.suppress(BadRequest):
                assert model_field(text, content_type) is None or isinstance(model_field(text, content_type), str)
