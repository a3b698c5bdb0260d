import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from segkit.runtime import memory

GLIBC = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

FAULTS = """
import os, resource, sys, threading
from segkit.runtime.memory import retain_freed_memory

def work(words):
    if "keep" in words:
        retain_freed_memory()
    import torch
    rounds = []
    for _ in range(6):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for size in (40, 100, 70):
            torch.ones(size << 20, dtype=torch.uint8)
        rounds.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    print(min(rounds), flush=True)

if len(sys.argv) > 2:
    import torch
for words in sys.argv[1:]:
    if child := os.fork():
        os.waitpid(child, 0)
        continue
    if "thread" in words:
        thread = threading.Thread(target=work, args=[words])
        thread.start()
        thread.join()
    else:
        work(words)
    os._exit(0)
"""


def faults(*ways, **environment):
    """Pages that the system has to hand out to large tensors after others like them: the best of a few rounds.

    Each way is a process of its own; several are forked from one that has imported torch, which takes most of the
    time.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "THP_"))}
    command = [sys.executable, "-c", FAULTS, *ways]
    done = subprocess.run(command, env=own | environment, capture_output=True, text=True, check=True)
    return dict(zip(ways, map(int, done.stdout.split()), strict=True))


@pytest.fixture(scope="module")
def found():
    return faults("plain", "keep", "thread", "keep thread")


@GLIBC
def test_what_is_freed_serves_the_next_tensors(found):
    assert found["keep"] < found["plain"] / 20
    assert faults("keep thread", MALLOC_ARENA_MAX="1")["keep thread"] < found["plain"] / 20


@GLIBC
@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(), reason="this system has no huge pages"
)
def test_a_thread_with_a_heap_of_its_own_gets_large_pages(found):
    assert found["keep thread"] < found["thread"] / 5


HOLES = """
import sys
from pathlib import Path
from segkit.runtime.memory import retain_freed_memory, trim_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

if "keep" in sys.argv:
    retain_freed_memory()
pieces = [bytearray(100_000) for _ in range(2000)]
full = resident()
del pieces[:-1]  # the last one holds the heap's end
before = resident()
trim_memory()
print(full - before, full - resident())
"""


@GLIBC
@pytest.mark.parametrize("words", [(), ("keep",)])
def test_free_memory_is_returned(words):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", HOLES, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    before, after = (int(pages) * 4096 for pages in done.stdout.split())
    assert before < 0.1 * 1999 * 100_000
    assert after > 0.9 * 1999 * 100_000


@pytest.mark.parametrize("platform", ["darwin", "win32", "linux"])
def test_other_allocators_are_left_alone(monkeypatch, platform):
    class Musl:
        pass

    def load(name):
        assert platform == "linux"
        return Musl()

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    memory.trim_memory()
    memory.retain_freed_memory()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    monkeypatch.setattr(memory, "_glibc_function", lambda name: lambda *_: 1)
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")
    memory.retain_freed_memory()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    memory.retain_freed_memory()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    thread = threading.Thread(target=memory.retain_freed_memory)
    thread.start()
    thread.join()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
