"""The vLLM engine beside vLLM's own prompt log-probabilities, its floor, and scoring in the reference style, in one run.

Floor: vLLM's prefill of the same conversations with one scored token each, plus the bare product of all scored rows with the
output head. `prompt_logprobs=0` gives surprisal and a rank that counts ties, no entropy. Each variant lives in a process that
has loaded its model; they take turns, and the fastest of several repetitions counts, so that other work disturbs all alike.
On a GPU, `--hidden 4096 --layers 36 --length 8192 --dtype bfloat16` is the shape of an 8B model.

    python -m benchmarks.vllm_engine [--quick] [--hidden 512] [--layers 4] [--vocabulary 151936] [--rows 16] [--length 0]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine import make_model, make_sequences, reference_style
from trajscore.engines import EngineOptions, ModelSource, TokenSequence

_VARIANTS = {
    "prefill": "scoring",
    "engine": "scoring",
    "prompt_logprobs=0": "logprobs",
    "head product": "hf",
    "reference style": "hf",
}


def _serve(kind: str, name: str, arguments: argparse.Namespace, pipe: Connection) -> None:
    """Load what one kind of variant needs, then run what is asked for and answer with the seconds."""
    runs = {"scoring": _scoring, "logprobs": _logprobs, "hf": _transformers}[kind](name, arguments)
    pipe.send("loaded")
    while (asked := pipe.recv()) is not None:
        clock = time.process_time if arguments.cpu_time else time.perf_counter
        began = clock()
        runs[asked]()
        pipe.send(clock() - began)


def _sequences(arguments: argparse.Namespace) -> list[TokenSequence]:
    return make_sequences(arguments.rows, arguments.vocabulary, arguments.length)


def _scoring(name: str, arguments: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    from trajscore.engines.reductions import TOKENS
    from trajscore.engines.vllm import VLLMEngine

    options = EngineOptions(dtype=arguments.dtype, max_num_batched_tokens=arguments.batched)
    engine = VLLMEngine(ModelSource(name, np.arange(arguments.vocabulary)), options)
    sequences = _sequences(arguments)
    one = [TokenSequence(each.input_ids_P, each.positions_N[-1:]) for each in sequences]
    return {"prefill": lambda: list(engine.run(one, TOKENS)), "engine": lambda: list(engine.run(sequences, TOKENS))}


def _logprobs(name: str, arguments: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    from trajscore.engines.vllm_versions import prepare_environment

    prepare_environment()
    import vllm
    from vllm.platforms import current_platform

    cpu = current_platform.is_cpu()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if cpu else "1"
    llm = vllm.LLM(
        name, skip_tokenizer_init=True, enable_prefix_caching=False, dtype=arguments.dtype, enforce_eager=cpu,
        max_num_batched_tokens=arguments.batched, max_model_len=max(len(s.input_ids_P) for s in _sequences(arguments)) + 1,
    )  # fmt: skip
    params = vllm.SamplingParams(max_tokens=1, prompt_logprobs=0, flat_logprobs=True, detokenize=False)
    prompts = [vllm.TokensPrompt(prompt_token_ids=s.input_ids_P.tolist()) for s in _sequences(arguments)]
    return {"prompt_logprobs=0": lambda: llm.generate(prompts, params, use_tqdm=False)}


def _transformers(name: str, arguments: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, arguments.dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=dtype).to(device).eval()
    sequences = _sequences(arguments)
    weight_VD = model.get_output_embeddings().weight
    rows = sum(len(s.positions_N) for s in sequences)
    states_ND = torch.randn(rows, weight_VD.shape[1], dtype=dtype, device=device)

    def product() -> None:
        with torch.inference_mode():
            for chunk in torch.split(states_ND, 512):
                torch.mm(chunk, weight_VD.T)
            if device == "cuda":
                torch.cuda.synchronize()

    return {"head product": product, "reference style": lambda: reference_style(model, sequences)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=0, help="tokens of each conversation; 0: 80 to 400")
    parser.add_argument("--batched", type=int, default=2048, help="tokens per step")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repetitions", type=int, default=4)
    parser.add_argument("--cpu-time", action="store_true", help="processor time, which other work disturbs less")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.vocabulary, arguments.rows, arguments.repetitions = 20_000, 6, 2
    spawn = multiprocessing.get_context("spawn")
    best = dict.fromkeys(_VARIANTS, float("inf"))
    with tempfile.TemporaryDirectory() as folder:
        name = make_model(
            Path(folder), arguments.hidden, arguments.layers, arguments.vocabulary, max(4096, arguments.length)
        )
        pipes: dict[str, Connection] = {}
        for kind in dict.fromkeys(_VARIANTS.values()):
            pipes[kind], theirs = spawn.Pipe()
            spawn.Process(target=_serve, args=(kind, name, arguments, theirs), daemon=True).start()
            pipes[kind].recv()
        for _ in range(arguments.repetitions):
            for variant, kind in _VARIANTS.items():
                pipes[kind].send(variant)
                best[variant] = min(best[variant], pipes[kind].recv())
        for pipe in pipes.values():
            pipe.send(None)
    scored = sum(len(s.positions_N) for s in _sequences(arguments))
    tokens = sum(len(s.input_ids_P) for s in _sequences(arguments))
    floor = best["prefill"] + best["head product"]
    print(
        f"Qwen3, hidden {arguments.hidden}, {arguments.layers} layers, vocabulary {arguments.vocabulary}, {tokens} tokens, "
        f"{scored} scored, {arguments.dtype}"
    )
    print("| variant | seconds | tokens/s | over the floor |\n|---|---:|---:|---:|")
    for variant, seconds in best.items():
        print(f"| {variant} | {seconds:.2f} | {tokens / seconds:,.0f} | {seconds / floor:.2f} |")
    print(f"\nprompt_logprobs=0 over engine: {best['prompt_logprobs=0'] / best['engine']:.2f}")
    print(f"reference style over engine: {best['reference style'] / best['engine']:.2f}")


if __name__ == "__main__":
    main()
