"""What the experiment does with the student: sample, answer, fine-tune, measure surprisal. One thread, on a CPU.

B rows of a batch, T positions, N labelled positions, V vocabulary. Which rows are trained on is decided elsewhere.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from torch.nn import functional

FOLDER = Path(__file__).parents[2] / "data" / "real" / "smollm2-135m-instruct"
ANSWERED = re.compile(r"answer is:?\s*\$?-?\d+\.", re.IGNORECASE)
PROMPTS_AT_ONCE = 100
LEARNING_RATE = 1e-4
"""In a trial before the runs 1e-4 solved 55 % and 4e-4 25 % of other, harder problems after 19 steps on one teacher's rows."""

WARM_UP = 0.1
IGNORED = -100


class Row(NamedTuple):
    """One trajectory as it is trained on: ids of the whole conversation and, as long, labels (-100 where there is
    none).
    """

    ids: list[int]
    labels: list[int]

    @property
    def n_labels(self) -> int:
        """Positions that have a label."""
        return sum(label != IGNORED for label in self.labels)


class Trained(NamedTuple):
    """What training did: the number of steps, label tokens and fed tokens in all, the loss of the first and the last
    step.
    """

    steps: int
    labels: int
    fed: int
    first_loss: float
    last_loss: float


class Student:
    """The model and its tokenizer.

    `generate` and `surprisal` compute in bfloat16, training in bfloat16 autocast over float32 weights; the copy in
    bfloat16 is made anew after training.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        """Load it.

        Raises:
            SystemExit: `make real-student` was not run.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if not (folder / "model.safetensors").exists():
            raise SystemExit(f"{folder} is not there: run `make real-student` first")
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.end = self.tokenizer.convert_tokens_to_ids("<|im_end|>")
        self._half: Any = None

    @property
    def half(self) -> Any:
        """The model as it is now, in bfloat16."""
        if self._half is None:
            import copy

            self._half = copy.deepcopy(self.model).to(torch.bfloat16).eval()
        return self._half

    def prompt_ids(self, question: str) -> list[int]:
        """The rendered prompt: the template's default system message, the question, the opening of the assistant's
        turn.
        """
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def row(self, question: str, response: str) -> Row:
        """A conversation whose response and end-of-turn marker have labels."""
        prompt = self.prompt_ids(question)
        target = [*self.tokenizer(response, add_special_tokens=False)["input_ids"], self.end]
        return Row([*prompt, *target], [*[IGNORED] * len(prompt), *target])

    @torch.no_grad()
    def generate(self, questions: Sequence[str], limit: int, temperature: float = 0.0, seed: int = 0) -> list[str]:
        """A response to each question: greedy at temperature 0, until "answer is N.", the end of the turn, or `limit`
        tokens.
        """
        generator = torch.Generator().manual_seed(seed)
        prompts = [self.prompt_ids(question) for question in questions]
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        texts = [""] * len(prompts)
        for first in range(0, len(order), PROMPTS_AT_ONCE):
            chosen = order[first : first + PROMPTS_AT_ONCE]
            choose = _sampler(temperature, generator)
            for index, ids in zip(chosen, self._generate([prompts[i] for i in chosen], limit, choose), strict=True):
                texts[index] = self.tokenizer.decode(ids, skip_special_tokens=True)
        return texts

    def _generate(
        self, prompts: list[list[int]], limit: int, choose: Callable[[torch.Tensor], torch.Tensor]
    ) -> list[list[int]]:
        """Rows that have ended leave the batch, so that one that loops costs only itself."""
        from transformers import DynamicCache

        longest = max(map(len, prompts))
        ids_BT = torch.tensor([[self.end] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask_BT = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        responses: list[list[int]] = [[] for _ in prompts]
        left, cache = list(range(len(prompts))), DynamicCache(config=self.half.config)
        while left:
            places_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
            out = self.half(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                position_ids=places_BT,
                past_key_values=cache,
                logits_to_keep=1,
            )
            chosen_B = choose(out.logits[:, -1].float())
            keep = []
            for at, (row, token) in enumerate(zip(left, chosen_B.tolist(), strict=True)):
                if token != self.end:
                    responses[row].append(token)
                if not self._ended(responses[row], token, limit):
                    keep.append(at)
            if len(keep) < len(left):
                cache.batch_select_indices(torch.tensor(keep, dtype=torch.long))
            left = [left[at] for at in keep]
            ids_BT = chosen_B[keep].unsqueeze(1)
            mask_BT = functional.pad(mask_BT[keep], (0, 1), value=1)
        return responses

    def _ended(self, response: list[int], token: int, limit: int) -> bool:
        if token == self.end or len(response) >= limit:
            return True
        return "." in self.tokenizer.decode([token]) and bool(ANSWERED.search(self.tokenizer.decode(response[-16:])))

    def save(self, folder: Path) -> None:
        """Writes it as it is now, in bfloat16, whole or not at all, as a folder that engines load."""
        made = folder.with_name(f".{folder.name}")
        self.half.save_pretrained(made)
        self.tokenizer.save_pretrained(made)
        made.rename(folder)

    @torch.no_grad()
    def surprisal(self, rows: Sequence[Row]) -> list[float]:
        """The mean surprisal of each row's labelled tokens, nats."""
        values = [0.0] * len(rows)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
        for first in range(0, len(order), 8):
            chosen = order[first : first + 8]
            losses_N, row_N = _losses(self.half, [rows[index] for index in chosen])
            for at, index in enumerate(chosen):
                values[index] = losses_N[row_N == at].mean().item()
        return values

    def train(
        self, steps: Sequence[Sequence[Row]], rate: float = LEARNING_RATE, say: Callable[[str], None] = print
    ) -> Trained:
        """AdamW without decay, a warm-up over the first tenth, then linear to 0, gradients clipped to norm 1.

        A step's loss is the mean over its labels, whatever the rows' lengths.
        """
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, weight_decay=0.0)
        warm = max(1, round(WARM_UP * len(steps)))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda at: min((at + 1) / warm, (len(steps) - at) / (len(steps) - warm + 1))
        )
        self.model.train()
        losses, fed, labels, began = [], 0, 0, time.process_time()
        for number, step in enumerate(steps, 1):
            in_step = sum(row.n_labels for row in step)
            total = 0.0
            for batch in batches(step):
                with torch.autocast("cpu", torch.bfloat16):
                    losses_N, _ = _losses(self.model, batch)
                loss = losses_N.sum() / in_step
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.item()
                fed += sum(len(row.ids) for row in batch)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(total)
            labels += in_step
            if number % 8 == 0:
                say(
                    f"  step {number} of {len(steps)}, loss {total:.3f}, {time.process_time() - began:.0f} s of processor time"
                )
        self.model.eval()
        self._half = None
        return Trained(len(steps), labels, fed, losses[0], losses[-1])


def _sampler(temperature: float, generator: torch.Generator) -> Callable[[torch.Tensor], torch.Tensor]:
    if temperature == 0:
        return lambda logits_BV: logits_BV.argmax(-1)
    return lambda logits_BV: torch.multinomial((logits_BV / temperature).softmax(-1), 1, generator=generator)[:, 0]


def _losses(model: Any, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """The surprisal of every labelled token, and the row that it is in. Right padding cannot reach a real position.

    Only the hidden states before labels go through the head: two thirds of the tokens are prompts.
    """
    longest = max(len(row.ids) for row in rows)
    ids_BT = torch.tensor([[*row.ids, *[0] * (longest - len(row.ids))] for row in rows])
    labels_BT = torch.tensor([[*row.labels, *[IGNORED] * (longest - len(row.labels))] for row in rows])
    hidden_BTD = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state[:, :-1]
    wanted_BT = labels_BT[:, 1:] != IGNORED
    logits_NV = model.lm_head(hidden_BTD[wanted_BT]).float()
    losses_N = functional.cross_entropy(logits_NV, labels_BT[:, 1:][wanted_BT], reduction="none")
    return losses_N, wanted_BT.nonzero()[:, 0]


def batches(step: Sequence[Row], at_once: int = 8) -> Iterator[list[Row]]:
    """The rows of a step, similar lengths together, so that little is padded."""
    ordered = sorted(step, key=lambda row: len(row.ids))
    for first in range(0, len(ordered), at_once):
        yield ordered[first : first + at_once]


def in_steps(rows: Sequence[Row], steps: int, seed: int | str) -> list[list[Row]]:
    """The rows once, shuffled, cut into steps of about as many labels; no step is empty.

    Raises:
        ValueError: there are fewer rows than steps.
    """
    if len(rows) < steps:
        raise ValueError(f"{len(rows)} rows do not fill {steps} steps")
    order = Random(f"order {seed}").sample(list(rows), len(rows))
    total, made, so_far = sum(row.n_labels for row in order), [list[Row]() for _ in range(steps)], 0
    for number, row in enumerate(order):
        # The step in which the middle of the row's labels lies; rows that are left must fill the steps that are left.
        middle = int((so_far + row.n_labels / 2) * steps / total)
        first_empty = next((at for at, step in enumerate(made) if not step), steps)
        at = max(min(middle, first_empty), steps - (len(order) - number))
        made[min(at, steps - 1)].append(row)
        so_far += row.n_labels
    return made
