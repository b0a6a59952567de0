"""Settings of all tests: the same random examples on every run, so that a red test is red for everyone.

`auto` means transformers here, which loads in a moment; what concerns vLLM names it.
"""

import os

from hypothesis import settings

from trajscore.engines import ENGINE_VARIABLE

os.environ[ENGINE_VARIABLE] = "hf"

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile("same")
