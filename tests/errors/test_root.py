"""What every error has: one sentence, particulars, a code, and what to do."""

from __future__ import annotations

from meshnode.errors.root import MeshnodeError


class Lost(MeshnodeError):
    """The thing
    is lost.

    This is for developers.
    """

    code = "lost"
    fix = "look for it"


def test_the_first_paragraph_of_the_docstring_is_the_sentence() -> None:
    assert Lost().summary == Lost().message == "The thing is lost"
    assert str(Lost("under the bed")) == "The thing is lost: under the bed"


def test_it_is_shown_as_code_message_and_fix() -> None:
    assert Lost("x").as_dict() == {"code": "lost", "message": "The thing is lost: x", "fix": "look for it"}
    assert Lost("x", fix="buy another").fix == "buy another"
    assert Lost.fix == "look for it"


def test_it_may_say_when_to_come_back() -> None:
    assert Lost(retry_after_s=2.5).retry_after_s == 2.5
    assert Lost().retry_after_s is None
