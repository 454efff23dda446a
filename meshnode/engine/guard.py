"""A launcher that ties the life of a program to the life of the node that started it.

Run as `python -I -S guard.py --parent PID -- /path/program args…` (Linux) or `--watch FD -- …` (elsewhere). It uses
the standard library alone, imports nothing of meshnode, and costs about 15 ms.

Linux: the kernel kills the program when its parent dies (prctl PR_SET_PDEATHSIG, kept across execve; see prctl(2)),
so this process *becomes* the program. Elsewhere this process stays: FD is the reading end of a pipe whose writing
end only the node holds, and end-of-file on it, however the node died, ends the whole process group. The steps of a
build run this way everywhere.

The caller starts it as the leader of a new session, so that a signal to the group reaches all of it. SIGPIPE stays
ignored in the program, as Python set it: ggml-rpc-server dies otherwise when a client leaves at the wrong moment.
Exit status 127 means that the program could not be run, 126 that the node was gone before it could be.
"""

import os
import sys

PR_SET_PDEATHSIG = 1
NODE_GONE = 126
NOT_RUN = 127
# The kernel's out-of-memory killer takes the engine before the node, which can then say what happened.
OOM_SCORE_ADJ = 300
# How long a group whose node is gone may take to end by itself before it is killed (`--watch`).
LAST_MOMENT_S = 1.0


def die_with_parent(parent_pid: int) -> None:
    """Ask Linux to kill this process when the thread that forked it ends; leave at once if that already happened.

    Raises OSError if the kernel refuses.
    """
    import ctypes
    import signal

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # The parent may have died between fork and prctl: no signal would ever come.
    if os.getppid() != parent_pid:
        os._exit(NODE_GONE)


def limit() -> None:
    """No core dumps (a 40 GB model would be one), and first in line when memory runs out."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    except OSError:
        return
    try:
        os.write(descriptor, str(OOM_SCORE_ADJ).encode())
    except OSError:
        pass
    finally:
        os.close(descriptor)


def stay_and_watch(node_pipe: int, program: list[str]) -> None:
    """Run `program` in this process's group until it ends or the node is gone; does not return."""
    import select
    import signal

    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    os.set_inheritable(node_pipe, False)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    # A polite signal goes to the whole group: the program answers it, this process waits for the program.
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    pid = os.posix_spawn(program[0], program, os.environ)
    while True:
        readable, _, _ = select.select([node_pipe, woken], [], [])
        if node_pipe in readable and not os.read(node_pipe, 1):
            end_group(pid)
        if woken in readable:
            os.read(woken, 4096)
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            end_like(status)


def end_group(pid: int) -> None:
    """Ask the group to end, give its program a moment, and kill what is left, this process included.

    The moment is for ninja: its compilers lead groups of their own, and only ninja can end them.
    """
    import signal
    import time

    os.killpg(0, signal.SIGTERM)
    deadline = time.monotonic() + LAST_MOMENT_S
    while time.monotonic() < deadline and os.waitpid(pid, os.WNOHANG)[0] == 0:
        time.sleep(0.01)
    os.killpg(0, signal.SIGKILL)


def end_like(status: int) -> None:
    """End with the same exit code or by the same signal as the program did; does not return."""
    import signal

    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def main(argv: list[str]) -> None:
    """Read `--parent PID` or `--watch FD`, then `--` and the command line of the program."""
    try:
        mode, value, dashes, program = argv[0], int(argv[1]), argv[2], argv[3:]
        if mode not in ("--parent", "--watch") or dashes != "--" or not program:
            raise ValueError
    except (IndexError, ValueError):
        sys.stderr.write("usage: guard.py --parent PID|--watch FD -- program [argument ...]\n")
        os._exit(2)
    try:
        limit()
        if mode == "--watch":
            stay_and_watch(value, program)
        die_with_parent(value)
        os.execv(program[0], program)
    except OSError as error:
        sys.stderr.write(f"{program[0]} could not be run: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(NOT_RUN)


if __name__ == "__main__":
    main(sys.argv[1:])
