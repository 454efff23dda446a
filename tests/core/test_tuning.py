from meshnode.core.tuning import MembershipOptions
from meshnode.wire.registry import LIMIT_MONITORS


def test_the_defaults_fit_together() -> None:
    options = MembershipOptions()
    assert options.back_to_full_mesh < options.full_mesh, "or the overlay flaps"
    assert options.random_neighbours + options.near_neighbours <= options.most_neighbours - 4
    assert options.monitors <= LIMIT_MONITORS
    assert options.vote_again_s < options.vote_s, "or a vote lapses before it is renewed"
    assert options.dead_after_s < options.hold_s < options.tombstone_s
    assert options.least_miss_s > options.lag_s
