"""Trains the three tiny models from scratch and measures them; B sequences, T positions, V vocabulary.

A recipe names the architecture and what a model has seen. The students see one and two steps only, so the three- and
four-step problems of the corpus are left to be learnt; the teacher sees chains of every length.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from texts import facts, prose, story
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from vocabularies import CONTEXT, VOCABULARIES, train_tokenizer, update_json, write_tokenizer
from world import SKILLS, Problem, is_correct, problems, solve

BATCH = 16
ROPE_THETA = 1000.0


@dataclass(frozen=True)
class Recipe:
    """One model: `family` is the model type, `padded_vocab` the output rows, at least the tokenizer's length.

    `chat`, `story`, `facts` and `prose` in `mix` are shares of the training documents; `styles` are the shares of the
    teachers among the chats, whose problems have one of `steps` operations, each of one of `skills`.
    """

    name: str
    family: str
    vocabulary: str
    padded_vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    tied: bool
    steps: tuple[int, ...]
    styles: dict[str, float]
    mix: dict[str, float]
    updates: int
    learning_rate: float
    seed: int
    skills: tuple[str, ...] = SKILLS


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="student",
            family="qwen3",
            vocabulary="qwen-like",
            padded_vocab=551,
            hidden=64,
            intermediate=192,
            layers=3,
            heads=2,
            tied=True,
            steps=(1, 2),
            styles={"plain": 0.7, "terse": 0.1, "paraphrasing": 0.1, "verbose": 0.05, "self-correcting": 0.05},
            mix={"chat": 0.65, "facts": 0.1, "story": 0.15, "prose": 0.1},
            updates=3000,
            learning_rate=3e-3,
            seed=0,
        ),
        Recipe(
            name="teacher",
            family="qwen3",
            vocabulary="qwen-like",
            padded_vocab=576,
            hidden=96,
            intermediate=256,
            layers=4,
            heads=3,
            tied=False,
            steps=(1, 2, 3, 4),
            styles={"plain": 0.8, "verifying": 0.1, "paraphrasing": 0.1},
            mix={"chat": 0.8, "facts": 0.05, "story": 0.1, "prose": 0.05},
            updates=3000,
            learning_rate=3e-3,
            seed=0,
        ),
        Recipe(
            name="student-llama",
            family="llama",
            vocabulary="llama-like",
            padded_vocab=684,
            hidden=64,
            intermediate=192,
            layers=3,
            heads=2,
            tied=True,
            steps=(1, 2),
            styles={"plain": 0.3, "terse": 0.5, "paraphrasing": 0.1, "padded": 0.1},
            mix={"chat": 0.65, "facts": 0.1, "story": 0.15, "prose": 0.1},
            updates=3000,
            learning_rate=3e-3,
            seed=0,
        ),
    )
}


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """The untrained model of a recipe, in float32."""
    shared = {
        "vocab_size": recipe.padded_vocab,
        "hidden_size": recipe.hidden,
        "intermediate_size": recipe.intermediate,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.heads,
        "head_dim": 32,
        "max_position_embeddings": CONTEXT,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        # The usual 0.02 is far too small at this width: the model then never learns to copy.
        "initializer_range": 0.08,
        "tie_word_embeddings": recipe.tied,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(recipe.seed)
    if recipe.family == "llama":
        return LlamaForCausalLM(LlamaConfig(**shared))  # type: ignore[no-untyped-call, unused-ignore]
    return Qwen3ForCausalLM(Qwen3Config(**shared))  # type: ignore[no-untyped-call, unused-ignore]


def chat(problem: Problem, response: str) -> list[dict[str, str]]:
    """The conversation of one problem and one response."""
    return [{"role": "user", "content": problem.question}, {"role": "assistant", "content": response}]


def documents(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, n: int) -> list[list[int]]:
    """`n` token id lists drawn by the recipe's mix, the same on every run."""
    rng, texts = Random(f"documents {recipe.name} {recipe.seed}"), []
    plain_text = {"facts": facts, "story": story, "prose": prose}
    start, end = tokenizer.bos_token or "", "<|end_of_text|>" if tokenizer.bos_token else "<|endoftext|>"
    for _ in range(n):
        kind = rng.choices(list(recipe.mix), weights=list(recipe.mix.values()))[0]
        if kind != "chat":
            texts.append(start + plain_text[kind](rng) + end)
            continue
        problem = problems(1, rng.randrange(2**32), steps=recipe.steps, skills=recipe.skills, split="train")[0]
        style = rng.choices(list(recipe.styles), weights=list(recipe.styles.values()))[0]
        texts.append(str(tokenizer.apply_chat_template(chat(problem, solve(problem, style, rng)), tokenize=False)))
    return list(tokenizer(texts, add_special_tokens=False)["input_ids"])


def batches(rows: list[list[int]], pad: int, updates: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """`updates` pairs (ids_BT, labels_BT), right-padded; labels are -100 at the padding.

    Rows of like length share a batch, within a shuffled stretch of 20 batches, so little time goes into padding.
    """
    rng, done = Random(f"batches {seed}"), 0
    while done < updates:
        order = rng.sample(rows, len(rows))
        for first in range(0, len(order) - BATCH * 20 + 1, BATCH * 20):
            stretch = sorted(order[first : first + BATCH * 20], key=len)
            for batch in rng.sample(range(20), 20):
                if done == updates:
                    return
                chosen = [torch.tensor(row) for row in stretch[batch * BATCH : (batch + 1) * BATCH]]
                pad_to = torch.nn.utils.rnn.pad_sequence
                done += 1
                yield pad_to(chosen, True, pad), pad_to(chosen, True, -100)


def train(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Trains a recipe's model on every token of its documents: AdamW, 100 steps of warm-up, then a cosine to zero."""
    model, started = new_model(recipe, tokenizer), time.process_time()
    rows = documents(recipe, tokenizer, min(recipe.updates * BATCH, 24_000))
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / recipe.updates))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    pad = int(tokenizer.pad_token_id)
    for step, (ids_BT, labels_BT) in enumerate(batches(rows, pad, recipe.updates, recipe.seed)):
        # Right padding under causal attention cannot reach a real position, so no attention mask is needed.
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
        loss = functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=-100)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 500 == 0:
            seconds = time.process_time() - started
            print(f"  {recipe.name}: step {step + 1}, loss {loss.item():.3f}, {seconds:.0f} s CPU", flush=True)
    model.eval()  # type: ignore[no-untyped-call, unused-ignore]
    return model


@torch.no_grad()
def greedy_texts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, asked: Sequence[Problem]) -> list[str]:
    """What the model answers to these problems with greedy decoding."""
    answers: list[str] = []
    for first in range(0, len(asked), 50):
        questions = [chat(problem, "")[:1] for problem in asked[first : first + 50]]
        prompts = tokenizer.apply_chat_template(questions, add_generation_prompt=True, tokenize=False)
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        output = model.generate(**inputs, max_new_tokens=128, do_sample=False)  # type: ignore[operator, unused-ignore]
        answers += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def greedy_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, steps: tuple[int, ...], n: int = 150
) -> float:
    """The share of `n` held-out problems of these lengths that the model solves with greedy decoding."""
    held_out = problems(n, 0, steps=steps, split="test")
    texts = greedy_texts(model, tokenizer, held_out)
    return sum(is_correct(problem, text) for problem, text in zip(held_out, texts, strict=True)) / n


def write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Saves fp16 weights, configuration, tokenizer and chat template for AutoModelForCausalLM and AutoTokenizer."""
    model.half().save_pretrained(folder)  # type: ignore[no-untyped-call, unused-ignore]
    # It is written readable by its owner alone, which would follow the file into archives.
    (folder / "model.safetensors").chmod(0o644)
    # Readers older than transformers 5 look for `rope_theta` where version 5 writes `rope_parameters`.
    update_json(folder / "config.json", {"rope_theta": ROPE_THETA})
    write_tokenizer(tokenizer, folder)


def make_model(recipe: Recipe, folder: Path) -> str:
    """Trains, writes, reloads what was written and measures that; returns one row of the table in README.md."""
    torch.use_deterministic_algorithms(True)
    started = time.process_time()
    tokenizer = train_tokenizer(VOCABULARIES[recipe.vocabulary])
    write_model(train(recipe, tokenizer), tokenizer, folder)
    seconds = time.process_time() - started
    shipped = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    reader = PreTrainedTokenizerFast.from_pretrained(folder)
    short, long = (greedy_accuracy(shipped, reader, steps) for steps in ((1, 2), (3, 4)))
    size = sum(parameter.numel() for parameter in shipped.parameters())
    shape = f"{recipe.layers} x {recipe.hidden}, {recipe.heads} heads"
    return (
        f"| `{recipe.name}` | {type(shipped.config).__name__} | {shape} | {size:,} | {recipe.vocabulary}, "
        f"{len(reader)} | {recipe.padded_vocab} | {short:.2f} | {long:.2f} | {seconds:.0f} |"
    )
