import dataclasses
from typing import get_args

from meshnode.core.effects import Counted, Dial, Effect, Outbox, Send


def test_the_outbox_keeps_the_order_and_empties() -> None:
    out = Outbox()
    out.add(Dial(b"p", ()))
    out.send(b"p", "hello")
    out.send(b"p", "there", reliable=False)
    out.count("things")
    assert out.take() == [Dial(b"p", ()), Send(b"p", "hello", True), Send(b"p", "there", False), Counted("things")]
    assert out.take() == []


def test_effects_are_frozen() -> None:
    assert all(item.__dataclass_params__.frozen for item in get_args(Effect) if dataclasses.is_dataclass(item))
