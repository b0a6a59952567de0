"""An OpenAI-compatible server on localhost whose every reply is scripted, and which remembers what it was asked."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.helpers.world_of_data import Problem, problem_of


@dataclass
class Reply:
    """One scripted reply: a chat completion with `content`, or whatever `status` and `body` say; `drop` hangs up instead."""

    content: str | None = None
    refusal: str | None = None
    finish: str = "stop"
    status: int = 200
    body: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drop: bool = False

    def text(self) -> str:
        """The body of the response."""
        if self.body is not None:
            return self.body
        message = {"role": "assistant", "content": self.content, "refusal": self.refusal}
        choice = {"index": 0, "message": message, "finish_reason": self.finish}
        return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})


Script = Callable[[dict[str, Any], int], Reply]
"""Request body and the number of earlier requests with the same body -> reply."""


class ScriptedServer:
    """What the server was asked, and how many requests it had at a time."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.url = ""
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.busy = 0
        self.busiest = 0
        self.lock = threading.Lock()

    def begin(self, body: dict[str, Any], key: str | None) -> Reply:
        """Note a request and find its reply."""
        with self.lock:
            earlier = self.requests.count(body)
            self.requests.append(body)
            self.keys.append(key)
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
        return self.script(body, earlier)

    def end(self) -> None:
        """Note that a request is over."""
        with self.lock:
            self.busy -= 1

    @property
    def prompts(self) -> list[str]:
        """The prompts in the order in which they came."""
        return [body["messages"][0]["content"] for body in self.requests]


@contextmanager
def scripted(script: Script) -> Iterator[ScriptedServer]:
    """A running server."""
    state = ScriptedServer(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # who asked may have been killed
                super().handle()

        def do_POST(self) -> None:
            asked = self.rfile.read(size := int(self.headers["Content-Length"]))
            if len(asked) < size:
                raise ConnectionAbortedError("who asked was killed in the middle of it")
            reply = state.begin(json.loads(asked), self.headers.get("Authorization"))
            try:
                time.sleep(reply.delay)
                if reply.drop:
                    self.close_connection = True
                    return
                data = reply.text().encode()
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass
            finally:
                state.end()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def task(body: dict[str, Any]) -> str:
    """Which prompt a request comes from."""
    return str(body["response_format"]["json_schema"]["name"])


def good(value: Any, delay: float = 0.0) -> Reply:
    """A complete answer."""
    return Reply(content=json.dumps(value), delay=delay)


def rule_based(missing: str | None = None) -> Script:
    """An annotator that reads the tiny world's problems and knows them: right labels, right judgements, right solutions.

    Args:
        missing: the one skill that a wrong solution is put down to, if the problem needs it; None for every skill it needs.
    """

    def script(body: dict[str, Any], earlier: int) -> Reply:
        prompt, name = body["messages"][0]["content"], task(body)
        problem = problem_of(prompt)
        if name == "label":
            return good({"reason": "by rule", "skills": _needed(problem)})
        if name == "diagnose":
            response = prompt.rpartition("# The model's solution")[2]
            right = response.rstrip().endswith(f"Answer: {problem.answer}")
            needed = [skill for skill in _needed(problem) if missing in (None, skill)]
            verdict = "correct" if right else "incorrect"
            return good({"reason": "by rule", "judge": verdict, "skills": [] if right else needed})
        if name == "solve":
            answer = problem.answer
            return good({"solution": f"By rule. Answer: {answer}", "answer": answer})
        raise AssertionError(name)

    return script


def _needed(problem: Problem) -> list[str]:
    return sorted({operation.skill for operation in problem.operations})
