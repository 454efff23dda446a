import ast
import inspect
from pathlib import Path

import pytest

from meshnode import errors
from meshnode.errors import BadRequest, DiskFull, MeshnodeError, ModelNotFound, TooManyRequests


def all_kinds() -> list[type[MeshnodeError]]:
    return [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, MeshnodeError)]


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn: list[tuple[str, str]] = []
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        words = line.replace("├──", "   ").replace("└──", "   ").replace("│", " ").split()
        if not words or not (words[0] == "MeshnodeError" or "──" in line):
            continue
        depth = line.index(words[0])
        while above and above[-1][0] >= depth:
            above.pop()
        drawn.append((words[0], above[-1][1] if above else "Exception"))
        above.append((depth, words[0]))
        numbers = [int(word) for word in words if word.isdigit()]
        kind = getattr(errors, words[0])
        assert all(number in (kind.http_status, kind.exit_code) for number in numbers), line
        if "exit" not in words and kind.exit_code != 1:
            assert kind.exit_code == kind.__bases__[0].exit_code, f"{words[0]}: its exit code is not drawn"
    assert sorted(drawn) == sorted((kind.__name__, kind.__bases__[0].__name__) for kind in all_kinds())


@pytest.mark.parametrize("kind", all_kinds())
def test_every_error_says_what_happened_in_one_sentence(kind: type[MeshnodeError]) -> None:
    text = inspect.getdoc(kind) or ""
    first = text.split("\n\n")[0]
    assert first.endswith(".")
    assert first[0].isupper()
    error = kind("the particulars")
    assert error.summary == " ".join(first.split())[:-1]
    assert str(error) == error.message == f"{error.summary}: the particulars"
    assert kind().message == error.summary
    assert 400 <= kind.http_status < 600
    assert 0 < kind.exit_code < 131
    assert not kind.fix.endswith(".")


def test_codes_are_stable_names_and_belong_to_one_error() -> None:
    codes = [kind.code for kind in all_kinds()]
    assert len(set(codes)) == len(codes)
    assert all(code.replace("-", "").isalpha() and code.islower() for code in codes)


def test_exit_codes_keep_to_the_documented_list() -> None:
    assert {kind.exit_code for kind in all_kinds()} <= {1, 2, 3, 4, 5, 6, 7, 8, 130}


def test_a_case_may_bring_its_own_fix_without_changing_the_kind() -> None:
    before = DiskFull.fix
    assert DiskFull("x", fix="buy a disk").as_dict() == {
        "code": "disk-full",
        "message": "There is not enough room on the disk: x",
        "fix": "buy a disk",
    }
    assert DiskFull("x").fix == DiskFull.fix == before
    assert TooManyRequests(retry_after_s=2).retry_after_s == 2
    assert BadRequest().retry_after_s is None
    assert ModelNotFound("a").args == ("a",)


def test_nothing_is_raised_that_is_not_here() -> None:
    """A user never meets a bare RuntimeError or SystemExit of a layer below the command line."""
    package = Path(errors.__file__).parent
    for module in package.rglob("*.py"):
        if "cli" in module.parts:
            continue
        for node in ast.walk(ast.parse(module.read_text("utf-8"))):
            if isinstance(node, ast.Raise) and node.exc is not None:
                called = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
                name = called.id if isinstance(called, ast.Name) else ""
                assert name not in ("Exception", "RuntimeError", "SystemExit", "BaseException"), f"{module}: {name}"
