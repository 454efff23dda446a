"""A policy file is read whole or not at all, and nothing that allows more passes for less."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode import policies
from meshnode.core.pay_policy import Policy
from meshnode.core.prices import MOST_MICROS, MOST_PRICE, Price
from meshnode.errors import StateError
from meshnode.policies import AMOUNTS, PolicyFile, StoredPolicy, loosened, with_ceiling

PRICE = Price(200_000, 600_000)
SET = StoredPolicy(
    "base-sepolia", Policy("auto", PRICE, {"qwen": Price(1, 2), "große": Price(0, MOST_PRICE)}, 5_000_000)
)
prices = st.builds(Price, st.integers(0, 1000), st.integers(0, 1000))
policy_values = st.builds(
    Policy,
    st.sampled_from(("off", "auto")),
    st.none() | prices,
    st.dictionaries(st.sampled_from("abc"), prices, max_size=3),
    *(st.integers(0, 1000) for _ in AMOUNTS),
)
stored_values = st.builds(StoredPolicy, st.sampled_from(("base", "base-sepolia")), policy_values)


# --- the text -----------------------------------------------------------------------------------------------------


@given(stored_values)
def test_what_is_written_is_read(stored: StoredPolicy) -> None:
    assert policies.read(policies.write(stored)) == stored


def broken(**members: Any) -> dict[str, Any]:
    return {**json.loads(policies.write(SET)), **members}


@pytest.mark.parametrize(
    "facts",
    [
        [],
        {},
        None,
        {**broken(), "more": 1},
        {name: value for name, value in broken().items() if name != "gas_month_micros"},
        broken(version=2),
        broken(version="1"),
        broken(mode="on"),
        broken(mode=None),
        broken(mode=["auto"]),
        broken(network=""),
        broken(network="n" * 41),
        broken(network="base\u202e"),
        broken(network=84532),
        broken(ceiling={"in": 1}),
        broken(ceiling={"in": 1, "out": -1}),
        broken(ceiling={"in": 1, "out": 1.5}),
        broken(ceiling={"in": True, "out": 1}),
        broken(ceiling={"in": 1, "out": MOST_PRICE + 1}),
        broken(ceiling="0.2"),
        broken(model_ceilings=[]),
        broken(model_ceilings={"m" * 65: {"in": 1, "out": 1}}),
        broken(model_ceilings={"": {"in": 1, "out": 1}}),
        broken(model_ceilings={f"m{number}": {"in": 1, "out": 1} for number in range(201)}),
        *(broken(**{name: value}) for name in AMOUNTS for value in (-1, MOST_MICROS + 1, "5", 5.0, True, None)),
    ],
    ids=lambda facts: json.dumps(facts)[:60],
)
def test_a_text_that_is_not_one_is_not_read_in_part(facts: Any) -> None:
    with pytest.raises(ValueError):
        policies.read(json.dumps(facts).encode())


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000, b" " * (policies.MOST_BYTES + 1), b"NaN"])
def test_bytes_that_are_none_are_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        policies.read(text)


# --- more and less ------------------------------------------------------------------------------------------------


def allows(stored: StoredPolicy, network: str, model: str, price: Price) -> bool:
    return stored.network == network and stored.policy.refusal(price, model) is None


@given(stored_values, stored_values, prices, st.sampled_from("abcd"))
def test_what_is_not_looser_allows_nothing_that_was_not_allowed(
    before: StoredPolicy, after: StoredPolicy, price: Price, model: str
) -> None:
    if loosened(before, after):
        return
    assert before.network == after.network
    assert all(getattr(after.policy, name) <= getattr(before.policy, name) for name in AMOUNTS)
    if allows(after, after.network, model, price):
        assert allows(before, after.network, model, price)


@given(stored_values, stored_values, prices, st.sampled_from("abcd"))
def test_nothing_is_raised_in_secret_while_payments_are_off(
    before: StoredPolicy, after: StoredPolicy, price: Price, model: str
) -> None:
    """Steps that pass without a person, then a person who only switches payments on."""
    off = StoredPolicy(after.network, replace(after.policy, mode="off"))
    if loosened(before, off):
        return
    on = StoredPolicy(off.network, replace(off.policy, mode="auto"))
    meant = StoredPolicy(before.network, replace(before.policy, mode="auto"))
    assert not allows(on, on.network, model, price) or allows(meant, on.network, model, price)


@given(stored_values)
def test_the_same_and_off_are_no_more(stored: StoredPolicy) -> None:
    assert loosened(stored, stored) == ()
    assert loosened(stored, StoredPolicy(stored.network, replace(stored.policy, mode="off"))) == ()
    assert loosened(stored, StoredPolicy(stored.network, Policy(month_micros=0, **dict.fromkeys(AMOUNTS[1:], 0)))) == ()


def policy(**values: Any) -> StoredPolicy:
    return StoredPolicy(SET.network, replace(SET.policy, **values))


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (policy(month_micros=5_000_001), "the cap of a month: $5.000001, not $5.00"),
        (policy(gas_month_micros=2_000_000), "the cap of a month for fees: $2.00, not $1.00"),
        (policy(ceiling=Price(200_001, 0)), "the price ceiling: $0.200001 in and $0.00 out, not"),
        (policy(model_ceilings={}), "the price ceiling of qwen: $0.20 in and $0.60 out, not"),
        (
            policy(model_ceilings={**SET.policy.model_ceilings, "new": Price(0, 600_001)}),
            "the price ceiling of new: $0.00 in and $0.600001 out, not",
        ),
        (StoredPolicy("base", SET.policy), "the network: base, not base-sepolia"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_more_is_said_in_words(after: StoredPolicy, words: str) -> None:
    assert [each for each in loosened(SET, after) if each.startswith(words)]


def test_switching_on_is_more() -> None:
    assert loosened(policy(mode="off"), SET) == ("payments: on",)
    assert loosened(StoredPolicy(), StoredPolicy(policy=Policy("auto", PRICE, {}, 1)))[:2] == (
        "payments: on",
        "the cap of a month: $0.000001, not $0.00",
    )


def test_ceilings_of_one_direction() -> None:
    bare = Policy()
    assert with_ceiling(bare, "", None, 600_000).ceiling == Price(600_000, 600_000), "a prompt as dear as an answer"
    assert with_ceiling(bare, "", 100_000, 600_000).ceiling == Price(100_000, 600_000)
    assert with_ceiling(SET.policy, "", 7, None).ceiling == Price(7, 600_000)
    assert with_ceiling(SET.policy, "qwen", None, 9).model_ceilings["qwen"] == Price(1, 9)
    assert with_ceiling(SET.policy, "other", 3, None).model_ceilings["other"] == Price(3, 600_000)
    full = replace(bare, model_ceilings={f"m{number}": PRICE for number in range(policies.MOST_MODELS)})
    with pytest.raises(ValueError, match="no more than 200"):
        with_ceiling(full, "other", 1, 1)
    assert with_ceiling(full, "m0", 1, 1).model_ceilings["m0"] == Price(1, 1)
    for name in ("m" * 65, "a\u202eb"):
        with pytest.raises(ValueError):
            with_ceiling(bare, name, 1, 1)


# --- the file -----------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> PolicyFile:
    return PolicyFile(tmp_path / "wallet" / "policy.json")


def test_nobody_said_anything(file: PolicyFile) -> None:
    assert file.load() == StoredPolicy() and file.load().policy.mode == "off"
    assert not file.file.parent.exists(), "looking makes nothing"


def test_a_change_is_seen_at_once_and_by_all(file: PolicyFile) -> None:
    other = PolicyFile(file.file)
    file.save(SET)
    assert other.load() == SET == file.load()
    assert file.file.stat().st_mode & 0o777 == 0o600
    changed = policy(month_micros=1)
    other.save(changed)
    assert file.load() == changed
    file.file.unlink()
    assert file.load() == StoredPolicy()


def test_it_is_read_once_while_it_stays_the_same(file: PolicyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.save(SET)
    file.load()
    monkeypatch.setattr(policies, "read", lambda _: pytest.fail("it was read again"))
    assert [file.load() for _ in range(3)] == [SET] * 3


@pytest.mark.parametrize("text", [b"{}", b"", b"\x00" * 100])
def test_a_damaged_file_says_so_until_it_is_mended(file: PolicyFile, text: bytes) -> None:
    file.save(SET)
    file.load()
    file.file.write_bytes(text)
    for _ in range(2):
        with pytest.raises(StateError, match=r"policy\.json") as refused:
            file.load()
    assert "meshnode wallet policy --reset" in refused.value.fix
    file.save(SET)
    assert file.load() == SET


def test_a_file_that_others_can_write_allows_nothing(file: PolicyFile) -> None:
    file.save(SET)
    file.file.chmod(0o620)
    with pytest.raises(StateError, match="others can write it"):
        file.load()
    file.file.chmod(0o644)
    assert file.load() == SET


def test_a_folder_in_its_place(file: PolicyFile) -> None:
    file.file.mkdir(parents=True)
    with pytest.raises(StateError, match="cannot be read"):
        file.load()


def test_changes_wait_for_each_other(file: PolicyFile) -> None:
    entered, other = threading.Event(), PolicyFile(file.file)

    def change() -> None:
        with other.changing():
            entered.set()

    with file.changing():
        waiting = threading.Thread(target=change)
        waiting.start()
        assert not entered.wait(0.05)
    assert entered.wait(5)
    waiting.join()
    assert list(file.file.parent.iterdir()) == [], "the lock leaves no file"
