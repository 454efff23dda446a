"""Events and effects are values."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import get_args

import pytest

from meshnode.core import dht_events
from meshnode.core.dht_events import Ask, Failed, Found
from meshnode.core.effects import Counted, SetTimer
from meshnode.wire.dht import DhtFind


def test_they_cannot_be_changed_and_are_equal_by_what_they_say() -> None:
    ask = Ask(1, b"p" * 32, (), DhtFind(b"k" * 32))
    assert ask == Ask(1, b"p" * 32, (), DhtFind(b"k" * 32)) != Ask(2, b"p" * 32, (), DhtFind(b"k" * 32))
    with pytest.raises(FrozenInstanceError):
        ask.number = 2  # type: ignore[misc]
    assert Found("a search", ()).asked == 0


def test_every_event_and_effect_is_in_its_union() -> None:
    shapes = {each for each in vars(dht_events).values() if getattr(each, "__module__", "") == dht_events.__name__}
    events, effects = set(get_args(dht_events.Event)), set(get_args(dht_events.Effect))
    assert shapes == (events | effects) - {Counted, SetTimer}
    assert Failed in events and Ask in effects and not events & effects
