"""`trajscore skills answer`: the student answers questions. It joins questions, a generator and the comparison of answers; how
text is drawn lives in `trajscore.engines`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import orjson

from trajscore.engines import EngineOptions, load_generator
from trajscore.engines.fingerprint import model_identity
from trajscore.engines.generation import Sampling
from trajscore.io.call_cache import CallCache
from trajscore.io.outputs import spare_inputs_of
from trajscore.options import keywords_of
from trajscore.progress import ProgressLine
from trajscore.rendering.tokenizer import require_model
from trajscore.skills.answers import compared, final_answer, reference_answer, require_math_verify
from trajscore.skills.calls import OK, token_count
from trajscore.skills.commands.annotator import Outcome, check_out, write_lines
from trajscore.skills.options import AnswerOptions, StudentOptions, default_cache
from trajscore.skills.questions import Question, read_questions


@keywords_of(AnswerOptions)
def answer_questions(options: AnswerOptions) -> Outcome:
    """Let the student answer validation questions.

    A question with a text in the column `beginning`, as `skills begin` writes it, is answered from there on: each of its
    responses begins with that text. Of one response such a line also has the whole conversation, `messages`, as `score` reads
    it, and `correct` is its own.

    A line of `out` has `question_id`, `question`, `subject`, `answer` (the right one, null when unknown), `responses`,
    `finished` (false where cut at `max_tokens`), `answers` (what each response ends in), `correct` (by math-verify; null
    where the right answer is unknown, or cannot be compared with what the response ends in). With `entropy` the student is
    asked to be brief and draws at most 128 tokens at temperature 0.7 and top_p 0.7 (EDCO's settings, arXiv 2601.03725); a
    line then has `inference_entropy`, a number for each response, and no response is called right or wrong.

    Raises:
        UsageError: an argument, the model or a row's shape is wrong; nothing was written.
        EngineError: the model failed; finished batches are kept.
    """
    spare_inputs_of(options)
    target = check_out(options.out)
    sampling = _sampling(options)
    samples, max_tokens = sampling.samples, sampling.max_tokens
    require_model(str(options.student))
    questions = read_questions(options.data, options.source)
    if options.entropy:
        asked = tuple(replace(each, messages=briefly(each.messages)) for each in questions.questions)
        questions = replace(questions, questions=asked)
    elif any(each.answer is not None for each in questions.questions):
        require_math_verify()
    path = Path(options.cache) if options.cache is not None else default_cache(target)
    with CallCache(path, _batch_problem, write=not options.dry_run) as done:
        work = _Work(options, sampling, questions.questions, done)
        counts = {"calls": len(questions.questions), "cached": work.cached}
        if options.dry_run:
            tokens = (len(questions.questions) - work.cached) * samples * max_tokens
            counts |= {"to_make": counts["calls"] - work.cached, "completion_tokens_at_most": tokens}
            return Outcome(questions.rows, len(questions.questions), questions.left_out, {}, counts, dry_run=True)
        work.run()
        rows = [_row(each, work.completions(each), options.entropy) for each in questions.questions]
        write_lines(target, rows)
    tokens = sum(row.pop("tokens") for row in rows)
    verdicts = [row["correct"] if isinstance(row["correct"], list) else [row["correct"]] for row in rows]
    known = [each for own in verdicts for each in own if each is not None]
    details = {
        "samples": samples,
        "cut": sum(not each for row in rows for each in row["finished"]),
        "accuracy": sum(known) / len(known) if known else None,
    }
    counts |= {"made": counts["calls"] - counts["cached"], "completion_tokens": tokens}
    return Outcome(questions.rows, len(rows), questions.left_out, {OK: len(rows)}, counts, details)


BRIEF = "Answer in three sentences at most, and reason as little as you can."
"""What a question is preceded by where only the beginning of the answer matters; the words are ours."""

ENTROPY = "inference_entropy"
_BEST = 20


def briefly(messages: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """The conversation with `BRIEF` in front of its last message.

    >>> briefly([{"role": "user", "content": "2 + 2?"}])[0]["content"].splitlines()[-1]
    '2 + 2?'
    """
    *before, last = messages
    return (*before, {**last, "content": f"{BRIEF}\n\n{last['content']}"})


def _sampling(options: AnswerOptions) -> Sampling:
    """How the student draws, as was asked for, or else as is usual."""
    heat = 0.1 if options.samples == 1 and not options.entropy else 0.7
    return Sampling(
        temperature=heat if options.temperature is None else options.temperature,
        max_tokens=options.max_tokens or (128 if options.entropy else 2048),
        samples=options.samples,
        seed=options.seed,
        top_p=options.top_p or (0.7 if options.entropy else 1.0),
        best=_BEST if options.entropy else 0,
    )


def _batch_problem(record: Mapping[str, Any]) -> str:
    """What keeps a line of the cache from being what was drawn for a question; empty if nothing."""
    drawn = record.get("completions")
    if not isinstance(drawn, list) or not drawn:
        return "completions is no list"
    for each in drawn:
        kinds = each if isinstance(each, dict) else {}
        if not isinstance(kinds.get("text"), str) or not isinstance(kinds.get("finished"), bool):
            return "a completion lacks its text, or whether it is finished"
        if token_count(kinds.get("tokens")) is None:
            return "a completion lacks its number of tokens"
        if not isinstance(kinds.get(ENTROPY), float | int | None):
            return "a completion's entropy is no number"
    return ""


class _Work:
    """Questions in batches of input order, drawn where the cache lacks one. A batch is drawn whole: the texts of a batch
    share random numbers, and so do not depend on where an earlier run stopped.
    """

    def __init__(
        self, student: StudentOptions, sampling: Sampling, questions: Sequence[Question], cache: CallCache
    ) -> None:
        self._student, self._sampling, self._cache = student, sampling, cache
        size, name = student.batch_size, str(student.student)
        self._batches = [questions[first : first + size] for first in range(0, len(questions), size)]
        self._settings = {
            "student": model_identity(name, student.revision) if Path(name).is_dir() else name,
            "revision": student.revision,
            "engine": student.engine,
            "dtype": student.dtype,
            "sampling": asdict(sampling),
        }
        self.cached = sum(self._key(question) in cache for question in questions)

    def _key(self, question: Question) -> str:
        content = {**self._settings, "messages": question.messages, "beginning": question.beginning}
        return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()

    def completions(self, question: Question) -> list[dict[str, Any]]:
        """What was drawn for a question."""
        return list(self._cache.get(self._key(question))["completions"])

    def run(self) -> None:
        """Draw what is missing."""
        missing = [batch for batch in self._batches if any(self._key(each) not in self._cache for each in batch)]
        if not missing:
            return
        options = EngineOptions(
            dtype=self._student.dtype,
            device=self._student.device,
            trust_remote_code=self._student.trust_remote_code,
        )
        student = self._student
        _, generator = load_generator(
            student.engine, str(student.student), options, student.revision, student.max_model_len
        )
        try:
            with ProgressLine() as line:
                line.start(sum(map(len, missing)), 0)
                for batch in missing:
                    samplings = [self._seeded(question) for question in batch]
                    asked, beginnings = [each.messages for each in batch], [each.beginning for each in batch]
                    drawn = list(generator.generate(asked, samplings, beginnings))
                    self._cache.add(
                        [
                            {"key": self._key(question), "completions": [asdict(each) for each in completions]}
                            for question, completions in zip(batch, drawn, strict=True)
                        ]
                    )
                    line.advance(len(batch), sum(each.tokens for completions in drawn for each in completions))
        finally:
            generator.close()

    def _seeded(self, question: Question) -> Sampling:
        seed = int(self._key(question)[:8], 16) % 2**31
        return replace(self._sampling, seed=seed)


def _row(question: Question, completions: Sequence[dict[str, Any]], entropy: bool) -> dict[str, Any]:
    texts = [each["text"] for each in completions]
    answers = [final_answer(text) for text in texts]
    right = None if question.answer is None or entropy else reference_answer(question.answer)
    row = {
        "question_id": question.id,
        "question": question.text,
        "subject": question.subject,
        "answer": question.answer,
        "responses": texts,
        "finished": [each["finished"] for each in completions],
        "answers": answers,
        "correct": [None if right is None else _verdict(right, answer) for answer in answers],
        **({ENTROPY: [each[ENTROPY] for each in completions]} if entropy else {}),
        "tokens": sum(each["tokens"] for each in completions),
    }
    if question.beginning and len(texts) == 1:
        reply = {"role": "assistant", "content": texts[0]}
        row |= {"prompt_id": question.id, "messages": [*question.messages, reply], "correct": row["correct"][0]}
        row |= {"beginning": question.beginning}
    return row


def _verdict(right: str, answer: str | None) -> bool | None:
    """Whether a response ends in the right answer; one that ends in none is wrong, what cannot be compared is undecided.

    >>> _verdict("4", "4.0"), _verdict("4", None), _verdict("4", "four or so")
    (True, False, None)
    """
    return False if answer is None else compared(right, answer)
