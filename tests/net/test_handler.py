import dataclasses

from meshnode.net.endpoint import Counters, EndpointOptions, Handler
from tests.net.nodes import Recorder


def test_a_recorder_is_a_handler() -> None:
    handler: Handler = Recorder()
    wanted = {name for name in vars(Handler) if not name.startswith("_")}
    assert wanted == {"link_up", "link_down", "stream_opened", "datagram", "link_silent"}
    assert all(callable(getattr(handler, name)) for name in wanted)


def test_counters_begin_at_zero_and_are_plain_numbers() -> None:
    counters = dataclasses.asdict(Counters())
    assert set(counters.values()) == {0}
    assert {"datagrams_in", "bytes_out", "junk", "retries_sent", "handshakes_refused", "links_refused"} <= set(counters)


def test_the_defaults_are_the_fast_ones() -> None:
    options = EndpointOptions()
    assert options.fast and options.most_datagram_bytes == 16384 and options.congestion == "mesh"
    assert options.keepalive_s < options.idle_timeout_s
