import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.identity import Identity, ephemeral
from meshnode.settlement.addresses import shown
from meshnode.settlement.keys import VoucherKey
from meshnode.settlement.node_binding import PURPOSE, BoundRole, NodeBinding, binding_digest, bound, opened
from meshnode.wire.signed import seal
from meshnode.wire.values import WireError

CHAIN = 84532
NOW = 1_800_000_000.0
NODE = ephemeral()
KEY = VoucherKey.from_secret(b"\x17" * 32)


def made(node: Identity = NODE, key: VoucherKey = KEY, role: BoundRole = BoundRole.RECEIVER) -> bytes:
    return bound(node.sign, key, node.node_id, role, CHAIN, int(NOW) + 60)


def test_a_binding_names_both() -> None:
    found = opened(made(), NOW)
    assert (found.node, found.account) == (NODE.node_id, KEY.address)
    assert (found.role, found.chain, found.not_after) == (BoundRole.RECEIVER, CHAIN, int(NOW) + 60)


def test_the_account_signs_what_a_wallet_would_show() -> None:
    members = [("node", "bytes32"), ("account", "address"), ("role", "uint8"), ("notAfter", "uint64")]
    types = {"NodeBinding": [{"name": name, "type": kind} for name, kind in members]}
    message = {"node": NODE.node_id, "account": shown(KEY.address), "role": 2, "notAfter": int(NOW) + 60}
    signable = encode_typed_data({"name": "meshnode", "version": "1", "chainId": CHAIN}, types, message)
    theirs = Account.sign_message(signable, KEY.reveal())
    assert bytes(theirs.message_hash) == binding_digest(NODE.node_id, KEY.address, 2, CHAIN, int(NOW) + 60)
    assert opened(made(), NOW).account_signature == bytes(theirs.signature)


def test_it_ends() -> None:
    assert opened(made(), NOW + 60)
    with pytest.raises(WireError, match="over"):
        opened(made(), NOW + 61)


def test_neither_can_name_the_other_alone() -> None:
    other_node, other_key = ephemeral(), VoucherKey.generate()
    signature = other_key.sign(binding_digest(NODE.node_id, KEY.address, 2, CHAIN, int(NOW) + 60))
    claim = NodeBinding(NODE.node_id, KEY.address, 2, CHAIN, int(NOW) + 60, signature)
    with pytest.raises(WireError, match="its account"):
        opened(seal(PURPOSE, claim, NODE.sign), NOW)
    good = opened(made(), NOW)
    with pytest.raises(WireError, match="its node"):
        opened(seal(PURPOSE, good, other_node.sign), NOW)
    with pytest.raises(WireError, match="its node"):
        opened(seal("receipt", good, NODE.sign), NOW)


@pytest.mark.parametrize("change", [{"role": 1}, {"chain": 8453}, {"not_after": 2**62}, {"account": b"\x01" * 20}])
def test_a_node_cannot_change_what_the_account_signed(change: dict[str, int | bytes]) -> None:
    good = opened(made(), NOW)
    fields = {name: getattr(good, name) for name in NodeBinding.__dataclass_fields__} | change
    with pytest.raises(WireError, match="its account"):
        opened(seal(PURPOSE, NodeBinding(**fields), NODE.sign), NOW)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_every_changed_byte_is_noticed(data: st.DataObject) -> None:
    good = bytearray(made())
    at = data.draw(st.integers(0, len(good) - 1))
    good[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(WireError):
        opened(bytes(good), NOW)


@given(st.binary(max_size=600))
def test_no_bytes_make_it_fail(data: bytes) -> None:
    with pytest.raises(WireError):
        opened(data, NOW)
