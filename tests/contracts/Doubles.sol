// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// What the tests put around the payment channels: tokens and collectors that call back, accounts with code, and a
/// stand-in for a contract that other people's programs count on.

/// A token that, while it moves, makes one call that the test chose, and remembers whether it went through.
contract ReentrantToken {
    mapping(address account => uint256) public balanceOf;
    address private target;
    bytes private armed;
    uint256 public tried;
    bool public succeeded;
    bytes public words;
    bool public refuses;
    bool public silent;

    function mint(address to, uint256 value) external {
        balanceOf[to] += value;
    }

    function arm(address target_, bytes calldata data) external {
        (target, armed, tried, succeeded) = (target_, data, 0, false);
    }

    function setManners(bool refuses_, bool silent_) external {
        (refuses, silent) = (refuses_, silent_);
    }

    function transfer(address to, uint256 value) external returns (bool) {
        _move(msg.sender, to, value);
        if (silent) {
            assembly {
                return(0, 0)
            }
        }
        return !refuses;
    }

    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256,
        uint256,
        bytes32,
        bytes calldata
    ) external {
        _move(from, to, value);
    }

    function call(address to, bytes calldata data) external returns (bool done) {
        (done,) = to.call(data);
    }

    function _move(address from, address to, uint256 value) private {
        balanceOf[from] -= value;
        balanceOf[to] += value;
        if (armed.length == 0) return;
        ++tried;
        (succeeded, words) = target.call(armed);
    }
}

/// A collector that brings less or more than it says, or spends what the channels hold by calling back.
contract HostileCollector {
    int256 public extra;
    address private target;
    bytes private armed;
    bool public succeeded;
    bytes public words;

    function arm(int256 extra_, address target_, bytes calldata data) external {
        (extra, target, armed, succeeded) = (extra_, target_, data, false);
    }

    function collect(address, address token, uint128 amount, bytes32, bytes calldata) external {
        uint256 value = uint256(int256(uint256(amount)) + extra);
        (bool moved,) = token.call(abi.encodeWithSignature("transfer(address,uint256)", msg.sender, value));
        require(moved);
        if (armed.length != 0) (succeeded, words) = target.call(armed);
    }
}

/// An account with code that takes whatever its one owner signed (EIP-1271), until it is broken.
contract SignatureWallet {
    address private immutable owner;
    bool private broken;

    constructor(address owner_) {
        owner = owner_;
    }

    function setBroken() external {
        broken = true;
    }

    function isValidSignature(bytes32 digest, bytes calldata signature) external view returns (bytes4) {
        require(!broken, "broken");
        bytes32 r = bytes32(signature[0:32]);
        bytes32 s = bytes32(signature[32:64]);
        bool valid = ecrecover(digest, uint8(signature[64]), r, s) == owner;
        return valid ? this.isValidSignature.selector : bytes4(0);
    }
}

/// What an account may delegate to by EIP-7702: code that knows nothing of signatures.
contract Delegate {
    function ping() external pure returns (uint256) {
        return 1;
    }
}

/// The one function of Multicall3 that the reference client reads with.
contract Aggregate {
    struct Call {
        address target;
        bytes callData;
    }

    struct Result {
        bool success;
        bytes returnData;
    }

    function tryAggregate(bool requireSuccess, Call[] calldata calls) external returns (Result[] memory results) {
        results = new Result[](calls.length);
        for (uint256 index = 0; index < calls.length; ++index) {
            (bool done, bytes memory answer) = calls[index].target.call(calls[index].callData);
            require(done || !requireSuccess);
            results[index] = Result(done, answer);
        }
    }
}
