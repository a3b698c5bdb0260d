import io
import re
import sys

import pytest

from segkit import progress as module
from segkit.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LINES", 10.0)
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_off_a_terminal_a_line_every_ten_seconds(clock, capsys):
    with progress("predict", 1000, "Mpx") as advance:
        for _ in range(8):
            clock[0] += 4
            advance(20)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "predict: 60/1,000 Mpx  5 Mpx/s  188 s left",
        "predict: 120/1,000 Mpx  5 Mpx/s  176 s left",
    ]


def test_short_work_and_silent_work_print_nothing(clock, capsys):
    with progress("short", 10) as advance:
        advance(10)
    with progress("silent", 10, show=False) as advance:
        clock[0] += 60
        advance(5)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_a_bar_on_stderr(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress("scene[red]", 8, "Mpx") as advance:
        advance(8)
    assert capsys.readouterr().out == ""
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "scene[red]" in shown  # brackets in a file name are no markup
    assert "8/8 Mpx" in shown
