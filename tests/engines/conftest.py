"""vLLM is loaded before the first test of these files, so that its objects, too, are left out of garbage collection."""

import importlib.util

if importlib.util.find_spec("vllm") is not None:
    from vllm import LLMEngine  # noqa: F401
