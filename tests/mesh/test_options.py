from meshnode.mesh.options import MeshLimits, MeshOptions
from meshnode.wire.registry import LIMIT_ADMISSION_TIMEOUT_S, LIMIT_BAN_S, LIMIT_HTTP_STREAMS


def test_the_defaults_are_those_of_the_registry() -> None:
    limits = MeshLimits()
    assert limits.sessions.admission_s == LIMIT_ADMISSION_TIMEOUT_S
    assert limits.sessions.ban_s == LIMIT_BAN_S
    assert limits.tunnel.streams == LIMIT_HTTP_STREAMS
    assert limits.tunnel.body_bytes >= limits.tunnel.request.max_body_bytes


def test_a_node_is_reachable_by_both_families_unless_told_otherwise() -> None:
    assert (MeshOptions().host, MeshOptions().port, MeshOptions().advertise) == ("::", 0, ())
