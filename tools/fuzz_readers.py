"""Give a reader of text files bytes that lead to code not run before, and stop at the first finding.

    python tools/fuzz_readers.py recipe --minutes 10

Readers: recipe, model (the header of a model file), journal. It needs atheris, which is not installed with segkit:
python -m pip install --target FOLDER atheris, and then PYTHONPATH=FOLDER. It starts from tests/faults/seeds/; inputs
that led to new code are written to --corpus, and an input with a finding to crash-*, timeout-* or oom-* in the current
folder. Add what is worth keeping to the seeds, which tests/faults/test_readers.py reads.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

_ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(_ROOT / "tests" / "helpers"))
_KINDS = ("recipe", "model", "journal")
_MAX_BYTES = 20_000


def main():
    """Fuzz one reader; the exit code is not 0 if there was a finding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=_KINDS)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: 10)")
    parser.add_argument("--corpus", type=Path, help="folder of inputs that led to new code (default: a temporary one)")
    given = parser.parse_args()
    try:
        import atheris
    except ImportError:
        parser.error(
            "atheris is not installed: python -m pip install --target FOLDER atheris, and put FOLDER on PYTHONPATH"
        )
    with atheris.instrument_imports(include=["segkit", "yaml"]):
        from reader_checks import READERS

    os.fsync = lambda descriptor: None  # of thousands of tiny files a second; a disk is not what is tested
    check, work = READERS[given.reader], Path(tempfile.mkdtemp())
    corpus = given.corpus or Path(tempfile.mkdtemp())
    corpus.mkdir(parents=True, exist_ok=True)
    limits = [
        f"-max_total_time={int(60 * given.minutes)}",
        f"-max_len={_MAX_BYTES}",
        "-timeout=20",
        "-rss_limit_mb=4000",
    ]
    seeds = _ROOT / "tests" / "faults" / "seeds" / given.reader
    atheris.Setup([sys.argv[0], *limits, str(corpus), str(seeds)], lambda content: check(content, work))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
