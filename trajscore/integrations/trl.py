"""A loss with weights for TRL's `SFTTrainer`, and TRL's own way from an exported folder to a batch.

Axes: B rows of a batch, P tokens. The weight at index p belongs to the token at index p, as labels do; log-probabilities of TRL
start at the second token.
"""

from __future__ import annotations

import logging
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


def load(folder: Path, student: str | None) -> Iterator[tuple[Any, Any, Any]]:
    """What TRL makes of an exported folder: `datasets`, its trainer's preparation, its collator; in order.

    Args:
        folder: with `sft.yaml`, which names the data.
        student: model whose tokenizer is used; rows of tokens need none.

    Returns:
        Per row input ids, labels and weights, without padding.
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
        args = SFTConfig(scratch, shuffle_dataset=False, report_to="none", use_cpu=True, bf16=False, **options)
        trainer = (WeightedSFTTrainer if weighted else SFTTrainer)(
            _unused_model(), args, train_dataset=rows, processing_class=_tokenizer(student)
        )
        for row in trainer.train_dataset:
            batch = trainer.data_collator([row])
            yield (
                batch["input_ids"][0].numpy(),
                batch["labels"][0].numpy(),
                batch[WEIGHT][0].numpy() if weighted else None,
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
