"""`score --dry-run`: totals against real runs and independent counts, nothing left behind, what is said if it will not do."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from safetensors import safe_open
from typer.testing import CliRunner

import trajscore as ts
from tests.helpers.paths import DATA
from trajscore.cli import app
from trajscore.corpus import Chunk, Corpus, FieldNames, trajectory_from_row
from trajscore.engines import EngineOptions
from trajscore.engines.footprint import Footprint
from trajscore.errors import UsageError
from trajscore.rendering.renderer import Rendered, refused
from trajscore.schema import OK
from trajscore.scoring.forecast.plan import ScorePlan
from trajscore.scoring.forecast.sample import STRETCH_ROWS, STRETCHES, Estimate, Sample
from trajscore.scoring.rows import ScoredRow

CORPUS = DATA / "trajectories.jsonl"
STUDENT, TEACHER = str(DATA / "models" / "student"), str(DATA / "models" / "teacher")
COPIES, LIMIT = 5, 100


def _plan(data: Path, out: Path, **options: Any) -> ScorePlan:
    return ts.score_plan(data, STUDENT, out, **{"calibration_seconds": 0.3, **options})


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo corpus, scored with a limit that refuses some rows as too long."""
    folder = tmp_path_factory.mktemp("real") / "scores"
    ts.score(CORPUS, STUDENT, folder, max_model_len=LIMIT, max_refused=1.0)
    return folder


@pytest.fixture(scope="module")
def sorted_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo corpus five times over, sorted by length: its first rows look like nothing else in it."""
    rows = [json.loads(line) for line in CORPUS.read_text("utf-8").splitlines()]
    rows.sort(key=lambda row: len(json.dumps(row)))
    path = tmp_path_factory.mktemp("sorted") / "c.jsonl"
    with path.open("w") as handle:
        for row in rows:
            for copy in range(COPIES):
                handle.write(json.dumps({**row, "id": f"{row['id']}/{copy}"}) + "\n")
    return path


def test_full_counts_what_a_run_counts(scores: Path, sorted_corpus: Path, tmp_path: Path) -> None:
    plan = _plan(sorted_corpus, tmp_path / "s", full=True, max_model_len=LIMIT)
    totals = ts.read_manifest(scores).totals
    assert plan.rows["total"] == plan.rows["rendered"] == COPIES * totals["rows"]
    assert {name: each.value for name, each in plan.rows["refused"].items()} == {
        name: COPIES * count for name, count in totals["refused_by_reason"].items()
    }
    tokens = plan.tokens["scored"]
    assert tokens.low == tokens.value == tokens.high == COPIES * totals["tokens"]
    assert plan.rows["scored"].value == COPIES * totals["scored"]
    lengths = ts.scan(scores).collect()["input_ids"].list.len()
    assert plan.tokens["longest"] == lengths.max()
    row = json.loads(sorted_corpus.read_text().splitlines()[plan.tokens["longest_row"]])
    assert row["id"] == plan.tokens["longest_id"]


def test_a_sample_of_a_sorted_corpus_covers_the_truth(scores: Path, sorted_corpus: Path, tmp_path: Path) -> None:
    plan = _plan(sorted_corpus, tmp_path / "s", max_model_len=LIMIT)
    totals = ts.read_manifest(scores).totals
    assert plan.rows["rendered"] == STRETCHES * STRETCH_ROWS < COPIES * totals["rows"] == plan.rows["total"]
    for estimate, truth in ((plan.tokens["scored"], totals["tokens"]), (plan.rows["scored"], totals["scored"])):
        assert estimate.low < COPIES * truth < estimate.high
        assert estimate.high < 1.2 * estimate.low


def test_disk_is_that_of_the_real_parts_however_fast_the_machine(scores: Path, tmp_path: Path) -> None:
    short, long = (_plan(CORPUS, tmp_path / "s", max_model_len=LIMIT, calibration_seconds=t) for t in (0.01, 1.0))
    real = sum(path.stat().st_size for path in scores.glob("part-*"))
    assert short.disk["parts"] == long.disk["parts"]
    assert 0.8 < short.disk["parts"].value / real < 1.25
    assert short.disk["parts"].low <= real <= short.disk["parts"].high


def test_disk_of_a_corpus_that_repeats_itself(sorted_corpus: Path, tmp_path: Path) -> None:
    """Copies that are neighbours compress: five rows take little more room than one."""
    plan = _plan(sorted_corpus, tmp_path / "s", part_rows=200)
    ts.score(sorted_corpus, STUDENT, tmp_path / "s", part_rows=200)
    real = sum(path.stat().st_size for path in (tmp_path / "s").glob("part-*"))
    assert plan.disk["parts"].low < real < plan.disk["parts"].high
    assert 0.75 < plan.disk["parts"].value / real < 1.33


def test_disk_of_rows_that_bring_numbers_of_their_own(tmp_path: Path) -> None:
    """What came with a row, here its sampler's log-probabilities, stands beside what the models give."""
    generator, path = np.random.default_rng(0), tmp_path / "ids.jsonl"
    with path.open("w") as handle:
        for number in range(60):
            ids, logprobs = generator.integers(10, 60, 80).tolist(), (-generator.exponential(size=40)).tolist()
            mask = [0] * 40 + [1] * 40
            handle.write(
                json.dumps({"id": f"{number}", "input_ids": ids, "loss_mask": mask, "logprobs": logprobs}) + "\n"
            )
    plan = _plan(path, tmp_path / "s", engine="hf")
    ts.score(path, STUDENT, tmp_path / "s", engine="hf")
    real = sum(part.stat().st_size for part in (tmp_path / "s").glob("part-*"))
    assert 0.9 < plan.disk["parts"].value / real < 1.1


def _everything(*folders: Path) -> list[tuple[str, int, int]]:
    paths = [path for folder in folders for path in (folder, *folder.rglob("*"))]
    return sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths)


def test_nothing_is_written(scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the folder nor a lock nor anything temporary, also where hidden states wait on disk."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    before = [str(path) for path in tmp_path.rglob("*")], _everything(scores)
    plan = _plan(CORPUS, tmp_path / "s", teacher=TEACHER, swap_models=True)
    _plan(CORPUS, scores, max_model_len=LIMIT, max_refused=1.0)
    assert ([str(path) for path in tmp_path.rglob("*")], _everything(scores)) == before
    width = json.loads((Path(TEACHER) / "config.json").read_text())["hidden_size"]
    # The teacher's states wait for what the template puts around turns, too: here the marker at the end of one turn a row.
    assert plan.disk["hidden_states"] == 4 * width * (plan.tokens["scored"].value + plan.rows["scored"].value)
    assert plan.time is not None
    assert plan.time["swapping"] > 0
    assert plan.memory["take_turns"]


def test_what_is_scored_already_is_left_out(tmp_path: Path) -> None:
    out = tmp_path / "s"

    class Impatient:
        def start(self, total: int | None, done: int) -> None:
            self.rows = 0

        def advance(self, rows: int, tokens: int) -> None:
            self.rows += rows
            if self.rows > 330:
                raise KeyboardInterrupt

    whole = _plan(CORPUS, out, part_rows=100)
    with pytest.raises(KeyboardInterrupt):
        ts.score(CORPUS, STUDENT, out, part_rows=100, progress=Impatient())
    finished = ts.read_manifest(out)
    assert 0 < finished.rows < 520
    plan = _plan(CORPUS, out, part_rows=100)
    assert plan.rows["done"] == finished.rows
    assert plan.tokens == whole.tokens
    assert plan.disk["parts"].value < 0.9 * whole.disk["parts"].value
    ts.score(CORPUS, STUDENT, out, part_rows=100)
    plan = _plan(CORPUS, out, part_rows=100)
    assert (plan.rows["done"], plan.disk["parts"].value, plan.warnings) == (520, 0.0, [])
    assert plan.time is not None
    assert plan.time["scoring"].value == 0
    with pytest.raises(UsageError, match="part_rows: was 100, now 50"):
        _plan(CORPUS, out, part_rows=50)
    assert _plan(CORPUS, out, part_rows=50, overwrite=True).warnings == []


def _command(*arguments: str | Path) -> Any:
    command = ["score", str(CORPUS), "--student", STUDENT, "--calibration-seconds", "0.3", *map(str, arguments)]
    return CliRunner().invoke(app, command, prog_name="trajscore")


def test_json_is_the_functions_own_result(tmp_path: Path) -> None:
    result = _command("--out", tmp_path / "s", "--dry-run", "--json", "--max-model-len", "60")
    found = json.loads(result.stdout)
    assert result.exit_code == 0, "more refused rows than allowed are a warning, not an exit code"
    assert any("max-refused" in warning for warning in found["warnings"])
    plan = _plan(CORPUS, tmp_path / "s", max_model_len=60).to_dict()
    assert found.keys() == plan.keys()
    for name in ("rows", "tokens", "columns"):
        assert found[name] == plan[name], name
    assert found["time"]["total"]["low"] <= found["time"]["total"]["value"] <= found["time"]["total"]["high"]


def test_lines_say_what_the_plan_says(tmp_path: Path) -> None:
    result = _command("--out", tmp_path / "s", "--dry-run", "--max-model-len", "60")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines() if line[:1].strip()] == [
        "rows", "columns", "tokens", "disk", "memory", "time", "dry",
    ]  # fmt: skip
    assert "too_long" in result.stdout
    assert "warning: " in result.stderr
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--full"], "--full has no effect without --dry-run"),
        (["--dry-run", "--turns", "first"], "--turns"),
        (["--dry-run", "--student", "no/such/model"], "no such folder"),
        (["--dry-run", "--calibration-seconds", "0"], "--calibration-seconds 0"),
        (["--dry-run", "--teacher-logprobs", "nowhere"], "the corpus has no such column"),
    ],
)
def test_wrong_usage_is_found_as_in_a_run(arguments: list[str], words: str, tmp_path: Path) -> None:
    result = _command("--out", tmp_path / "s", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (tmp_path / "s").exists()


def test_an_unknown_option_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"score_plan\(\) has no option 'part_row'"):
        _plan(CORPUS, tmp_path / "s", part_row=5)


def test_models_that_do_not_fit_are_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trajscore.engines.memory.available_memory", lambda device: 500_000)
    monkeypatch.setattr("trajscore.scoring.models.load_engine", lambda *_: pytest.fail("was loaded"))
    plan = _plan(CORPUS, tmp_path / "s", teacher=TEACHER)
    assert plan.time is None
    assert plan.disk["parts"] is None
    assert not plan.memory["fits"]
    assert plan.tokens["scored"].value == 23_268, "what needs no model is planned all the same"
    assert all(words in " ".join(plan.warnings) for words in ("--swap-models", "--max-num-batched-tokens"))


class TestFootprint:
    """Shapes against the model itself."""

    options = EngineOptions(dtype="float32")

    def test_weights_and_cache_are_the_models_own(self) -> None:
        shape = Footprint(TEACHER, None, self.options)
        with safe_open(Path(TEACHER) / "model.safetensors", "pt") as file:
            numbers = sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118
        assert shape.weight_bytes == 4 * numbers
        model = transformers.AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32)
        cache = model.base_model(input_ids=torch.zeros(1, 50, dtype=torch.long), use_cache=True).past_key_values
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        assert shape.cache_bytes(9000) == held * 9000 // 50
        one, other = (shape.running_bytes(8000, self.options, engine=name) for name in ("hf", "vllm"))
        shared = shape.shared_bytes(8000, self.options)
        assert other - one == shape.cache_bytes(8000) - shared, "transformers keep none of what fits into a batch"
        assert shared == held * 3 * 1024 // 50, "save of rows that share a prompt"

    def test_sliding_layers_keep_their_window(self, tmp_path: Path) -> None:
        from tests.helpers.tiny_models import make_model

        folder = make_model(tmp_path, "gemma3", tied=True)
        shape = Footprint(str(folder), None, self.options)
        kinds = transformers.AutoConfig.from_pretrained(folder).layer_types
        sliding = kinds.count("sliding_attention")
        assert sliding
        assert shape.cache_bytes(1000) == 2 * 32 * 4 * (16 * sliding + 1000 * (len(kinds) - sliding))


class _Corpus:
    """Rows whose text is so many characters, without files."""

    def __init__(self, values: Sequence[int], known: bool = True, file_starts: Sequence[int] = (0,)) -> None:
        self._values, self.file_starts = values, file_starts
        self.n_rows = len(values) if known else None

    def chunks(self, rows: int, start: int = 0) -> Iterator[Chunk]:
        like = trajectory_from_row({"text": "x"}, FieldNames())
        for first in range(start, len(self._values), rows):
            part = self._values[first : first + rows]
            texts = ["x" * value for value in part]
            yield Chunk(first, pa.table({"text": texts}), [replace(like, text=text) for text in texts])


def _tokens(value: int) -> int:
    return value - value * (value % 3 - 1) // 3


def _render(chunk: Chunk) -> list[ScoredRow]:
    """As many tokens as a row's number says, a third more or less; every seventh row is refused, which then has none."""
    rows = []
    for each in chunk.trajectories:
        value = len(each.text or "")
        tokens = np.zeros(_tokens(value), np.int32)
        found = Rendered(tokens, np.arange(1, dtype=np.uint32), np.zeros(1, np.uint32), 1)
        rows.append(ScoredRow(each, found if value % 7 else refused("too_long", "")))
    return rows


def _sample(
    values: Sequence[int], known: bool = True, full: bool = False, file_starts: Sequence[int] = (0,)
) -> tuple[Sample, int, int]:
    """A sample, and the true numbers of tokens and of rows that can be scored."""
    as_corpus: Any = _Corpus(values, known, file_starts)
    corpus: Corpus = as_corpus
    scored = [value for value in values if value % 7]
    return Sample(corpus, _render, full=full), sum(map(_tokens, scored)), len(scored)


# Of fewer intervals a smaller share may cover by chance.
@pytest.mark.parametrize(("corpora", "least"), [(24, 0.85), pytest.param(60, 0.9, marks=pytest.mark.slow)])
def test_intervals_cover_the_truth_as_often_as_they_say(corpora: int, least: float) -> None:
    """Corpora without order, with a trend, in blocks by author, and repeating themselves at every distance."""
    generator, hits, widths = np.random.default_rng(0), [], []
    for number in range(corpora):
        values = generator.gamma(2, 30, 2500 + 40 * number) + 1
        if number % 4 == 1:
            values.sort()
        if number % 4 == 2:
            values *= np.repeat(generator.uniform(0.5, 2, len(values) // 100 + 1), 100)[: len(values)]
        if number % 4 == 3:
            values = np.tile(values[: 50 * (number // 4 + 1)], 60)[: len(values)]
        sample, tokens, scored = _sample([int(value) for value in values])
        rows = sample.rows_with(OK)
        read = sample.tokens("read")
        assert read is not None
        assert rows is not None
        assert not sample.exact
        hits += [read.low <= tokens <= read.high, rows.low <= scored <= rows.high]
        widths.append(read.high / read.low)
    assert np.mean(hits) > least
    assert np.median(widths) < 1.2, "an interval that covers everything says nothing"


def test_each_file_counts_as_its_own_rows_say() -> None:
    """Three files: all rows of the small one are refused, and a character of the others is one token, and two thirds of one."""
    lengths, starts = np.random.default_rng(1).integers(2, 20, 5000), (0, 300, 2500)
    values = 21 * lengths + np.repeat([0, 1, 2], [300, 2200, 2500])
    sample, tokens, scored = _sample(values.tolist(), file_starts=starts)
    rows, read = sample.rows_with(OK), sample.tokens("read")
    assert read is not None
    assert rows is not None
    assert read.low <= tokens <= read.high < 1.05 * read.low
    assert rows.low <= scored <= rows.high < 1.01 * rows.low


def test_the_longest_row_is_found_wherever_it_stands() -> None:
    values = [50] * 9000
    values[4321] = 1000
    sample, *_ = _sample(values)
    assert sample.longest[:2] == (_tokens(1000), 4321)


def test_a_stream_has_no_totals_unless_it_ends() -> None:
    stream, *_ = _sample([20] * 3000, known=False)
    assert (stream.rows, stream.rendered.total(), stream.exact, stream.tokens("read")) == (None, 2000, False, None)
    short, tokens, _ = _sample(list(range(1, 301)), known=False)
    assert (short.rows, short.exact, short.tokens("read")) == (300, True, Estimate.around(tokens))
    whole, tokens, _ = _sample([20] * 3000, known=False, full=True)
    assert (whole.rows, whole.exact, whole.tokens("read")) == (3000, True, Estimate.around(tokens))


@pytest.mark.slow
def test_a_dry_run_with_vllm(tmp_path: Path) -> None:
    plan = _plan(CORPUS, tmp_path / "s", engine="vllm", teacher=TEACHER, limit=30, swap_models=True)
    assert (plan.memory["engine"], plan.memory["take_turns"], plan.rows["rendered"]) == ("vllm", True, 30)
    assert plan.time is not None
    assert plan.time["swapping"] > 0
    assert os.listdir(tmp_path) == []  # noqa: PTH208
