"""Damage each kind of file that segkit reads, at length, and list how the commands end.

    python tools/fuzz_files.py rasters models --flips 500 --cuts 100

Each case runs in a child process, so that a crash, a hang (20 s) and memory (4 GB above that at the start) are seen.
"""

import argparse
import os
import pickle
import resource
import select
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from fault_cases import KINDS
from faults import CHANGED, REFUSED, SAME, damages, run_damaged, undamaged

_MEMORY, _SECONDS = 4 * 2**30, 20


def _child(pipe, case, work, n_cuts, n_flips, seed, start):
    """Run the damages from number `start` on; write a line for each."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _MEMORY, size + _MEMORY))
    whole = undamaged(case, work)
    for number, (damage, change) in enumerate(damages(case, n_cuts, n_flips, seed)):
        if number >= start:
            os.write(pipe, f"start\t{damage}\n".encode())
            end, said = run_damaged(case, whole, work, damage, change)
            last = (said.strip().splitlines() or [""])[-1]
            os.write(pipe, f"end\t{end}\t{damage}\t{last[:300]}\n".encode())
    os.write(pipe, b"done\n")
    os._exit(0)


def run(case, work, n_cuts, n_flips, seed=0):
    """Yield (end, damage, last line of the message) of each damage."""
    done = 0
    while True:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            try:
                _child(writing, case, work, n_cuts, n_flips, seed, done)
            except BaseException as error:  # noqa: BLE001
                print(f"{case.name}: {type(error).__name__}: {error}", file=sys.__stderr__)
            os._exit(3)
        os.close(writing)
        text, damage, hung = "", "the whole file", False
        while True:
            if not select.select([reading], [], [], _SECONDS if damage != "the whole file" else 60)[0]:
                os.kill(child, signal.SIGKILL)
                hung = True
                break
            got = os.read(reading, 65536).decode(errors="replace")
            if not got:
                break
            text += got
            *lines, text = text.split("\n")
            for line in lines:
                what, *rest = line.split("\t")
                if what == "start":
                    damage = rest[0]
                elif what == "end":
                    done += 1
                    yield rest[0], rest[1], "\t".join(rest[2:])
                elif what == "done":
                    damage = ""
        os.close(reading)
        _, status = os.waitpid(child, 0)
        if not damage:
            return
        yield ("hang" if hung else f"crash ({status})"), damage, ""
        if damage == "the whole file":
            return
        done += 1


def make_cases(kind, folder):
    """Return the cases of a kind, made in a child process: threads of libraries do not survive a fork."""
    folder.mkdir()
    child = os.fork()
    if not child:
        try:
            (folder / "cases").write_bytes(pickle.dumps(list(KINDS[kind](folder))))
        except BaseException:  # noqa: BLE001
            sys.excepthook(*sys.exc_info())
        os._exit(0)
    os.waitpid(child, 0)
    return pickle.loads((folder / "cases").read_bytes())


def main():
    """Run the kinds that are named; print a table and all findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=list(KINDS), help=", ".join(KINDS))
    parser.add_argument("--flips", type=int, default=500)
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="another one draws other damages")
    parser.add_argument("--only", default="", help="part of the name of a case")
    given = parser.parse_args()
    found = 0
    with tempfile.TemporaryDirectory() as folder:
        for kind in given.kinds:
            for case in make_cases(kind, Path(folder) / kind):
                if given.only not in case.name:
                    continue
                ends, shown = Counter(), Counter()
                for end, damage, said in run(case, Path(folder) / "work", given.cuts, given.flips, given.seed):
                    ends[end] += 1
                    if end not in (SAME, CHANGED, REFUSED):
                        found += 1
                        key = end, said[:60]
                        shown[key] += 1
                        if shown[key] <= 3:
                            print(f"    {end}: {case.name}: {damage}: {said}", flush=True)
                print(f"{case.name}: {', '.join(f'{n} {end}' for end, n in ends.most_common())}", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
