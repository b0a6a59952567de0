"""Trains the two byte-level BPE tokenizers and attaches their chat templates.

Neither has a normaliser and both reach all 256 bytes, so decoding gives back exactly the text that was encoded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from texts import code, facts, prose, story
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from world import TEACHERS, problems, solve

TEMPLATES = Path(__file__).parent / "templates"
CONTEXT = 32768


@dataclass(frozen=True)
class Vocabulary:
    """What is different between the two tokenizers.

    `size` counts every entry, added tokens too; `split` is the pre-tokenizer's pattern; `mix` gives the share of each
    text source; `special` and `ordinary` are the added tokens, which take the ids after the merges in this order.
    """

    name: str
    size: int
    split: str
    mix: dict[str, float]
    special: tuple[str, ...]
    ordinary: tuple[str, ...]
    bos: str | None
    eos: str
    pad: str


VOCABULARIES = {
    vocabulary.name: vocabulary
    for vocabulary in (
        Vocabulary(
            name="qwen-like",
            size=551,
            # A space on either side of a word belongs to it, which keeps digits bare and texts a third shorter:
            # models of this size then learn to copy digits.
            split=r" ?\p{L}+ ?|\p{N}| ?[^\s\p{L}\p{N}]+ ?|\s+",
            mix={"chat": 0.5, "story": 0.15, "facts": 0.1, "prose": 0.15, "code": 0.1},
            special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
            ordinary=("<think>", "</think>", "<tool_call>", "</tool_call>"),
            bos=None,
            eos="<|im_end|>",
            pad="<|endoftext|>",
        ),
        Vocabulary(
            name="llama-like",
            size=684,
            split=r" ?\p{L}+| ?[^\s\p{L}\p{N}]+ ?|\p{N}{1,3}|\s*[\r\n]+|\s+",
            mix={"chat": 0.35, "story": 0.1, "facts": 0.05, "prose": 0.25, "code": 0.25},
            special=("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            ordinary=(),
            bos="<|begin_of_text|>",
            eos="<|eot_id|>",
            pad="<|end_of_text|>",
        ),
    )
}


def chat_text(rng: Random) -> str:
    """A question and one teacher's response, without any template: the teachers' words enter the vocabulary."""
    problem = problems(1, rng.randrange(2**32), steps=(1, 2, 3, 4), split="train")[0]
    return f"{problem.question}\n{solve(problem, rng.choice(list(TEACHERS)), rng)}\n"


SOURCES: dict[str, Callable[[Random], str]] = {
    "chat": chat_text,
    "story": story,
    "facts": facts,
    "prose": prose,
    "code": code,
}


def training_texts(vocabulary: Vocabulary, n: int = 3000) -> Iterator[str]:
    """`n` texts drawn by the vocabulary's mix, the same on every run."""
    rng = Random(f"tokenizer {vocabulary.name}")
    for _ in range(n):
        source = rng.choices(list(vocabulary.mix), weights=list(vocabulary.mix.values()))[0]
        yield SOURCES[source](rng)


def train_tokenizer(vocabulary: Vocabulary) -> PreTrainedTokenizerFast:
    """A fast tokenizer of exactly `vocabulary.size` entries, with its chat template set."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(vocabulary.split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary.size - len(vocabulary.special) - len(vocabulary.ordinary),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_texts(vocabulary), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in vocabulary.special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in vocabulary.ordinary])
    if vocabulary.bos:
        # As in the family it imitates, plain encoding begins with the BOS token and so does the chat template:
        # rendered text must be encoded without special tokens.
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{vocabulary.bos} $A",
            pair=f"{vocabulary.bos} $A {vocabulary.bos} $B",
            special_tokens=[(vocabulary.bos, tokenizer.token_to_id(vocabulary.bos))],
        )
    if tokenizer.get_vocab_size() != vocabulary.size:
        raise ValueError(f"{vocabulary.name}: {tokenizer.get_vocab_size()} entries, not {vocabulary.size}")
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call, unused-ignore]
        tokenizer_object=tokenizer,
        bos_token=vocabulary.bos,
        eos_token=vocabulary.eos,
        pad_token=vocabulary.pad,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )
    fast.chat_template = (TEMPLATES / f"{vocabulary.name}.jinja").read_text(encoding="utf-8").rstrip("\n")
    return fast


def write_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Saves the tokenizer and its chat template for AutoTokenizer."""
    tokenizer.save_pretrained(folder)
    # Readers older than transformers 5 do not know the class name that version 5 writes.
    update_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})


def update_json(path: Path, values: dict[str, object]) -> None:
    """Sets keys of a JSON object in a file; keys are sorted, so that equal content is equal bytes."""
    content = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
