"""Losses with weights and with a stored teacher for TRL's `SFTTrainer`, and TRL's own way from an exported folder to a batch.

Axes: B rows of a batch, P tokens, K best entries of the teacher, N tokens that are trained on, V vocabulary. The weight at
index p belongs to the token at index p, as labels do; log-probabilities of TRL start at the second token.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from trajscore.errors import UsageError
from trajscore.schema import NO_LOSS

WEIGHT = "loss_weight"
ROW_WEIGHT = "sample_weight"

_log = logging.getLogger(__name__)


@dataclass
class WeightedCollator(DataCollatorForLanguageModeling):  # type: ignore[misc]
    """TRL's collator, with one more tensor: `loss_weight`, float32 [B, P], 0 where a label is -100 and on padding.

    The weight of a token is its `loss_weight` times its row's `sample_weight`; either is 1 where rows have none.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Batch rows.

        Raises:
            UsageError: a row's weights do not fit its tokens, because `max_length` cut it.
        """
        batch: dict[str, Any] = super().torch_call(examples)
        weight_BP = torch.zeros(batch["labels"].shape, dtype=torch.float32)
        for row_P, example in zip(weight_BP, examples, strict=True):
            tokens = len(example["input_ids"])
            weight_P = example.get(WEIGHT, [1.0] * tokens)
            if len(weight_P) != tokens:
                raise UsageError(
                    f"{tokens} tokens and {len(weight_P)} weights in a row: max_length has cut the row.",
                    f"Set max_length to {len(weight_P)} or more.",
                )
            row_P[:tokens] = torch.as_tensor(weight_P, dtype=torch.float32) * float(example.get(ROW_WEIGHT, 1.0))
        batch[WEIGHT] = weight_BP * (batch["labels"] != NO_LOSS)
        return batch


class WeightedSFTTrainer(SFTTrainer):  # type: ignore[misc]
    """`SFTTrainer` whose loss is sum(w * nll) / sum(|w|) over the trained tokens of an optimizer step, all devices and
    accumulated batches together.

    With rewards ln p_teacher - ln p_student of the student's own text as weights (`mask --rule opd_reward`) its gradient has
    the direction of that of KL(student || teacher) at each token, the text before it held fixed, as the drawn tokens estimate
    it.

    Rows have `loss_weight` (a list beside `input_ids`), `sample_weight` (a number), or both; see `WeightedCollator`. Equal
    weights give TRL's loss. A step whose weights are all 0 has the loss 0.

    Raises:
        UsageError: packing, padding-free batches, label smoothing or another `loss_type` is asked for: none knows weights.
    """

    data_collator: Any

    def __init__(self, model: Any, args: Any = None, **options: Any) -> None:
        args = args or SFTConfig()
        for name, wanted in {
            "packing": False,
            "padding_free": False,
            "label_smoothing_factor": 0,
            "loss_type": "nll",
        }.items():
            if getattr(args, name) != wanted:
                raise UsageError(f"{name}={getattr(args, name)!r}: not with weights.", f"Set {name}={wanted!r}.")
        # Otherwise the trainer drops the columns of weights before the collator sees them.
        args.remove_unused_columns = False
        super().__init__(model, args, **options)
        if "data_collator" not in options:
            plain = self.data_collator
            self.data_collator = WeightedCollator(plain.pad_token_id, pad_to_multiple_of=plain.pad_to_multiple_of)
        # The loss is that of a whole step, so it is not divided by the number of its batches once more.
        self.model_accepts_loss_kwargs = True

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        """The sum of the weights' sizes of a step, in place of its number of tokens."""
        total = (
            torch.stack([batch[WEIGHT][:, 1:].abs().sum(dtype=torch.float64) for batch in batch_samples])
            .sum()
            .to(device)
        )
        return self.accelerator.gather(total).sum() if self.args.average_tokens_across_devices else total

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's own loss and metrics, from log-probabilities that carry their weights' share."""
        weight_BP = inputs.pop(WEIGHT)[:, 1:]
        total = weight_BP.abs().sum(dtype=torch.float64) if num_items_in_batch is None else num_items_in_batch
        # TRL divides by the count it is given, or else by the number of labels, and by 1 where that is smaller: so the
        # shares sum to the divisor instead of being divided by the sum of sizes.
        divisor = (
            (inputs["labels"][:, 1:] != NO_LOSS).sum().clamp(min=1) if num_items_in_batch is None else torch.ones(())
        )
        share_BP = (weight_BP * (divisor.to(total) / total) if total > 0 else torch.zeros_like(weight_BP)).float()

        def weighted(*args: Any, **named: Any) -> Any:
            outputs = model(*args, **named)
            if getattr(outputs, "log_probs", None) is not None:
                outputs.log_probs = outputs.log_probs * share_BP.to(outputs.log_probs.device)
            return outputs

        given = None if num_items_in_batch is None else divisor
        return super().compute_loss(weighted, inputs, return_outputs, num_items_in_batch=given)


TARGETS = ("teacher_topk_ids", "teacher_topk_logprobs", "teacher_log_tail")


@dataclass
class TeacherCollator(WeightedCollator):
    """`WeightedCollator` with three more tensors, 0 where there are no entries: `teacher_topk_ids`, int64 [B, P, K],
    `teacher_topk_logprobs`, float32 [B, P, K], and `teacher_log_tail`, float32 [B, P].
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Batch rows.

        Raises:
            UsageError: a row's entries do not fit its tokens, because `max_length` cut it.
        """
        columns = {name: [example.pop(name) for example in map(dict, examples)] for name in TARGETS}
        batch = super().torch_call([{k: v for k, v in example.items() if k not in TARGETS} for example in examples])
        shape = batch["labels"].shape
        k = max(len(entries) for row in columns[TARGETS[0]] for entries in row)
        made = {
            TARGETS[0]: torch.zeros((*shape, k), dtype=torch.int64),
            TARGETS[1]: torch.zeros((*shape, k)),
            TARGETS[2]: torch.zeros(shape),
        }
        for number, rows in enumerate(zip(*columns.values(), strict=True)):
            if len(rows[0]) != len(examples[number]["input_ids"]):
                raise UsageError(
                    f"{len(examples[number]['input_ids'])} tokens and a teacher's entries of {len(rows[0])} in a row: "
                    "max_length has cut the row.",
                    f"Set max_length to {len(rows[0])} or more.",
                )
            on = torch.tensor([bool(entries) for entries in rows[0]])
            places = on.nonzero()[:, 0]
            for name, row in zip(TARGETS, rows, strict=True):
                values = torch.tensor([row[int(place)] for place in places], dtype=made[name].dtype)
                made[name][number, places] = values.reshape(-1, *made[name].shape[2:])
        return {**batch, **made}


class StoredTeacherTrainer(WeightedSFTTrainer):
    """`SFTTrainer` that distils from a teacher's best entries, stored with the rows: no teacher is loaded.

    The loss of a token is the divergence of the two models over the teacher's K best entries and one bucket for all others, a
    lower bound of the whole one; that of a step is sum(w * loss) / sum(|w|) over its trained tokens, w being 1 where rows have
    no weights. Rows have `input_ids`, `labels` and, as long as they, `teacher_topk_ids`, `teacher_topk_logprobs` (true ln p,
    not normalised) and `teacher_log_tail`; the entries at index p are of the prediction of token p.

    Args:
        divergence: `forward`, KL(teacher || student); `reverse`, KL(student || teacher); or `js`, Jensen-Shannon.
        cross_entropy: share of the loss that is -ln p of the token itself, from 0 to 1.

    Raises:
        UsageError: an argument is out of range, or what `WeightedSFTTrainer` refuses.
    """

    def __init__(
        self, model: Any, args: Any = None, *, divergence: str = "forward", cross_entropy: float = 0.0, **options: Any
    ) -> None:
        if divergence not in ("forward", "reverse", "js"):
            raise UsageError(f"divergence={divergence!r}: not known.", "Allowed: forward, reverse, js.")
        if not 0 <= cross_entropy <= 1:
            raise UsageError(f"cross_entropy={cross_entropy}: a share.", "Give a number from 0 to 1.")
        self._divergence, self._cross_entropy = divergence, cross_entropy
        super().__init__(model, args, **options)
        if "data_collator" not in options:
            plain = self.data_collator
            self.data_collator = TeacherCollator(plain.pad_token_id, pad_to_multiple_of=plain.pad_to_multiple_of)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a batch, as its share of the step's."""
        ids_BPK, logprobs_BPK, log_tail_BP = (inputs.pop(name)[:, 1:] for name in TARGETS)
        weight_BP, labels_BP = inputs.pop(WEIGHT)[:, 1:], inputs.pop("labels")[:, 1:]
        outputs = model(**inputs)
        on_BP = labels_BP != NO_LOSS
        log_p_NV = outputs.logits[:, :-1][on_BP].float().log_softmax(-1)
        log_p_NK = log_p_NV.gather(1, ids_BPK[on_BP])
        log_q = torch.cat([logprobs_BPK[on_BP], log_tail_BP[on_BP][:, None]], 1)
        loss_N = _divergence(self._divergence, torch.cat([log_p_NK, _log_rest(log_p_NK)], 1), log_q)
        if self._cross_entropy:
            own_N = -log_p_NV.gather(1, labels_BP[on_BP][:, None])[:, 0]
            loss_N = (1 - self._cross_entropy) * loss_N + self._cross_entropy * own_N
        total = weight_BP.abs().sum(dtype=torch.float64) if num_items_in_batch is None else num_items_in_batch
        loss = (weight_BP[on_BP] * loss_N).sum() / total.to(loss_N) if total > 0 else 0.0 * loss_N.sum()
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss


def _log_rest(log_p_NK: torch.Tensor) -> torch.Tensor:
    """ln of 1 minus the sum of probabilities, [N, 1]; no less than what rounding leaves of it."""
    rest_N = 1 - log_p_NK.exp().sum(1, keepdim=True)
    return rest_N.clamp_min(torch.finfo(torch.float32).eps).log()


def _divergence(kind: str, log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Of student p and teacher q over K + 1 buckets, [N]; a bucket that is empty under one of them counts as nearly empty."""
    log_q = log_q.clamp_min(-1e4)
    if kind == "forward":
        return (log_q.exp() * (log_q - log_p)).sum(1)
    if kind == "reverse":
        return (log_p.exp() * (log_p - log_q)).sum(1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (_divergence("forward", log_m, log_q) + _divergence("forward", log_m, log_p)) / 2


def load(folder: Path, student: str | None) -> Iterator[tuple[Any, ...]]:
    """What TRL makes of an exported folder: `datasets`, its trainer's preparation, its collator; in order.

    Args:
        folder: with `sft.yaml`, which names the data.
        student: model whose tokenizer is used; rows of tokens need none.

    Returns:
        Per row input ids, labels and weights, and a teacher's ids, ln p and ln of the rest if rows have them, without padding.
    """
    import tempfile

    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    options = yaml.safe_load((folder / "sft.yaml").read_text("utf-8"))
    data = folder / options.pop("dataset_name")
    if "chat_template_path" in options:
        options["chat_template_path"] = str(folder / options["chat_template_path"])
    with tempfile.TemporaryDirectory() as scratch:
        rows = load_dataset(str(data), split="train", cache_dir=scratch)
        weighted = bool({WEIGHT, ROW_WEIGHT} & set(rows.column_names))
        soft = TARGETS[0] in rows.column_names
        args = SFTConfig(scratch, shuffle_dataset=False, report_to="none", use_cpu=True, bf16=False, **options)
        trainer = (StoredTeacherTrainer if soft else WeightedSFTTrainer if weighted else SFTTrainer)(
            _unused_model(), args, train_dataset=rows, processing_class=_tokenizer(student)
        )
        for row in trainer.train_dataset:
            batch = trainer.data_collator([row])
            yield (
                batch["input_ids"][0].numpy(),
                batch["labels"][0].numpy(),
                batch[WEIGHT][0].numpy() if weighted else None,
                *(batch[name][0].numpy() for name in TARGETS if soft),
            )


def _unused_model() -> Any:
    """A trainer needs a model; preparing rows does not, so the smallest will do."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {
        "hidden_size": 2,
        "intermediate_size": 2,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": 2,
    }
    return LlamaForCausalLM(LlamaConfig(**shape))


def _tokenizer(student: str | None) -> Any:
    if student is not None:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(student)
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    padding = {"pad_token": "-", "eos_token": "-"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"-": 0}, "-")), **padding)
