from meshnode.net.rtt import WINDOW_S, ShortestRoundTrip


def test_the_shortest_of_the_window() -> None:
    trip = ShortestRoundTrip()
    assert trip.at(0.0) is None
    for now, rtt in ((0.0, 0.030), (1.0, 0.010), (2.0, 0.050)):
        trip.add(rtt, now)
    assert trip.at(2.0) == 0.010
    assert trip.at(1.0 + WINDOW_S) == 0.010
    assert trip.at(1.1 + WINDOW_S) == 0.050


def test_the_last_sample_stays_and_a_new_path_starts_over() -> None:
    trip = ShortestRoundTrip()
    trip.add(0.020, 0.0)
    assert trip.at(1000.0) == 0.020
    trip.forget()
    assert trip.at(1000.0) is None


def test_memory_is_bounded_by_the_samples_that_can_still_win() -> None:
    trip = ShortestRoundTrip()
    for step in range(1000):
        trip.add(0.010 + step % 7 * 1e-3, step * 0.1)
    assert len(trip._samples) <= 8
