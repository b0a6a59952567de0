"""Teachers and distilled models beside the student: against float64, whichever way the models take turns or tokenize."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import trajscore as ts
from tests.helpers.oracles import from_logits, model_logits
from tests.helpers.paths import DATA
from tests.scoring.test_score import CORPUS, LLAMA, STUDENT, _chat, _write
from trajscore.errors import UsageError
from trajscore.rendering.renderer import Renderer
from trajscore.schema import COLUMNS, OK

TEACHER = str(DATA / "models" / "teacher")
DIVERGENCES = ["kl_student_teacher", "kl_teacher_student", "js"]
ROWS = 40


def _scored(out: Path, **options: Any) -> pl.DataFrame:
    ts.score(CORPUS, STUDENT, out, **{"limit": ROWS, "max_refused": 1.0, **options})
    return ts.scan(out).filter(pl.col("status") == OK).collect()


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    return _scored(tmp_path_factory.mktemp("exact") / "s", teacher=TEACHER)


def _values(frame: pl.DataFrame, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return frame[name].explode(empty_as_null=False).to_numpy().astype(np.float64)


def test_divergences_against_both_models_own_float64_logits(exact: pl.DataFrame) -> None:
    models = [
        transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()
        for path in (STUDENT, TEACHER)
    ]
    known = len(transformers.AutoTokenizer.from_pretrained(STUDENT))
    for row in exact.head(8).iter_rows(named=True):
        ids, positions = np.array(row["input_ids"], np.int32), np.array(row["positions"])
        logits = [model_logits(model, ids)[positions - 1][:, :known] for model in models]
        oracle = from_logits(logits[1], ids[positions].astype(np.int64))
        np.testing.assert_allclose(row["teacher_surprisal"], oracle.surprisal, atol=1e-4)
        np.testing.assert_allclose(row["teacher_entropy"], oracle.entropy, atol=1e-4)
        logp, logq = (torch.tensor(each).log_softmax(1).numpy() for each in logits)
        p, q = np.exp(logp), np.exp(logq)
        logm = np.log((p + q) / 2)
        np.testing.assert_allclose(row["kl_student_teacher"], (p * (logp - logq)).sum(1), atol=1e-4)
        np.testing.assert_allclose(row["kl_teacher_student"], (q * (logq - logp)).sum(1), atol=1e-4)
        js = ((p * (logp - logm)).sum(1) + (q * (logq - logm)).sum(1)) / 2
        np.testing.assert_allclose(row["js"], js, atol=1e-4)
        assert np.abs((p * (logp - logq)).sum(1) - row["kl_teacher_student"]).max() > 0.1, "the two KLs are told apart"


def test_the_student_is_scored_as_without_a_teacher(exact: pl.DataFrame, tmp_path: Path) -> None:
    alone = _scored(tmp_path / "s")
    assert not [name for name in alone.columns if name.startswith("teacher_")]
    for name in ("student_surprisal", "student_entropy"):
        np.testing.assert_allclose(_values(alone, name), _values(exact, name), atol=1e-4)


def test_columns_follow_the_schema(exact: pl.DataFrame) -> None:
    for name in ["teacher_sentence_logprob", "teacher_rank", "teacher_surprisal", "teacher_entropy", *DIVERGENCES]:
        column, values = COLUMNS[name], _values(exact, name)
        assert column.lower is not None and column.upper is not None  # noqa: PT018 - one fact: bounds are declared
        assert values.min() >= column.lower
        assert values.max() <= column.upper
    for row in exact.iter_rows(named=True):
        for number, logprob in enumerate(row["teacher_sentence_logprob"]):
            own = [-s for s, k in zip(row["teacher_surprisal"], row["sentence"], strict=True) if k == number]
            assert logprob == pytest.approx(sum(own) / len(own), abs=1e-4) if own else logprob is None


def test_models_may_be_paths(tmp_path: Path) -> None:
    ts.score(
        DATA / "trajectories.jsonl",
        Path(STUDENT),
        tmp_path / "s",
        teacher=Path(TEACHER),
        distilled=Path(STUDENT),
        limit=3,
    )
    assert {"js", "distilled_rank"} <= set(ts.scan(tmp_path / "s").collect_schema().names())


@pytest.mark.parametrize("budget", [20.0, 5e-4], ids=["one round", "a round per part"])
def test_models_may_take_turns(exact: pl.DataFrame, budget: float, tmp_path: Path) -> None:
    swapped = _scored(tmp_path / "s", teacher=TEACHER, swap_models=True, hidden_budget=budget, part_rows=15)
    for name in ["student_surprisal", "teacher_surprisal", *DIVERGENCES]:
        np.testing.assert_allclose(_values(swapped, name), _values(exact, name), atol=1e-4)
    assert sorted(path.name for path in (tmp_path / "s").iterdir() if not path.name.startswith("part")) == [
        ".lock",
        "manifest.json",
        "tokenizer.json",
    ]


def test_a_part_that_exceeds_the_budget_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="hidden states of 15 rows take") as caught:
        _scored(tmp_path / "s", teacher=TEACHER, swap_models=True, hidden_budget=1e-6, part_rows=15)
    assert "--part-rows" in caught.value.hint


def test_rows_longer_than_the_teacher_takes_are_null_and_counted(
    exact: pl.DataFrame, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = tmp_path / "short"
    short.mkdir()
    for path in Path(TEACHER).iterdir():
        (short / path.name).write_bytes(path.read_bytes())
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 80}))
    frame = _scored(tmp_path / "s", teacher=str(short))
    lengths = exact["input_ids"].list.len()
    assert frame["js"].is_null().to_list() == (lengths > 80).to_list()
    assert 0 < frame["js"].null_count() < frame.height
    assert frame["student_surprisal"].null_count() == 0
    assert f"{frame['js'].null_count()} rows have null columns: longer than" in caplog.text


def test_only_one_model_is_in_memory_when_they_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trajscore.engines import hf

    loaded: list[int] = []
    load, close = hf.HFEngine.__init__, hf.HFEngine.close
    present = 0

    def counted_load(self: hf.HFEngine, *args: Any) -> None:
        nonlocal present
        present += 1
        loaded.append(present)
        load(self, *args)

    def counted_close(self: hf.HFEngine) -> None:
        nonlocal present
        present -= 1
        close(self)

    monkeypatch.setattr(hf.HFEngine, "__init__", counted_load)
    monkeypatch.setattr(hf.HFEngine, "close", counted_close)
    teachers = [f"plain={TEACHER}", f"terse={TEACHER}", f"verbose={LLAMA}"]
    for name, options in {"exact": {}, "topk": {"divergence": "topk:3"}}.items():
        given = teachers if name == "exact" else teachers[:2]
        _scored(tmp_path / name, teacher=given, distilled=STUDENT, swap_models=True, limit=10, part_rows=4, **options)
        assert max(loaded) == 1
        assert present == 0
        # Each model once to describe it, and once for the three parts together; the first to run is described last and stays.
        assert len(loaded) == 2 * (len(given) + 2) - 1
        loaded.clear()


def test_models_that_can_sleep_are_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And all are closed in the end, asleep or not."""
    from trajscore.engines import hf

    events: list[str] = []
    for name, method in (("load", "__init__"), ("close", "close")):
        whole = getattr(hf.HFEngine, method)

        def noted(self: hf.HFEngine, *args: Any, name: str = name, whole: Any = whole) -> None:
            events.append(name)
            whole(self, *args)

        monkeypatch.setattr(hf.HFEngine, method, noted)
    monkeypatch.setattr(hf.HFEngine, "sleep", lambda _: True)
    _scored(tmp_path / "s", teacher=TEACHER, distilled=STUDENT, swap_models=True, limit=8, part_rows=4)
    assert events == ["load"] * 3 + ["close"] * 3


def test_truncated_divergences_are_lower_bounds_under_their_own_names(exact: pl.DataFrame, tmp_path: Path) -> None:
    top = _scored(tmp_path / "s", teacher=TEACHER, divergence="topk:4")
    assert not set(DIVERGENCES) & set(top.columns)
    np.testing.assert_allclose(_values(top, "teacher_surprisal"), _values(exact, "teacher_surprisal"), atol=1e-4)
    for name in DIVERGENCES:
        assert (_values(top, f"{name}_topk") <= _values(exact, name) + 1e-4).all()
    mass = _values(top, "topk_mass")
    assert ((mass > 0) & (mass <= 1 + 1e-6)).all()
    whole = _scored(tmp_path / "w", teacher=TEACHER, divergence="topk:551")
    for name in DIVERGENCES:
        np.testing.assert_allclose(_values(whole, f"{name}_topk"), _values(exact, name), atol=1e-3)


def test_no_divergence_leaves_the_teachers_own_columns(tmp_path: Path) -> None:
    frame = _scored(tmp_path / "s", teacher=TEACHER, divergence="none", limit=5)
    assert not [name for name in frame.columns if name.startswith(("kl_", "js"))]
    assert frame["teacher_surprisal"].null_count() == 0


def test_padding_of_a_vocabulary_changes_nothing(exact: pl.DataFrame, tmp_path: Path) -> None:
    """The teacher's head has 576 rows for a tokenizer of 551 entries: cut off, the divergences stay."""
    cut = tmp_path / "cut"
    cut.mkdir()
    known = len(transformers.AutoTokenizer.from_pretrained(TEACHER))
    for path in Path(TEACHER).iterdir():
        (cut / path.name).write_bytes(path.read_bytes())
    weights = load_file(cut / "model.safetensors")
    assert weights["lm_head.weight"].shape[0] == 576
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        weights[name] = weights[name][:known].clone()
    save_file(weights, cut / "model.safetensors", {"format": "pt"})
    config = json.loads((cut / "config.json").read_text())
    (cut / "config.json").write_text(json.dumps({**config, "vocab_size": known}))
    other = _scored(tmp_path / "s", teacher=str(cut))
    for name in ["teacher_surprisal", *DIVERGENCES]:
        np.testing.assert_allclose(_values(other, name), _values(exact, name), atol=1e-5)


class TestAnotherTokenizer:
    def test_sentence_columns_only(self, tmp_path: Path) -> None:
        frame = _scored(tmp_path / "s", teacher=LLAMA)
        added = set(frame.columns) - set(_scored(tmp_path / "alone").columns)
        assert added == {"teacher_sentence_logprob"}

    def test_sentence_means_over_the_teachers_own_tokens(self, tmp_path: Path) -> None:
        """The same numbers as when that model is the student: the sentences are the same text."""
        frame = _scored(tmp_path / "s", teacher=LLAMA)
        ts.score(CORPUS, LLAMA, tmp_path / "own", limit=ROWS, max_refused=1.0)
        own = ts.scan(tmp_path / "own").filter(pl.col("status") == OK).collect()
        assert frame["id"].to_list() == own["id"].to_list()
        found = zip(frame["teacher_sentence_logprob"].to_list(), own["student_sentence_logprob"].to_list(), strict=True)
        for one, other in found:
            assert one == pytest.approx(other, abs=1e-4)

    @pytest.mark.parametrize("divergence", ["exact", "topk:3"])
    def test_token_divergences_are_refused_with_the_reason(self, divergence: str, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"tokenizers of .* differ") as caught:
            _scored(tmp_path / "s", teacher=LLAMA, divergence=divergence)
        assert "--align bytes" in caught.value.hint

    def test_chunks_hold_the_same_text_and_sum_to_the_whole(self, tmp_path: Path) -> None:
        frame = _scored(tmp_path / "s", teacher=LLAMA, align="bytes")
        ts.score(CORPUS, LLAMA, tmp_path / "own", limit=ROWS, max_refused=1.0)
        own = ts.scan(tmp_path / "own").filter(pl.col("status") == OK).collect()
        for row, other in zip(frame.iter_rows(named=True), own.iter_rows(named=True), strict=True):
            assert sum(row["student_chunk_logprob"]) == pytest.approx(-sum(row["student_surprisal"]), abs=1e-2)
            assert sum(row["teacher_chunk_logprob"]) == pytest.approx(-sum(other["student_surprisal"]), abs=1e-2)
            assert row["chunk_start"][0] == 0
            assert row["chunk_start"] == sorted(set(row["chunk_start"]))
            assert max(row["chunk_start"]) < row["n_tokens"]
            assert len(row["chunk_start"]) == len(row["student_chunk_logprob"]) == len(row["teacher_chunk_logprob"])
            ends = [*row["chunk_start"][1:], row["n_tokens"]]
            first = -sum(row["student_surprisal"][: ends[0]])
            assert row["student_chunk_logprob"][0] == pytest.approx(first, abs=1e-4)

    def test_a_distilled_model_with_another_tokenizer(self, tmp_path: Path) -> None:
        frame = _scored(tmp_path / "s", distilled=LLAMA, limit=5)
        assert frame["distilled_sentence_logprob"].null_count() == 0
        assert "distilled_rank" not in frame.columns

    def test_one_side_with_a_start_token_and_turns_with_calls(self, tmp_path: Path) -> None:
        """The first token of a bare text is scored by one tokenizer only; calls are written in two ways."""
        call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
        turns = [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "Let me see.", "tool_calls": [call]},
            {"role": "tool", "content": "r"},
            {"role": "assistant", "content": "It is 6. Done."},
        ]
        rows: list[dict[str, Any]] = [{"text": "Hello world, this is a text. And another."}, {"messages": turns}]
        path = _write(tmp_path / "t.jsonl", rows)
        for student, teacher in ((STUDENT, LLAMA), (LLAMA, STUDENT)):
            out = tmp_path / Path(student).name
            ts.score(path, student, out, teacher=teacher, align="bytes")
            for row in ts.scan(out).collect().iter_rows(named=True):
                assert row["chunk_start"] == sorted(set(row["chunk_start"])), "every token in one chunk at most"
                assert sum(row["student_chunk_logprob"]) >= -sum(row["student_surprisal"]) - 1e-2
                assert row["teacher_sentence_logprob"][-1] is not None

    def test_a_cut_student_is_compared_up_to_its_cut(self, tmp_path: Path) -> None:
        path = _write(tmp_path / "t.jsonl", [_chat("q", "This is one sentence. " * 20)])
        ts.score(path, STUDENT, tmp_path / "s", teacher=LLAMA, align="bytes", max_model_len=60, on_overlong="truncate")
        ts.score(path, STUDENT, tmp_path / "w", teacher=LLAMA, align="bytes")
        cut, whole = (ts.scan(tmp_path / name).collect().row(0, named=True) for name in ("s", "w"))
        count = len(cut["teacher_chunk_logprob"])
        assert 0 < count < len(whole["teacher_chunk_logprob"])
        np.testing.assert_allclose(cut["teacher_chunk_logprob"], whole["teacher_chunk_logprob"][:count], atol=1e-4)
        np.testing.assert_allclose(cut["student_chunk_logprob"], whole["student_chunk_logprob"][:count], atol=1e-4)


def test_each_row_by_the_model_that_wrote_it(exact: pl.DataFrame, tmp_path: Path) -> None:
    frame = _scored(tmp_path / "s", teacher=[f"plain={TEACHER}", f"terse={LLAMA}"])
    for row, other in zip(frame.iter_rows(named=True), exact.iter_rows(named=True), strict=True):
        if row["teacher"] == "plain":
            np.testing.assert_allclose(row["js"], other["js"], atol=1e-4)
        elif row["teacher"] == "terse":
            assert row["js"] is None
            assert row["teacher_sentence_logprob"] is not None
        else:
            assert row["teacher_sentence_logprob"] is None
            assert row["teacher_rank"] is None
        assert row["student_surprisal"] is not None


def test_a_teacher_whose_name_no_row_bears_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ts.score(CORPUS, STUDENT, tmp_path / "s", limit=20, teacher=[f"nobody={TEACHER}"])
    assert "nobody=...: no row has that teacher" in caplog.text


def test_a_folder_with_an_equals_sign_is_one_teacher(tmp_path: Path, exact: pl.DataFrame) -> None:
    folder = tmp_path / "lr=1e-5"
    folder.mkdir()
    for path in Path(TEACHER).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    frame = _scored(tmp_path / "s", teacher=str(folder), limit=3)
    np.testing.assert_allclose(_values(frame, "js"), _values(exact.head(frame.height), "js"), atol=1e-4)


@pytest.mark.parametrize("given", [["a", "b"], ["a=x", "a=y"], ["=x", "b=y"], ["a=x", "y"]])
def test_several_teachers_need_names(given: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="several teachers"):
        _scored(tmp_path / "s", teacher=given)


def test_a_distilled_model_beside_the_student(exact: pl.DataFrame, tmp_path: Path) -> None:
    frame = _scored(tmp_path / "s", distilled=TEACHER)
    for name in ("rank", "surprisal", "entropy", "sentence_logprob"):
        np.testing.assert_allclose(_values(frame, f"distilled_{name}"), _values(exact, f"teacher_{name}"), atol=1e-4)


class TestLogprobsThatCameWithTheData:
    def _row(self, text: str, tokens: list[str], field: Any = None, **columns: Any) -> dict[str, Any]:
        logprobs = [-0.25 * (n + 1) for n in range(len(tokens))]
        value = field or {"content": [{"token": t, "logprob": p} for t, p in zip(tokens, logprobs, strict=True)]}
        return _chat("q", text, api=value, **columns)

    def test_become_sentence_means(self, tmp_path: Path) -> None:
        tokens = ["One", " is. ", "Two", " are."]
        rows = [
            self._row("One is. Two are.", tokens),
            self._row("another text", tokens),
            self._row("x", ["x"], field={"content": [{"token": "x", "logprob": None}]}),
            self._row("<think>\nhm\n</think>\n\nOne is. Two are.", tokens),
        ]
        ts.score(_write(tmp_path / "d.jsonl", rows), STUDENT, tmp_path / "s", teacher_logprobs="api")
        found = ts.scan(tmp_path / "s").collect()["teacher_sentence_logprob"].to_list()
        assert found[0] == pytest.approx([-0.375, -0.875])
        assert found[1] is None
        assert found[2] is None
        assert found[3][-2:] == pytest.approx([-0.375, -0.875])
        assert found[3][0] is None

    def test_a_missing_column_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="--teacher-logprobs apis") as caught:
            ts.score(
                _write(tmp_path / "d.jsonl", [self._row("a", ["a"])]), STUDENT, tmp_path / "s", teacher_logprobs="apis"
            )
        assert "api" in caught.value.hint


def test_resuming_with_a_teacher(exact: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trajscore.scoring.passes import Passes

    real, calls = Passes.run, []

    def stopping(self: Passes, rows: Any, done: Any = None) -> None:
        calls.append(len(rows))
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(self, rows, done)

    monkeypatch.setattr(Passes, "run", stopping)
    with pytest.raises(KeyboardInterrupt):
        _scored(tmp_path / "s", teacher=TEACHER, part_rows=15)
    with pytest.raises(UsageError, match="divergence: was None, now 'none'"):
        _scored(tmp_path / "s", teacher=TEACHER, part_rows=15, divergence="none")
    with pytest.raises(UsageError, match="others"):
        _scored(tmp_path / "s", part_rows=15)
    frame = _scored(tmp_path / "s", teacher=TEACHER, part_rows=15)
    np.testing.assert_allclose(_values(frame, "js"), _values(exact, "js"), atol=1e-4)


def test_tokenizers_are_compared_by_what_they_do(tmp_path: Path) -> None:
    assert Renderer(STUDENT).same_tokenizer(Renderer(TEACHER))
    assert not Renderer(STUDENT).same_tokenizer(Renderer(LLAMA))
    for path in Path(TEACHER).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    merges = state["model"]["merges"]
    merges[-1], merges[-2] = merges[-2], merges[-1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    assert not Renderer(STUDENT).same_tokenizer(Renderer(str(tmp_path)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "kl", "teacher": TEACHER}, "--divergence kl"),
        ({"divergence": "topk:0", "teacher": TEACHER}, "--divergence topk:0"),
        ({"divergence": "topk:552", "teacher": TEACHER}, "has 551 entries"),
        ({"divergence": "exact"}, "there is none"),
        ({"align": "bytes"}, "there is none"),
        ({"align": "tokens", "teacher": TEACHER}, "--align tokens"),
        ({"teacher": TEACHER, "teacher_logprobs": "x"}, "exclude each other"),
        ({"teacher": "no/such/model"}, "no such folder"),
    ],
)
def test_contradictory_options(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        _scored(tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()
