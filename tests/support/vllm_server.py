"""vLLM's OpenAI-compatible server with the mini model, as a user starts it, for a `with` block."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.mini import seed_model_path

START_S = 400


@contextmanager
def running(log: Path, *flags: str) -> Iterator[str]:
    """The server's base URL, once it answers; its model is called ``mini``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(seed_model_path()),
               "--served-model-name", "mini", "--dtype", "float32", "--enforce-eager",
               "--host", "127.0.0.1", "--port", str(port), *flags]  # fmt: skip
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    try:
        deadline = time.monotonic() + START_S
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5):
                    break
            except (urllib.error.URLError, OSError):
                told = log.read_text(errors="replace")[-2_000:]
                assert server.poll() is None, told
                assert time.monotonic() < deadline, told
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)
