// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// One-way payment channels with cumulative vouchers, in the interface and the EIP-712 types of the public x402
/// "batch-settlement" scheme. For tests and local chains: public networks have the deployed contract of that scheme,
/// and this one was never audited. It imports nothing.
///
/// A channel is what its ChannelConfig says and nothing else; its id is the EIP-712 hash of the config under this
/// contract's domain, so that it belongs to one chain and one contract. The payer deposits, then signs ever higher
/// ceilings off the chain; the receiver claims up to the last one. Per channel `totalClaimed <= balance` holds always,
/// where `balance` is everything paid in less what went back to the payer.

interface IPayable {
    function balanceOf(address account) external view returns (uint256);
    function transfer(address to, uint256 value) external returns (bool);
}

interface IReceivable {
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external;
}

interface ICollector {
    /// Brings `amount` of `token` from the payer to the caller, or reverts.
    function collect(address payer, address token, uint128 amount, bytes32 channelId, bytes calldata data) external;
}

interface IERC1271 {
    function isValidSignature(bytes32 digest, bytes calldata signature) external view returns (bytes4);
}

/// Takes every token with a `transfer` that returns true, false or nothing, and only true or nothing for success.
library Payment {
    error TransferFailed();

    function send(address token, address to, uint256 amount) internal {
        (bool done, bytes memory answer) = token.call(abi.encodeCall(IPayable.transfer, (to, amount)));
        if (!done) {
            // The token's own words (paused, blacklisted) say more than ours.
            assembly ("memory-safe") {
                revert(add(answer, 32), mload(answer))
            }
        }
        bool silent = answer.length == 0 && token.code.length > 0;
        if (!silent && (answer.length < 32 || !abi.decode(answer, (bool)))) revert TransferFailed();
    }
}

contract PaymentChannels {
    struct ChannelConfig {
        address payer;
        address payerAuthorizer;
        address receiver;
        address receiverAuthorizer;
        address token;
        uint40 withdrawDelay;
        bytes32 salt;
    }

    struct Voucher {
        ChannelConfig channel;
        uint128 maxClaimableAmount;
    }

    struct VoucherClaim {
        Voucher voucher;
        bytes signature;
        uint128 totalClaimed;
    }

    struct Channel {
        uint128 balance;
        uint128 totalClaimed;
    }

    /// Money on its way back to the payer: the exit that the payer began, and how many refunds the receiver has signed.
    /// Both are looked at with every refund, so they share a slot.
    struct Return {
        uint128 amount;
        uint40 initiatedAt;
        uint88 refunds;
    }

    struct Earnings {
        uint128 totalClaimed;
        uint128 totalSettled;
    }

    event ChannelCreated(bytes32 indexed channelId, ChannelConfig config);
    event ChannelClosed(bytes32 indexed channelId, ChannelConfig config);
    event Deposited(bytes32 indexed channelId, address indexed sender, uint128 amount, uint128 newBalance);
    event Claimed(bytes32 indexed channelId, address indexed sender, uint128 claimAmount, uint128 newTotalClaimed);
    event Settled(address indexed receiver, address indexed token, address indexed sender, uint128 amount);
    event Refunded(bytes32 indexed channelId, address indexed sender, uint128 amount);
    event WithdrawInitiated(bytes32 indexed channelId, uint128 amount, uint40 finalizeAfter);
    event WithdrawFinalized(bytes32 indexed channelId, address indexed sender, uint128 amount);

    error Busy();
    error InvalidConfig();
    error InvalidAmount();
    error DepositNotReceived();
    error NotAParty();
    error InvalidSignature();
    error AboveCeiling(bytes32 channelId);
    error AboveBalance(bytes32 channelId);
    error EmptyBatch();
    error MixedBatch();
    error WithdrawalPending();
    error NoWithdrawal();
    error TooEarly(uint256 finalizeAfter);
    error WrongNonce(uint256 expected);

    uint40 public constant MIN_WITHDRAW_DELAY = 15 minutes;
    uint40 public constant MAX_WITHDRAW_DELAY = 30 days;

    bytes32 public constant CHANNEL_CONFIG_TYPEHASH = keccak256(
        "ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,"
        "address token,uint40 withdrawDelay,bytes32 salt)"
    );
    bytes32 public constant VOUCHER_TYPEHASH = keccak256("Voucher(bytes32 channelId,uint128 maxClaimableAmount)");
    bytes32 public constant REFUND_TYPEHASH = keccak256("Refund(bytes32 channelId,uint256 nonce,uint128 amount)");
    bytes32 public constant CLAIM_ENTRY_TYPEHASH =
        keccak256("ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)");
    bytes32 public constant CLAIM_BATCH_TYPEHASH = keccak256(
        "ClaimBatch(ClaimEntry[] claims)"
        "ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"
    );
    bytes32 private constant DOMAIN_TYPEHASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
    string private constant NAME = "x402 Batch Settlement";
    string private constant VERSION = "1";
    uint256 private constant HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0;

    mapping(bytes32 channelId => Channel) public channels;
    mapping(bytes32 channelId => Return) private goingBack;
    mapping(address receiver => mapping(address token => Earnings)) public receivers;

    bool private transient busy;

    /// Nothing that changes state runs inside of anything else that does: tokens and collectors are strangers' code.
    modifier alone() {
        if (busy) revert Busy();
        busy = true;
        _;
        busy = false;
    }

    // ------------------------------------------------------------------------------------------------- paying in

    /// Anyone may bring a deposit; whose money it is, the collector decides from what the payer signed.
    function deposit(ChannelConfig calldata config, uint128 amount, address collector, bytes calldata collectorData)
        external
        alone
    {
        if (
            config.payer == address(0) || config.receiver == address(0) || config.receiverAuthorizer == address(0)
                || config.token == address(0) || config.withdrawDelay < MIN_WITHDRAW_DELAY
                || config.withdrawDelay > MAX_WITHDRAW_DELAY
        ) revert InvalidConfig();
        if (amount == 0) revert InvalidAmount();
        bytes32 channelId = getChannelId(config);
        Channel storage channel = channels[channelId];
        uint128 balance = channel.balance;
        // A drained channel that is filled again is announced again.
        if (balance == channel.totalClaimed) emit ChannelCreated(channelId, config);
        balance += amount;
        channel.balance = balance;
        emit Deposited(channelId, msg.sender, amount, balance);

        uint256 held = IPayable(config.token).balanceOf(address(this));
        ICollector(collector).collect(config.payer, config.token, amount, channelId, collectorData);
        if (IPayable(config.token).balanceOf(address(this)) != held + amount) revert DepositNotReceived();
    }

    // -------------------------------------------------------------------------------------------------- claiming

    /// For the receiver or its authorizer. A voucher at or below what is claimed already changes nothing.
    function claim(VoucherClaim[] calldata voucherClaims) external alone {
        bytes32 domain = _domain();
        for (uint256 index = 0; index < voucherClaims.length; ++index) {
            ChannelConfig calldata config = voucherClaims[index].voucher.channel;
            if (msg.sender != config.receiver && msg.sender != config.receiverAuthorizer) revert NotAParty();
            _claim(voucherClaims[index], _channelId(domain, config), domain);
        }
    }

    /// For anyone who holds the signature of the one authorizer of all these channels over exactly this batch.
    function claimWithSignature(VoucherClaim[] calldata voucherClaims, bytes calldata authorizerSignature)
        external
        alone
    {
        if (voucherClaims.length == 0) revert EmptyBatch();
        bytes32 domain = _domain();
        address authorizer = voucherClaims[0].voucher.channel.receiverAuthorizer;
        (bytes32[] memory ids, bytes32 digest) = _batch(voucherClaims, domain);
        if (!_isSignedBy(authorizer, digest, authorizerSignature)) revert InvalidSignature();
        for (uint256 index = 0; index < voucherClaims.length; ++index) {
            if (voucherClaims[index].voucher.channel.receiverAuthorizer != authorizer) revert MixedBatch();
            _claim(voucherClaims[index], ids[index], domain);
        }
    }

    /// Sends a receiver what was claimed and not sent yet; nothing to send is no error. Anyone may call it.
    function settle(address receiver, address token) external alone {
        Earnings storage earnings = receivers[receiver][token];
        uint128 amount = earnings.totalClaimed - earnings.totalSettled;
        if (amount == 0) return;
        earnings.totalSettled += amount;
        emit Settled(receiver, token, msg.sender, amount);
        Payment.send(token, receiver, amount);
    }

    // ----------------------------------------------------------------------------------------------- going back

    /// Starts the payer's exit. What the receiver claims before its end goes first.
    function initiateWithdraw(ChannelConfig calldata config, uint128 amount) external alone {
        if (msg.sender != config.payer && msg.sender != config.payerAuthorizer) revert NotAParty();
        bytes32 channelId = getChannelId(config);
        Channel storage channel = channels[channelId];
        if (amount == 0) revert InvalidAmount();
        if (amount > channel.balance - channel.totalClaimed) revert AboveBalance(channelId);
        Return storage exit = goingBack[channelId];
        if (exit.amount != 0) revert WithdrawalPending();
        uint40 now_ = uint40(block.timestamp);
        exit.amount = amount;
        exit.initiatedAt = now_;
        emit WithdrawInitiated(channelId, amount, now_ + config.withdrawDelay);
    }

    /// Ends the payer's exit: pays what was asked for, or what is left of it.
    function finalizeWithdraw(ChannelConfig calldata config) external alone {
        if (msg.sender != config.payer && msg.sender != config.payerAuthorizer) revert NotAParty();
        bytes32 channelId = getChannelId(config);
        Return storage exit = goingBack[channelId];
        uint128 amount = exit.amount;
        if (amount == 0) revert NoWithdrawal();
        uint256 finalizeAfter = uint256(exit.initiatedAt) + config.withdrawDelay;
        if (block.timestamp < finalizeAfter) revert TooEarly(finalizeAfter);
        exit.amount = 0;
        exit.initiatedAt = 0;
        amount = _takeOut(config, channelId, amount);
        emit WithdrawFinalized(channelId, msg.sender, amount);
        if (amount != 0) Payment.send(config.token, config.payer, amount);
    }

    /// Gives back to the payer at once, as the receiver or its authorizer: at most what is not claimed.
    function refund(ChannelConfig calldata config, uint128 amount) external alone {
        if (msg.sender != config.receiver && msg.sender != config.receiverAuthorizer) revert NotAParty();
        _refund(config, getChannelId(config), amount);
    }

    /// The same for anyone with the authorizer's signature, which is good once.
    function refundWithSignature(
        ChannelConfig calldata config,
        uint128 amount,
        uint256 nonce,
        bytes calldata receiverAuthorizerSignature
    ) external alone {
        bytes32 channelId = getChannelId(config);
        uint88 expected = goingBack[channelId].refunds;
        if (nonce != expected) revert WrongNonce(expected);
        bytes32 digest = getRefundDigest(channelId, nonce, amount);
        if (!_isSignedBy(config.receiverAuthorizer, digest, receiverAuthorizerSignature)) revert InvalidSignature();
        goingBack[channelId].refunds = expected + 1;
        _refund(config, channelId, amount);
    }

    // -------------------------------------------------------------------------------------------------- together

    /// Several calls as one, all or nothing; each answers for its own right. It takes no ether, so none counts twice.
    function multicall(bytes[] calldata data) external returns (bytes[] memory results) {
        results = new bytes[](data.length);
        for (uint256 index = 0; index < data.length; ++index) {
            (bool done, bytes memory answer) = address(this).delegatecall(data[index]);
            if (!done) {
                assembly ("memory-safe") {
                    revert(add(answer, 32), mload(answer))
                }
            }
            results[index] = answer;
        }
    }

    // --------------------------------------------------------------------------------------------------- reading

    function pendingWithdrawals(bytes32 channelId) external view returns (uint128 amount, uint40 initiatedAt) {
        return (goingBack[channelId].amount, goingBack[channelId].initiatedAt);
    }

    function refundNonce(bytes32 channelId) external view returns (uint256) {
        return goingBack[channelId].refunds;
    }

    function getChannelId(ChannelConfig calldata config) public view returns (bytes32) {
        return _channelId(_domain(), config);
    }

    function getVoucherDigest(bytes32 channelId, uint128 maxClaimableAmount) external view returns (bytes32) {
        return _digest(_domain(), keccak256(abi.encode(VOUCHER_TYPEHASH, channelId, maxClaimableAmount)));
    }

    function getRefundDigest(bytes32 channelId, uint256 nonce, uint128 amount) public view returns (bytes32) {
        return _digest(_domain(), keccak256(abi.encode(REFUND_TYPEHASH, channelId, nonce, amount)));
    }

    function getClaimBatchDigest(VoucherClaim[] calldata voucherClaims) external view returns (bytes32 digest) {
        (, digest) = _batch(voucherClaims, _domain());
    }

    /// EIP-5267.
    function eip712Domain()
        external
        view
        returns (
            bytes1 fields,
            string memory name,
            string memory version,
            uint256 chainId,
            address verifyingContract,
            bytes32 salt,
            uint256[] memory extensions
        )
    {
        return (hex"0f", NAME, VERSION, block.chainid, address(this), bytes32(0), new uint256[](0));
    }

    // ---------------------------------------------------------------------------------------------------- inside

    function _claim(VoucherClaim calldata row, bytes32 channelId, bytes32 domain) private {
        Channel storage channel = channels[channelId];
        uint128 before = channel.totalClaimed;
        uint128 total = row.totalClaimed;
        if (total <= before) return;
        if (total > row.voucher.maxClaimableAmount) revert AboveCeiling(channelId);
        if (total > channel.balance) revert AboveBalance(channelId);
        ChannelConfig calldata config = row.voucher.channel;
        bytes32 digest =
            _digest(domain, keccak256(abi.encode(VOUCHER_TYPEHASH, channelId, row.voucher.maxClaimableAmount)));
        bool signed = config.payerAuthorizer == address(0)
            ? _isSignedBy(config.payer, digest, row.signature)
            : _signer(digest, row.signature) == config.payerAuthorizer;
        if (!signed) revert InvalidSignature();
        channel.totalClaimed = total;
        receivers[config.receiver][config.token].totalClaimed += total - before;
        emit Claimed(channelId, msg.sender, total - before, total);
    }

    function _refund(ChannelConfig calldata config, bytes32 channelId, uint128 amount) private {
        amount = _takeOut(config, channelId, amount);
        if (amount == 0) return;
        emit Refunded(channelId, msg.sender, amount);
        Payment.send(config.token, config.payer, amount);
    }

    /// Takes at most `amount` of what is not claimed out of the books of a channel.
    function _takeOut(ChannelConfig calldata config, bytes32 channelId, uint128 amount) private returns (uint128) {
        Channel storage channel = channels[channelId];
        uint128 left = channel.balance - channel.totalClaimed;
        if (amount > left) amount = left;
        if (amount == 0) return 0;
        channel.balance -= amount;
        left -= amount;
        // An exit under way cannot stay larger than what there is.
        Return storage exit = goingBack[channelId];
        if (exit.amount > left) {
            exit.amount = left;
            if (left == 0) exit.initiatedAt = 0;
        }
        if (left == 0) emit ChannelClosed(channelId, config);
        return amount;
    }

    /// Computed each time: the contract keeps its identity when its code is placed at another address or chain.
    function _domain() private view returns (bytes32) {
        return keccak256(
            abi.encode(
                DOMAIN_TYPEHASH, keccak256(bytes(NAME)), keccak256(bytes(VERSION)), block.chainid, address(this)
            )
        );
    }

    function _digest(bytes32 domain, bytes32 structHash) private pure returns (bytes32) {
        return keccak256(abi.encodePacked(hex"1901", domain, structHash));
    }

    function _channelId(bytes32 domain, ChannelConfig calldata config) private pure returns (bytes32) {
        return _digest(domain, keccak256(abi.encode(CHANNEL_CONFIG_TYPEHASH, config)));
    }

    function _batch(VoucherClaim[] calldata rows, bytes32 domain)
        private
        pure
        returns (bytes32[] memory ids, bytes32 digest)
    {
        ids = new bytes32[](rows.length);
        bytes32[] memory entries = new bytes32[](rows.length);
        for (uint256 index = 0; index < rows.length; ++index) {
            VoucherClaim calldata row = rows[index];
            ids[index] = _channelId(domain, row.voucher.channel);
            entries[index] = keccak256(
                abi.encode(CLAIM_ENTRY_TYPEHASH, ids[index], row.voucher.maxClaimableAmount, row.totalClaimed)
            );
        }
        digest = _digest(domain, keccak256(abi.encode(CLAIM_BATCH_TYPEHASH, keccak256(abi.encodePacked(entries)))));
    }

    /// An account with code speaks through EIP-1271, any other through its key.
    function _isSignedBy(address account, bytes32 digest, bytes calldata signature) private view returns (bool) {
        if (account.code.length == 0) return account != address(0) && _signer(digest, signature) == account;
        try IERC1271(account).isValidSignature(digest, signature) returns (bytes4 answer) {
            return answer == IERC1271.isValidSignature.selector;
        } catch {
            return false;
        }
    }

    /// Who signed, in the one form that is taken (65 bytes, low s, v 27 or 28); nobody for any other form.
    function _signer(bytes32 digest, bytes calldata signature) private pure returns (address) {
        if (signature.length != 65) return address(0);
        bytes32 s = bytes32(signature[32:64]);
        if (uint256(s) > HALF_ORDER) return address(0);
        return ecrecover(digest, uint8(signature[64]), bytes32(signature[0:32]), s);
    }
}

/// Brings deposits that the payer signed as an EIP-3009 `receiveWithAuthorization`. The authorization's nonce is made
/// of the channel, so that it funds this channel or nothing; and only the one contract it was made for may call it,
/// because whoever calls gets the money.
contract DepositCollector is ICollector {
    error NotTheChannels();

    address public immutable channels;

    constructor(address channels_) {
        channels = channels_;
    }

    /// `data` is abi.encode(uint256 validAfter, uint256 validBefore, uint256 salt, bytes signature).
    function collect(address payer, address token, uint128 amount, bytes32 channelId, bytes calldata data) external {
        if (msg.sender != channels) revert NotTheChannels();
        (uint256 validAfter, uint256 validBefore, uint256 salt, bytes memory signature) =
            abi.decode(data, (uint256, uint256, uint256, bytes));
        bytes32 nonce = keccak256(abi.encode(channelId, salt));
        IReceivable(token).receiveWithAuthorization(
            payer, address(this), amount, validAfter, validBefore, nonce, signature
        );
        Payment.send(token, msg.sender, amount);
    }
}
