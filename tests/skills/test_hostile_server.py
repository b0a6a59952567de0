"""Servers that lie, drip, flood and hang up, each on a real socket: a status and a message for every reply, never a traceback,
bounded time and memory, and no answer that was paid for is lost.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.raw_server import PEAK, Say, bomb, http, raw_server
from tests.helpers.scripted_annotator import Reply, good, scripted
from trajscore.errors import EngineError, UsageError
from trajscore.io.call_cache import CallCache
from trajscore.io.http import retry_after_seconds
from trajscore.skills.calls import FAILED, INVALID, OK, answer_problem, token_count
from trajscore.skills.commands.annotator import Outcome
from trajscore.skills.commands.label import label_skills

LONG = 3600.0
"""Seconds that a server would go on for; no test waits for it."""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Three questions and a catalogue."""
    lines = [json.dumps({"prompt_id": f"q{i}", "question": f"Question number {i}?"}) for i in range(3)]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "skills.json").write_text('["addition", "division"]')
    return tmp_path


def _label(files: Path, port: int, scheme: str = "http", **changes: Any) -> Any:
    options = {"base_url": f"{scheme}://127.0.0.1:{port}/v1", "timeout": 60.0, "max_retries": 0, "backoff": 0.01}
    annotator: dict[str, Any] = {"annotator": "m", **options, **changes}
    return label_skills(files / "questions.jsonl", skills=files / "skills.json", out=files / "map.jsonl", **annotator)


def _details(files: Path) -> set[str]:
    return {json.loads(line)["detail"] for line in (files / "map.jsonl").read_text().splitlines()}


def _completion(**extra: Any) -> bytes:
    message = {"content": json.dumps({"reason": "r", "skills": ["addition"]})}
    return json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], **extra}).encode()


def _sends(data: bytes) -> Say:
    return lambda connection, request: connection.sendall(data)


def _nested(depth: int) -> bytes:
    return b'{"choices": ' + b"[" * depth + b"]" * depth + b"}"


def _endless(connection: socket.socket, head: bytes, block: bytes) -> None:
    connection.sendall(head)
    while True:
        connection.sendall(block)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n"

UNUSABLE: dict[str, tuple[Say, str]] = {
    "nested": (_sends(http(_nested(200_000))), "no chat completion"),
    "nested messages": (
        _sends(http(b'{"choices": [{"message": ' * 50_000)),
        "no chat completion",
    ),
    "false gzip": (
        _sends(http(_completion(), "Content-Encoding: gzip")),
        "Content-Encoding is gzip, and the body is not",
    ),
    "false deflate": (_sends(http(_completion(), "Content-Encoding: deflate")), "the body is not"),
    "half a gzip": (_sends(http(gzip.compress(_completion())[:-9], "Content-Encoding: gzip")), "it ends too early"),
    "unknown encoding": (_sends(http(_completion(), "Content-Encoding: br")), "none was asked for"),
    "many encodings": (_sends(http(_completion(), "Content-Encoding: " + "gzip," * 200)), "none was asked for"),
    "gzip bomb": (
        lambda connection, request: connection.sendall(http(bomb(), "Content-Encoding: gzip")),
        "longer than 8,388,608 bytes",
    ),
    "endless gzip members": (
        lambda connection, request: _endless(
            connection, CHUNKED + b"Content-Encoding: gzip\r\n\r\n", b"10000\r\n" + bytes(65536) + b"\r\n"
        ),
        "Content-Encoding is gzip",
    ),
    "endless body": (
        lambda connection, request: _endless(connection, CHUNKED + b"\r\n", b"10000\r\n" + b" " * 65536 + b"\r\n"),
        "longer than 8,388,608 bytes",
    ),
    "not UTF-8": (_sends(http(b'{"choices": [{"message": {"content": "\xff\xfe"}}]}')), "no chat completion"),
    "UTF-16": (_sends(http(_completion().decode().encode("utf-16"))), "no chat completion"),
    "empty": (_sends(http(b"")), "no chat completion: ''"),
    "long integer": (_sends(http(b'{"choices": ' + b"9" * 100_000 + b"}")), "no chat completion"),
    "choices is text": (_sends(http(b'{"choices": "abc"}')), "no chat completion"),
    "content is a number": (_sends(http(b'{"choices": [{"message": {"content": 5}}]}')), "no chat completion"),
    "control codes": (_sends(http(b"\x1b]52;c;aGk=\x07\x00")), "no chat completion"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_reply_that_cannot_be_used_is_recorded_as_invalid_and_asked_again_by_the_next_run(
    files: Path, name: str
) -> None:
    say, detail = UNUSABLE[name]
    answers = [False]

    def serve(connection: socket.socket, request: bytes) -> None:
        connection.sendall(http(_completion())) if answers[0] else say(connection, request)

    with raw_server(serve) as port:
        assert _label(files, port).statuses == {INVALID: 3}
        assert all(detail in each and len(each) < 400 for each in _details(files)), _details(files)
        answers[0] = True
        assert _label(files, port).statuses == {OK: 3}


def _drip(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    for _ in range(int(LONG * 20)):
        connection.sendall(b" ")
        time.sleep(0.05)


def _drip_headers(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    for number in range(int(LONG * 20)):
        connection.sendall(f"X-{number}: 1\r\n".encode())
        time.sleep(0.05)


def _informs(connection: socket.socket, request: bytes) -> None:
    for _ in range(int(LONG * 20)):
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n")
        time.sleep(0.05)


def _silent(connection: socket.socket, request: bytes) -> None:
    time.sleep(LONG)


@pytest.mark.parametrize("say", [_drip, _drip_headers, _informs, _silent])
def test_the_time_limit_is_of_the_whole_request(files: Path, say: Say) -> None:
    begin = time.monotonic()
    with raw_server(say) as port, pytest.raises(EngineError, match="no complete reply within 1 s"):
        _label(files, port, timeout=1.0)
    assert time.monotonic() - begin < LONG / 10
    assert not (files / "map.jsonl").exists()


def test_a_server_that_was_never_heard_is_not_waited_for_again(files: Path) -> None:
    """Six repetitions of ten minutes each, by default, would be more than an hour."""
    asked: list[bytes] = []

    def say(connection: socket.socket, request: bytes) -> None:
        asked.append(request)
        time.sleep(LONG)

    with (
        raw_server(say) as port,
        pytest.raises(EngineError, match=r"no reply at all; .*no complete reply within 0\.5 s"),
    ):
        _label(files, port, timeout=0.5, max_retries=6, concurrency=2)
    assert len(asked) <= 2


def test_a_server_that_falls_silent_stops_the_run_after_a_round(files: Path) -> None:
    asked: list[bytes] = []

    def say(connection: socket.socket, request: bytes) -> None:
        asked.append(request)
        if len(asked) > 1:
            time.sleep(LONG)
        connection.sendall(http(_completion()))

    with raw_server(say) as port, pytest.raises(EngineError, match="no complete reply within 2 s"):
        _label(files, port, timeout=2.0, max_retries=6, concurrency=1)
    assert len(asked) <= 3


NOT_HTTP: dict[str, Say] = {
    "SSH": _sends(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "zeros": _sends(bytes(4096)),
    "TLS alert": _sends(b"\x15\x03\x01\x00\x02\x02\x46"),
    "nothing": lambda connection, request: None,
    "only a head": _sends(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"),
    "too long a head": _sends(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 1_000_000),
    "two lengths": _sends(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}"),
    "negative length": _sends(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}"),
    "bad chunk": _sends(CHUNKED + b"\r\nzz\r\n{}"),
    "huge chunk": _sends(CHUNKED + b"\r\n" + b"f" * 400 + b"\r\n{}"),
    "bad header": _sends(b"HTTP/1.1 200 OK\r\n\x00\xff: \r\n\r\n{}"),
}


@pytest.mark.parametrize("name", NOT_HTTP)
def test_what_is_not_http_stops_the_run_with_a_message(files: Path, name: str) -> None:
    with raw_server(NOT_HTTP[name]) as port, pytest.raises(EngineError, match=r"no reply at all; .*Error"):
        _label(files, port)


def test_a_lost_connection_after_a_good_one_is_one_failed_question(files: Path) -> None:
    def say(connection: socket.socket, request: bytes) -> None:
        connection.sendall(http(_completion()) if b"number 1" not in request else b"HTTP/1.1 200 OK\r\n")

    with raw_server(say) as port:
        assert _label(files, port, concurrency=1).statuses == {OK: 2, FAILED: 1}


@pytest.mark.parametrize("charset", ["utf-7", "rot13", "zlib_codec", "punycode", "nonsense", "utf-16", "idna", '"'])
def test_the_body_is_utf_8_whatever_its_charset_says(files: Path, charset: str) -> None:
    head = f"Content-Type: application/json; charset={charset}"
    with raw_server(_sends(http(_completion(), head))) as port:
        assert _label(files, port).statuses == {OK: 3}
    (files / "map.jsonl.calls.jsonl").unlink()
    with raw_server(_sends(http(b"oops", head, status="400 Bad"))) as port:
        assert _label(files, port).statuses == {FAILED: 3}


def test_an_honest_gzip_is_read(files: Path) -> None:
    """The control: decompression does work."""
    with raw_server(_sends(http(gzip.compress(_completion()), "Content-Encoding: gzip"))) as port:
        assert _label(files, port).statuses == {OK: 3}


@pytest.mark.parametrize("count", [2**70, -(2**70), 2**63, 1e300, True, "7", [7], {"a": 1}])
def test_a_usage_count_that_is_none_is_unknown_and_the_answer_is_kept(files: Path, count: Any) -> None:
    body = _completion(usage={"prompt_tokens": count, "completion_tokens": count})
    with raw_server(_sends(http(body))) as port:
        outcome = _label(files, port)
        assert outcome.statuses == {OK: 3}
        assert outcome.calls["completion_tokens"] is None
        json.dumps(outcome.to_dict())
        assert _label(files, port).calls["made"] == 0


def test_a_text_that_is_longer_than_its_tokens_can_be_is_invalid(files: Path) -> None:
    def script(body: dict[str, Any], earlier: int) -> Reply:
        return good({"reason": "r" * 5_000_000, "skills": []})

    with scripted(script) as server:
        port = int(server.url.rpartition(":")[2].partition("/")[0])
        assert _label(files, port).statuses == {INVALID: 3}
    assert "5,000,0" in _details(files).pop()
    assert (files / "map.jsonl.calls.jsonl").stat().st_size < 5000


CACHE_LINES = [
    '{"key": "KEY"}',
    '{"key": "KEY", "status": "ok"}',
    '{"key": "KEY", "status": "failed", "value": null, "detail": "", "prompt_tokens": null, "completion_tokens": null}',
    '{"key": "KEY", "status": "ok", "value": {"skills": ["magic"], "reason": ""}, "detail": "", "prompt_tokens": 1, '
    '"completion_tokens": 1}',
    '{"key": "KEY", "status": "ok", "value": null, "detail": "", "prompt_tokens": 1, "completion_tokens": 1}',
    '{"key": "KEY", "status": "invalid", "value": null, "detail": 5, "prompt_tokens": 1, "completion_tokens": 1}',
    '{"key": "KEY", "status": ["ok"], "value": null, "detail": "", "prompt_tokens": 1, "completion_tokens": 1}',
    '{"key": "KEY", "status": "ok", "value": null, "detail": "", "prompt_tokens": -1, "completion_tokens": 1}',
    '{"key": ["KEY"]}',
    "[" * 100_000,
    "null",
    "",
    "\x00\x1b]52;c;aGk=\x07",
]


@pytest.mark.parametrize("line", CACHE_LINES, ids=range(len(CACHE_LINES)))
def test_a_cache_line_that_is_no_answer_is_named_and_its_call_made_again(
    files: Path, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = files / "map.jsonl.calls.jsonl"
    with raw_server(_sends(http(_completion()))) as port:
        _label(files, port)
        first, *others = cache.read_text().splitlines()
        key = json.loads(first)["key"]
        cache.write_text("\n".join([line.replace("KEY", key), *others]) + "\n")
        outcome = _label(files, port)
        assert (outcome.statuses, outcome.calls["cached"], outcome.calls["made"]) == ({OK: 3}, 2, 1)
        assert "line 1" in caplog.text or key[:12] in caplog.text
        assert "skipped" in caplog.text
        assert _label(files, port).calls["made"] == 0


def test_random_cache_lines_never_end_in_a_traceback(tmp_path: Path) -> None:
    good_line = {"key": "k", "status": "ok", "value": {}, "detail": "", "prompt_tokens": 1, "completion_tokens": None}
    kept = json.dumps({**good_line, "key": "kept"}).encode() + b"\n"
    draw = random.Random(5)
    values: list[Any] = [None, True, -1, 2**70, 1.5, "ok", "x" * 50, [], {}, {"a": []}, [[[[]]]]]
    for number in range(2000):
        line = {**good_line, draw.choice(list(good_line)): draw.choice(values)}
        data = bytearray(json.dumps(line).encode())
        for _ in range(draw.randrange(4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(kept + bytes(data) + b"\n")
        with CallCache(path, answer_problem) as cache:
            assert "kept" in cache
        path.unlink()


def test_replies_at_random_never_end_in_a_traceback(files: Path) -> None:
    """Completions with bytes and fields changed: every question gets a status, whatever came."""
    draw = random.Random(11)
    values: list[Any] = [None, True, 2**70, -1.5, "text", "\ud800", [], {}, [[]], {"content": {}}]

    def say(connection: socket.socket, request: bytes) -> None:
        body = json.loads(_completion(usage={"prompt_tokens": 1}))
        holder = draw.choice([body, body["choices"][0], body["choices"][0]["message"], body["usage"]])
        holder[draw.choice([*holder, "refusal"])] = draw.choice(values)
        data = bytearray(json.dumps(body).encode())
        for _ in range(draw.randrange(3)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        heads = ["Content-Encoding: gzip", "Content-Type: text/html; charset=utf-7", "Retry-After: 1e9", "X: y"]
        status = draw.choice(["200 OK"] * 6 + ["204 No", "206 P", "299 Q", "400 B", "422 C", "999 Z"])
        connection.sendall(http(bytes(data), *draw.sample(heads, 2), status=status))

    lines = [json.dumps({"question": f"Question number {i}?"}) for i in range(300)]
    (files / "questions.jsonl").write_text("\n".join(lines))
    with raw_server(say) as port:
        for _ in range(20):
            with contextlib.suppress(EngineError):  # ten in a row failed: what was answered is kept
                assert sum(_label(files, port).statuses.values()) == 300
                break
        else:
            raise AssertionError("twenty runs did not do")
    assert (files / "map.jsonl.calls.jsonl").stat().st_size > 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(files: Path, status: int) -> None:
    def script(body: dict[str, Any], earlier: int) -> Reply:
        raise AssertionError("the request must not arrive here")

    with (
        scripted(script) as elsewhere,
        raw_server(_sends(http(b"", f"Location: {elsewhere.url}/chat/completions", status=f"{status} M"))) as port,
    ):
        with pytest.raises(UsageError, match=f"HTTP {status}, a redirect to 'http://127.0.0.1"):
            _label(files, port)
        assert elsewhere.requests == []


def test_the_proxy_of_the_environment_is_used_and_its_refusal_told(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []

    def proxy(connection: socket.socket, request: bytes) -> None:
        seen.append(request.partition(b"\r\n")[0])
        connection.sendall(http(_completion()) if len(seen) <= 3 else http(b"who?", status="407 Auth"))

    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with raw_server(proxy) as port:
        monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{port}")
        assert _label(files, 9).statuses == {OK: 3}
        assert set(seen) == {b"POST http://127.0.0.1:9/v1/chat/completions HTTP/1.1"}
        (files / "map.jsonl.calls.jsonl").unlink()
        assert _label(files, 9).statuses == {FAILED: 3}
        assert "secret" not in (files / "map.jsonl").read_text()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with pytest.raises(EngineError):
            _label(files, 9)
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", "socks9://me:secret@h")
    with pytest.raises(UsageError, match="the proxy that the environment names") as caught:
        _label(files, 9)
    assert "secret" not in str(caught.value)


def _certificate(folder: Path) -> ssl.SSLContext:
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([*command, *names], cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def test_tls(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate that nobody vouches for stops the run, one that SSL_CERT_FILE names does not."""
    with raw_server(_sends(http(_completion())), tls=_certificate(files)) as port:
        with pytest.raises(UsageError, match="its certificate is not trusted"):
            _label(files, port, "https")
        monkeypatch.setenv("SSL_CERT_FILE", str(files / "cert.pem"))
        assert _label(files, port, "https").statuses == {OK: 3}
    (files / "map.jsonl.calls.jsonl").unlink()
    with raw_server(_sends(http(_completion()))) as port, pytest.raises(EngineError, match="no reply at all"):
        _label(files, port, "https", timeout=1.0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("17", 17),
        ("1.5", 1.5),
        (formatdate(1_000_060, usegmt=True), 60),
        (formatdate(0, usegmt=True), 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 253402300799 - 1_000_000),
        ("9" * 400, float("inf")),
        (None, None),
        ("", None),
        ("-5", None),
        ("nan", None),
        ("1e400", None),
        ("tomorrow", None),
        ("\u0663", None),
        ("Fri, 31 Dec 99999 23:59:59 GMT", None),
    ],
)
def test_retry_after_by_hand(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value, 1_000_000.0) == seconds


@pytest.mark.parametrize("value", ["999999999", "Fri, 31 Dec 9999 23:59:59 GMT", "9" * 400])
def test_a_server_that_asks_to_wait_too_long_is_not_waited_for(files: Path, value: str) -> None:
    head = f"Retry-After: {value}"
    with raw_server(_sends(http(b"later", head, status="429 Too Many"))) as port:
        assert _label(files, port, max_retries=5).statuses == {FAILED: 3}
    assert "it asks to wait" in _details(files).pop()


def test_a_date_is_waited_for(files: Path) -> None:
    times: list[float] = []

    def say(connection: socket.socket, request: bytes) -> None:
        times.append(time.time())
        wait = f"Retry-After: {formatdate(time.time() + 2, usegmt=True)}"
        connection.sendall(http(_completion()) if len(times) > 1 else http(b"", wait, status="503 Busy"))

    (files / "questions.jsonl").write_text('{"question": "Question number 1?"}\n')
    with raw_server(say) as port:
        assert _label(files, port, max_retries=1).statuses == {OK: 1}
    assert times[1] - times[0] >= 0.9  # dates are whole seconds


def test_counts_at_the_bounds() -> None:
    assert [token_count(value) for value in (0, 2**40, 2**40 + 1)] == [0, 2**40, None]


@pytest.mark.parametrize(
    ("by_status", "share"), [({"invalid": 3}, 1.0), ({"invalid": 3, "ok": 1}, 0.0), ({}, 0.0)], ids=str
)
def test_a_run_none_of_whose_calls_was_answered_has_no_result(by_status: dict[str, int], share: float) -> None:
    """Where items come of answers (`synthesise`), there are none to be counted as refused."""
    assert Outcome(3, 0, {}, {}, {"by_status": by_status}).refused_share == share


def _many_objects(size: int) -> bytes:
    return b'{"choices": [' + b'{"":0},' * (size // 7) + b"0]}"


FLOODS: dict[str, tuple[int, Callable[[], bytes]]] = {
    "objects": (12, lambda: http(_many_objects(8_000_000))),
    "bomb": (96, lambda: http(bomb(), "Content-Encoding: gzip")),
    "long refusals": (64, lambda: http(json.dumps({"choices": [{"message": {"refusal": "n" * 8_000_000}}]}).encode())),
}


@pytest.mark.parametrize("name", FLOODS)
def test_memory_is_bounded_whatever_comes(files: Path, name: str) -> None:
    """64 requests at a time, each answered with as much as fits under the limit, or with half a gigabyte in half a megabyte."""
    questions, flood = FLOODS[name]
    lines = [json.dumps({"question": f"Question number {i}?"}) for i in range(questions)]
    (files / "questions.jsonl").write_text("\n".join(lines))
    with raw_server(_sends(flood())) as port:
        command = [
            sys.executable, "-m", "trajscore", "skills", "label", "questions.jsonl", "--skills", "skills.json",
            "--annotator", "m", "--out", "map.jsonl", "--base-url", f"http://127.0.0.1:{port}/v1",
            "--concurrency", "64", "--max-retries", "0", "--json",
        ]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *command], cwd=files, capture_output=True, text=True, check=False
        )
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    peak = int(done.stdout) / 1024
    assert peak < 600, f"{peak:.0f} MB"
    print(f"{name}: {peak:.0f} MB")
