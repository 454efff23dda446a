"""A launcher that takes away what a program of strangers' requests has no use for, and then becomes that program.

Run as `python -I -S sandbox.py [options] -- /path/program args…` (see `sandboxed`); like the guard, which starts it,
it uses the standard library alone. What it takes away holds for the program and all that it starts, for ever:

- files, by Landlock (Linux 5.13; https://docs.kernel.org/userspace-api/landlock.html): nothing can be written,
  only system folders and the folders that it is given can be read, only the program itself can be executed;
- the network, by Landlock ABI 4 (Linux 6.7): it can listen on one TCP port and connect to none;
- signals and abstract Unix sockets of other processes, by Landlock ABI 6 (Linux 6.12), and their memory and
  environment with any ABI;
- resources, by setrlimit(2): open files, the size of files, address space;
- the capabilities of a superuser, with which it could read the memory of others in spite of Landlock.

A kernel without one of these leaves it out and the program runs all the same: `missing` says what.

TRAP: GPU runtimes open devices for writing, make shared memory and reserve address space by the terabyte. With
`gpu` they keep /dev whole, and the limits on address space and file size are left out.
"""

import ctypes
import os
import stat
import sys

NOT_RUN = 127
OPEN_FILES = 1024
# Beside its buffers a server holds the message that fills one, as large as a tensor of that buffer can be, and its own
# code, stacks and heaps.
PROGRAM_BYTES = 1 << 30

_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_CAPABILITIES = 64
# The same numbers on every architecture (asm-generic/unistd.h).
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION = 1
_RULE_PATH, _RULE_PORT = 1, 2
# linux/landlock.h. Bits 0 to 12 are of ABI 1; 13 (REFER), 14 (TRUNCATE) and 15 (IOCTL_DEV) of ABI 2, 3 and 5.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE, _IOCTL_DEV = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_READ = _READ_FILE | _READ_DIR
_FILE_BITS = {1: 13, 2: 14, 3: 15, 4: 15}
# What a GPU runtime does below /dev: devices are read, written and controlled; shared memory comes and goes.
_REMOVE_FILE, _MAKE_FILE, _MAKE_SOCKET = 1 << 5, 1 << 8, 1 << 9
_OF_DEVICES = _READ | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV | _REMOVE_FILE | _MAKE_FILE | _MAKE_SOCKET
_BIND_TCP, _CONNECT_TCP = 1 << 0, 1 << 1
_NETWORK_ABI, _SCOPE_ABI = 4, 6
_SCOPES = 0b11
_PT_INTERP, _ELF_SEGMENTS = 3, 128

# Libraries, their configuration, and what a processor or GPU tells of itself. Homes, /var, /tmp and /run are not there.
_READABLE = (
    "/usr", "/lib", "/lib32", "/lib64", "/opt", "/nix/store", "/gnu/store", "/proc", "/sys", "/dev", "/etc/ld.so.cache",
    "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/vulkan", "/etc/OpenCL", "/etc/nvidia",
    "/etc/localtime", "/run/opengl-driver", "/run/nvidia",
)  # fmt: skip


def sandboxed(
    program: list[str], *, port: int, gpu: bool = False, memory_bytes: int | None = None, readable: tuple[str, ...] = ()
) -> list[str]:
    """The command line that runs `program` (an absolute path and its arguments) with what it needs and no more.

    It may listen on `port` of TCP and read what is below `readable`, which is to name the folders of its libraries.
    `memory_bytes` is what its buffers may take; its address space is bounded accordingly.
    """
    argv = [sys.executable, "-I", "-S", __file__, "--port", str(port)]
    argv += ["--gpu"] if gpu else []
    argv += ["--memory", str(memory_bytes)] if memory_bytes is not None else []
    for path in readable:
        argv += ["--read", path]
    return [*argv, "--", *program]


def landlock_abi() -> int:
    """The version of Landlock that this kernel has and lets us use; 0 for none."""
    if sys.platform != "linux":
        return 0
    try:
        return max(0, int(_library().syscall(ctypes.c_long(_CREATE_RULESET), None, ctypes.c_long(0), _ASK_VERSION)))
    except OSError:
        return 0


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    return library


def missing(abi: int) -> str:
    """What a kernel with this version of Landlock cannot take away, in words; "" for nothing of importance."""
    if abi == 0:
        return "this kernel has no Landlock: the rpc-server runs with the files and the network of this user"
    if abi < _NETWORK_ABI:
        return "this kernel's Landlock knows no network: the rpc-server could connect to other programs"
    return ""


def limit_resources(*, gpu: bool, memory_bytes: int | None) -> None:
    """No core dump, few open files, and without a GPU no growing files and a bounded address space."""
    import resource

    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, OPEN_FILES)
    if not gpu:
        _lower(resource.RLIMIT_FSIZE, 0)
        if memory_bytes is not None:
            _lower(resource.RLIMIT_AS, 2 * memory_bytes + PROGRAM_BYTES)


def _lower(kind: int, limit: int) -> None:
    import resource

    _, hard = resource.getrlimit(kind)
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (limit, limit))


def drop_capabilities() -> None:
    """Leave a superuser's program without capabilities(7) from its execve on; other users' have none anyway."""
    if sys.platform == "linux":
        library = _library()
        for capability in range(_CAPABILITIES):
            # Refused to all but a superuser, and for numbers that this kernel does not know.
            library.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


class Landlock:
    """A set of rules for this thread and what it becomes: everything is forbidden that no rule allows.

    Raises OSError where the kernel refuses.
    """

    def __init__(self, abi: int) -> None:
        self._libc = _library()
        self._files = (1 << _FILE_BITS.get(abi, 16)) - 1
        self._network = _BIND_TCP | _CONNECT_TCP if abi >= _NETWORK_ABI else 0
        scopes = _SCOPES if abi >= _SCOPE_ABI else 0
        # struct landlock_ruleset_attr; a kernel that knows fewer fields accepts the rest when it is zero.
        attributes = (ctypes.c_uint64 * 3)(self._files, self._network, scopes)
        self._rules = self._call(_CREATE_RULESET, attributes, ctypes.sizeof(attributes), 0)

    def allow(self, path: str, rights: int) -> None:
        """Allow `rights` on the file `path`, or below it if it is a folder. A path that is not there stays away."""
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return
        try:
            folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            rights &= self._files if folder else self._files & _OF_FILES
            # struct landlock_path_beneath_attr is packed: u64 and s32.
            rule = ctypes.create_string_buffer(
                rights.to_bytes(8, sys.byteorder) + descriptor.to_bytes(4, sys.byteorder), 12
            )
            self._call(_ADD_RULE, self._rules, _RULE_PATH, rule, 0)
        finally:
            os.close(descriptor)

    def allow_listening(self, port: int) -> None:
        """Allow to bind this TCP port; all others, and every connect, are refused where the kernel can do that."""
        if self._network:
            self._call(_ADD_RULE, self._rules, _RULE_PORT, (ctypes.c_uint64 * 2)(_BIND_TCP, port), 0)

    def enter(self) -> None:
        """From here on the rules hold. Privileges of setuid programs are given up, as the kernel demands."""
        if self._libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
        self._call(_RESTRICT_SELF, self._rules, 0)
        os.close(self._rules)

    def _call(self, number: int, *arguments: object) -> int:
        # Whole registers: an int of C would leave their upper halves to chance.
        whole = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
        result = self._libc.syscall(ctypes.c_long(number), *whole)
        if result < 0:
            raise OSError(ctypes.get_errno(), f"Landlock (system call {number})")
        return int(result)


def confine(program: str, *, port: int, gpu: bool, readable: list[str]) -> None:
    """Enter the rules for `program`, as far as this kernel has them. Raises OSError where it has them and refuses."""
    abi = landlock_abi()
    if abi == 0:
        return
    rules = Landlock(abi)
    for path in (*_READABLE, *readable):
        rules.allow(path, _READ)
    rules.allow("/dev/null", _READ_FILE | _WRITE_FILE)
    if gpu:
        rules.allow("/dev", _OF_DEVICES)
    for path in (program, loader_of(program)):
        if path:
            rules.allow(path, _READ_FILE | _EXECUTE)
    rules.allow_listening(port)
    rules.enter()


def loader_of(program: str) -> str:
    """The path of the dynamic loader that a 64-bit ELF program names (PT_INTERP, elf(5)); "" if it names none.

    Raises OSError for a program that cannot be read.
    """
    descriptor = os.open(program, os.O_RDONLY | os.O_CLOEXEC)
    try:
        head = os.pread(descriptor, 64, 0)
        if head[:5] != b"\x7fELF\x02":
            return ""

        def number(data: bytes, start: int, size: int) -> int:
            return int.from_bytes(data[start : start + size], sys.byteorder)

        entry_bytes, entries = number(head, 54, 2), min(number(head, 56, 2), _ELF_SEGMENTS)
        table = os.pread(descriptor, entry_bytes * entries, number(head, 32, 8))
        for start in range(0, len(table), entry_bytes or 1):
            if number(table, start, 4) == _PT_INTERP:
                name = os.pread(descriptor, min(4096, number(table, start + 32, 8)), number(table, start + 8, 8))
                return os.fsdecode(name.rstrip(b"\0"))
    except OverflowError:
        # A place beyond the end of any file.
        return ""
    finally:
        os.close(descriptor)
    return ""


def main(argv: list[str]) -> None:
    """Read the options that `sandboxed` writes, then `--` and the command line of the program."""
    gpu, port, memory_bytes = False, 0, None
    readable: list[str] = []
    try:
        words = iter(argv)
        for word in words:
            if word == "--":
                break
            if word == "--gpu":
                gpu = True
            elif word == "--port":
                port = int(next(words))
            elif word == "--memory":
                memory_bytes = int(next(words))
            elif word == "--read":
                readable.append(next(words))
            else:
                raise ValueError(word)
        program = list(words)
        if not program:
            raise ValueError("no program")
    except (ValueError, StopIteration):
        sys.stderr.write("usage: sandbox.py --port N [--gpu] [--memory N] [--read PATH]... -- program [argument ...]\n")
        os._exit(2)
    try:
        limit_resources(gpu=gpu, memory_bytes=memory_bytes)
        drop_capabilities()
        confine(program[0], port=port, gpu=gpu, readable=readable)
        os.execv(program[0], program)
    except OSError as error:
        sys.stderr.write(f"{program[0]} could not be run: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(NOT_RUN)


if __name__ == "__main__":
    main(sys.argv[1:])
