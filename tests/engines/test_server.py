"""`--engine server` against a server that gives a model's true numbers, one that spoils them, and vLLM itself."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import transformers

from tests.helpers.oracles import entropy, from_logits, model_logits
from tests.helpers.paths import DATA
from tests.helpers.raw_server import Say, http, raw_server
from tests.helpers.served_model import Served, served_model
from tests.helpers.tiny_models import exact_model
from tests.helpers.vllm_server import vllm_server
from trajscore import scan, score, score_plan, verify
from trajscore.engines import ModelSource, TokenSequence
from trajscore.engines.reductions import STATES, TOKENS
from trajscore.engines.served_replies import ReplyFile, ServedReply
from trajscore.engines.server import ServedModel
from trajscore.errors import EngineError, TrajscoreError, UsageError
from trajscore.options.groups import ServerOptions
from trajscore.scoring.options import ScoreOptions

STUDENT, TEACHER = DATA / "models" / "student", DATA / "models" / "teacher"
CORPUS = DATA / "trajectories.jsonl"
K, ROWS = 16, 7


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """The same rows under the engine in this process."""
    folder = tmp_path_factory.mktemp("local") / "scores"
    score(CORPUS, STUDENT, folder, engine="hf", limit=ROWS, extra=["local:1"])
    return scan(folder).collect()


@pytest.fixture(scope="module")
def vllm_like() -> Iterator[Served]:
    with served_model(STUDENT) as served:
        yield served


def _flat(frame: pl.DataFrame, column: str) -> Any:
    return np.concatenate([np.array(values, np.float64) for values in frame[column].to_list()])


def _check_against_local(served: pl.DataFrame, local: pl.DataFrame) -> None:
    assert served["input_ids"].to_list() == local["input_ids"].to_list()
    for column in ("student_surprisal", "scaffold_surprisal", "student_sentence_logprob"):
        assert np.abs(_flat(served, column) - _flat(local, column)).max() < 1e-3
    wanted = np.minimum(_flat(local, "student_rank"), K + 1)
    assert (_flat(served, "student_rank_topk") != wanted).mean() < 0.01, "but for near ties"
    gap = _flat(local, "student_entropy") - _flat(served, "student_entropy_topk")
    assert gap.min() > -1e-3
    assert gap.max() > 0.01, "a control: nothing was truncated"
    assert _flat(served, "topk_mass").max() <= 1
    exact_only = {"student_rank", "student_entropy", "scaffold_rank", "scaffold_entropy"}
    assert not exact_only & set(served.columns)


def test_sentences_after_few_others_agree_with_the_engine_in_this_process(
    vllm_like: Served, local: pl.DataFrame, tmp_path: Path
) -> None:
    score(
        CORPUS,
        STUDENT,
        tmp_path / "s",
        engine="server",
        base_url=vllm_like.url,
        limit=ROWS,
        part_rows=3,
        extra=["local:1"],
    )
    found, nearby = scan(tmp_path / "s").collect(), "student_local_sentence_logprob"
    assert np.abs(_flat(found, nearby) - _flat(local, nearby)).max() < 1e-3
    assert np.abs(_flat(found, nearby) - _flat(local, "student_sentence_logprob")).max() > 0.1, "a control"


@pytest.mark.parametrize("api", ["vllm", "sglang"])
def test_agrees_with_the_engine_in_this_process(api: str, local: pl.DataFrame, tmp_path: Path) -> None:
    with served_model(STUDENT, api) as served:
        summary = score(
            CORPUS, STUDENT, tmp_path / "s", engine="server", base_url=served.url, limit=ROWS, part_rows=3,
            max_num_batched_tokens=200, concurrency=2,
        )  # fmt: skip
    assert (summary.rows, summary.scored) == (ROWS, ROWS)
    found = scan(tmp_path / "s").collect()
    _check_against_local(found, local)
    assert set(served.asked) == {tuple(ids) for ids in found["input_ids"].to_list()}, "the very ids, and all of them"
    assert verify(tmp_path / "s").sound
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert manifest["settings"]["student"] == {
        "name": "student", "adapter": None, "served_model": "m", "topk": K, "vocabulary": 551, "engine": "server"
    }  # fmt: skip
    assert manifest["environment"]["server"] == api
    assert "127.0.0.1" not in json.dumps(manifest), "where the server stood is nobody's business"
    assert not [*(tmp_path / "s").glob(".server-replies*")]


def test_truncated_statistics_are_those_of_float64(vllm_like: Served, local: pl.DataFrame) -> None:
    """Entropy over K + 1 parts and clipped ranks, from the model's own logits; a written token may be none of the K."""
    model, ids = exact_model(STUDENT), np.array(local["input_ids"][0].to_list()[:60], np.int32)
    sequence = TokenSequence(ids, np.arange(1, 60, dtype=np.uint32))
    ((_, found),) = _engine(vllm_like.url, k=3).run([sequence], TOKENS)
    scores: Any = found
    logits = model_logits(model, ids)[:-1]
    oracle = from_logits(logits, ids[1:].astype(np.int64))
    p = np.sort(np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)))[:, ::-1]
    parts = np.concatenate([p[:, :3], p[:, 3:].sum(1, keepdims=True)], 1)
    assert np.abs(scores.surprisal_N - oracle.surprisal).max() < 1e-5
    assert (scores.rank_topk_N == np.minimum(oracle.rank, 4)).all()
    assert set(scores.rank_topk_N.tolist()) >= {1, 4}
    assert np.abs(scores.entropy_topk_N - entropy(parts)).max() < 1e-5
    assert np.abs(scores.mass_N - parts[:, :3].sum(1)).max() < 1e-6


def test_a_served_teacher_gives_what_truncated_divergences_take(tmp_path: Path) -> None:
    """The teacher is asked, the student runs here: exactly what the same teacher gives in this process."""
    teacher = transformers.AutoModelForCausalLM.from_pretrained(STUDENT)
    teacher.model.layers[0].mlp.down_proj.weight.data *= 1.5
    teacher.save_pretrained(tmp_path / "teacher")
    transformers.AutoTokenizer.from_pretrained(STUDENT).save_pretrained(tmp_path / "teacher")
    options: dict[str, Any] = {"engine": "hf", "teacher": tmp_path / "teacher", "limit": 3}
    with served_model(tmp_path / "teacher") as served:
        score(CORPUS, STUDENT, tmp_path / "served", teacher_base_url=served.url, keep_topk=4, **options)
    score(CORPUS, STUDENT, tmp_path / "here", divergence=f"topk:{K}", keep_topk=4, **options)
    found, here = scan(tmp_path / "served").collect(), scan(tmp_path / "here").collect()
    columns = ("teacher_surprisal", "kl_student_teacher_topk", "kl_teacher_student_topk", "js_topk", "topk_mass")
    for column in columns:
        assert np.abs(_flat(found, column) - _flat(here, column)).max() < 1e-4
    assert _flat(found, "kl_student_teacher_topk").max() > 0.01
    assert (_flat(found, "teacher_rank_topk") == np.minimum(_flat(here, "teacher_rank"), K + 1)).mean() > 0.99
    assert found["teacher_topk_ids"].to_list() == here["teacher_topk_ids"].to_list()
    assert found["student_rank"].to_list() == here["student_rank"].to_list()
    assert {"teacher_rank", "teacher_entropy", "js"}.isdisjoint(found.columns)
    assert verify(tmp_path / "served").sound


def test_both_behind_servers_have_a_mass_each(vllm_like: Served, tmp_path: Path) -> None:
    score(
        CORPUS, STUDENT, tmp_path / "s", engine="server", base_url=vllm_like.url, teacher=STUDENT, limit=1,
        teacher_base_url=vllm_like.url, server_topk=2,
    )  # fmt: skip
    found = scan(tmp_path / "s").collect()
    assert found["topk_mass"].to_list() == found["student_topk_mass"].to_list()
    assert found["teacher_surprisal"].to_list() == found["student_surprisal"].to_list()
    assert not [name for name in found.columns if name.startswith(("js", "kl_"))]


def test_what_was_answered_is_not_asked_again(vllm_like: Served, local: pl.DataFrame, tmp_path: Path) -> None:
    """The server dies in the middle of a part; the second run asks for the rest alone. Equal prompts are asked once."""
    vllm_like.asked.clear()
    count = itertools.count()
    options: dict[str, Any] = {
        "engine": "server", "base_url": vllm_like.url, "limit": ROWS, "max_num_batched_tokens": 1, "concurrency": 1,
        "max_retries": 0,
    }  # fmt: skip
    vllm_like.change = lambda path, answer: 500 if path != "/v1/models" and next(count) == 3 else answer
    with pytest.raises(TrajscoreError, match="HTTP 500") as error:
        score(CORPUS, STUDENT, tmp_path / "s", **options)
    assert "run the same command again" in error.value.hint
    asked = list(vllm_like.asked)
    assert len(asked) == 4
    assert [*(tmp_path / "s").glob(".server-replies*")], "kept until their part is written"
    vllm_like.change = None
    assert score(CORPUS, STUDENT, tmp_path / "s", **options).scored == ROWS
    assert [each for each, times in vllm_like.asked.items() if times > 1] == asked[3:], "only the one that failed"
    _check_against_local(scan(tmp_path / "s").collect(), local)
    assert not [*(tmp_path / "s").glob(".server-replies*")]


def test_half_a_reply_on_disk_is_none(tmp_path: Path) -> None:
    """What a kill leaves at the end is cut off; what stands before it is whole."""
    reply = ServedReply(
        np.array([-1.0, -math.inf], np.float32), np.array([[5], [6]], np.int32), np.zeros((2, 1), np.float32)
    )
    file = ReplyFile(tmp_path / "r")
    for name in (b"a" * 32, b"b" * 32):
        file.put(name, reply)
    file.close()
    whole = (tmp_path / "r").read_bytes()
    for cut in (1, 20, len(whole) // 2 - 1):
        (tmp_path / "r").write_bytes(whole[:-cut])
        opened = ReplyFile(tmp_path / "r")
        assert b"a" * 32 in opened
        assert b"b" * 32 not in opened
        assert opened.get(b"a" * 32).logprob_N.tolist() == [-1.0, -math.inf]
        opened.put(b"b" * 32, reply)
        opened.close()
        assert (tmp_path / "r").read_bytes() == whole
    (tmp_path / "r").write_bytes(whole[:-1] + b"?")
    assert b"b" * 32 not in ReplyFile(tmp_path / "r")


def _engine(url: str, k: int = 2, name: str | None = None, replies: Path | None = None, **options: Any) -> ServedModel:
    given = ServerOptions(**{"max_retries": 0, "timeout": 30.0, **options})
    source = ModelSource("student", np.arange(551, dtype=np.int64))
    return ServedModel(source, given, url, name=name, tokens=1000, k=k, k_statistics=k, replies=replies)


SEQUENCE = TokenSequence(np.array([3, 4, 5, 6], np.int32), np.array([1, 3], np.uint32))


def test_replies_of_rounds_long_past_take_no_room(vllm_like: Served, tmp_path: Path) -> None:
    engine = _engine(vllm_like.url, replies=tmp_path / "r")
    vllm_like.asked.clear()
    for round_ in range(4):
        engine.begin_round()
        other = TokenSequence(SEQUENCE.input_ids_P + round_, SEQUENCE.positions_N)
        assert len(dict(engine.run([other, other, SEQUENCE], TOKENS))) == 3
    assert set(vllm_like.asked.values()) == {1, 2}, "the first sequence was forgotten after two rounds"
    assert max(path.stat().st_size for path in tmp_path.iterdir()) < 3 * 100
    engine.forget()
    assert not [*tmp_path.iterdir()]


def _spoilt(change: Any) -> Any:
    """An answer of vLLM's kind, its first choice changed."""

    def changed(path: str, answer: Any) -> Any:
        if path == "/v1/completions":
            answer["choices"][0]["prompt_logprobs"] = change(answer["choices"][0]["prompt_logprobs"])
        return answer

    return changed


def _entry(**values: Any) -> Any:
    """Every entry of the last token changed in the same way."""
    return lambda entries: [*entries[:-1], {name: {**each, **values} for name, each in entries[-1].items()}]


LIES: dict[str, tuple[Any, str]] = {
    "other ids": (lambda entries: [None, *({"77": {"logprob": -1.0}} for _ in entries[1:])], "id 4 that was sent"),
    "too few tokens": (lambda entries: entries[:-1], "3 entries for a prompt of 4"),
    "no entries": (lambda entries: None, "no list of prompt log-probabilities"),
    "too few best": (lambda entries: [None, *({k: e[k] for k in list(e)[:1]} for e in entries[1:])], "1 of the 2 best"),
    "above 0": (_entry(logprob=0.5), "above 0"),
    "not a number": (_entry(logprob="nan"), "above 0"),
    "text": (_entry(logprob="much"), "no entry of the id 6"),
    "too much mass": (_entry(logprob=-0.01), "sum to more than 1"),
    "unknown id": (lambda e: [*e[:-1], {**e[-1], "700": {"logprob": -1e-9}, "6": {"logprob": -30.0}}], "cannot make it"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_a_server_that_lies_is_not_believed(name: str, vllm_like: Served) -> None:
    change, said = LIES[name]
    vllm_like.change = _spoilt(change)
    try:
        with pytest.raises(EngineError, match=said) as error:
            list(_engine(vllm_like.url).run([SEQUENCE], TOKENS))
    finally:
        vllm_like.change = None
    assert vllm_like.url in error.value.problem
    assert len(list(_engine(vllm_like.url).run([SEQUENCE], TOKENS))) == 1, "the control: the same without the lie"


def _hangs(connection: socket.socket, request: bytes) -> None:
    connection.recv(1)


def _drips(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.05)


def _floods(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")


MISDEEDS: dict[str, tuple[Say, str]] = {
    "hangs": (_hangs, "no complete reply within 0.5 s"),
    "drips": (_drips, "no complete reply within 0.5 s"),
    "floods": (_floods, "longer than"),
    "hangs up": (lambda connection, request: None, "no reply at all|prompt log-prob|Server disconnected"),
    "is no server": (lambda connection, request: connection.sendall(http(b"<html>")), "no list of prompt log-prob"),
    "sends many objects": (
        lambda connection, request: connection.sendall(http(b'{"choices": [' + b'{"":0},' * 20_000 + b"0]}")),
        "40,002 values for 4 tokens",
    ),
}


@pytest.mark.parametrize("name", MISDEEDS)
def test_misdeeds_end_in_bounded_time_and_memory(name: str) -> None:
    """The list of models comes as it should; then the server misbehaves. A flood ends at the size that a reply can have."""
    models = json.dumps({"data": [{"id": "m", "max_model_len": 512}]}).encode()
    misdeed, said = MISDEEDS[name]

    def say(connection: socket.socket, request: bytes) -> None:
        connection.sendall(http(models)) if b"/models" in request.split(b"\r\n")[0] else misdeed(connection, request)

    with raw_server(say) as port, pytest.raises(EngineError, match=said):
        list(_engine(f"http://127.0.0.1:{port}/v1", timeout=60.0 if name == "floods" else 0.5).run([SEQUENCE], TOKENS))


def test_no_more_is_asked_for_together_than_a_reply_should_hold(
    vllm_like: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = TokenSequence(SEQUENCE.input_ids_P + 1, SEQUENCE.positions_N)
    for room, requests in ((8 << 20, 1), (6000, 2)):
        monkeypatch.setattr("trajscore.engines.server._REQUEST_BYTES", room)
        before = len(vllm_like.requests)
        assert len(dict(_engine(vllm_like.url).run([SEQUENCE, other], TOKENS))) == 2
        assert len(vllm_like.requests) - before == requests


def test_the_model_is_found_by_name_or_the_names_are_said(vllm_like: Served) -> None:
    assert _engine(vllm_like.url).served_name == "m"
    assert _engine(vllm_like.url, name="m").max_model_len == 32767
    with pytest.raises(UsageError, match="no model 'n'"):
        _engine(vllm_like.url, name="n")
    two = {"data": [{"id": "a"}, {"id": "b"}]}
    vllm_like.change = lambda path, answer: two if path == "/v1/models" else answer
    try:
        with pytest.raises(UsageError, match="2 models and none is called 'student'"):
            _engine(vllm_like.url)
        assert _engine(vllm_like.url, name="b").max_model_len is None
    finally:
        vllm_like.change = None
    with pytest.raises(EngineError, match="no hidden states"):
        list(_engine(vllm_like.url).run([SEQUENCE], STATES))


def test_the_key_comes_from_the_environment(vllm_like: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAJSCORE_API_KEY", "secret-key")
    engine = _engine(vllm_like.url)
    assert vllm_like.headers["authorization"] == "Bearer secret-key"
    vllm_like.change = lambda path, answer: b'"secret-key is wrong"'
    try:
        with pytest.raises(EngineError) as error:
            list(engine.run([SEQUENCE], TOKENS))
    finally:
        vllm_like.change = None
    assert "secret-key" not in str(error.value) + error.value.problem + error.value.hint


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": "server"}, "needs the server's URL"),
        ({"base_url": "http://h/v1"}, "no effect without --engine server"),
        ({"engine": "server", "base_url": "ftp://h"}, "not a valid URL"),
        ({"engine": "server", "base_url": "http://me:pw@h/v1"}, "holds a name or a password"),
        ({"engine": "server", "base_url": "http://h/v1", "extra": ["collision"]}, "--extra collision"),
        ({"engine": "server", "base_url": "http://h/v1", "teacher": TEACHER, "divergence": "topk:4"}, "best entries"),
        ({"teacher": TEACHER, "teacher_base_url": "http://h/v1", "divergence": "exact"}, "no whole predictions"),
        ({"teacher": TEACHER, "teacher_base_url": "http://h/v1", "extra": ["tv"]}, "--extra tv"),
        ({"teacher_base_url": "http://h/v1"}, "0 teachers"),
        ({"served_model": "m"}, "--served-model has no effect"),
        ({"engine": "server", "base_url": "http://h/v1", "ray": "h:1"}, "--ray"),
    ],
)
def test_what_a_server_cannot_do_is_said_before_anything_is_read(options: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        score(CORPUS, STUDENT, tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("options", "alone"),
    [
        ({"engine": "server", "base_url": "http://h/v1"}, True),
        ({"engine": "server", "base_url": "http://h/v1", "teacher": "t", "teacher_base_url": "http://h/v1"}, True),
        ({"engine": "server", "base_url": "http://h/v1", "teacher": "t"}, False),
        ({"engine": "server", "base_url": "http://h/v1", "distilled": "d"}, False),
        ({"engine": "server", "base_url": "http://h/v1", "trust_remote_code": True}, False),
        ({"teacher": "t", "teacher_base_url": "http://h/v1"}, False),
        ({}, False),
    ],
)
def test_models_are_needed_here_unless_all_are_served(options: Any, alone: bool) -> None:
    assert ScoreOptions(CORPUS, STUDENT, "s", **options).only_asks == alone


def test_a_dry_run_asks_and_keeps_nothing(vllm_like: Served, tmp_path: Path) -> None:
    plan = score_plan(
        CORPUS, STUDENT, tmp_path / "s", engine="server", base_url=vllm_like.url, limit=3, calibration_seconds=0.1
    )
    assert (plan.rows["total"], plan.memory["engine"], plan.memory["models"]) == (3, "server", [])
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllms_own_server(local: pl.DataFrame, tmp_path: Path) -> None:
    with vllm_server(STUDENT, tmp_path) as url:
        score(CORPUS, STUDENT, tmp_path / "s", engine="server", base_url=url, limit=ROWS)
        with pytest.raises(EngineError, match="max allowed: 20"):
            score(CORPUS, STUDENT, tmp_path / "t", engine="server", base_url=url, limit=1, server_topk=30)
    _check_against_local(scan(tmp_path / "s").collect(), local)
    assert verify(tmp_path / "s").sound
