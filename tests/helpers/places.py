"""Where things lie: the project, the data beside it, and pixels of 10 m."""

from pathlib import Path

from affine import Affine

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
HELPERS = Path(__file__).parent
UTM = Affine(10, 0, 600_000, 0, -10, 9_000_000)
