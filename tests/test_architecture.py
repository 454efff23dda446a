"""Rules of the house, read from the syntax tree: who imports whom, what is pure, what is tested, how large things are.

The table is that of ARCHITECTURE.md. Imports inside functions count as well: a room that is entered late is entered.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "meshnode"
MODULES = sorted(PACKAGE.rglob("*.py"))

PURE = {"wire", "core"}
LEAVES = {"hardware", "models", "engine", "agents", "service", "sdk"}
ROOMS = PURE | LEAVES | {"api", "mesh", "net", "rpc", "discovery", "settlement", "console"}
COMPOSERS: dict[str, set[str]] = {
    "node": {
        "company",
        "desk",
        "doors",
        "equipping",
        "home",
        "journal",
        "meshing",
        "offers",
        "planning",
        "serving",
        "status",
        "tasks",
        "units",
    },
    "company": {
        "capacity",
        "doors",
        "meshing",
        "money",
        "planning",
        "pool",
        "serving",
        "status",
        "strangers",
        "trust",
    },
    "money_events": set(),
    "cashing": {"earning", "earning_terms", "settling"},
    "money": {
        "banking",
        "cashing",
        "earning",
        "earning_terms",
        "money_events",
        "serving",
        "settling",
        "spending",
        "wallets",
    },
    "banking": {"settling", "spending", "wallets"},
    "spending": {"spending_books", "spending_calls"},
    "spending_calls": {"spending_books", "spending_journal"},
    "spending_books": {"spending_journal"},
    "spending_journal": set(),
    "earning": {"earning_accounts", "earning_sales", "earning_terms"},
    "earning_sales": {"earning_accounts"},
    "earning_terms": {"earning_accounts"},
    "earning_accounts": set(),
    "settling": {"attending", "collecting"},
    "attending": {"collecting"},
    "collecting": set(),
    "wallets": {"policies"},
    "policies": set(),
    "receipt_reading": set(),
    "client": {"doors", "home", "meshing", "serving", "trust"},
    "strangers": {"audit", "audit_reading", "discovering", "doors", "money", "serving", "swarm"},
    "swarm": {"discovering", "finding", "offers", "public_mesh", "public_models", "publishing", "seeking", "serving"},
    "public_mesh": {"offers", "serving"},
    "public_models": {"offers", "public_mesh"},
    "seeking": {"finding"},
    "finding": {"describing"},
    "publishing": {"describing"},
    "discovering": {"finding"},
    "describing": set(),
    "audit": {"audit_reading"},
    "audit_reading": set(),
    "trust": {"ownership"},
    "ownership": set(),
    "owning": {"ownership"},
    "connectivity": set(),
    "desk": {"capacity", "downloads", "journal", "planning", "serving", "shelf", "tasks"},
    "capacity": {"planning"},
    "doors": set(),
    "equipping": {"planning", "status", "tasks"},
    "downloads": {"threads"},
    "shelf": {"capacity", "planning", "threads"},
    "threads": set(),
    "journal": set(),
    "tasks": set(),
    "serving": {"drafting", "fitting", "launching", "planning", "units"},
    "launching": {"drafting", "units"},
    "meshing": {"neighbours", "offers", "serving", "trust"},
    "neighbours": set(),
    "splitting": {"fitting", "offers", "planning"},
    "pool": {
        "assembly",
        "capacity",
        "hosting",
        "lending",
        "offers",
        "planning",
        "serving",
        "sharing",
        "splitting",
        "standby",
        "units",
    },
    "hosting": {"assembly", "splitting"},
    "assembly": set(),
    "lending": {"planning"},
    "sharing": set(),
    "standby": {"planning", "units"},
    "drafting": {"planning", "units"},
    "fitting": {"planning", "precision", "units"},
    "precision": set(),
    "home": set(),
    "units": set(),
    "offers": set(),
    "rotation": set(),
    "planning": set(),
    "status": {"planning", "units"},
}
"""The modules that connect rooms, and which of each other they use."""
EVERYWHERE = {"errors", "telemetry", "durable"}
TABLE: dict[str, set[str]] = {
    "__init__": {"client"},
    "__main__": {"cli"},
    "errors": set(),
    "telemetry": {"errors"},
    "durable": {"errors"},
    "config": EVERYWHERE,
    "identity": EVERYWHERE,
    "cli": {*COMPOSERS, *LEAVES, *EVERYWHERE, "config"},
    **{name: {*ROOMS, *others, *EVERYWHERE, "config", "identity"} for name, others in COMPOSERS.items()},
    "api": {"core", "wire", *EVERYWHERE},
    "mesh": {"net", "core", "wire", "identity", *EVERYWHERE},
    "rpc": {"net", "core", "wire", "identity", *EVERYWHERE},
    "net": {"wire", "identity", *EVERYWHERE},
    "discovery": {"wire", "identity", *EVERYWHERE},
    "settlement": {"wire", "identity", *EVERYWHERE},
    "console": EVERYWHERE,
    "core": {"wire", "errors"},
    "wire": {"errors"},
    **{name: EVERYWHERE for name in LEAVES},
}
IMPURE = {
    "asyncio",
    "concurrent",
    "datetime",
    "io",
    "http",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "random",
    "secrets",
    "select",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "sqlite3",
    "ssl",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "urllib",
    "uuid",
}
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "__import__"}
LATE = {"web3", "nostr_sdk"}
SLOW = LATE | {
    "aioquic",
    "asyncio",
    "cryptography",
    "huggingface_hub",
    "msgpack",
    "prometheus_client",
    "psutil",
    "pynvml",
    "rich",
    "starlette",
    "uvicorn",
    "zeroconf",
}
"""What `meshnode --version` must not wait for."""
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "manager", "base", "common", "misc"}
LINES_THAT_ASK_FOR_A_REASON = 400
MOST_LINES = 600
UNMIRRORED = {"e2e", "sim", "lab", "fuzz", "console", "bench", "docs", "contracts"}
"""Folders of tests that belong to no single module."""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def room(path: Path) -> str:
    """The first name below meshnode: a package, or a module that stands alone."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(node: ast.AST) -> Iterator[tuple[str, int]]:
    """Every imported name with its line; `from a import b` gives both `a` and `a.b`."""
    for item in ast.walk(node):
        if isinstance(item, ast.Import):
            yield from ((alias.name, item.lineno) for alias in item.names)
        elif isinstance(item, ast.ImportFrom):
            assert item.level == 0, f"line {item.lineno}: a relative import"
            yield from ((f"{item.module}.{alias.name}", item.lineno) for alias in item.names)


def imports_at_start(node: ast.AST) -> Iterator[str]:
    """The top-level packages that are imported when the module is, so not those inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield from (name.partition(".")[0] for name, _ in imports(child))
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports_at_start(child)


def inner_imports(path: Path) -> Iterator[tuple[str, int]]:
    """The rooms of meshnode that a module imports."""
    for name, line in imports(tree(path)):
        parts = name.split(".")
        if parts[0] == "meshnode" and len(parts) > 1 and parts[1] != "__version__":
            yield parts[1], line


# --- imports --------------------------------------------------------------------------------------------------


def test_every_module_has_its_place_in_the_table() -> None:
    assert {room(path) for path in MODULES} <= set(TABLE)


def test_imports_run_one_way() -> None:
    wrong = [
        f"{shown(path)}:{line} imports {target}"
        for path in MODULES
        for target, line in inner_imports(path)
        if target != room(path) and target not in TABLE[room(path)]
    ]
    assert wrong == []


def test_the_table_itself_has_no_circle() -> None:
    order: list[str] = []
    left = dict(TABLE)
    while left:
        free = [name for name, targets in left.items() if not targets & set(left)]
        assert free, f"a circle among {sorted(left)}"
        order += free
        for name in free:
            del left[name]
    assert order[-1] == "__main__"


def test_modules_do_not_import_each_other_in_circles() -> None:
    """Even inside one room; only imports at the start of a module count here, as only they can fail."""
    known = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES}
    targets: dict[str, set[str]] = {}
    for name, path in known.items():
        found = set()
        for item in tree(path).body:
            for target, _ in imports(item) if isinstance(item, ast.Import | ast.ImportFrom) else ():
                found.add(target if target in known else target.rpartition(".")[0])
        targets[name] = found & set(known) - {name, "meshnode"}
    while free := [name for name, found in targets.items() if not found & set(targets)]:
        for name in free:
            del targets[name]
    assert targets == {}


def test_what_is_slow_to_import_is_imported_when_used() -> None:
    early = [shown(path) for path in MODULES if LATE & set(imports_at_start(tree(path)))]
    assert early == []
    code = f"import sys, meshnode.cli.main; print(*sorted({SLOW!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


# --- purity ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path in MODULES if room(path) in PURE], ids=shown)
def test_the_pure_rooms_do_no_io(path: Path) -> None:
    assert {name.partition(".")[0] for name, _ in imports(tree(path))} & IMPURE == set()
    for node in ast.walk(tree(path)):
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.Global), f"line {node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in IMPURE_CALLS, f"line {node.lineno}"


def test_tests_of_the_pure_rooms_need_no_event_loop() -> None:
    for folder in PURE:
        for path in (ROOT / "tests" / folder).rglob("*.py"):
            assert not any(isinstance(node, ast.Await) for node in ast.walk(tree(path))), shown(path)


def test_only_the_command_line_prints() -> None:
    talking = [
        f"{shown(path)}:{node.lineno}"
        for path in MODULES
        if room(path) != "cli"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "input")
    ]
    assert talking == []


# --- shape ----------------------------------------------------------------------------------------------------


def test_every_module_says_what_lives_in_it() -> None:
    assert [shown(path) for path in MODULES if not ast.get_docstring(tree(path))] == []


def test_sizes() -> None:
    """Above 400 lines is shown (pytest -s), above 600 fails; tests as well."""
    sizes = {path: len(path.read_text("utf-8").splitlines()) for path in [*MODULES, *(ROOT / "tests").rglob("*.py")]}
    for path, lines in sorted(sizes.items(), key=lambda item: -item[1]):
        if lines > LINES_THAT_ASK_FOR_A_REASON:
            print(f"{lines} lines: {shown(path)}")
    assert [shown(path) for path, lines in sizes.items() if lines > MOST_LINES] == []


def test_names_say_what_is_inside() -> None:
    vague = [shown(path) for path in MODULES if FORBIDDEN_NAMES & set(re.split(r"[_/.]", shown(path)))]
    assert vague == []


def mirror(path: Path) -> Path:
    """Where the tests of a module are."""
    inside = path.relative_to(PACKAGE)
    return ROOT / "tests" / inside.with_name(f"test_{inside.name}")


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_every_module_has_its_test_file(path: Path) -> None:
    if path.name in ("__init__.py", "__main__.py"):
        return
    assert mirror(path).is_file(), f"{shown(path)} wants {shown(mirror(path))}"


def test_every_test_file_has_its_module() -> None:
    """Or its folder, as the demo models are files and no code."""
    mirrors = {mirror(path) for path in MODULES} | {Path(__file__), ROOT / "tests" / "test_protocol.py"}
    mirrors |= {mirror(path.with_suffix(".py")) for path in PACKAGE.rglob("*") if path.is_dir()}
    tests = [path for path in (ROOT / "tests").rglob("test_*.py") if path.parent.name not in UNMIRRORED]
    assert [shown(path) for path in tests if path not in mirrors] == []


# --- the repository -------------------------------------------------------------------------------------------


def test_every_dependency_has_its_line() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = {re.split(r"[<>=!~\[ ;]", line)[0] for line in project["dependencies"]}
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8").partition("\n## Dependencies\n")[2].partition("\n## ")[0]
    listed = set(re.findall(r"^\| `?([A-Za-z][\w.-]*)`? \| (?!---)(?!for )", text, re.MULTILINE)) - {"package"}
    assert wanted <= listed, f"no line for {sorted(wanted - listed)}"
    assert {name for name in listed if name not in wanted} == set(), "a line without a dependency"


def files_of_the_repository() -> Iterator[Path]:
    """What git has, or would take."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    yield from (ROOT / name for name in names if name and (ROOT / name).is_file())


def test_nothing_tells_of_one_machine_or_of_a_package_host() -> None:
    here = "|".join(re.escape(str(path)) for path in (ROOT, Path.home()) if len(path.parts) > 2)
    machine = rf"(?<![\w.~])(?:{here or '/root'}|/root)/"
    hosts = r"(?:python" + r"hosted\.org|pypi" + r"\.org|registry" + r"\.npmjs|index" + r"-url|artifact" + r"ory)"
    pattern = re.compile(f"{machine}|{hosts}".encode())
    found = []
    for path in files_of_the_repository():
        content = path.read_bytes()
        if b"\0" in content[:8192] or path == Path(__file__):
            continue
        found += [f"{shown(path)}: {match[0].decode()}" for match in pattern.finditer(content)]
    assert found == []
