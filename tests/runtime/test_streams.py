import errno
import io
import json
import os
import re
import sys

import pytest

from segkit.runtime import progress as module
from segkit.runtime.progress import progress
from segkit.runtime.streams import CommandStream, LogFile


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def stream(tmp_path):
    made = CommandStream(Terminal())
    with (tmp_path / "log.txt").open("a") as file:
        made.log = LogFile(file)
        yield made


def logged(tmp_path):
    return [line[21:] for line in (tmp_path / "log.txt").read_text().splitlines()]


def test_lines_are_logged_whole_whether_or_not_they_are_shown(stream, tmp_path):
    print("a", "b", file=stream)
    stream.silent = True
    print("c", file=stream)
    stream.write("no end")
    stream.print_always(" of it")
    stream.write("last")
    assert not stream.isatty()
    stream.end_log()
    assert stream.shown.getvalue() == "a b\n of it\n"
    assert logged(tmp_path) == ["a b", "c", "no end of it", "last"]
    assert stream.encoding is None  # that of the stream behind it


class Gone(io.StringIO):
    """A stream that cannot be written."""

    def __init__(self, number):
        super().__init__()
        self.error, self.name = OSError(number, os.strerror(number)), "log.txt"

    def write(self, text):
        raise self.error

    flush = write_through = lambda self: self.write("")


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
def test_without_a_reader_a_command_goes_on_but_no_result_is_lost_unsaid(number):
    messages, result = CommandStream(Gone(number)), CommandStream(Gone(number), holds_result=True)
    messages.write("a")
    messages.flush()
    if number == errno.EPIPE:
        assert result.write("a") == 1
    else:
        for attempt in (lambda: result.write("a"), result.flush):
            with pytest.raises(OSError, match=r"No space left on device: 'standard output'"):
                attempt()


def test_a_log_that_cannot_be_written_ends_with_one_warning(capsys):
    log = LogFile(Gone(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        log.start("first")
    log.add("second")
    log.add("third")
    log.close()
    assert capsys.readouterr().err == "segkit: warning: log.txt: the log ends here (No space left on device)\n"


def test_a_bar_is_not_logged_but_its_progress_is(stream, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(module, "_LINE_INTERVAL_S", 0.0)
    with progress("predict", 10, "Mpx") as advance:
        advance(4)
        print("a warning", file=sys.stderr)
        advance(6)
    assert isinstance(stream.shown, Terminal)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.shown.getvalue())
    assert "a warning" in shown
    assert "10/10 Mpx" in shown
    assert logged(tmp_path) == ["predict: 4/10 Mpx", "a warning", "predict: 10/10 Mpx"]


def test_silence_is_no_terminal(stream, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(module, "_LINE_INTERVAL_S", 0.0)
    stream.silent = True
    with progress("predict", 10, "Mpx") as advance:
        advance(5)
    assert stream.shown.getvalue() == ""
    assert logged(tmp_path) == ["predict: 5/10 Mpx"]


def test_a_name_cannot_command_the_terminal(stream, tmp_path):
    """Colours, titles, and text from right to left; what is shown is valid JSON still."""
    name = "a\x1b[31m\x9b1m\x07\x7f\u202eb\u2066c\r\té"
    print(name, file=stream)
    stream.show(f'"{name[:-3]}"')
    escaped = "a\\u001b[31m\\u009b1m\\u0007\\u007f\\u202eb\\u2066c"
    assert stream.shown.getvalue() == f'{escaped}\r\té\n"{escaped}"'
    assert json.loads(f'"{escaped}"') == name[:-3]
    assert logged(tmp_path)[0].startswith(escaped)
