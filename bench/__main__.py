"""All benchmarks of bench/README.md but those of long simulations, or the ones that are named.

    python -m bench [--quick]                     all of them; then their results go into bench/README.md
    python -m bench NAME [NAME ...] [OPTIONS]     startup, console, gateway, transport, relay, traversal, mesh,
                                                  split, compare_litellm

Each is a process of its own. Options are those of the named ones, such as --quick, --only PART or --out FOLDER.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from itertools import takewhile

from bench.machine import ROOT

NAMES = (
    *("startup", "console", "gateway", "transport", "relay", "traversal", "mesh", "split", "swarm", "verify"),
    *("vouchers", "paid_stream", "compare_litellm"),
)


def commands(arguments: Sequence[str]) -> list[list[str]]:
    """The modules to run, each with its options. Raises ValueError for what there is not."""
    names = list(takewhile(lambda argument: not argument.startswith("-"), arguments))
    options = list(arguments[len(names) :])
    if unknown := sorted(set(names) - set(NAMES)):
        raise ValueError(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if not names and options not in ([], ["--quick"]):
        raise ValueError(f"{' '.join(options)}: options but --quick belong to a named benchmark")
    found = [[f"bench.{name}", *options] for name in names or NAMES]
    return found if names or options else [*found, ["bench.report"]]


def main(arguments: Sequence[str]) -> None:
    """The command line. Ends with the status of the first that fails."""
    if {"-h", "--help"} & set(arguments[:1]):
        print((__doc__ or "").strip())
        return
    try:
        wanted = commands(arguments)
    except ValueError as reason:
        sys.exit(f"bench: {reason}")
    for command in wanted:
        done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT)
        if done.returncode:
            sys.exit(done.returncode)


if __name__ == "__main__":
    main(sys.argv[1:])
