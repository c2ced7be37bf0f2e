"""The command line inside a test process."""

import pytest

from autopeft import cli


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit status of `autopeft ARGUMENTS`."""
    monkeypatch.setattr("sys.argv", ["autopeft", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def succeed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What it prints; it must succeed."""
    capsys.readouterr()
    status = run(monkeypatch, *arguments)
    shown = capsys.readouterr()
    assert not status, shown.err
    return shown.out


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What it says on stderr when it refuses with status 2: one message and at most one hint."""
    capsys.readouterr()
    status = run(monkeypatch, *arguments)
    shown = capsys.readouterr()
    assert (status, shown.out) == (2, ""), shown
    assert len(shown.err.splitlines()) <= 2, shown.err
    return shown.err
