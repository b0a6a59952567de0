"""Where tests find what ships, and the real corpora beside the repository that a test skips without."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = ROOT / "data"
MODELS = DATA / "models"
SHARED = ROOT.parent / "shared" / "data"
