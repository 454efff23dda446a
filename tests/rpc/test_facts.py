from dataclasses import asdict, fields

import pytest

from meshnode.rpc.facts import TunnelCounters, TunnelOptions
from tests.rpc.fake_rpc_server import FACTS


def test_options_are_named_and_cannot_be_changed() -> None:
    options = TunnelOptions(stage=1, stages=2)
    assert (options.push, options.worker_has_weights, options.compress, options.half) == ("patched", True, False, False)
    with pytest.raises(AttributeError):
        options.stage = 0  # type: ignore[misc]
    with pytest.raises(TypeError):
        TunnelOptions(1, 2)  # type: ignore[misc]


def test_counters_begin_at_zero() -> None:
    assert set(asdict(TunnelCounters()).values()) == {0}
    assert {field.name for field in fields(TunnelCounters)} >= {"round_trips", "bytes_up", "bytes_down", "pushed"}


def test_facts_can_be_compared() -> None:
    assert hash(FACTS) == hash(type(FACTS)(FACTS.hello, FACTS.devices))
