"""The options of the annotator: which LLM labels, where it answers and what can change its answers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from trajscore.engines import EngineOptions
from trajscore.errors import UsageError
from trajscore.skills.calls import Annotator
from trajscore.skills.prompts import FIELDS, Prompt, read_prompt
from trajscore.skills.server import check_server


@dataclass(frozen=True)
class AnnotatorOptions:
    """The annotator and how it is asked.

    Attributes:
        model: its name on the server; with `in_process` a hub id or folder.
        base_url: URL of an OpenAI-compatible server, up to /v1; None for the environment's OPENAI_BASE_URL.
        in_process: load the model with vLLM in this process instead of asking a server.
        temperature: None for 0 where one answer is asked for and 0.7 where several are compared.
        max_tokens: longest answer, in tokens.
        seed: seed of every draw, and of sample 0 of every answer; sample i has seed + i.
        prompts: folder with prompts in place of the package's own.
        cache: file of answered calls; None for the output's name with `.calls.jsonl` at the end.
        concurrency: requests at a time.
        timeout: seconds for one whole request, from the connection to the last byte of the reply.
        max_retries: repetitions after 429, 5xx, a lost connection or a timeout.
        backoff: seconds before the first repetition, doubled each time.
        request: fields added to every request body, a null removes a field; with `in_process` more arguments of vLLM's
            SamplingParams.
        engine: how the model in this process is loaded.
        max_model_len: of the model in this process.
        client: an object of yours that answers (`trajscore.skills.calls.Annotator`), in place of server and process.

    Raises:
        UsageError: a value is out of range.
    """

    model: str
    base_url: str | None = None
    in_process: bool = False
    temperature: float | None = None
    max_tokens: int = 2048
    seed: int = 0
    prompts: str | Path | None = None
    cache: str | Path | None = None
    concurrency: int = 8
    timeout: float = 600.0
    max_retries: int = 6
    backoff: float = 1.0
    request: Mapping[str, Any] = field(default_factory=dict)
    engine: EngineOptions = field(default_factory=EngineOptions)
    max_model_len: int | None = None
    client: Annotator | None = None

    def __post_init__(self) -> None:
        if not self.model:
            raise UsageError("no annotator was given.", "Name the model that answers: --annotator MODEL.")
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            raise UsageError(f"--temperature is {self.temperature}.", "Give a number from 0 to 2.")
        if self.max_tokens < 1:
            raise UsageError(f"--max-tokens is {self.max_tokens}.", "Give a whole number of at least 1.")

    def server_url(self) -> str | None:
        """Where the server is; None with `in_process` or `client`.

        Raises:
            UsageError: neither or both of server and process are named, or it cannot be asked so.
        """
        if self.client is not None:
            return None
        url = self.base_url or (None if self.in_process else os.environ.get("OPENAI_BASE_URL"))
        if self.in_process and url is not None:
            raise UsageError("--base-url and --in-process exclude each other.", "Give one of them.")
        if self.in_process:
            return None
        if url is None:
            raise UsageError(
                "where the annotator answers was not said.",
                "Give --base-url URL of an OpenAI-compatible server, or --in-process to load it with vLLM here.",
            )
        check_server(url, self.concurrency, self.timeout, self.max_retries)
        return url

    @cached_property
    def prompt_texts(self) -> Mapping[str, Prompt]:
        """Every prompt by name.

        Raises:
            UsageError: a prompt of the user's folder cannot be used.
        """
        return {name: read_prompt(name, self.prompts) for name in FIELDS}

    def settings(self, samples: int) -> dict[str, Any]:
        """What a call records of this, where `samples` answers to one prompt are asked for.

        Raises:
            UsageError: several answers would be the same one.
        """
        temperature = (0.0 if samples == 1 else 0.7) if self.temperature is None else self.temperature
        if samples > 1 and temperature == 0:
            raise UsageError("--temperature 0 makes all answers the same.", "Give a temperature above 0, or ask once.")
        recorded = {"model": self.model, "temperature": temperature, "max_tokens": self.max_tokens, "seed": self.seed}
        return {**recorded, "request": dict(self.request)} if self.request else recorded
