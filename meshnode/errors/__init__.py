"""Every error that a user, a client program or a script can meet.

The docstring of a class is the sentence the user reads; `detail` adds the particulars of this case and `fix`
says what to do next. `code` is stable: it appears in terminals, logs, `--json` and HTTP bodies.

    MeshnodeError
    ├── SettingsError                exit 2   a flag, variable or file value cannot be used
    ├── StateError                   exit 1
    │   ├── HomeNotWritable
    │   ├── CacheNotWritable
    │   ├── DiskFull
    │   ├── PortInUse
    │   ├── AlreadyRunning
    │   └── AuditBroken
    ├── WrongUse                              a program that uses meshnode.Client in a way that cannot work
    ├── NodeNotRunning               exit 3
    ├── ModelError                   exit 4
    │   ├── ModelNotFound            404
    │   ├── ModelDoesNotFit          503
    │   ├── ModelFileInvalid
    │   └── ModelInUse               409
    ├── NetworkError                 exit 5
    │   ├── HubUnreachable
    │   ├── HubRefused
    │   ├── HubOffline
    │   ├── GatedRepository
    │   ├── DownloadCorrupt
    │   ├── DownloadStopped          exit 130
    │   ├── WeightsUnavailable       503
    │   ├── PeerUnreachable
    │   ├── PeerRefused
    │   │   └── WrongPeer
    │   ├── LeaseDenied              503
    │   ├── WorkerLost
    │   ├── InviteInvalid            400
    │   ├── PairingFailed
    │   ├── MayNotInvite             403
    │   ├── NodeNotFound             404
    │   ├── NotInMesh                409
    │   ├── AlreadyInMesh            409
    │   ├── NoNostrRelay             503
    │   └── NoPublicMesh             503
    ├── EngineError                  exit 6
    │   ├── SourceUnavailable
    │   ├── ToolchainMissing
    │   ├── BuildFailed
    │   ├── EngineNotBuilt
    │   ├── EngineIncompatible
    │   ├── EngineCrashed            502
    │   └── EngineStartTimeout
    ├── PaymentError             402      exit 8
    │   ├── PaymentRequired
    │   ├── PaymentsOff
    │   ├── PriceAboveCeiling
    │   ├── MonthlyCapReached
    │   ├── GasCapReached
    │   ├── NoChannel
    │   ├── PaymentRefused
    │   ├── ReceiptInvalid       400
    │   ├── NoWallet             409
    │   ├── WalletLocked         409
    │   ├── WalletInUse          409
    │   ├── WrongPassword        400
    │   ├── KeystoreInvalid      400
    │   ├── NotTerminal          403
    │   ├── LedgerDamaged        500
    │   ├── WrongNetwork         503
    │   ├── ChainUnreachable     503
    │   ├── ChainDisagrees       503
    │   └── TransactionFailed    502
    └── RequestError                          what the HTTP API answers to a caller
        ├── BadRequest               400
        ├── Unauthorized             401
        ├── Forbidden                403
        ├── EndpointNotFound         404
        ├── MethodNotAllowed         405
        ├── RequestTimeout           408
        ├── BodyTooLarge             413
        ├── OutOfRadius              403      exit 8
        ├── TooManyRequests          429
        │   └── StrangerLimit        429
        ├── ModelLoading             503
        ├── NoModelServed            503
        ├── PublicPaused             503
        └── NodeStopping             503
"""

from __future__ import annotations

from meshnode.errors.engine import (
    BuildFailed,
    EngineCrashed,
    EngineError,
    EngineIncompatible,
    EngineNotBuilt,
    EngineStartTimeout,
    SourceUnavailable,
    ToolchainMissing,
)
from meshnode.errors.models import ModelDoesNotFit, ModelError, ModelFileInvalid, ModelInUse, ModelNotFound
from meshnode.errors.network import (
    AlreadyInMesh,
    DownloadCorrupt,
    DownloadStopped,
    GatedRepository,
    HubOffline,
    HubRefused,
    HubUnreachable,
    InviteInvalid,
    LeaseDenied,
    MayNotInvite,
    NetworkError,
    NodeNotFound,
    NoNostrRelay,
    NoPublicMesh,
    NotInMesh,
    PairingFailed,
    PeerRefused,
    PeerUnreachable,
    WeightsUnavailable,
    WorkerLost,
    WrongPeer,
)
from meshnode.errors.payment import (
    ChainDisagrees,
    ChainUnreachable,
    GasCapReached,
    KeystoreInvalid,
    LedgerDamaged,
    MonthlyCapReached,
    NoChannel,
    NotTerminal,
    NoWallet,
    PaymentError,
    PaymentRefused,
    PaymentRequired,
    PaymentsOff,
    PriceAboveCeiling,
    ReceiptInvalid,
    TransactionFailed,
    WalletInUse,
    WalletLocked,
    WrongNetwork,
    WrongPassword,
)
from meshnode.errors.requests import (
    BadRequest,
    BodyTooLarge,
    EndpointNotFound,
    Forbidden,
    MethodNotAllowed,
    ModelLoading,
    NodeStopping,
    NoModelServed,
    OutOfRadius,
    PublicPaused,
    RequestError,
    RequestTimeout,
    StrangerLimit,
    TooManyRequests,
    Unauthorized,
)
from meshnode.errors.root import MeshnodeError
from meshnode.errors.state import (
    AlreadyRunning,
    AuditBroken,
    CacheNotWritable,
    DiskFull,
    HomeNotWritable,
    NodeNotRunning,
    PortInUse,
    SettingsError,
    StateError,
    WrongUse,
)

__all__ = [
    "AlreadyInMesh",
    "AlreadyRunning",
    "AuditBroken",
    "BadRequest",
    "BodyTooLarge",
    "BuildFailed",
    "CacheNotWritable",
    "ChainDisagrees",
    "ChainUnreachable",
    "DiskFull",
    "DownloadCorrupt",
    "DownloadStopped",
    "EndpointNotFound",
    "EngineCrashed",
    "EngineError",
    "EngineIncompatible",
    "EngineNotBuilt",
    "EngineStartTimeout",
    "Forbidden",
    "GasCapReached",
    "GatedRepository",
    "HomeNotWritable",
    "HubOffline",
    "HubRefused",
    "HubUnreachable",
    "InviteInvalid",
    "KeystoreInvalid",
    "LeaseDenied",
    "LedgerDamaged",
    "MayNotInvite",
    "MeshnodeError",
    "MethodNotAllowed",
    "ModelDoesNotFit",
    "ModelError",
    "ModelFileInvalid",
    "ModelInUse",
    "ModelLoading",
    "ModelNotFound",
    "MonthlyCapReached",
    "NetworkError",
    "NoChannel",
    "NoModelServed",
    "NoNostrRelay",
    "NoPublicMesh",
    "NoWallet",
    "NodeNotFound",
    "NodeNotRunning",
    "NodeStopping",
    "NotInMesh",
    "NotTerminal",
    "OutOfRadius",
    "PairingFailed",
    "PaymentError",
    "PaymentRefused",
    "PaymentRequired",
    "PaymentsOff",
    "PeerRefused",
    "PeerUnreachable",
    "PortInUse",
    "PriceAboveCeiling",
    "PublicPaused",
    "ReceiptInvalid",
    "RequestError",
    "RequestTimeout",
    "SettingsError",
    "SourceUnavailable",
    "StateError",
    "StrangerLimit",
    "TooManyRequests",
    "ToolchainMissing",
    "TransactionFailed",
    "Unauthorized",
    "WalletInUse",
    "WalletLocked",
    "WeightsUnavailable",
    "WorkerLost",
    "WrongNetwork",
    "WrongPassword",
    "WrongPeer",
    "WrongUse",
]
