import math

import pytest

from meshnode.core.memory import UBATCH
from meshnode.core.placement import Share, SoloPlan
from meshnode.core.prediction import (
    FAR_RATE_BYTES_PER_S,
    LEG_SOFTWARE_S,
    NEAR_RATE_BYTES_PER_S,
    Speed,
    activation_bytes,
    leg_s,
    predict_solo,
    prompt_s,
    token_s,
    tokens_per_s,
)
from tests.core.split_samples import MIXTURE, SEVEN


def test_decoding_is_bytes_over_bandwidth_plus_layers() -> None:
    speed = Speed(10e9, 1e-4)
    assert speed.decode_s(32, 4e9) == pytest.approx(32e-4 + 0.4)
    assert Speed(1e12, 0.0).decode_s(32, 4e9) == pytest.approx(4e-3)


def test_a_batch_costs_one_reading_or_its_arithmetic() -> None:
    speed = Speed(10e9, 0.0, flops_per_s=1e12)
    assert speed.batch_s(32, 4e9, 4e9, 1) == pytest.approx(0.4)
    assert speed.batch_s(32, 4e9, 4e9, 512) == pytest.approx(2 * 4e9 * 512 / 1e12)
    assert Speed(10e9, 0.0).batch_s(32, 4e9, 4e9, 512) == pytest.approx(0.4)
    assert speed.prompt_s(7e9, 100) == pytest.approx(1.4)
    assert Speed(10e9, 0.0).prompt_s(7e9, 100) == math.inf


def test_a_leg_is_half_a_round_trip_and_its_bytes() -> None:
    assert leg_s(0.040, 16384) == pytest.approx(0.020 + 16384 / FAR_RATE_BYTES_PER_S + LEG_SOFTWARE_S)
    assert leg_s(0.001, 16384) == pytest.approx(0.0005 + 16384 / NEAR_RATE_BYTES_PER_S + LEG_SOFTWARE_S)
    assert activation_bytes(4096) == 16384
    assert activation_bytes(4096, half=True, tokens=3) == 3 * 8192


# Measured with prototypes on emulated links: one-way delay, workers, tokens per second (solo: 569).
@pytest.mark.parametrize(
    ("delay_s", "workers", "measured"),
    [(0.005, 2, 51.8), (0.005, 3, 43.0), (0.005, 4, 32.2), (0.02, 2, 15.7), (0.02, 3, 11.9), (0.02, 4, 9.5)],
)
def test_what_was_measured_is_predicted_within_a_tenth(delay_s: float, workers: int, measured: float) -> None:
    legs = [leg_s(2 * delay_s, activation_bytes(384))] * (workers + 1)
    predicted = tokens_per_s(token_s([1 / 569], legs))
    assert predicted == pytest.approx(measured, rel=0.10)


def test_rates_are_rounded_for_people() -> None:
    assert tokens_per_s(0.0123) == 81.3
    assert tokens_per_s(0.7) == 1.43
    assert tokens_per_s(0.0) is None
    assert token_s([]) == 0


def solo(*shares: Share) -> SoloPlan:
    return SoloPlan(4096, 1, "f16", 0, (), shares, 0)


def test_a_plan_of_one_machine_adds_up_its_shares() -> None:
    layer = SEVEN.layers[0].weights_bytes
    on_gpu = Share("CUDA0", 20, 20 * layer, 0, 0, 1)
    in_memory = Share("host", 12, 12 * layer + SEVEN.embedding_bytes, 0, 0, 1)
    speeds = {"CUDA0": Speed(1e12, 0.0), "host": Speed(1e10, 1e-3)}
    expected = 20 * layer / 1e12 + 12 * layer / 1e10 + 12e-3
    assert predict_solo(SEVEN, solo(on_gpu, in_memory), speeds) == pytest.approx(1 / expected, rel=0.01)
    assert predict_solo(SEVEN, solo(on_gpu, in_memory), {"CUDA0": speeds["CUDA0"]}) is None
    bare = Share("host", 0, SEVEN.embedding_bytes, 0, 0, 1)
    assert predict_solo(SEVEN, solo(on_gpu, bare), {"CUDA0": speeds["CUDA0"]}) == pytest.approx(
        1e12 / (20 * layer), rel=0.01
    )
    assert predict_solo(SEVEN, solo(bare), {}) is None


def test_of_a_mixture_only_the_active_part_is_read() -> None:
    share = Share("host", 48, sum(layer.weights_bytes for layer in MIXTURE.layers) + MIXTURE.embedding_bytes, 0, 0, 1)
    read = 0.1 * (share.weights_bytes - MIXTURE.embedding_bytes)
    assert predict_solo(MIXTURE, solo(share), {"host": Speed(1e10, 0.0)}) == pytest.approx(1e10 / read, rel=0.01)


def test_a_prompt_fills_the_pipeline_once_and_then_waits_for_the_slowest() -> None:
    assert prompt_s([0.1, 0.3], [0.02, 0.02, 0.02], 4 * UBATCH) == pytest.approx(0.46 + 3 * 0.3)
    assert prompt_s([0.1, 0.3], [0.02], UBATCH // 2) == pytest.approx(0.21)
    assert prompt_s([0.1], [], 0) == prompt_s([], [], 100) == 0.0
