"""Two commits compared: a slower one is found, and each is measured by its own code."""

import json
import subprocess
import sys

import pytest

from benchmarks import regress

PROGRAM = """
import argparse, json
parser = argparse.ArgumentParser()
for name in ("--preset", "--chunk", "--rounds", "--json", "--threads", "--clock"):
    parser.add_argument(name)
a = parser.parse_args()
prefill = 1.0 if (a.threads, a.clock) == (None, None) else 2.0 if (a.threads, a.clock) == ("1", "cpu") else None
open(a.json, "w").write(json.dumps({"seconds": {"a_token": SECONDS, "prefill": prefill}}))
"""


@pytest.fixture
def history(tmp_path, monkeypatch):
    """A repository whose second commit takes 5 % longer than the first, and whose third takes 30 % longer."""

    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    git("init", "-q")
    (tmp_path / "benchmarks").mkdir()
    for seconds in ("1.0", "1.05", "1.3"):
        (tmp_path / "benchmarks" / "generate.py").write_text(PROGRAM.replace("SECONDS", seconds))
        git("add", "-A")
        git("commit", "-qm", seconds)
    monkeypatch.setattr(regress, "ROOT", tmp_path)
    return tmp_path


def call(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["regress", *arguments, "--programs", "token tiny", "--turns", "2"])
    with pytest.raises(SystemExit) as ended:
        regress.main()
    return ended.value.code


def test_a_slower_commit_is_found(history, monkeypatch, capsys):
    assert call(monkeypatch, "HEAD~2", "HEAD") == 1
    assert "token tiny: a_token, 1.30 times" in capsys.readouterr().err
    worktrees = subprocess.run(["git", "worktree", "list"], cwd=history, capture_output=True, text=True).stdout
    assert len(worktrees.splitlines()) == 1  # nothing is left behind


def test_a_little_slower_is_allowed(history, monkeypatch):
    assert call(monkeypatch, "HEAD~2", "HEAD~1") == 0
    assert call(monkeypatch, "HEAD~2", "HEAD~1", "--limit", "1.04") == 1


def test_threads_and_clock_are_handed_on(history, monkeypatch, tmp_path):
    file = tmp_path / "figures.json"
    assert call(monkeypatch, "HEAD~2", "HEAD~1", "--threads", "1", "--clock", "cpu", "--json", str(file)) == 0
    assert json.loads(file.read_text())["measures"]["token tiny: prefill"]["seconds"] == {"base": 2.0, "new": 2.0}


@pytest.mark.parametrize("arguments", [("nowhere",), ("HEAD", "HEAD", "--programs", "none")])
def test_what_cannot_be_compared_is_said(history, monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["regress", *arguments])
    with pytest.raises(SystemExit) as ended:
        regress.main()
    assert ended.value.code == 2


def test_the_commits_change_places(monkeypatch):
    order = []
    monkeypatch.setattr(regress, "run", lambda program, tree, a: order.append(tree) or {"a_token": 1.0, "prefill": 1.0})

    class Turns:
        turns = 3

    found = regress.take_turns(regress.PROGRAMS["token tiny"], {"base": "a", "new": "b"}, Turns)
    assert order == ["a", "b", "b", "a", "a", "b"] and found["a_token"]["new"] == [1.0] * 3
