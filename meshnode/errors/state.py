"""Settings, files and ports of this machine."""

from __future__ import annotations

from meshnode.errors.root import MeshnodeError


class SettingsError(MeshnodeError):
    """A setting cannot be used."""

    code = "bad-setting"
    http_status = 400
    exit_code = 2


class StateError(MeshnodeError):
    """The files or ports of this machine are in the way."""

    code = "state"


class HomeNotWritable(StateError):
    """The folder that holds this node's state cannot be written."""

    code = "home-not-writable"
    fix = "make the folder writable, or set MESHNODE_HOME to one that is"


class CacheNotWritable(StateError):
    """The folder that keeps downloaded models cannot be written."""

    code = "cache-not-writable"
    fix = "make the folder writable, or move the cache with HF_HOME"


class DiskFull(StateError):
    """There is not enough room on the disk."""

    code = "disk-full"
    http_status = 507
    fix = "free some space (`meshnode ls` shows models, `meshnode rm` removes one), or move the cache with HF_HOME"


class PortInUse(StateError):
    """Another program already listens on the port."""

    code = "port-in-use"


class AlreadyRunning(StateError):
    """A node is already running with this home folder."""

    code = "already-running"
    http_status = 409
    fix = "to add a model: meshnode load X; to end it: meshnode stop; for a second node set MESHNODE_HOME"


class AuditBroken(StateError):
    """The audit log is not what this node wrote."""

    code = "audit-broken"
    fix = "keep the file as it is, and look at the line that is named; a new log begins with the next record"


class WrongUse(MeshnodeError, RuntimeError):
    """This cannot be done with the object that it was asked of."""

    code = "wrong-use"


class NodeNotRunning(MeshnodeError):
    """No node is running here."""

    code = "no-node"
    exit_code = 3
    fix = "start one: meshnode --model demo"
