"""The annotator over HTTP, a scripted server: latencies, limits, failures, refusals, kills; no call is paid for twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.helpers.scripted_annotator import Reply, ScriptedServer, good, scripted
from tests.helpers.warm_commands import warm_program
from trajscore.cli import app
from trajscore.errors import DataError, EngineError, UsageError
from trajscore.io.asking import Asker
from trajscore.io.call_cache import CallCache
from trajscore.skills.calls import FAILED, INVALID, OK, REFUSED, answer_problem
from trajscore.skills.commands.label import label_skills
from trajscore.skills.options import AnnotatorOptions

SKILLS = ["addition", "division", "geometry"]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Forty questions and a catalogue."""
    lines = [json.dumps({"prompt_id": f"q{i}", "question": f"Question number {i}?"}) for i in range(40)]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "skills.json").write_text(json.dumps({"all": SKILLS}))
    return tmp_path


def _number(body: dict[str, Any]) -> int:
    return int(body["messages"][0]["content"].partition("Question number ")[2].partition("?")[0])


def _right(body: dict[str, Any], earlier: int = 0) -> Reply:
    return good({"reason": "r", "skills": [SKILLS[_number(body) % 3]]})


def _options(server: ScriptedServer, **changes: Any) -> AnnotatorOptions:
    return AnnotatorOptions(**{"annotator": "scripted", "base_url": server.url, "backoff": 0.01, **changes})


def _label(files: Path, options: AnnotatorOptions, **changes: Any) -> Any:
    arguments = {"skills": files / "skills.json", "out": files / "map.jsonl", **vars(options), **changes}
    return label_skills(files / "questions.jsonl", **arguments)


def _rows(files: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in (files / "map.jsonl").read_text().splitlines()]
    return {row["question_id"]: row for row in rows}


def test_every_question_gets_its_own_answer_whatever_the_latencies(files: Path) -> None:
    together = threading.Barrier(5)

    def script(body: dict[str, Any], earlier: int) -> Reply:
        if _number(body) < 5:
            together.wait(30)
        return good({"reason": "r", "skills": [SKILLS[_number(body) % 3]]}, delay=0.02 * ((_number(body) * 7) % 5))

    with scripted(script) as server:
        outcome = _label(files, _options(server, concurrency=5))
        assert server.busiest == 5
        assert len(server.requests) == 40
    assert outcome.statuses == {OK: 40}
    assert outcome.calls["made"] == 40
    assert (outcome.calls["prompt_tokens"], outcome.calls["completion_tokens"]) == (280, 120)
    assert list(_rows(files)) == [f"q{i}" for i in range(40)]
    assert {name: row["skills"] for name, row in _rows(files).items()} == {f"q{i}": [SKILLS[i % 3]] for i in range(40)}


def test_what_is_sent(files: Path) -> None:
    with scripted(_right) as server:
        _label(files, _options(server, seed=5, request={"top_p": 0.9, "max_tokens": None}), votes=2)
        body = server.requests[0]
        assert {each["seed"] for each in server.requests} == {5, 6}
    assert body["model"] == "scripted"
    assert (body["top_p"], body["temperature"]) == (0.9, 0.7)
    assert "max_tokens" not in body
    held = body["response_format"]
    assert (held["type"], held["json_schema"]["strict"]) == ("json_schema", True)
    assert held["json_schema"]["schema"]["properties"]["skills"]["items"]["enum"] == SKILLS
    assert held["json_schema"]["schema"]["properties"]["skills"]["maxItems"] == 5


TRANSIENT = {
    "429": Reply(status=429, body="slow down", headers={"Retry-After": "0"}),
    "500": Reply(status=500, body="oops"),
    "503": Reply(status=503, body=""),
    "dropped": Reply(drop=True),
    "no JSON": Reply(body="<html>proxy</html>"),
    "no choices": Reply(body='{"choices": []}'),
}


@pytest.mark.parametrize("name", TRANSIENT)
def test_transient_failures_are_tried_again(files: Path, name: str) -> None:
    with scripted(lambda body, earlier: TRANSIENT[name] if earlier < 2 else _right(body)) as server:
        outcome = _label(files, _options(server, max_retries=2))
        assert len(server.requests) == 120
    assert outcome.statuses == {OK: 40}


def test_retry_after_is_waited_for(files: Path) -> None:
    times: list[float] = []

    def script(body: dict[str, Any], earlier: int) -> Reply:
        times.append(time.monotonic())
        return _right(body) if earlier else Reply(status=429, headers={"Retry-After": "1"})

    (files / "questions.jsonl").write_text('{"question": "Question number 1?"}\n')
    with scripted(script) as server:
        _label(files, _options(server, backoff=0.001))
    assert times[1] - times[0] >= 1


def test_a_call_that_fails_for_good_is_recorded_and_asked_again_by_the_next_run(files: Path) -> None:
    broken = [True]

    def script(body: dict[str, Any], earlier: int) -> Reply:
        return Reply(status=500, body="oops") if broken[0] and _number(body) == 7 else _right(body)

    with scripted(script) as server:
        outcome = _label(files, _options(server, max_retries=1))
        assert outcome.statuses == {OK: 39, FAILED: 1}
        assert "HTTP 500: 'oops'" in _rows(files)["q7"]["detail"]
        assert _rows(files)["q7"]["skills"] is None
        assert len(server.requests) == 41
        broken[0] = False
        assert _label(files, _options(server)).statuses == {OK: 40}
        assert len(server.requests) == 42
        outcome = _label(files, _options(server))
        assert (outcome.calls["cached"], outcome.calls["made"]) == (40, 0)
        assert len(server.requests) == 42


def test_a_server_that_is_down_stops_the_run_and_keeps_the_answers(files: Path) -> None:
    def script(body: dict[str, Any], earlier: int) -> Reply:
        return _right(body) if _number(body) < 5 else Reply(status=502)

    with scripted(script) as server:
        with pytest.raises(EngineError, match="10 calls in a row failed; the last one: HTTP 502"):
            _label(files, _options(server, concurrency=1, max_retries=0))
        assert len(server.requests) == 15
        assert not (files / "map.jsonl").exists()
        server.script = _right
        assert _label(files, _options(server)).calls["cached"] == 5


SCRIPTED_ANSWERS = {
    "refusal": (Reply(refusal="I will not"), REFUSED, "I will not"),
    "filter": (Reply(content="", finish="content_filter"), REFUSED, "content filter"),
    "no text": (Reply(), INVALID, "no text"),
    "not JSON": (Reply(content="The skills are: division"), INVALID, "not JSON"),
    "cut": (Reply(content='{"reason": "r", "sk', finish="length"), INVALID, "cut at the token limit"),
    "unknown skill": (good({"reason": "r", "skills": ["magic"]}), INVALID, "'magic', which is not in the list"),
    "six skills": (good({"reason": "r", "skills": ["division"] * 6}), INVALID, "6 items"),
    "missing field": (good({"skills": []}), INVALID, "fields"),
    "extra field": (good({"reason": "", "skills": [], "x": 1}), INVALID, "fields"),
    "wrong type": (good({"reason": "r", "skills": "division"}), INVALID, "no array"),
    "list": (good([]), INVALID, "no object"),
}


@pytest.mark.parametrize("name", SCRIPTED_ANSWERS)
def test_refused_and_invalid_answers_are_recorded_counted_and_never_replaced(files: Path, name: str) -> None:
    reply, status, detail = SCRIPTED_ANSWERS[name]
    with scripted(lambda body, earlier: reply if _number(body) % 2 else _right(body)) as server:
        outcome = _label(files, _options(server))
        assert len(server.requests) == 40, "they are answers, not failures: nothing is asked twice"
        assert outcome.statuses == {OK: 20, status: 20}
        assert outcome.calls["by_status"] == {OK: 20, status: 20}
        assert outcome.refused_share == 0.5
        row = _rows(files)["q1"]
        assert (row["status"], row["skills"], row["agreement"]) == (status, None, None)
        assert detail in row["detail"]
        assert _label(files, _options(server)).calls["made"] == 0


def test_bad_requests_are_not_repeated(files: Path) -> None:
    with scripted(
        lambda body, earlier: Reply(status=400, body="too long") if _number(body) == 3 else _right(body)
    ) as server:
        assert _label(files, _options(server)).statuses == {OK: 39, FAILED: 1}
        assert len(server.requests) == 40


KEY = "sk-very-secret-7f3a"


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("variable", ["TRAJSCORE_API_KEY", "OPENAI_API_KEY"])
def test_a_rejected_key_stops_at_once(files: Path, monkeypatch: pytest.MonkeyPatch, status: int, variable: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    monkeypatch.setenv(variable, KEY)
    with scripted(lambda body, earlier: Reply(status=status, body=f"bad key {KEY}")) as server:
        with pytest.raises(UsageError, match=f"does not accept the key in {variable}: HTTP {status}") as caught:
            _label(files, _options(server, concurrency=3))
        assert len(server.requests) <= 3
        assert set(server.keys) == {f"Bearer {KEY}"}
    assert KEY not in str(caught.value)
    assert not (files / "map.jsonl").exists()


def test_the_key_is_in_no_file_and_no_output(files: Path) -> None:
    echo = [
        Reply(content=json.dumps({"reason": f"You sent {KEY}", "skills": []})),
        Reply(refusal=f"no, {KEY}"),
        Reply(content=f"{KEY} is your key"),
        Reply(status=400, body=f"rejected: Bearer {KEY}"),
    ]
    with scripted(lambda body, earlier: echo[_number(body) % 4]) as server:
        arguments = [
            "skills",
            "label",
            "questions.jsonl",
            "--skills",
            "skills.json",
            "--annotator",
            "m",
            "--out",
            "map.jsonl",
        ]
        done = subprocess.run(
            [str(warm_program()), *arguments, "--base-url", server.url, "--json"],
            cwd=files, env={**os.environ, "TRAJSCORE_API_KEY": KEY}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert server.keys[0] == f"Bearer {KEY}", "the control: the server did see it"
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["statuses"] == {OK: 10, REFUSED: 10, INVALID: 10, FAILED: 10}
    assert KEY not in done.stdout + done.stderr
    written = [path for path in files.rglob("*") if path.is_file()]
    assert len(written) >= 4
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []
    assert b"You sent [key]" in (files / "map.jsonl.calls.jsonl").read_bytes()


@pytest.mark.parametrize(
    "spelt", [KEY, r"\u0073k-very-secret-7f3a", r"sk\u002Dvery-secret-7f3\u0061", r"sk-very\-secret-7f3a"]
)
def test_the_key_is_cut_out_however_json_spells_it(spelt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAJSCORE_API_KEY", KEY)
    asker = Asker("http://h/v1", expected="x", most_bytes=1)
    assert asker.clean(f'{{"a": "b\\n{spelt}"}}') == '{"a": "b\\n[key]"}'
    assert asker.clean(r"a\tb \u0073k-other") == r"a\tb \u0073k-other", "the control"


def test_without_a_key_no_header_is_sent_and_401_says_so(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRAJSCORE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with scripted(lambda body, earlier: Reply(status=401)) as server:
        with pytest.raises(UsageError, match="TRAJSCORE_API_KEY is not set"):
            _label(files, _options(server))
        assert set(server.keys) == {None}


def test_killed_in_the_middle_a_run_goes_on_and_repeats_no_answered_call(files: Path) -> None:
    def slow(body: dict[str, Any], earlier: int) -> Reply:
        return good({"reason": "r", "skills": [SKILLS[_number(body) % 3]]}, delay=0.05)

    cache = files / "map.jsonl.calls.jsonl"
    with scripted(slow) as server:
        command = [
            sys.executable, "-m", "trajscore", "skills", "label", "questions.jsonl", "--skills", "skills.json",
            "--annotator", "m", "--out", "map.jsonl", "--base-url", server.url, "--concurrency", "2", "--json",
        ]  # fmt: skip
        for wanted in (7, 20):
            process = subprocess.Popen(command, cwd=files, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while not cache.exists() or cache.read_bytes().count(b"\n") < wanted:
                assert process.poll() is None
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert not (files / "map.jsonl").exists()
        kept = cache.read_bytes()
        assert 20 <= kept.count(b"\n") < 40
        # As if the kill had come in the middle of a line.
        cache.write_bytes(kept + kept.splitlines()[0][:30])
        before = len(server.requests)
        command[:3] = [str(warm_program())]
        done = subprocess.run(command, cwd=files, capture_output=True, text=True, check=True)
        account = json.loads(done.stdout)["calls"]
        assert account["cached"] == kept.count(b"\n")
        assert len(server.requests) - before == account["made"] == 40 - account["cached"]
        # Each kill may lose the two calls that were under way: their answers had not arrived.
        assert len(server.requests) <= 40 + 2 * 2
    assert {name: row["skills"] for name, row in _rows(files).items()} == {f"q{i}": [SKILLS[i % 3]] for i in range(40)}
    assert cache.read_bytes().startswith(kept), "only ever appended to"


def test_ctrl_c_keeps_the_answers(files: Path) -> None:
    with scripted(lambda body, earlier: good({"reason": "", "skills": []}, delay=0.1)) as server:
        command = [
            sys.executable, "-m", "trajscore", "skills", "label", "questions.jsonl", "--skills", "skills.json",
            "--annotator", "m", "--out", "map.jsonl", "--base-url", server.url, "--concurrency", "1",
        ]  # fmt: skip
        process = subprocess.Popen(command, cwd=files, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while len(server.requests) < 4:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=900)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert (files / "map.jsonl.calls.jsonl").read_bytes().count(b"\n") >= 3


def test_what_changes_an_answer_changes_the_key(files: Path) -> None:
    (files / "own").mkdir()
    (files / "own" / "label.md").write_text("Which of {{skills}}? {{question}}")
    with scripted(_right) as server:
        _label(files, _options(server))
        for changes in (
            {"annotator": "other"},
            {"temperature": 0.5},
            {"max_tokens": 9},
            {"seed": 1},
            {"prompts": files / "own"},
        ):
            before = len(server.requests)
            assert _label(files, _options(server, **changes)).calls["made"] == 40
            assert len(server.requests) == before + 40
        assert _label(files, _options(server, request={"top_p": 0.5})).calls["made"] == 40
        # What cannot change an answer does not.
        assert _label(files, _options(server, concurrency=1, max_retries=9, timeout=5)).calls["made"] == 0


def test_dry_run_counts_and_does_nothing(files: Path) -> None:
    with scripted(_right) as server:
        outcome = _label(files, _options(server), votes=3, dry_run=True)
        assert (outcome.calls["calls"], outcome.calls["to_make"]) == (120, 120)
        assert outcome.calls["completion_tokens_at_most"] == 120 * 2048
        assert outcome.calls["prompt_tokens_estimate"] > 120 * 50
        assert server.requests == []
        assert sorted(path.name for path in files.iterdir()) == ["questions.jsonl", "skills.json"]
        _label(files, _options(server), votes=3)
        assert _label(files, _options(server), votes=3, dry_run=True).calls["to_make"] == 0


def test_equal_questions_are_asked_once(files: Path) -> None:
    lines = [json.dumps({"prompt_id": name, "question": "Question number 1?"}) for name in "abc"]
    (files / "questions.jsonl").write_text("\n".join(lines))
    with scripted(_right) as server:
        outcome = _label(files, _options(server))
        assert len(server.requests) == 1
    assert (outcome.items, outcome.statuses, outcome.calls["calls"]) == (3, {OK: 3}, 1)


def test_inside_a_running_event_loop(files: Path) -> None:
    """As in a notebook."""

    async def cell() -> Any:
        return _label(files, options)

    with scripted(_right) as server:
        options = _options(server)
        assert asyncio.run(cell()).statuses == {OK: 40}


def test_two_runs_cannot_share_a_cache(files: Path) -> None:
    with scripted(_right) as server, CallCache(files / "map.jsonl.calls.jsonl", answer_problem):
        with pytest.raises(UsageError, match="another run is using it"):
            _label(files, _options(server))
        assert server.requests == []


def test_a_file_that_is_no_cache_is_left_alone(files: Path) -> None:
    (files / "map.jsonl.calls.jsonl").write_text('{"something": "else"}\nrest')
    with scripted(_right) as server, pytest.raises(DataError, match="line 1: not an answered call"):
        _label(files, _options(server))
    assert (files / "map.jsonl.calls.jsonl").read_text() == '{"something": "else"}\nrest'


def test_votes(files: Path) -> None:
    """Worked by hand: the votes {a, d}, {a}, {g}: a has 2 of 3; Jaccard 1/2, 0, 0."""
    votes = [["addition", "division"], ["addition"], ["geometry"]]
    with scripted(lambda body, earlier: good({"reason": "", "skills": votes[body["seed"]]})) as server:
        outcome = _label(files, _options(server), votes=3)
    row = _rows(files)["q0"]
    assert (row["skills"], row["votes"]) == (["addition"], 3)
    assert row["agreement"] == pytest.approx(1 / 6)
    assert outcome.details["agreement"] == pytest.approx(1 / 6)


def test_a_question_needs_more_than_half_of_its_votes(files: Path) -> None:
    def script(body: dict[str, Any], earlier: int) -> Reply:
        return Reply(refusal="no") if body["seed"] < _number(body) % 4 else good({"reason": "", "skills": ["geometry"]})

    with scripted(script) as server:
        outcome = _label(files, _options(server), votes=3)
    assert outcome.statuses == {OK: 20, REFUSED: 20}
    assert outcome.calls["by_status"] == {OK: 60, REFUSED: 60}
    assert [_rows(files)[f"q{i}"]["skills"] for i in range(4)] == [["geometry"], ["geometry"], None, None]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--base-url", "localhost:8000"], "not a valid URL"),
        (["--base-url", "http://me:pw@host/v1"], "TRAJSCORE_API_KEY"),
        (["--base-url", "http://host/v1?key=pw"], "TRAJSCORE_API_KEY"),
        (["--base-url", "http://host:99999/v1"], "not a valid URL"),
        (["--base-url", "http://a b/v1"], "not a valid URL"),
        (["--base-url", "http://"], "not a valid URL"),
        (["--base-url", "URL", "--concurrency", "0"], "--concurrency 0: must be at least 1"),
        (["--base-url", "URL", "--votes", "0"], "--votes 0: must be at least 1"),
        (["--base-url", "URL", "--votes", "2", "--temperature", "0"], "all answers the same"),
        (["--base-url", "URL", "--temperature", "9"], "--temperature 9.0: must be between 0 and 2"),
        (["--base-url", "URL", "--request", "{"], "not JSON"),
        (["--base-url", "URL", "--request", "[1]"], "a JSON object is needed"),
        (["--base-url", "URL", "--prompts", "nowhere"], "no such folder"),
        (["--base-url", "URL", "--in-process"], "exclude each other"),
        (["--base-url", "URL", "--out", "map.csv"], "map.csv"),
        (["--base-url", "URL", "--skills", "empty.json"], "not a catalogue"),
        ([], "--base-url"),
    ],
)
def test_mistakes_are_exit_2_and_nothing_is_written(
    files: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(files)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    (files / "empty.json").write_text("{}")
    before = sorted(files.iterdir())
    with scripted(_right) as server:
        given = [word.replace("URL", server.url) for word in arguments]
        base = [
            "skills",
            "label",
            "questions.jsonl",
            "--skills",
            "skills.json",
            "--annotator",
            "m",
            "--out",
            "map.jsonl",
        ]
        result = CliRunner().invoke(app, [*base, *given])
        assert server.requests == []
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(files.iterdir()) == before


def test_unknown_model_is_said_at_once(files: Path) -> None:
    with scripted(lambda body, earlier: Reply(status=404, body="no model m")) as server:
        with pytest.raises(UsageError, match="no model m"):
            _label(files, _options(server, concurrency=2))
        assert len(server.requests) <= 2


def test_threads_do_not_mix_up_the_scripted_server() -> None:
    """The control of this file's instrument: the server does see as many requests at a time as there are."""
    import httpx2

    together = threading.Barrier(6)

    def script(body: dict[str, Any], earlier: int) -> Reply:
        together.wait(30)
        return good({})

    with scripted(script) as server:
        body = {"messages": [{"content": ""}]}
        threads = [threading.Thread(target=httpx2.post, args=(server.url,), kwargs={"json": body}) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.busiest == 6


@pytest.mark.parametrize("around", ["{}\n", "  {}\r\n"])
def test_a_key_with_white_space_around_it_works_and_is_not_shown(
    files: Path, monkeypatch: pytest.MonkeyPatch, around: str
) -> None:
    monkeypatch.setenv("TRAJSCORE_API_KEY", around.format(KEY))
    with scripted(_right) as server:
        assert _label(files, _options(server)).statuses == {OK: 40}
        assert set(server.keys) == {f"Bearer {KEY}"}


@pytest.mark.parametrize("key", [" ", "sk-s\u00e9cret", "sk-\udcff", "sk-two\nlines"])
def test_what_no_header_can_hold_is_refused_without_being_shown(
    files: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("TRAJSCORE_API_KEY", key)
    with scripted(_right) as server, pytest.raises(UsageError, match="TRAJSCORE_API_KEY holds no key") as caught:
        _label(files, _options(server))
    assert server.requests == []
    assert "sk-" not in str(caught.value)


def test_a_key_that_is_cut_off_in_a_message_is_not_half_shown(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAJSCORE_API_KEY", KEY)
    with (
        scripted(lambda body, earlier: Reply(status=400, body="x" * 290 + KEY)) as server,
        pytest.raises(EngineError) as caught,
    ):
        _label(files, _options(server))
    assert KEY[:5] not in str(caught.value)


def test_half_a_surrogate_pair_in_a_refusal_does_not_end_the_run(files: Path) -> None:
    with scripted(lambda body, earlier: Reply(refusal="no \ud83d")) as server:
        outcome = _label(files, _options(server))
        assert outcome.statuses == {REFUSED: 40}
        assert _label(files, _options(server)).calls["made"] == 0
    assert {row["detail"] for row in _rows(files).values()} == {"no ?"}


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 3}, (280, 120)),
        ({"prompt_tokens": "7", "completion_tokens": -1}, (None, None)),
        ({"prompt_tokens": 7.5, "completion_tokens": True}, (None, None)),
        (None, (None, None)),
    ],
)
def test_tokens_that_the_server_does_not_count_are_unknown(
    files: Path, usage: Any, counted: tuple[int | None, int | None]
) -> None:
    def script(body: dict[str, Any], earlier: int) -> Reply:
        return Reply(body=json.dumps({**json.loads(_right(body).text()), "usage": usage}))

    with scripted(script) as server:
        outcome = _label(files, _options(server))
    assert outcome.statuses == {OK: 40}
    assert (outcome.calls["prompt_tokens"], outcome.calls["completion_tokens"]) == counted


def test_no_more_is_asked_than_could_be_lost() -> None:
    """Were the next call made while an answer still waits to be kept, a kill would lose both."""
    with scripted(lambda body, earlier: good("text")) as server:
        asker = Asker(server.url, expected="chat completion", most_bytes=1 << 20, concurrency=2)
        message = {"role": "user", "content": "?"}
        outcomes = asker.ask(
            "/chat/completions", range(9), lambda _: {"model": "m", "messages": [message]}, lambda _, body: body
        )
        next(outcomes)
        time.sleep(0.2)
        assert len(server.requests) <= 2
        assert len(list(outcomes)) == 8
