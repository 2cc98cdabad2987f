"""LM_EVAL.md: its commands are ones that lm-eval takes, and the way over a server gives the same answers."""

import inspect
import json
import re
import shlex
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[2] / "tasks" / "LM_EVAL.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"```sh\n(lm_eval run .*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[3])
def test_commands_are_taken(command: str, monkeypatch: pytest.MonkeyPatch, tasks_folder: Path) -> None:
    from lm_eval._cli import HarnessCLI
    from lm_eval.models.api_models import TemplateAPI
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr("sys.argv", shlex.split(command.replace("\\\n", " ")))
    found = HarnessCLI().parse_args()
    assert found.include_path == "tasks"
    manager = TaskManager(include_path=[tasks_folder], include_defaults=False)
    tasks = [name for given in found.tasks for name in given.split(",")]
    assert set(tasks) <= set(manager.all_tasks)
    assert found.apply_chat_template is True
    takes = {"hf": HFLM, "local-completions": TemplateAPI}.get(found.model)
    if takes is None:
        assert found.model == "vllm"  # needs vLLM to be looked at
        assert set(found.model_args) == {"pretrained", "dtype", "max_model_len"}
    else:
        assert set(found.model_args) <= set(inspect.signature(takes.__init__).parameters)


def test_there_is_one_for_each_kind_of_model() -> None:
    assert [command.split()[3] for command in COMMANDS] == ["hf", "vllm", "local-completions"]


@pytest.fixture
def server(tiny_model: Any, tokenizer: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A completions API on the tiny model, greedy, and the requests that it got."""
    import torch

    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            choices = []
            for index, ids in enumerate(body["prompt"]):
                with torch.no_grad():
                    whole = tiny_model.generate(
                        torch.tensor([ids]), max_new_tokens=body["max_tokens"], do_sample=False
                    )[0]
                text = tokenizer.decode(whole[len(ids) :], skip_special_tokens=True)
                choices.append({"index": index, "text": text})
            reply = json.dumps({"choices": choices}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *args: Any) -> None:
            pass

    service = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{service.server_port}/v1/completions", asked
    service.shutdown()


def test_a_server_gets_token_ids_and_gives_the_same_answers(
    server: tuple[str, list[dict[str, Any]]],
    tiny_model: Any,
    tokenizer: Any,
    tokenizer_folder: str,
    tasks_folder: Path,
) -> None:
    """Metadata are the model arguments, as on the command line; no task names a tokenizer otherwise."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    url, asked = server
    names = ["gsm8k-mini", "hexphi_raw-mini", "hexphi_prefill_k3-mini", "hexphi_sampled-mini"]
    arguments = {
        "model": "served-name",
        "tokenizer": tokenizer_folder,
        "base_url": url,
        "tokenized_requests": True,
        "tokenizer_backend": "huggingface",
        "max_length": 1024,
    }
    manager = TaskManager(include_path=[tasks_folder], include_defaults=False, metadata=arguments)
    common = {"tasks": names, "task_manager": manager, "limit": 2, "apply_chat_template": True}
    common |= {"bootstrap_iters": 0, "gen_kwargs": {"max_gen_toks": 8}}
    found = simple_evaluate("local-completions", model_args=arguments, **common)
    ours = simple_evaluate(HFLM(pretrained=tiny_model, tokenizer=tokenizer), **common)
    for name in names[:3]:
        answers, expected = (
            [(sample["doc"]["id"], sample["resps"]) for sample in result["samples"][name]]
            for result in (found, ours)
        )
        assert answers == expected

    prompts = [ids for body in asked for ids in body["prompt"]]
    assert len(prompts) == 2 * 3 + 2 * 6
    for ids in prompts:
        assert ids.count(tokenizer.bos_token_id) == 1  # one, and in front
        assert ids[0] == tokenizer.bos_token_id
    for sample in found["samples"]["hexphi_prefill_k3-mini"]:
        assert [ids for ids in prompts if ids[-3:] == sample["doc"]["prefill_ids"]]


def test_a_server_that_follows_the_seed_draws_one_sample_six_times(
    server: tuple[str, list[dict[str, Any]]], tokenizer_folder: str, tasks_folder: Path
) -> None:
    """As LM_EVAL.md says: every request has the same seed."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    url, asked = server
    arguments = {"model": "m", "tokenizer": tokenizer_folder, "base_url": url}
    arguments |= {"tokenized_requests": True, "tokenizer_backend": "huggingface", "max_length": 1024}
    manager = TaskManager(include_path=[tasks_folder], include_defaults=False, metadata=arguments)
    simple_evaluate(
        "local-completions",
        model_args=arguments,
        tasks=["hexphi_sampled-mini"],
        task_manager=manager,
        limit=1,
        apply_chat_template=True,
        bootstrap_iters=0,
        gen_kwargs={"max_gen_toks": 2},
    )
    assert {(body["seed"], body["temperature"], body["top_p"], body["top_k"]) for body in asked} == {
        (1234, 1.0, 1.0, 0)
    }
