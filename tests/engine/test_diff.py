"""The patch applier against `git apply`: the same trees, and a refusal wherever a patch does not fit exactly."""

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from meshnode.engine.diff import DiffRefused, apply_diff
from meshnode.engine.source import patches_folder, read_upstream

BEFORE = b"one\ntwo\nthree\nfour\nfive\n"
CHANGE = b"""Subject: words before the diff are ignored

diff --git a/sub/file.txt b/sub/file.txt
index 1234567..89abcde 100644
--- a/sub/file.txt
+++ b/sub/file.txt
@@ -1,4 +1,4 @@
 one
-two
+zwei
 three
 four
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/file.txt").write_bytes(BEFORE)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and ".git" not in file.parts
    }


def test_a_change_is_applied(tree: Path) -> None:
    assert apply_diff(CHANGE, tree) == ["sub/file.txt"]
    assert (tree / "sub/file.txt").read_bytes() == BEFORE.replace(b"two", b"zwei")


def test_the_series_of_this_repository_applies_in_order_and_names_what_is_lost() -> None:
    upstream = read_upstream()
    listed = {file.name for file in patches_folder().glob("*.patch")}
    assert {patch.name for patch in upstream.patches} == listed
    assert all(patch.loss for patch in upstream.patches)


@pytest.mark.parametrize(
    ("patch", "reason"),
    [
        (b"", "changes no file"),
        (b"nothing that looks like a patch\n", "changes no file"),
        (CHANGE.replace(b" one\n", b" eins\n"), "differs at line 1"),
        (CHANGE.replace(b"-1,4 +1,4", b"-2,4 +2,4"), "differs at line 2"),
        (CHANGE.replace(b"-1,4 +1,4", b"-1,5 +1,5"), "cut short"),
        (CHANGE.replace(b"-1,4 +1,4", b"-1,x +1,4"), "damaged hunk header"),
        (CHANGE.replace(b"sub/file.txt", b"sub/absent.txt"), "is not in the source"),
        (CHANGE.replace(b"a/sub/file.txt", b"a/../../etc/passwd"), "is not allowed"),
        (CHANGE.replace(b"--- a/sub/file.txt", b"--- /sub/file.txt"), "is not allowed"),
        (CHANGE.replace(b"+++ b/sub/file.txt", b"+++ b/sub/other.txt"), "becomes"),
        (CHANGE.replace(b"index 1234567..89abcde 100644", b"rename from sub/file.txt"), "not supported"),
        (CHANGE.replace(b"index 1234567..89abcde 100644", b"old mode 100644"), "not supported"),
        (b"GIT binary patch\n", "not supported"),
        (b"@@ -1 +1 @@\n-one\n+eins\n", "a hunk without a file"),
        (b"--- a/sub/file.txt\n+++ b/sub/file.txt\n", "has no hunk"),
        (b"--- /dev/null\n+++ b/sub/file.txt\n@@ -0,0 +1 @@\n+new\n", "exists already"),
        (b"--- a/sub/file.txt\n+++ /dev/null\n@@ -1 +0,0 @@\n-one\n", "has other lines"),
        (CHANGE + CHANGE.partition(b"\n\n")[2], "appears twice"),
    ],
)
def test_what_does_not_fit_exactly_is_refused_and_changes_nothing(tree: Path, patch: bytes, reason: str) -> None:
    with pytest.raises(DiffRefused, match=reason):
        apply_diff(patch, tree)
    assert contents(tree) == {"sub/file.txt": BEFORE}


def test_a_later_file_that_does_not_fit_keeps_the_earlier_ones_unchanged(tree: Path) -> None:
    later = CHANGE.partition(b"\n\n")[2].replace(b"sub/file.txt", b"sub/absent.txt")
    with pytest.raises(DiffRefused):
        apply_diff(CHANGE + later, tree)
    assert contents(tree) == {"sub/file.txt": BEFORE}


def test_a_symbolic_link_is_not_followed(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "file.txt"
    outside.write_bytes(BEFORE)
    (tree / "sub/file.txt").unlink()
    (tree / "sub/file.txt").symlink_to(outside)
    with pytest.raises(DiffRefused, match="is not in the source"):
        apply_diff(CHANGE, tree)
    assert outside.read_bytes() == BEFORE


@pytest.mark.skipif(shutil.which("git") is None, reason="git is the oracle")
@pytest.mark.parametrize("seed", range(12))
def test_the_result_is_that_of_git_apply(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    before, after = tmp_path / "a", tmp_path / "b"
    for number in range(3):
        lines = [f"line {dice.randrange(5)}\r\n" if dice.random() < 0.1 else f"line {i}\n" for i in range(40)]
        changed = list(lines)
        for _ in range(dice.randrange(1, 5)):
            place = dice.randrange(len(changed))
            changed[place : place + dice.randrange(3)] = [f"new {dice.random()}\n"] * dice.randrange(3)
        if dice.random() < 0.3:
            changed[-1] = changed[-1].rstrip("\n")
        for folder, text in ((before, lines), (after, changed)):
            (folder / f"d{number}").mkdir(parents=True)
            (folder / f"d{number}/x.txt").write_bytes("".join(text).encode())
    (after / "added.txt").write_text("a new file\nwithout an end")
    (before / "gone.txt").write_text("an old file\n")
    made = subprocess.run(
        ["git", "diff", "--no-index", "--no-prefix", "a", "b"], cwd=tmp_path, capture_output=True, check=False
    ).stdout
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    shutil.copytree(before, ours)
    shutil.copytree(before, theirs)
    (tmp_path / "change.patch").write_bytes(made)
    subprocess.run(["git", "apply", "--unsafe-paths", "../change.patch"], cwd=theirs, check=True)
    apply_diff(made, ours)
    assert contents(ours) == contents(theirs) == contents(after)
