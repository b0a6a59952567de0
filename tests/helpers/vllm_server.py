"""A real `vllm serve` on this machine's CPU, on a free port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

VLLM_ENVIRONMENT = {
    **os.environ,
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


@contextmanager
def vllm_server(model: Path, log_folder: Path, *arguments: str) -> Iterator[str]:
    """The URL, up to `/v1`, of a server that calls the model `tiny`; `arguments` are further ones of vLLM."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = log_folder / "log"
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", "tiny",
        "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "8192", "--enforce-eager", "--dtype", "float32",
        *arguments,
    ]  # fmt: skip
    with log.open("w") as stream:
        server = subprocess.Popen(command, env=VLLM_ENVIRONMENT, stdout=stream, stderr=stream, start_new_session=True)
    try:
        for _ in range(300):
            if server.poll() is not None:
                raise RuntimeError(log.read_text()[-3000:])
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server.pid, 15)
        server.wait(60)
