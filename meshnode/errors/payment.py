"""Money: what may not be spent, and what cannot be settled."""

from __future__ import annotations

from meshnode.errors.root import MeshnodeError


class PaymentError(MeshnodeError):
    """The payment cannot be made."""

    code = "payment"
    http_status = 402
    exit_code = 8


class PaymentRequired(PaymentError):
    """The node that could answer wants to be paid."""

    code = "payment-required"
    fix = "say what you would pay: meshnode wallet policy"


class PaymentsOff(PaymentError):
    """This node pays nobody."""

    code = "payments-off"
    fix = "to pay strangers within bounds that you set: meshnode wallet policy --mode auto"


class PriceAboveCeiling(PaymentError):
    """The price is above the ceiling of this node."""

    code = "price-above-ceiling"
    fix = "raise the ceiling in a terminal, meshnode wallet policy, or wait for a cheaper node"


class MonthlyCapReached(PaymentError):
    """The request could cost more than is left of this month's cap."""

    code = "monthly-cap-reached"
    fix = "ask for a shorter answer (max_tokens), or raise the cap in a terminal: meshnode wallet policy"


class GasCapReached(PaymentError):
    """The transaction could cost more than is left of this month's cap for fees."""

    code = "gas-cap-reached"
    fix = "wait until fees are lower, or raise the cap in a terminal: meshnode wallet policy"


class NoChannel(PaymentError):
    """There is no funded payment channel to the node that could answer."""

    code = "no-channel"
    fix = "open one: meshnode wallet deposit NODE AMOUNT"


class PaymentRefused(PaymentError):
    """The other node does not take the payment.

    `pay_code` is one of the payment codes of the protocol.
    """

    code = "payment-refused"

    def __init__(self, detail: str = "", *, pay_code: int = 0, fix: str = "") -> None:
        super().__init__(detail, fix=fix)
        self.pay_code = pay_code


class ReceiptInvalid(PaymentError):
    """The receipt is not what a provider has signed."""

    code = "receipt-invalid"
    http_status = 400


class NoWallet(PaymentError):
    """This node has no wallet."""

    code = "no-wallet"
    http_status = 409
    fix = "make one: meshnode wallet new"


class WalletLocked(PaymentError):
    """The key that holds the funds is locked."""

    code = "wallet-locked"
    http_status = 409
    fix = "give its password: MESHNODE_WALLET_PASSWORD_FILE, or run the command in a terminal"


class WalletInUse(PaymentError):
    """Another node pays from this wallet."""

    code = "wallet-in-use"
    http_status = 409
    fix = "stop that node, or give this one a wallet of its own: meshnode wallet new"


class WrongPassword(PaymentError):
    """The password does not open the key."""

    code = "wrong-password"
    http_status = 400


class KeystoreInvalid(PaymentError):
    """The file is no keystore that can be used."""

    code = "keystore-invalid"
    http_status = 400
    fix = "give it a keystore of version 3, as other wallets export it"


class NotTerminal(PaymentError):
    """What is spent can be raised in a terminal only."""

    code = "not-a-terminal"
    http_status = 403
    fix = "run the command yourself, in a terminal"


class LedgerDamaged(PaymentError):
    """The record of payments cannot be used, so nothing is paid or earned."""

    code = "ledger-damaged"
    http_status = 500
    fix = "put back the newest copy of the file, or move it away: channels are then closed by what the chain says"


class WrongNetwork(PaymentError):
    """What answers is not the chain, the token or the contract that this node was told to use."""

    code = "wrong-network"
    http_status = 503


class ChainUnreachable(PaymentError):
    """The chain cannot be reached."""

    code = "chain-unreachable"
    http_status = 503
    fix = "look at the network, or name other endpoints with --rpc"


class ChainDisagrees(PaymentError):
    """Two endpoints of the chain say different things, so neither is believed."""

    code = "chain-disagrees"
    http_status = 503
    fix = "name other endpoints with --rpc"


class TransactionFailed(PaymentError):
    """The transaction would fail, or has failed."""

    code = "transaction-failed"
    http_status = 502
