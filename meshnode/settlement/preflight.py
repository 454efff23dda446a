"""Whether a deposit can work, found out before anyone signs it or pays for its transaction.

A simulation says only that a transaction would fail. Most of what makes a deposit fail has a plain cause and a remedy:
no money, a paused token, a blocked or delegated account, an authorization that was used, is late or was signed by
someone else. Each is asked for by itself, so that a person reads which it is.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

from meshnode.errors import ChainDisagrees, TransactionFailed
from meshnode.settlement import contracts
from meshnode.settlement.abi_codec import Malformed
from meshnode.settlement.addresses import shown, why_cannot_authorize
from meshnode.settlement.contracts import Authorization
from meshnode.settlement.fees import dollars
from meshnode.settlement.keys import recover
from meshnode.settlement.networks import Network
from meshnode.settlement.rpc import RpcPair
from meshnode.settlement.typed_data import (
    ChannelConfig,
    channel_id,
    deposit_nonce,
    receive_authorization_digest,
)

LEAST_LEFT_S = 120
"""An authorization that ends sooner may not be in a block before that."""
MOST_LEFT_S = 86_400
"""One that is good for longer is not asked for, and not taken: it could be used long after it is forgotten."""

Cause = Literal["paused", "blocked", "delegated", "balance", "signature", "time", "used"]


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a deposit would fail, and in words."""

    cause: Cause
    text: str


def authorization_digest(network: Network, config: ChannelConfig, terms: Authorization) -> bytes:
    """What the payer signs so that the collector may take this deposit, for this channel and no other."""
    channel = channel_id(config, network.chain, network.hub)
    return receive_authorization_digest(
        config.payer,
        network.collector,
        terms.amount_micros,
        terms.valid_after,
        terms.valid_before,
        deposit_nonce(channel, terms.salt),
        network.token_domain,
    )


async def obstacle(
    rpc: RpcPair, network: Network, config: ChannelConfig, amount_micros: int, given: Authorization | None = None
) -> Obstacle | None:
    """What stands against a deposit now, by the payer's account, and by its authorization if it has been signed.

    Raises ChainUnreachable, ChainDisagrees.
    """
    if given is not None:
        wrong = await _wrong_with(rpc, network, config, given)
        if wrong is not None:
            return wrong
    payer = config.payer
    code, paused, balance, *blocked = await asyncio.gather(
        rpc.code(payer),
        _token(rpc, network, "paused"),
        _token(rpc, network, "balanceOf", payer),
        *(_token(rpc, network, "isBlacklisted", account) for account in (payer, network.hub, network.collector)),
    )
    if words := why_cannot_authorize(code):
        return Obstacle("delegated", f"{shown(payer)}: {words}")
    if paused:
        return Obstacle("paused", f"the token {shown(network.token)} is paused: nobody can move it now")
    for account, is_blocked in zip((payer, network.hub, network.collector), blocked, strict=True):
        if is_blocked:
            return Obstacle("blocked", f"the issuer of the token has blocked {shown(account)}")
    if balance < amount_micros:
        text = f"{shown(payer)} has {dollars(balance)} on {network.title}, and {dollars(amount_micros)} are wanted"
        return Obstacle("balance", text)
    return None


async def _wrong_with(rpc: RpcPair, network: Network, config: ChannelConfig, given: Authorization) -> Obstacle | None:
    if recover(authorization_digest(network, config, given), given.signature) != config.payer:
        return Obstacle("signature", "the authorization of the deposit is not signed by its payer")
    now = (await rpc.head()).at
    if not given.valid_after < now or not LEAST_LEFT_S <= given.valid_before - now <= MOST_LEFT_S:
        return Obstacle("time", "the authorization of the deposit is not good now, or for too long")
    channel = channel_id(config, network.chain, network.hub)
    if await is_used(rpc, network, config.payer, channel, given.salt):
        return Obstacle("used", "the authorization of the deposit has been used")
    return None


async def balance(rpc: RpcPair, network: Network, account: bytes) -> int:
    """The micro-USDC of an account."""
    return int(await _token(rpc, network, "balanceOf", account))


async def is_used(
    rpc: RpcPair, network: Network, payer: bytes, channel: bytes, salt: bytes, *, block: int | None = None
) -> bool:
    """Whether the chain has taken an authorization up to a block, or its payer has cancelled it.

    At a block that is older than the token, it has not.
    """
    name, nonce = "authorizationState", deposit_nonce(channel, salt)
    return bool(await _token(rpc, network, name, payer, nonce, block=block, before_it=False))


async def _token(
    rpc: RpcPair, network: Network, name: str, *arguments: Any, block: int | None = None, before_it: Any = None
) -> Any:
    """What the token answers; `before_it` at an older block in which there was no token."""
    try:
        answer = await rpc.call(network.token, contracts.token_question(name, *arguments), block=block)
        if block is not None and not answer:
            return before_it
        return contracts.token_answer(name, answer)
    except (Malformed, TransactionFailed) as error:
        raise ChainDisagrees(f"the token does not answer `{name}` as it should: {error}") from None
