import dataclasses
from typing import get_args

import pytest

from meshnode.core import events
from meshnode.core.events import Event, PeerUp, Received


def test_every_event_is_frozen_and_part_of_the_union() -> None:
    found = [item for item in vars(events).values() if dataclasses.is_dataclass(item)]
    declared = {item for item in found if item.__module__ == events.__name__}
    assert declared == set(get_args(Event))
    with pytest.raises(dataclasses.FrozenInstanceError):
        PeerUp(b"a").peer = b"b"  # type: ignore[misc]


def test_equal_events_are_equal() -> None:
    assert PeerUp(b"a") == PeerUp(b"a", None)
    assert Received(b"a", 1) != Received(b"a", 2)
