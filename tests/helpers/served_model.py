"""A server on loopback that gives true prompt log-probabilities of a model, as vLLM and SGLang document theirs, and counts.

Its numbers are `log_softmax` of transformers' own logits in float64, entry by entry.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.oracles import model_logits
from tests.helpers.tiny_models import exact_model

Change = Callable[[str, Any], Any]
"""Gets the path and the answer, and returns what is sent in its place: bytes as they are, a number as a status."""


@dataclass
class Served:
    """A running server.

    Attributes:
        url: up to `/v1`.
        asked: how often each prompt was asked for, as a tuple of ids.
        requests: bodies of all requests but those for the list of models.
        headers: headers of the last request.
        change: spoils answers; None leaves them.
    """

    url: str
    asked: Counter[tuple[int, ...]] = field(default_factory=Counter)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    change: Change | None = None


@contextmanager
def served_model(folder: Path, api: str = "vllm", *, name: str = "m", max_model_len: int = 32768) -> Iterator[Served]:
    """Serve a model; `api` is what it says it is, though it answers both."""
    model, lock = exact_model(folder), threading.Lock()
    served = Served("")

    def log_probs(ids: list[int]) -> Any:
        with lock:
            served.asked[tuple(ids)] += 1
            logits = model_logits(model, np.array(ids, np.int32))
        return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)

    def completion(body: dict[str, Any]) -> Any:
        choices = []
        for index, ids in enumerate(body["prompt"]):
            entries: list[Any] = [None]
            for row, token in zip(log_probs(ids), ids[1:], strict=False):
                best = np.argsort(-row, kind="stable")[: body["prompt_logprobs"]]
                rank = {int(each): place for place, each in enumerate(best, 1)}
                first = {token: rank.get(token, int((row >= row[token]).sum()))}
                entries.append(
                    {
                        str(each): {"logprob": float(row[each]), "rank": place, "decoded_token": "x"}
                        for each, place in {**first, **rank}.items()
                    }
                )
            choices.append({"index": index, "text": "x", "prompt_logprobs": entries})
        return {"object": "text_completion", "choices": choices[::-1]}

    def generate(body: dict[str, Any]) -> Any:
        answers = []
        for ids in body["input_ids"]:
            rows, k = log_probs(ids)[:-1], body["top_logprobs_num"]
            written = [[None, ids[0], None]]
            written += [[float(row[token]), token, None] for row, token in zip(rows, ids[1:], strict=True)]
            best = [np.argsort(-row, kind="stable")[:k] for row in rows]
            listed = [None, *([[float(r[i]), int(i), None] for i in b] for r, b in zip(rows, best, strict=True))]
            about = {"input_token_logprobs": written, **({"input_top_logprobs": listed} if k else {})}
            answers.append({"text": "", "meta_info": about})
        return answers

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # who asked may have been killed
                super().handle()

        def do_GET(self) -> None:
            card = {"id": name, "object": "model", "owned_by": api, "max_model_len": max_model_len}
            self._send({"object": "list", "data": [card]} if self.path == "/v1/models" else None)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            served.requests.append(body)
            answer = {"/v1/completions": completion, "/generate": generate}.get(self.path, lambda _: None)(body)
            self._send(answer)

        def _send(self, answer: Any) -> None:
            served.headers = dict(self.headers)
            if served.change is not None:
                answer = served.change(self.path, answer)
            status = answer if isinstance(answer, int) else 404 if answer is None else 200
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Nothing is logged."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
