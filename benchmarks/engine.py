"""The whole transformers engine beside its floor and beside scoring in the reference style, in one run.

Floor: the backbone alone on the same batches, plus the bare product of the scored rows with the output head. Reference style:
batches of four in file order, padded, whole logits, log-softmax and top-100 for the rank, as published scoring scripts do.
Variants take turns and the fastest of several repetitions counts, so that other work on the machine disturbs all alike.

    python benchmarks/engine.py [--quick] [--hidden 512] [--layers 4] [--vocabulary 151936] [--repetitions 4]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers

from trajscore.engines import EngineOptions, ModelSource, TokenSequence
from trajscore.engines.hf import HFEngine
from trajscore.engines.reductions import STATES, TOKENS


def _model(folder: Path, hidden: int, layers: int, vocabulary: int) -> str:
    config = transformers.Qwen3Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 128, head_dim=64,
        max_position_embeddings=4096, tie_word_embeddings=True, initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    return str(folder)


def _sequences(rows: int, vocabulary: int) -> list[TokenSequence]:
    draw = np.random.default_rng(0)
    sequences = []
    for length in draw.integers(80, 400, rows):
        ids = draw.integers(0, vocabulary, length).astype(np.int32)
        # A third of the conversation is prompt, as in the corpora of short solutions.
        sequences.append(TokenSequence(ids, np.arange(length // 3, length, dtype=np.uint32)))
    return sequences


@torch.inference_mode()
def _reference(model: torch.nn.Module, sequences: list[TokenSequence]) -> None:
    for first in range(0, len(sequences), 4):
        batch = sequences[first : first + 4]
        longest = max(len(s.input_ids_P) for s in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.int64)
        mask = torch.zeros(len(batch), longest, dtype=torch.int64)
        for row, sequence in enumerate(batch):
            ids[row, : len(sequence.input_ids_P)] = torch.from_numpy(sequence.input_ids_P.astype(np.int64))
            mask[row, : len(sequence.input_ids_P)] = 1
        logits_BPV = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        for row, sequence in enumerate(batch):
            positions = torch.from_numpy(sequence.positions_N.astype(np.int64))
            logits_NV = logits_BPV[row, positions - 1].float()
            target_N1 = ids[row, positions][:, None]
            own_N1 = logits_NV.gather(1, target_N1)
            (logits_NV.logsumexp(1, keepdim=True) - own_N1).squeeze(1)
            (logits_NV.topk(100).values > own_N1).sum(1)


def _best(variants: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    best = dict.fromkeys(variants, float("inf"))
    for _ in range(repetitions):
        for name, run in variants.items():
            began = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=4)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.vocabulary, args.rows, args.repetitions = 20_000, 6, 2
    with tempfile.TemporaryDirectory() as folder:
        name = _model(Path(folder), args.hidden, args.layers, args.vocabulary)
        engine = HFEngine(ModelSource(name, np.arange(args.vocabulary)), EngineOptions(dtype="float32"))
        model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    sequences = _sequences(args.rows, args.vocabulary)
    states_ND = torch.cat([states for _, states in engine.run(sequences, STATES)])
    weight_VD = engine.head.weight_VD

    def product() -> None:
        with torch.inference_mode():
            for chunk in torch.split(states_ND, 512):
                torch.mm(chunk, weight_VD.T)

    best = _best(
        {
            "backbone": lambda: list(engine.run(sequences, STATES)),
            "head product": product,
            "engine": lambda: list(engine.run(sequences, TOKENS)),
            "reference style": lambda: _reference(model, sequences),
        },
        args.repetitions,
    )
    tokens = len(states_ND)
    floor = best["backbone"] + best["head product"]
    print(
        f"Qwen3, hidden {args.hidden}, {args.layers} layers, vocabulary {args.vocabulary}, {tokens} scored tokens, float32"
    )
    print("| variant | seconds | scored tokens/s | over the floor |\n|---|---|---|---|")
    for variant, seconds in best.items():
        print(f"| {variant} | {seconds:.2f} | {tokens / seconds:,.0f} | {seconds / floor:.2f} |")
    print(f"\nreference style over engine: {best['reference style'] / best['engine']:.2f}")


if __name__ == "__main__":
    main()
