"""`trajscore skills answer`: the student answers questions. It joins questions, a generator and the comparison of answers; how
text is drawn lives in `trajscore.engines`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
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
from trajscore.skills.answers import final_answer, reference_answer, require_math_verify, same_answer
from trajscore.skills.calls import OK, token_count
from trajscore.skills.commands.annotator import Outcome, check_out, write_lines
from trajscore.skills.options import AnswerOptions, StudentOptions, default_cache
from trajscore.skills.questions import Question, read_questions


@keywords_of(AnswerOptions)
def answer_questions(options: AnswerOptions) -> Outcome:
    """Let the student answer validation questions.

    A line of `out` has `question_id`, `question`, `subject`, `answer` (the right one, null when unknown), `responses`,
    `finished` (false where cut at `max_tokens`), `answers` (what each response ends in), `correct` (by math-verify; null where
    the right answer is unknown).

    Raises:
        UsageError: an argument, the model or a row's shape is wrong; nothing was written.
        EngineError: the model failed; finished batches are kept.
    """
    spare_inputs_of(options)
    samples, max_tokens = options.samples, options.max_tokens
    target = check_out(options.out)
    heat = (0.1 if samples == 1 else 0.7) if options.temperature is None else options.temperature
    sampling = Sampling(temperature=heat, max_tokens=max_tokens, samples=samples, seed=options.seed)
    require_model(str(options.student))
    questions = read_questions(options.data, options.source)
    if any(each.answer is not None for each in questions.questions):
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
        rows = [_row(question, work.completions(question)) for question in questions.questions]
        write_lines(target, rows)
    tokens = sum(row.pop("tokens") for row in rows)
    known = [each for row in rows for each in row["correct"] if each is not None]
    details = {
        "samples": samples,
        "cut": sum(not each for row in rows for each in row["finished"]),
        "accuracy": sum(known) / len(known) if known else None,
    }
    counts |= {"made": counts["calls"] - counts["cached"], "completion_tokens": tokens}
    return Outcome(questions.rows, len(rows), questions.left_out, {OK: len(rows)}, counts, details)


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
        content = {**self._settings, "messages": question.messages}
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
                    drawn = list(generator.generate([question.messages for question in batch], samplings))
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
        return Sampling(self._sampling.temperature, self._sampling.max_tokens, self._sampling.samples, seed)


def _row(question: Question, completions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    texts = [each["text"] for each in completions]
    answers = [final_answer(text) for text in texts]
    right = None if question.answer is None else reference_answer(question.answer)
    return {
        "question_id": question.id,
        "question": question.text,
        "subject": question.subject,
        "answer": question.answer,
        "responses": texts,
        "finished": [each["finished"] for each in completions],
        "answers": answers,
        "correct": [None if right is None else answer is not None and same_answer(right, answer) for answer in answers],
        "tokens": sum(each["tokens"] for each in completions),
    }
