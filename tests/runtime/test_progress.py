import functools
import io
import re
import sys

import numba
import pytest

from segkit.runtime import progress as module
from segkit.runtime.progress import progress
from segkit.vector.tracing import jit


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    monkeypatch.setattr(module, "_LINE_INTERVAL_S", 10.0)
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


def add_one(number):
    return number + 1


def test_compilation_is_announced_once_while_progress_is_shown(tmp_path, monkeypatch, capsys):
    """A first run compiles for many seconds, in which no step is done."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(jit, "_announce_compilation", functools.cache(jit._announce_compilation.__wrapped__))
    with progress("silent", 10, show=False):
        assert jit.compiled(add_one)(1) == 2
    assert capsys.readouterr().err == ""
    jit._announce_compilation.cache_clear()
    with progress("shown", 10):
        function = jit.compiled(add_one)
        assert function(1) == 2
        assert capsys.readouterr().err == ""  # it was in the cache
        assert (function(1.5), function(1j)) == (2.5, 1 + 1j)
    assert capsys.readouterr().err.count("segkit: compiling") == 1


def read_seconds(line):
    """The seconds left that a line names, None without."""
    found = re.search(r"([\d,]+) s left", line)
    return None if found is None else int(found[1].replace(",", ""))


BURST = [(4, 5), *[(1e-4, 5)] * 7]
# (Seconds, step) of work on 1,000 Mpx at 10 Mpx/s, from the first step on.
WORK = {
    "steady": [(0.5, 5)] * 200,
    "in bursts": BURST * 25,
    "after preparation": [(40, 5), *[(0.5, 5)] * 199],
    "bursts after preparation": [(40, 5), *BURST[1:], *BURST * 24],
    "after what costs nothing": [(1e-3, 10)] * 50 + [(0.5, 5)] * 100,
}  # fmt: skip


@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_what_is_estimated_to_be_left_is_true_from_the_first_time_on(clock, capsys, work):
    end = 100 + sum(seconds for seconds, _ in work)
    estimates = []
    with progress("predict", sum(step for _, step in work), "Mpx") as advance:
        for seconds, step in work:
            clock[0] += seconds
            advance(step)
            if (line := capsys.readouterr().err) and read_seconds(line) is not None:
                estimates.append((read_seconds(line), end - clock[0]))
    assert len(estimates) >= 3
    assert all(0.4 < (found + 5) / (true + 5) < 2.5 for found, true in estimates), estimates


def test_a_bar_shows_no_speed_before_it_is_known(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress("scene", 1000, "Mpx") as advance:
        for _ in range(8):
            advance(1)  # a burst
            clock[0] += 1e-4
        early = len(terminal.getvalue())
        for _ in range(3):
            clock[0] += 4
            advance(8)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "Mpx/s" not in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()[:early])
    assert "32/1,000 Mpx  2 Mpx/s" in shown
    assert "left 0:08:04" in shown  # 968 Mpx are left


def test_a_note_is_in_the_line_and_on_the_bar_until_the_next_one(clock, capsys, monkeypatch):
    with progress("train", 100, "steps") as advance:
        for number in range(3):
            clock[0] += 10
            advance(1, f"loss 0.{number}" if number else "")
    assert [line.partition("loss")[2] for line in capsys.readouterr().err.splitlines()] == ["", " 0.1", " 0.2"]
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    for width in ("80", "100"):
        monkeypatch.setenv("COLUMNS", width)
        with progress("train", 6000, "steps") as advance:
            for number in range(4):
                clock[0] += 3
                advance(1000, f"loss 0.123{number}")
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()))
    shown = {re.sub(" +", " ", re.sub(r"\d +left", " left", line)).strip() for line in lines if "loss 0.1233" in line}
    for speed in ("", " 333 steps/s"):  # narrow, and wide
        end = f" 4,000/6,000 steps{speed} elapsed 0:00:0 left 0:00:06 loss 0.1233"
        assert any(line.startswith("train ") and line.endswith(end) for line in shown), shown
