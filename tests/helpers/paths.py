"""Where tests find what ships, what `make real-student` makes, and the corpora beside the repository."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = ROOT / "data"
MODELS = DATA / "models"
REAL_STUDENT = DATA / "real" / "smollm2-135m-instruct"
SHARED = ROOT.parent / "shared" / "data"
