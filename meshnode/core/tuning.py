"""The numbers of the membership machine, in one place. Times are seconds."""

from __future__ import annotations

from dataclasses import dataclass

from meshnode.wire.registry import LIMIT_TOMBSTONE_S


@dataclass(frozen=True, slots=True)
class MembershipOptions:
    """What can be tuned; the defaults were found with the simulator (tests/sim, bench/membership.py).

    Overlay: a full mesh up to `full_mesh` members; above it `random_neighbours` + `near_neighbours`, at most
    `most_neighbours`.
    Probes: an edge that was idle for `idle_s` (longer where there are more than 16) is probed 4 to 8 times within at
    least `least_miss_s` before it counts as missed.
    Verdicts: a vote counts for `vote_s`; `dead_after_s` after a quorum the member is evicted.
    """

    full_mesh: int = 48
    back_to_full_mesh: int = 40
    random_neighbours: int = 5
    near_neighbours: int = 3
    most_neighbours: int = 16
    dials_at_once: int = 8
    patience_s: float = 2.0
    near_search_s: float = 30.0

    idle_s: float = 1.0
    edges_a_second: float = 16.0
    least_rto_s: float = 0.06
    first_rto_s: float = 0.3
    least_miss_s: float = 0.9
    fewest_tries: int = 4
    most_tries: int = 8
    missed_probe_s: float = 1.0

    vote_s: float = 20.0
    vote_again_s: float = 8.0
    dead_after_s: float = 5.5
    hold_s: float = 10.0
    orphan_scan_s: float = 3.0
    orphan_s: float = 4.0
    tombstone_s: float = LIMIT_TOMBSTONE_S
    monitors: int = 8

    ihave_s: float = 1.0
    announced_to: int = 4
    least_graft_s: float = 0.5
    reconcile_s: float = 30.0
    lag_s: float = 0.25

    statements_a_second: float = 6.0
    """How many news of load all members together publish in a mesh of up to a hundred; each waits for its turn."""
    statements_a_decade: float = 2.0
    """So many more in a mesh ten times as large: its budget of traffic is larger."""
    refresh_s: float = 30.0
    publish_burst: int = 3
    settle_s: float = 0.4

    most_statements: int = 32_768
    most_bytes: int = 64 << 20
    ban_s: float = 600.0
