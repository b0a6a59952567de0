"""Exports for LLaMA-Factory's main command line (not its `v1`): conversations, or a `tokenized_path`.

Three traps shape this file. Its `openai` formatting writes "detailed thinking off" into system prompts, so conversations go
through `sharegpt` with tags. A folder under `tokenized_path` may hold no other column than the three, since all reach the
collator. Rows that do not alternate are skipped there with a warning; here they are left out with a reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from trajscore.exporters.base import (
    Conversation,
    Exporter,
    Plan,
    Trained,
    arrow_rows,
    exact_columns,
    read_jsonl,
    token_schema,
    trained,
    uses_tools,
    with_attention_mask,
    write_jsonl,
)

TOKENIZED, MESSAGES, DATASET = "tokenized", "train.jsonl", "trajscore"
_ARROW = "data-00000-of-00001.arrow"
_COLUMNS = ("input_ids", "attention_mask", "labels")
_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}


class LlamaFactory(Exporter):
    """LLaMA-Factory: a `tokenized_path` with labels, or sharegpt conversations. No weights."""

    name = "llamafactory"
    trainer = "LLaMA-Factory"
    package = "llamafactory"
    context = "before"
    meaning = "tokenized_path with input_ids, attention_mask, labels, or sharegpt conversations (JSONL); no weights"

    def refusal(self, row: Conversation) -> str:
        """Tools have formats of its own there; contents must be strings, and turns alternate and end with the assistant."""
        if uses_tools(row):
            return "tools: LLaMA-Factory writes tool definitions and calls in formats of its own"
        if not all(isinstance(message.get("content"), str) for message in row.messages):
            return "content: LLaMA-Factory's templates take strings only, and here a content is null or a list of parts"
        roles = [message["role"] for message in row.messages]
        turns = roles[1:] if roles[0] == "system" else roles
        wanted = (("user", "tool"), ("assistant",))
        if len(turns) % 2 or any(role not in wanted[place % 2] for place, role in enumerate(turns)):
            return f"turns: LLaMA-Factory skips rows that do not alternate user and assistant, here {', '.join(roles)}"
        return ""

    def write_messages(self, rows: Iterator[Conversation], plan: Plan, folder: Path) -> None:
        """Write `train.jsonl` with plain contents: reasoning goes where models write it."""
        write_jsonl(({"messages": [_plain(message) for message in row.messages]} for row in rows), folder / MESSAGES)

    def write_tokens(self, batches: Iterator[pa.RecordBatch], plan: Plan, folder: Path) -> None:
        """Write what `datasets.load_from_disk` reads, with feature names that every version of `datasets` knows."""
        train = folder / TOKENIZED / "train"
        train.mkdir(parents=True)
        schema = token_schema(plan, attention_mask=True)
        with pa.OSFile(str(train / _ARROW), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in batches:
                writer.write_batch(with_attention_mask(batch).select(schema.names))
        feature = {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "Sequence"}
        state: dict[str, Any] = {
            "_data_files": [{"filename": _ARROW}],
            "_fingerprint": "trajscore",
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": "train",
        }
        (train / "dataset_info.json").write_bytes(_json({"features": dict.fromkeys(_COLUMNS, feature)}))
        (train / "state.json").write_bytes(_json(state))
        (folder / TOKENIZED / "dataset_dict.json").write_bytes(_json({"splits": ["train"]}))

    def settings(self, plan: Plan) -> dict[str, str]:
        """`sft.yaml`, and `dataset_info.json` for conversations."""
        lines = ["stage: sft", "do_train: true"]
        if plan.form == "tokens":
            lines += [
                "# Rows are used as they are; LLaMA-Factory neither cuts nor re-tokenizes them.",
                f"tokenized_path: {TOKENIZED}",
            ]
            lines += ["# Both are asked for and not used.", f"dataset: {DATASET}", f"cutoff_len: {plan.limit}"]
            return {"sft.yaml": "\n".join(lines) + "\n"}
        lines += [
            "dataset_dir: .",
            f"dataset: {DATASET}",
            "# Longer rows would be cut: the default is 2,048.",
            f"cutoff_len: {plan.limit}",
            "# Without `template` the tokenizer's own chat template is imitated; name your model's if there is one.",
        ]
        if plan.context:
            lines += ["# Loss on the last turn only: those before it are context.", "mask_history: true"]
        info = {
            DATASET: {
                "file_name": MESSAGES,
                "formatting": "sharegpt",
                "columns": {"messages": "messages"},
                "tags": _TAGS,
            }
        }
        return {"sft.yaml": "\n".join(lines) + "\n", "dataset_info.json": _json(info).decode() + "\n"}

    def command(self, plan: Plan) -> str:
        """The `llamafactory-cli` command."""
        return "llamafactory-cli train sft.yaml model_name_or_path=MODEL output_dir=OUTPUT finetuning_type=full"

    def notes(self, plan: Plan) -> list[str]:
        """Its templates are its own."""
        if plan.form == "tokens":
            return []
        return [
            "LLaMA-Factory renders conversations with templates of its own, which may differ from the model's chat template "
            "(empty thinking blocks, default system prompts); `--check` compares. A mask is trained exactly as scored."
        ]

    def read_messages(self, folder: Path) -> Iterator[dict[str, Any]]:
        """Rows of `train.jsonl`."""
        for row in read_jsonl(folder / MESSAGES):
            exact_columns(list(row), ["messages"], folder / MESSAGES)
            yield {"messages": row["messages"], "tools": None, "sample_weight": None}

    def read_tokens(self, folder: Path) -> Iterator[Trained]:
        """Rows of the Arrow file."""
        path = folder / TOKENIZED / "train" / _ARROW
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
            exact_columns(stream.schema.names, _COLUMNS, path)
            for batch in stream:
                for row in arrow_rows(batch):
                    yield trained(row["input_ids"], row["labels"])

    def load(self, folder: Path, plan: Plan, student: str | None) -> Iterator[Trained]:
        """Through `llamafactory.data.get_dataset`."""
        from trajscore.integrations.llamafactory import load

        return (trained(*row) for row in load(folder, student))


def _plain(message: dict[str, Any]) -> dict[str, str]:
    reasoning = message.get("reasoning_content")
    text = f"<think>\n{reasoning}\n</think>\n\n{message['content']}" if reasoning else message["content"]
    return {"role": message["role"], "content": text}


def _json(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2)
