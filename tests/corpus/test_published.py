"""Rows in the shape of published data sets: what trains is read, without flags, and text that is not read is named."""

from __future__ import annotations

import json
from ast import literal_eval
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from trajscore.corpus import Corpus, SourceOptions, Trajectory, layouts, open_corpus
from trajscore.corpus.identity import FieldNames
from trajscore.errors import UsageError
from trajscore.schema import COLUMNS

USER, REPLY = "ask <U>", "reply <A>"
TURNS = [{"role": "user", "content": USER}, {"role": "assistant", "content": REPLY}]
SPOKEN = [{"from": "human", "value": USER}, {"from": "gpt", "value": REPLY}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
OPEN_R1 = {
    "problem": USER,
    "solution": "ref",
    "answer": "ref2",
    "uuid": "u",
    "generations": ["<think>a</think>x", "<think>b</think>y", "z"],
    "correctness_math_verify": [True, False],
    "correctness_llama": None,
    "is_reasoning_complete": [True, True, False],
    "finish_reasons": ["stop", "stop", "length"],
    "messages": [{"role": "user", "content": "old"}, {"role": "assistant", "content": "old2"}],
}

# name -> row, what the assistant writes in each trajectory (thoughts, text), and what else must be found.
LAYOUTS: dict[str, tuple[dict[str, Any], list[tuple[str | None, str]], dict[str, Any]]] = {
    "OpenR1-Math-220k": (
        OPEN_R1,
        [(None, "<think>a</think>x"), (None, "<think>b</think>y"), (None, "z")],
        {"correct": [True, False, None], "id": ["u#0", "u#1", "u#2"], "prompt_id": ["u"] * 3},
    ),
    "Mixture-of-Thoughts": ({"messages": TURNS, "num_tokens": 3, "source": "s"}, [(None, REPLY)], {"teacher": [None]}),
    "codeforces-cots": (
        {"prompt": USER, "generation": REPLY, "messages": TURNS, "id": "c", "editorial": "ed", "finish_reason": "stop"},
        [(None, REPLY)],
        {"id": ["c"]},
    ),
    "OpenThoughts-114k": ({"system": "<S>", "conversations": SPOKEN}, [(None, REPLY)], {"system": "<S>"}),
    "OpenThoughts-114k metadata": (
        {
            "problem": USER,
            "deepseek_reasoning": "<R>",
            "deepseek_solution": REPLY,
            "ground_truth_solution": "ref",
            "test_cases": "tc",
            "starter_code": None,
        },
        [("<R>", REPLY)],
        {"teacher": ["deepseek"]},
    ),
    "OpenThoughts-114k-math": (
        {
            "conversations": SPOKEN,
            "messages": [{"role": "user", "content": "n"}, {"role": "assistant", "content": "numina"}],
            "problem": "p",
            "solution": "numina",
            "correct": True,
            "system": "<S>",
        },
        [(None, REPLY)],
        {"correct": [True], "system": "<S>"},
    ),
    "OpenThoughts-Agent": (
        {"conversations": TURNS, "model": "m", "trial_name": "t", "episode": "e1", "task": "k", "agent": "ag"},
        [(None, REPLY)],
        {"teacher": ["m"], "id": ["t/e1"], "prompt_id": ["k"]},
    ),
    "s1K": (
        {
            "question": USER,
            "thinking_trajectories": ["<R>"],
            "attempt": REPLY,
            "solution": "ref",
            "cot": None,
            "metadata": "{}",
        },
        [("<R>", REPLY)],
        {},
    ),
    "s1K-1.1": (
        {
            "question": USER,
            "solution": "ref",
            "deepseek_thinking_trajectory": "<R>",
            "deepseek_attempt": REPLY,
            "deepseek_grade": "Yes",
            "deepseek_grade_reason": "why",
            "gemini_thinking_trajectory": "<R2>",
            "gemini_attempt": "other",
            "gemini_grade": "No",
        },
        [("<R>", REPLY), ("<R2>", "other")],
        {"teacher": ["deepseek", "gemini"], "correct": [True, False]},
    ),
    "OpenMathReasoning": (
        {
            "problem": USER,
            "generated_solution": REPLY,
            "generation_model": "m",
            "expected_answer": "7",
            "inference_mode": "cot",
        },
        [(None, REPLY)],
        {"teacher": ["m"]},
    ),
    "OpenCodeReasoning": (
        {"id": "i", "input": USER, "output": REPLY, "solution": "code"},
        [(None, REPLY)],
        {"id": ["i"]},
    ),
    "OpenCodeReasoning-2": (
        {
            "question": USER,
            "r1_generation": REPLY,
            "judgement": "right",
            "solution": "code",
            "qwq_critique": "c",
            "question_id": "q",
        },
        [(None, REPLY)],
        {"teacher": ["r1"], "correct": [True], "prompt_id": ["q"]},
    ),
    "Llama-Nemotron": (
        {
            "input": [{"role": "user", "content": USER}],
            "output": REPLY,
            "system_prompt": "<S>",
            "generator": "g",
            "reasoning": "on",
            "category": "math",
        },
        [(None, REPLY)],
        {"teacher": ["g"], "system": "<S>"},
    ),
    "Nemotron-Post-Training": (
        {"uuid": "u", "generator": "g", "messages": TURNS, "reasoning": "off", "metadata": "{}", "tools": [TOOL]},
        [(None, REPLY)],
        {"teacher": ["g"], "id": ["u"]},
    ),
    "AM-DeepSeek-R1-Distilled": (
        {"messages": [TURNS[0], {**TURNS[1], "info": {"reference_answer": "ref", "think_content": "t"}}]},
        [(None, REPLY)],
        {},
    ),
    "LIMO": ({"question": USER, "solution": REPLY, "answer": "7"}, [(None, REPLY)], {}),
    "NuminaMath-CoT": ({"problem": "p", "solution": "s", "messages": TURNS, "source": "x"}, [(None, REPLY)], {}),
    "dolphin-r1": (
        {"messages": TURNS[:1], "reasoning": "<R>", "answer": REPLY, "model": "m"},
        [("<R>", REPLY)],
        {"teacher": ["m"]},
    ),
    "R1-Distill-SFT v0": (
        {"problem": USER, "reannotated_assistant_content": REPLY, "solution": "ref"},
        [(None, REPLY)],
        {},
    ),
    "R1-Distill-SFT v1": (
        {
            "reannotated_messages": TURNS,
            "messages": [*TURNS[:1], {"role": "assistant", "content": "old"}],
            "id": "i",
            "verified": None,
        },
        [(None, REPLY)],
        {"id": ["i"]},
    ),
    "medical-o1": ({"Question": USER, "Complex_CoT": "<R>", "Response": REPLY}, [("<R>", REPLY)], {}),
    "SYNTHETIC-1": (
        {
            "response_id": "r",
            "problem_id": "p",
            "prompt": USER,
            "llm_response": REPLY,
            "score": 1.0,
            "gold_standard_solution": "ref",
            "metadata": "{}",
        },
        [(None, REPLY)],
        {"id": ["r"], "prompt_id": ["p"], "correct": [True]},
    ),
    "DeepMath-103K": (
        {"question": USER, "final_answer": "7", "r1_solution_1": REPLY, "r1_solution_2": "b", "r1_solution_3": "c"},
        [(None, REPLY), (None, "b"), (None, "c")],
        {"teacher": ["r1"] * 3},
    ),
    "verl dump": ({"input": USER, "output": REPLY, "gts": "ref", "score": 0.0}, [(None, REPLY)], {"correct": [False]}),
    "alpaca": (
        {"instruction": USER, "input": "<I>", "output": REPLY, "system": "<S>", "history": [["h1 <H>", "h2"]]},
        [(None, REPLY)],
        {"system": "<S>"},
    ),
    "sharegpt with calls": (
        {
            "conversations": [
                {"from": "human", "value": USER},
                {"from": "function_call", "value": '{"name": "add", "arguments": {"x": "<X>"}}'},
                {"from": "observation", "value": "<O>"},
                {"from": "gpt", "value": REPLY},
            ],
            "tools": json.dumps([TOOL]),
        },
        [(None, REPLY)],
        {},
    ),
    "WildChat": (
        {
            "conversation": [{**turn, "language": "en", "toxic": False} for turn in TURNS],
            "model": "m",
            "conversation_hash": "h",
        },
        [(None, REPLY)],
        {"teacher": ["m"], "id": ["h"]},
    ),
    "Harbor ATIF": (
        {
            "agent": {"model_name": "m"},
            "steps": [
                {"source": "user", "message": USER},
                {
                    "source": "agent",
                    "message": "look",
                    "reasoning_content": "<R>",
                    "tool_calls": [{"function_name": "ls", "arguments": {"p": "<X>"}}],
                    "observation": {"results": [{"content": "<O>"}]},
                },
                {"source": "agent", "message": REPLY},
            ],
        },
        [(None, REPLY)],
        {"teacher": ["m"]},
    ),
    "SWE-smith": (
        {
            "messages": json.dumps(TURNS),
            "model": "m",
            "resolved": True,
            "traj_id": "t",
            "instance_id": "i",
            "patch": "diff",
        },
        [(None, REPLY)],
        {"teacher": ["m"], "correct": [True], "id": ["t"], "prompt_id": ["i"]},
    ),
    "nebius SWE-agent": (
        {
            "trajectory": [
                {"role": "system", "text": None, "system_prompt": "<S>", "mask": False},
                {"role": "user", "text": USER, "system_prompt": None, "mask": False},
                {"role": "ai", "text": REPLY, "system_prompt": None, "mask": False},
            ],
            "model_name": "m",
            "target": False,
            "instance_id": "i",
            "generated_patch": "diff",
        },
        [(None, REPLY)],
        {"teacher": ["m"], "correct": [False], "prompt_id": ["i"], "system": "<S>"},
    ),
    "Open-SWE-Traces": (
        {"messages": TURNS, "tools": [json.dumps(TOOL)], "metadata": {"teacher_model": {"name": "m"}}, "resolved": -1},
        [(None, REPLY)],
        {"teacher": ["m"], "correct": [None]},
    ),
    "xLAM-60k": (
        {
            "query": USER,
            "answers": '[{"name": "add", "arguments": {"x": "<X>"}}]',
            "tools": json.dumps([TOOL]),
            "id": 0,
        },
        [(None, "")],
        {"id": ["0"]},
    ),
    "glaive": (
        {
            "system": "SYSTEM: <S>",
            "chat": f"USER: {USER}\n\n\nASSISTANT: {REPLY} <|endoftext|>\n\nFUNCTION RESPONSE: <O>",
        },
        [(None, REPLY)],
        {"system": "SYSTEM: <S>"},
    ),
    "smoltalk2": (
        {
            "messages": TURNS,
            "source": "s",
            "chat_template_kwargs": {"enable_thinking": True, "custom_instructions": "<K>"},
        },
        [(None, REPLY)],
        {},
    ),
}


CALLED = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"x": "<X>"}'}}
LAYOUTS |= {
    "OpenThoughts3-1.2M": (
        {"conversations": SPOKEN, "difficulty": 3, "source": "s", "domain": "maths"},
        [(None, REPLY)],
        {},
    ),
    "s1K-1.1 tokenized": (
        {
            "question": USER,
            "solution": "ref",
            "gemini_thinking_trajectory": "<R>",
            "gemini_attempt": "g",
            "deepseek_thinking_trajectory": "d1",
            "deepseek_attempt": REPLY,
            "gemini_grade": "No",
            "deepseek_grade": "Yes",
            "text": "<|im_start|>user\nold",
            "metadata": "{}",
        },
        [("d1", REPLY), ("<R>", "g")],
        {"teacher": ["deepseek", "gemini"], "correct": [True, False]},
    ),
    "Nemotron SFT v2": (
        {
            "uuid": "n",
            "used_in": ["a"],
            "reasoning": "on",
            "tools": [TOOL],
            "messages": [
                {"role": "system", "content": ""},
                TURNS[0],
                {"role": "assistant", "content": "", "reasoning_content": "<R>", "tool_calls": [CALLED]},
                {"role": "tool", "content": "<O>", "tool_call_id": "c1"},
                TURNS[1],
            ],
        },
        [(None, REPLY)],
        {"id": ["n"]},
    ),
    "AM-Thinking-v1": (
        {
            "conversations": [SPOKEN[0], {**SPOKEN[1], "from": "assistant", "info": {"ground_truth": "u"}}],
            "system": None,
        },
        [(None, REPLY)],
        {},
    ),
    "NuminaMath-1.5": (
        {"problem": USER, "solution": REPLY, "answer": "7", "question_type": "proof"},
        [(None, REPLY)],
        {},
    ),
    "SYNTHETIC-2": (
        {"problem_id": "p", "task_type": "maths", "messages": TURNS, "reward": 1.0},
        [(None, REPLY)],
        {"prompt_id": ["p"], "correct": [True]},
    ),
    "Dolci with tools": (
        {
            "id": "d",
            "messages": [
                {"role": "system", "content": "<S>", "functions": '[{"name": "add"}]', "function_calls": None},
                {**TURNS[0], "functions": None, "function_calls": None},
                {"role": "assistant", "content": None, "functions": None, "function_calls": "add(x='<X>')"},
                {"role": "environment", "content": "<O>", "functions": None, "function_calls": None},
                {**TURNS[1], "functions": None, "function_calls": None},
            ],
            "dataset_source": "s",
        },
        [(None, REPLY)],
        {"id": ["d"]},
    ),
    "verl with responses": (
        {
            "data_source": "d",
            "prompt": TURNS[:1],
            "reward_model": {"ground_truth": "7"},
            "extra_info": {"index": 3},
            "responses": ["a", REPLY],
        },
        [(None, "a"), (None, REPLY)],
        {},
    ),
    "slime": (
        {"group_index": 1, "prompt": USER, "response": REPLY, "label": "7", "reward": 1.0, "status": "completed"},
        [(None, REPLY)],
        {"correct": [True]},
    ),
    "SWE-rebench-openhands": (
        {
            "trajectory_id": "t",
            "instance_id": "i",
            "trajectory": [
                TURNS[0],
                {"role": "assistant", "content": "go", "tool_calls": [CALLED]},
                {"role": "tool", "content": "<O>", "tool_call_id": "c1", "name": "add"},
                TURNS[1],
            ],
            "tools": [TOOL],
            "model_patch": "diff",
            "resolved": 1,
        },
        [(None, REPLY)],
        {"id": ["t"], "prompt_id": ["i"], "correct": [True]},
    ),
    "CoderForge": (
        {"messages": json.dumps(TURNS), "tools": json.dumps([TOOL]), "reward": 0.0, "trajectory_id": "t"},
        [(None, REPLY)],
        {"id": ["t"], "correct": [False]},
    ),
    "APIGen-MT": (
        {
            "conversations": [
                SPOKEN[0],
                {"from": "function_call", "value": '{"name": "add", "arguments": {"x": "<X>"}}'},
                {"from": "observation", "value": "<O>"},
                SPOKEN[1],
            ],
            "tools": json.dumps([TOOL["function"]]),
            "system": "<S>",
        },
        [(None, REPLY)],
        {"system": "<S>"},
    ),
    "messages as Python writes them": ({"messages": str(TURNS), "id": 1}, [(None, REPLY)], {"id": ["1"]}),
}


LAYOUTS |= {
    # Layouts for which nothing was built: what their kind asked for.
    "GeneralThought-430K": (
        {
            "question_id": 1,
            "question": USER,
            "reference_answer": "ref",
            "prev_messages": [{"role": "user", "content": "<H>"}, {"role": "assistant", "content": "said"}],
            "model_name": "m",
            "model_answer": REPLY,
            "model_reasoning": "<R>",
            "verifier_score": 1.0,
        },
        [("<R>", REPLY)],
        {"teacher": ["m"], "prompt_id": ["1"], "correct": [True]},
    ),
    "natural_reasoning": (
        {"question": USER, "reference_answer": "ref", "responses": [{"response_model": "m", "response": REPLY}]},
        [(None, REPLY)],
        {"teacher": ["m"]},
    ),
    "UltraFeedback": (
        {
            "instruction": USER,
            "models": ["m", "n"],
            "completions": [
                {"model": "m", "principle": "u1", "response": "first"},
                {"model": "n", "principle": "u2", "response": REPLY},
            ],
            "correct_answers": ["ref"],
        },
        [(None, "first"), (None, REPLY)],
        {"teacher": ["m", "n"]},
    ),
    "Chinese R1 distillates": (
        {"input": USER, "reasoning_content": "<R>", "content": REPLY, "repo_name": "s"},
        [("<R>", REPLY)],
        {},
    ),
}


LAYOUTS |= {
    "HelpSteer3": (
        {"domain": "d", "context": TURNS[:1], "response1": REPLY, "response2": "b", "overall_preference": 1},
        [(None, REPLY), (None, "b")],
        {},
    ),
    "PKU-SafeRLHF": (
        {"prompt": USER, "response_0": REPLY, "response_1": "b", "is_response_0_safe": True},
        [(None, REPLY), (None, "b")],
        {},
    ),
    "dolly": ({"instruction": USER, "context": "<I>", "response": REPLY, "category": "c"}, [(None, REPLY)], {}),
    "numbered responses and thoughts": (
        {"prompt": USER, "thinking_1": "<R>", "response_1": "a", "thinking_2": "r2", "response_2": REPLY},
        [("<R>", "a"), ("r2", REPLY)],
        {},
    ),
    "samples as objects with thoughts": (
        {"prompt": USER, "responses": [{"content": "a", "reasoning_content": "<R>"}, {"content": REPLY}]},
        [("<R>", "a"), (None, REPLY)],
        {},
    ),
    "an agent's conversation and its last answer": (
        {
            "messages": [
                TURNS[0],
                {"role": "assistant", "content": "go", "tool_calls": [CALLED]},
                {"role": "tool", "content": "<O>", "tool_call_id": "c1"},
            ],
            "response": REPLY,
        },
        [(None, REPLY)],
        {},
    ),
    "thoughts in the content and beside it": (
        {"messages": [TURNS[0], {**TURNS[1], "content": "<think><R></think>7", "reasoning_content": "<R>"}]},
        [(None, "<think><R></think>7")],
        {},
    ),
    "functions of OpenAI's first API": (
        {"messages": TURNS, "functions": [{"name": "f", "description": "<K>"}]},
        [(None, REPLY)],
        {},
    ),
}


def _write(folder: Path, rows: list[dict[str, Any]], suffix: str = ".jsonl") -> Path:
    path = folder / f"rows{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def _read(corpus: Corpus) -> list[Trajectory]:
    return [trajectory for chunk in corpus.chunks(100) for trajectory in chunk.trajectories]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from _strings(item)


def _named(corpus: Corpus) -> set[str]:
    """Columns and keys that the corpus names: in whatever role, or as not read."""
    named = {name for entry in corpus.columns for value in entry.values() if isinstance(value, list) for name in value}
    return named | {part for name in named for part in name.split("+")}


def _lost(row: dict[str, Any], corpus: Corpus, read: list[Trajectory]) -> list[str]:
    """Strings of a row that neither reach a conversation nor lie in a column, or under a key, that is named."""
    reached = "\n".join(_strings([[each.normalised(), each.tools, each.chat_template_kwargs] for each in read]))
    named = _named(corpus)
    lost = []
    for name, value in row.items():
        for string in _strings(value):
            parsed = list(_strings(literal_eval(string))) if string[:1] in ("[", "{") else []
            if not any(part in reached for part in (string, string.strip(), *parsed)) and name not in named:
                lost.append(f"{name}: {string}")
    return lost


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_published_layout_is_read_whole(name: str, suffix: str, tmp_path: Path) -> None:
    row, replies, wanted = LAYOUTS[name]
    corpus = open_corpus(_write(tmp_path, [row], suffix))
    read = _read(corpus)
    assert [each.refusal for each in read] == [""] * len(replies), read[0].detail
    last = [[turn for turn in each.messages or [] if turn["role"] == "assistant"][-1] for each in read]
    assert [(turn.get("reasoning_content"), turn["content"]) for turn in last] == replies
    for field in ("teacher", "correct", "id", "prompt_id"):
        if field in wanted:
            assert [getattr(each, field) for each in read] == wanted[field], field
    if "system" in wanted:
        assert (read[0].messages or [])[0] == {"role": "system", "content": wanted["system"]}
    assert any(USER in str(turn["content"]) for turn in read[0].messages or [])
    everything = json.dumps([[each.normalised(), each.tools, each.chat_template_kwargs] for each in read])
    for mark in ("<R>", "<I>", "<H>", "<X>", "<O>", "<K>"):
        assert (mark in everything) == (mark in json.dumps(row)), mark
    assert "ref" not in everything
    assert _lost(row, corpus, read) == []


ASKED = {"question": USER, "answer": "ref"}
TALKED = [*TURNS, {"role": "user", "content": "more"}]


@pytest.mark.parametrize(
    ("row", "column", "flag"),
    [
        # What a model wrote, under a name that has no place, beside a reference.
        ({**ASKED, "samples": ["a", "b"]}, "samples", "--response-field"),
        ({"problem": USER, "qwq": "a", "solution": "ref"}, "qwq", "--response-field"),
        ({**ASKED, "gpt-4o": "a"}, "gpt-4o", "--response-field"),
        ({**ASKED, "deepseek_solution": "a", "gemini_solution": "b"}, "deepseek_solution", "--response-field"),
        ({**ASKED, "chosen": "a", "rejected": "b"}, "chosen", "--response-field"),
        ({**ASKED, "response": {"role": "assistant", "content": "a"}}, "response", "--response-field"),
        ({**ASKED, "candidates": [{"text": "a"}]}, "candidates", "--response-field"),
        ({**ASKED, "qwen_messages": TURNS}, "qwen_messages", "--response-field"),
        ({**ASKED, "cot": "a"}, "cot", "--reasoning-field"),
        ({"prompt": USER, "response": REPLY, "rationale": "a"}, "rationale", "--reasoning-field"),
        ({"prompt": USER, "responses": [REPLY], "reasonings": ["a"]}, "reasonings", "--reasoning-field"),
        # Pairs: the replies stand beside a conversation whose earlier ones would be scored.
        ({"messages": TALKED, "chosen": "a", "rejected": "b"}, "chosen", "--response-field"),
        ({"conversations": TALKED, "chosen": {"from": "gpt", "value": "a"}}, "chosen", "--response-field"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_column_that_a_model_may_have_written_stops_the_run(
    row: dict[str, Any], column: str, flag: str, suffix: str, tmp_path: Path
) -> None:
    path = _write(tmp_path, [row], suffix)
    with pytest.raises(UsageError, match=f"{column!r} may hold") as caught:
        open_corpus(path)
    assert f"{flag} {column}" in str(caught.value)
    left_out = tuple(name for name in row if name not in (*ASKED, "problem", "solution", "prompt", "messages"))
    if "response" not in row and "responses" not in row and "conversations" not in row:
        read = _read(open_corpus(path, SourceOptions(fields=FieldNames(ignored=left_out))))
        assert not any(each.refusal for each in read)


@pytest.mark.parametrize(
    "beside",
    [
        {"source": "s", "problem_type": "algebra", "input_output": "{}", "gpt_difficulty": "easy", "seed": "s"},
        {"generation_model": "m", "expected_output": "x", "cot_type": "maths", "reasoning_effort": "high", "steps": 4},
    ],
)
def test_columns_about_a_text_stop_no_run(beside: dict[str, Any], tmp_path: Path) -> None:
    (read,) = _read(open_corpus(_write(tmp_path, [{"question": USER, "answer": REPLY, **beside}])))
    assert read.messages == TURNS


def test_a_flag_says_that_a_reference_is_meant(tmp_path: Path) -> None:
    path = _write(tmp_path, [{**ASKED, "samples": ["a"]}])
    for name, said in (("answer", "ref"), ("samples", "a")):
        (read,) = _read(open_corpus(path, SourceOptions(fields=FieldNames(response=name))))
        assert (read.messages or [])[-1]["content"] == said


@pytest.mark.parametrize(
    ("beside", "refused"),
    [
        ({"options": ["a cat", "a dog"]}, True),
        ({"choices": {"text": ["a cat"], "label": ["A"]}}, True),
        ({"context": "the text"}, True),
        ({"documents": [{"title": "t", "body": "b"}]}, True),
        ({"question": f"{USER}\nA. a cat\nB. a dog", "options": ["A) a cat", "B) a dog"]}, False),
        ({"context": "", "options": []}, False),
    ],
)
def test_a_prompt_without_what_belongs_to_it_is_refused(beside: dict[str, Any], refused: bool, tmp_path: Path) -> None:
    path = _write(tmp_path, [{"question": USER, "response": REPLY, **beside}])
    (read,) = _read(open_corpus(path))
    assert read.refusal == ("incomplete_prompt" if refused else "")
    if refused:
        (name,) = beside
        assert f"--ignore-columns {name}" in read.detail
        (read,) = _read(open_corpus(path, SourceOptions(fields=FieldNames(ignored=(name,)))))
        assert read.messages == TURNS


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [TURNS[0], {**TURNS[1], "content": "<think>a</think>7", "reasoning_content": "b"}]},
        {"messages": [TURNS[0], {**TURNS[1], "content": "<think>a</think>7"}], "reasoning": "b"},
        {"prompt": USER, "response": "a\n</think>\n7", "thought_process": "b"},
    ],
)
def test_two_different_thoughts_of_one_turn_refuse_the_row(row: dict[str, Any], tmp_path: Path) -> None:
    assert [each.refusal for each in _read(open_corpus(_write(tmp_path, [row])))] == ["conflicting_text"]


def test_text_under_another_key_of_a_turn_refuses_the_row(tmp_path: Path) -> None:
    turns = [TURNS[0], {"role": "model", "content": None, "parts": [{"text": REPLY}]}]
    (read,) = _read(open_corpus(_write(tmp_path, [{"messages": turns}])))
    assert (read.refusal, "'parts'" in read.detail) == ("invalid_messages", True)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": REPLY, "role": "assistant", "message_id": "m", "parent_id": "p"}, "no row|No row"),
        ({"prompt": USER, "completions": ["a", "b"], "labels": [True, False]}, "steps of one completion"),
    ],
)
def test_single_turns_and_steps_are_no_trajectories(row: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        open_corpus(_write(tmp_path, [row]))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": TURNS[:1], "reward_model": {"ground_truth": "7"}, "data_source": "d"}, "holds no response"),
        ({"prompt": TURNS[:1], "solution": "7"}, "holds no response"),
        ({"problem": USER, "expected_answer": "7", "generated_solution": None}, "holds no response"),
        ({"messages": TURNS[:1], "answer": "7"}, "none has a turn of the assistant"),
    ],
)
def test_prompts_alone_are_one_message(row: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        open_corpus(_write(tmp_path, [row, row]))
    assert "--response-field" in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "-", "r1_generation": "x"},
        {"prompt": "", "response": "x"},
        {"messages": [{"role": "user", "content": None}, TURNS[1]]},
    ],
)
def test_placeholders_are_refused_by_a_status_of_their_own(row: dict[str, Any], tmp_path: Path) -> None:
    assert [each.refusal for each in _read(open_corpus(_write(tmp_path, [row])))] == ["placeholder_prompt"]


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        (f"<|im_start|>user\n{USER}<|im_end|>\n<|im_start|>assistant\n", True),
        (f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{USER}<|eot_id|>", True),
        ("What does <|im_start|>user mean in ChatML?", False),
        ("a </s> b", False),
    ],
)
def test_text_to_which_a_template_was_applied_is_refused(text: str, refused: bool, tmp_path: Path) -> None:
    rows = [{"prompt": text, "response": REPLY}, {"text": text}]
    status = "rendered_text" if refused else ""
    assert [each.refusal for each in _read(open_corpus(_write(tmp_path, rows)))] == [status, status]


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"image": "coco/a.jpg"}, "image"),
        ({"images": [{"bytes": None, "path": "a.png"}]}, "images"),
        ({"image_2": {"bytes": "x", "path": None}}, "image_2"),
        ({"Image": "data:image/png;base64,iVBORw0KGgo="}, "Image"),
        ({"video": "https://example.org/a.mp4?x=1"}, "video"),
        ({"image": None, "images": [], "audio": ""}, ""),
        ({"image": "registry.example.org/sandbox:latest"}, ""),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, TURNS[1]]},
            "[0]",
        ),
        ({"messages": [{"role": "user", "content": [{"image": "x"}]}, TURNS[1]]}, "[0]"),
    ],
)
def test_a_row_with_pictures_is_refused_and_says_which_column(row: dict[str, Any], named: str, tmp_path: Path) -> None:
    path = _write(tmp_path, [{"messages": TURNS, **row}])
    (read,) = _read(open_corpus(path))
    assert read.refusal == ("not_text" if named else ""), read.detail
    assert named in read.detail
    if named and "messages" not in row:
        assert f"--ignore-columns {named}" in read.detail
        (read,) = _read(open_corpus(path, SourceOptions(fields=FieldNames(ignored=(named,)))))
        assert read.messages == TURNS


def test_columns_with_names_of_ours_get_others_in_scores_and_mean_nothing(tmp_path: Path) -> None:
    own: dict[str, Any] = dict.fromkeys(sorted(COLUMNS), "theirs") | {"input_status": "x", "trajscore.row": 1}
    row = {**own, "correct": 0.7, "prompt": USER, "response": REPLY, "uid": "u", "writer": "w", "task": "t"}
    fields = FieldNames(id="uid", teacher="writer", prompt="task", ignored=("messages_from",))
    corpus = open_corpus(_write(tmp_path, [row]), SourceOptions(fields=fields, correct_at=0.5))
    (read,) = _read(corpus)
    assert (read.id, read.teacher, read.prompt_id, read.correct) == ("u", "w", "t", True)
    assert set(corpus.renamed) == {*COLUMNS, "trajscore.row"}
    assert corpus.renamed["status"] == "input_input_status"
    assert not set(corpus.renamed.values()) & {*COLUMNS, *row}
    assert len(set(corpus.renamed.values())) == len(corpus.renamed)
    meant = {"id": 1, "prompt_id": "p", "teacher": "t", "correct": 1, "prompt": USER, "response": REPLY}
    assert open_corpus(_write(tmp_path, [meant])).renamed == {}


def test_a_prefill_at_the_end_of_a_prompt_is_one_turn_with_the_response(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": [TURNS[0], {"role": "assistant", "content": "<think>\n"}], "response": "7\n</think>\n\n8"},
        {"prompt": json.dumps(TURNS[:1]), "response": REPLY},
    ]
    prefilled, parsed = _read(open_corpus(_write(tmp_path, rows)))
    assert prefilled.messages == [TURNS[0], {"role": "assistant", "content": "<think>\n7\n</think>\n\n8"}]
    assert prefilled.weights == {}
    assert parsed.messages == TURNS


def test_turns_that_are_not_trained_on_are_context(tmp_path: Path) -> None:
    marks: list[dict[str, Any]] = [
        {"weight": 0},
        {"train": False},
        {"loss": False},
        {"loss_weight": 0.0},
        {"weight": 0.5},
        {"weight": 1, "train": True},
    ]
    rows = [{"messages": [*TURNS[:1], {**TURNS[1], **mark}, *TURNS]} for mark in marks]
    untrained: dict[str, Any] = {**TURNS[1], "train": False}
    rows.append({"messages": [TURNS[0], untrained]})
    read = _read(open_corpus(_write(tmp_path, rows)))
    assert [each.weights for each in read] == [{1: 0}, {1: 0}, {1: 0}, {1: 0}, {1: 0.5}, {}, {}]
    assert [each.refusal for each in read] == [*[""] * 6, "no_trained_turn"]
    assert (read[0].normalised() or [])[1]["weight"] == 0


def test_a_null_response_is_refused_and_its_reference_is_not_read(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"problem": USER, "generation": REPLY, "solution": "ref"},
        {"problem": USER, "generation": None, "solution": "ref"},
    ]
    for suffix in (".jsonl", ".parquet"):
        assert [each.refusal for each in _read(open_corpus(_write(tmp_path, rows, suffix)))] == ["", "empty_response"]


def test_two_columns_of_one_rank_stop_the_run_and_a_flag_settles_it(tmp_path: Path) -> None:
    path = _write(tmp_path, [{"prompt": USER, "output": REPLY, "response": "b"}])
    with pytest.raises(UsageError, match="'output' and 'response' could each be the response") as caught:
        open_corpus(path)
    assert caught.value.exit_code == 2
    for fields, said in ((FieldNames(response="response"), "b"), (FieldNames(ignored=("response",)), REPLY)):
        (read,) = _read(open_corpus(path, SourceOptions(fields=fields)))
        assert (read.messages or [])[-1]["content"] == said


def test_a_response_that_repeats_its_prompt_holds_it_once(tmp_path: Path) -> None:
    row = {"prompt": USER, "chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "b"}]}
    for name, said in (("chosen", REPLY), ("rejected", "b")):
        options = SourceOptions(fields=FieldNames(response=name))
        (read,) = _read(open_corpus(_write(tmp_path, [row]), options))
        assert read.messages == [TURNS[0], {"role": "assistant", "content": said}]


def test_dotted_paths_and_lists_of_them(tmp_path: Path) -> None:
    row = {"task": {"text": USER}, "meta": '{"who": "m", "ok": "yes"}', "out": [REPLY, "b"], "right": [1, 0]}
    fields = FieldNames(prompt="task.text", response="out", teacher="meta.who", correct="right")
    read = _read(open_corpus(_write(tmp_path, [row]), SourceOptions(fields=fields)))
    assert [(each.messages or [])[-1]["content"] for each in read] == [REPLY, "b"]
    assert [(each.teacher, each.correct) for each in read] == [("m", True), ("m", False)]


def test_ids_of_the_problem_become_prompt_ids(tmp_path: Path) -> None:
    rows = [{"id": 1, "prompt": USER, "response": text} for text in ("a", "b", "a")] + [
        {"id": 2, "prompt": "q", "response": "c"}
    ]
    read = _read(open_corpus(_write(tmp_path, rows)))
    assert [(each.id, each.prompt_id, each.refusal) for each in read] == [
        ("1#0", "1", ""),
        ("1#1", "1", ""),
        ("1", read[2].prompt_id, "duplicate_id"),
        ("2", read[3].prompt_id, ""),
    ]


def test_chunks_of_rows_that_hold_several_trajectories_start_anywhere(tmp_path: Path) -> None:
    rows = [
        {"id": i, "problem": f"q{i}", "generations": [f"{i}.{k}" for k in range(i % 4)], "score": [0] * (i % 4)}
        for i in range(1, 9)
    ]
    corpus = open_corpus(_write(tmp_path, rows))
    everything = next((chunk.table.to_pylist(), chunk.trajectories) for chunk in corpus.chunks(100))
    assert corpus.n_rows == len(everything[1]) == 14
    assert corpus.rows_read == 8
    assert [each["generations"] for each in everything[0]][:3] == ["1.0", "2.0", "2.1"]
    for start in range(15):
        for size in (1, 3):
            chunks = list(corpus.chunks(size, start))
            assert [each for chunk in chunks for each in chunk.trajectories] == everything[1][start:]
            assert [each for chunk in chunks for each in chunk.table.to_pylist()] == everything[0][start:]
    assert [each.id for chunk in corpus.parts(4, [1, 3]) for each in chunk.trajectories] == [
        each.id for each in [*everything[1][4:8], *everything[1][12:]]
    ]


NAMES = sorted(
    {name for rank in layouts.CONVERSATIONS for name in rank}
    | {name for rank in layouts.REFERENCES for name in rank}
    | layouts.RESPONSES
    | layouts.THOUGHTS
    | layouts.REASONINGS
    | layouts.NEVER
    | {*layouts.PROMPTS, *layouts.SYSTEMS, *layouts.TEACHERS, *layouts.PROMPT_IDS, *layouts.CORRECT}
    | {name for together in layouts.IDS for name in together}
    | {
        "history",
        "tools",
        "chat_template_kwargs",
        "text",
        "metadata",
        "info",
        "Note",
        "r1_solution_1",
        "images",
        "status",
    }
)
KEYS = sorted(
    {*layouts.ROLE_KEYS, *layouts.CONTENT_KEYS, *layouts.REASONING_KEYS, *layouts.WEIGHT_KEYS, *layouts.TURN_KEYS}
    | {"system", "system_prompt", "history", "observation", "info", "header", "Content"}
)
WORDS: st.SearchStrategy[Any] = st.integers(0, 10**6).map(lambda number: f"w{number}w")
VALUES = (
    WORDS | st.lists(WORDS, max_size=2) | st.dictionaries(st.sampled_from(["a", "content", "text"]), WORDS, max_size=2)
)
VALUES = VALUES | st.lists(VALUES, max_size=2) | st.none()
BASES: dict[str, Any] = {
    "prompt": lambda turn: {"prompt": USER, "response": REPLY},
    "alpaca": lambda turn: {"instruction": USER, "input": "i", "output": REPLY},
    "list": lambda turn: {"problem": USER, "generations": [REPLY]},
    "messages": lambda turn: {"messages": [TURNS[0], turn]},
    "messages as text": lambda turn: {"messages": json.dumps([TURNS[0], turn])},
    "messages in prompt": lambda turn: {"prompt": [{**turn, "role": "user"}], "response": REPLY},
    "parts": lambda turn: {"messages": [TURNS[0], {**TURNS[1], "content": [{"type": "text", "text": REPLY, **turn}]}]},
}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    base=st.sampled_from(sorted(BASES)),
    extra=st.dictionaries(st.sampled_from(NAMES) | st.text("xyz", min_size=1, max_size=3), VALUES, max_size=4),
    keys=st.dictionaries(st.sampled_from(KEYS) | st.text("xyz", min_size=1, max_size=3), VALUES, max_size=3),
    suffix=st.sampled_from([".jsonl", ".parquet"]),
)
def test_no_text_is_both_unread_and_unnamed(
    base: str, extra: dict[str, Any], keys: dict[str, Any], suffix: str, tmp_path: Path
) -> None:
    """Whatever the columns and keys are called: read, or named, or the row is refused, or the whole corpus."""
    made = BASES[base]({**keys, "role": "assistant", "content": REPLY} if base != "parts" else keys)
    row = {**extra, **made}
    try:
        corpus = open_corpus(_write(tmp_path, [row], suffix))
        read = _read(corpus)
    except UsageError:
        return
    except pa.ArrowException:
        assume(suffix != ".parquet")
        raise
    if any(each.refusal for each in read):
        assert all(each.detail for each in read if each.refusal)
        return
    reached = "\n".join(_strings([[each.normalised(), each.tools, each.chat_template_kwargs] for each in read]))
    named = {part for name in _named(corpus) for part in (name, name.partition(".")[0], name.partition(".")[2])}
    for name, value in extra.items():
        if name not in made:
            assert all(word in reached for word in _strings(value)) or name in named, (name, corpus.columns)
    for key, value in keys.items():
        if base.startswith(("messages", "parts")) and key not in ("role", "content"):
            assert all(word in reached for word in _strings(value)) or key in named, (key, corpus.columns)
