from pathlib import Path

import pytest

from meshnode.identity import load_or_create, verify
from meshnode.mesh.lineage import REPLACEMENT_SHOWN_S, chain, ends_at, issued, renewal_due, replacement
from meshnode.wire import certificates
from meshnode.wire.registry import LIMIT_CERTIFICATE_TTL_S, Close, Role
from meshnode.wire.values import WireError
from tests.mesh.members import DAY_S, NOW_S

ENDS = NOW_S + LIMIT_CERTIFICATE_TTL_S


@pytest.fixture
def keys(tmp_path: Path) -> list:
    return [load_or_create(tmp_path / str(number)) for number in range(5)]


def line(keys: list, *, now_s: float = NOW_S, count: int = 3) -> list[bytes]:
    """mesh -> 1 -> 2 -> 3, each of whom may invite."""
    found = [b""]
    for number in range(1, count + 1):
        found.append(
            issued(
                keys[number - 1].sign,
                mesh=keys[0].node_id,
                node=keys[number].node_id,
                role=Role.MEMBER,
                may_invite=True,
                authority=found[-1],
                now_s=now_s,
            )
        )
    return found[1:]


def test_what_is_issued_is_what_others_accept(keys: list) -> None:
    for number, signed in enumerate(line(keys), 1):
        checked = certificates.check(
            signed, mesh=keys[0].node_id, node=keys[number].node_id, now_s=NOW_S, verify=verify
        )
        assert [link.node for link in chain(signed)] == [key.node_id for key in keys[number:0:-1]]
        assert checked.not_after == ends_at(signed) == ENDS
    assert len({chain(signed)[0].serial for signed in line(keys) + line(keys)}) == 6


def test_a_chain_is_not_made_longer_than_others_accept(keys: list) -> None:
    with pytest.raises(WireError) as caught:
        line(keys, count=4)
    assert caught.value.code == Close.NOT_ADMITTED
    with pytest.raises(WireError):
        replacement(keys[3].sign, signed=line(keys)[2], successor=keys[4].node_id, now_s=NOW_S)


def test_nothing_outlives_its_signer(keys: list) -> None:
    first = line(keys, count=1)[0]
    common = {"mesh": keys[0].node_id, "node": keys[2].node_id, "role": Role.CLIENT, "may_invite": False}
    later = issued(keys[1].sign, authority=first, now_s=NOW_S + 50 * DAY_S, **common)
    assert ends_at(later) == ENDS
    with pytest.raises(WireError) as caught:
        issued(keys[1].sign, authority=first, now_s=ENDS, **common)
    assert caught.value.code == Close.CERTIFICATE_EXPIRED


def test_a_replacement_has_the_same_rights(keys: list) -> None:
    first = line(keys, count=1)[0]
    signed = replacement(keys[1].sign, signed=first, successor=keys[2].node_id, now_s=NOW_S + DAY_S)
    found = certificates.check(signed, mesh=keys[0].node_id, node=keys[2].node_id, now_s=NOW_S + DAY_S, verify=verify)
    assert (found.replaces, found.may_invite, found.role, found.not_after) == (True, True, Role.MEMBER, ENDS)
    assert certificates.replaced_keys(signed) == (keys[1].node_id,)


def test_when_to_renew(keys: list) -> None:
    first = line(keys, count=1)[0]
    two_thirds = NOW_S + LIMIT_CERTIFICATE_TTL_S * 2 / 3
    assert not renewal_due(first, NOW_S)
    assert not renewal_due(first, two_thirds - 1)
    assert renewal_due(first, two_thirds)
    replaced = replacement(keys[1].sign, signed=first, successor=keys[2].node_id, now_s=NOW_S + DAY_S)
    assert not renewal_due(replaced, NOW_S + DAY_S + REPLACEMENT_SHOWN_S - 1)
    assert renewal_due(replaced, NOW_S + DAY_S + REPLACEMENT_SHOWN_S)
    # The share counts from the day of issue, not from the backdated beginning.
    short = issued(
        keys[1].sign,
        mesh=keys[0].node_id,
        node=keys[3].node_id,
        role=Role.MEMBER,
        may_invite=False,
        authority=first,
        now_s=ENDS - 3 * DAY_S,
    )
    assert not renewal_due(short, ENDS - DAY_S - 1)
    assert renewal_due(short, ENDS - DAY_S)
