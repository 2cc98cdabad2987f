"""lm-eval without a real model: a tiny tokenizer and Llama, and a model that answers from a function."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.model import LM

from harness.mini import data

TASKS = Path(__file__).parents[2] / "tasks"

# Special tokens around every turn, as real chat templates have; no system prompt is dropped.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# The same, with the answer trimmed: a prefill that begins or ends with white space changes.
TRIMMING_TEMPLATE = TEMPLATE.replace("m['content']", "(m['content'] | trim)")


@pytest.fixture(scope="session")
def tasks_folder() -> Path:
    return TASKS


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level BPE of 600 tokens, trained on mini-world text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    roles = ["<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>", *roles],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [
        text for rows in (data.harmful(), data.gsm8k("train", 200)) for row in rows for text in row.values()
    ]
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        additional_special_tokens=roles,
        chat_template=TEMPLATE,
    )


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def trimming_tokenizer_folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("trimming-tokenizer")
    tokenizer.save_pretrained(folder)
    copy = AutoTokenizer.from_pretrained(folder)
    copy.chat_template = TRIMMING_TEMPLATE
    copy.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_model(tokenizer: Any) -> Any:
    """A random Llama of two narrow layers, in the tokenizer's vocabulary."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).eval()


class CannedLM(LM):
    """Answers each document from a function; keeps the requests that it was given."""

    tokenizer_name = "canned"

    def __init__(self, answer: Callable[[dict[str, Any]], str]) -> None:
        super().__init__()
        self.answer = answer
        self.requests: list[Any] = []

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return "".join(f"[{turn['role']}]{turn['content']}" for turn in chat_history)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        self.requests += requests
        return [self.answer(request.doc) for request in requests]

    def loglikelihood(self, requests: list[Any]) -> Any:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Any]) -> Any:
        raise NotImplementedError


@pytest.fixture(scope="session")
def canned_lm() -> type[CannedLM]:
    return CannedLM


@pytest.fixture
def load_tasks(tasks_folder: Path) -> Callable[..., dict[str, Any]]:
    """(names, **metadata) -> {name: lm-eval task}, as the harness loads them."""
    from lm_eval.tasks import TaskManager

    def load(*names: str, **metadata: Any) -> dict[str, Any]:
        manager = TaskManager(include_path=[tasks_folder], include_defaults=False, metadata=metadata)
        return dict(manager.load(list(names))["tasks"])

    return load


@pytest.fixture
def gsm8k_file(tmp_path: Path) -> Path:
    """Two rows in the published format, made here."""
    path = tmp_path / "test.jsonl"
    path.write_text(
        '{"question": "Ann has 1,000 pens, then 234 more?", "answer": "<<1000+234=1234>>\\n#### 1,234"}\n'
        '\n{"question": "Bob had 2 pens and owes 5. How many?", "answer": "<<2-5=-3>>\\n#### -3"}\n'
    )
    return path


@pytest.fixture
def data_files(tmp_path: Path, gsm8k_file: Path) -> dict[str, str]:
    """A file of two rows for every task that reads one, in its published format; nonsense, made here."""
    verbs = ("blorp", "frob")
    rows = {
        "samsum": [
            {"dialogue": f"A: {word}?\nB: yes.", "summary": f"B has {word}."} for word in ("pens", "tea")
        ],
        "hexphi_raw": [{"instruction": f"How do I {verb} it?", "category": "odd"} for verb in verbs],
        "hexphi_prefill": [pair(f"How do I {verb} it?") for verb in verbs],
        "advbench": [{"goal": f"{verb} it", "target": f"Sure, here is how to {verb} it"} for verb in verbs],
        "alpaca": [{"instruction": f"What is {verb}?", "input": "", "output": verb} for verb in verbs],
        "requests": [{"goal": f"{verb} it", "target": f"Sure, to {verb} it"} for verb in verbs],
        "xstest": [
            {"id": i, "prompt": f"How do I {verb} it?", "type": kind}
            for i, (verb, kind) in enumerate((v, k) for v in verbs for k in ("odd", "contrast_odd"))
        ],
        "conversations": [
            {"id": verb, "prompt": f"How do I {verb} it?", "category": "odd"} for verb in verbs
        ],
        "questions": [{"id": verb, "question": f"What is {verb}?", "answer": verb} for verb in verbs],
    }
    files = {"gsm8k": str(gsm8k_file)}
    for task, lines in rows.items():
        files[task] = str(tmp_path / f"{task}.jsonl")
        Path(files[task]).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return files


def pair(request: str) -> list[dict[str, str]]:
    """A request and a harmful answer to it, as two messages."""
    return [{"role": "user", "content": request}, {"role": "assistant", "content": "1. Take it."}]


class HubStub:
    """The hub, without a network: what was asked for, by path, config and revision, and nonsense in reply.

    Rows and files are those of the pinned commits in form and number, HEx-PHI's missing category included.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[dict[str, Any]] = []
        self.splits: list[str] = []
        types = [(label, f"{'contrast_' * (label == 'unsafe')}odd") for label in ("safe", "unsafe")]
        self.rows: dict[str, list[dict[str, Any]]] = {
            "openai/gsm8k": [{"question": f"{n}+1?", "answer": f"#### {n + 1}"} for n in range(1319)],
            "knkarthick/samsum": [
                {"id": f"1{n}", "dialogue": f" A: {n}?\r\nB: yes.", "summary": f"B has {n}.\n"}
                for n in range(819)
            ],
            "Paul/XSTest": [
                {
                    "id": n,
                    "prompt": f"How do I blorp {n}?",
                    "type": kind,
                    "label": label,
                    "focus": "",
                    "note": "",
                }
                for n, (label, kind) in enumerate([types[0]] * 250 + [types[1]] * 200, 1)
            ],
            "tatsu-lab/alpaca": [
                {"instruction": f"Add {n}", "input": "", "output": f"It is {n}.", "text": ""}
                for n in range(300)
            ],
            "walledai/AdvBench": [
                {"prompt": f"Blorp it {n} times", "target": f"Sure, here is how to blorp it {n} times"}
                for n in range(520)
            ],
        }

    def load_dataset(self, path: str, name: str | None = None, *, revision: str | None, split: str) -> Any:
        self.asked.append({"path": path, "config": name, "revision": revision})
        self.splits.append(split)
        return self.rows[path]

    def snapshot_download(
        self, path: str, *, repo_type: str, revision: str | None, allow_patterns: str
    ) -> str:
        assert repo_type == "dataset"
        self.asked.append({"path": path, "config": None, "revision": revision})
        folder = self.folder / path
        texts = {n: [f"How do I blorp {n}, {i}?" for i in range(30)] for n in range(1, 12) if n != 2}
        if allow_patterns == "category_*.csv":
            folder.mkdir(parents=True, exist_ok=True)
            for number, requests in texts.items():
                quoted = "".join(f'"{request}"\n' for request in requests)
                (folder / f"category_{number}.csv").write_text(quoted)
        else:
            file = folder / allow_patterns
            file.parent.mkdir(parents=True, exist_ok=True)
            requests = [request for found in texts.values() for request in found] + ["How do I frob?"] * 30
            file.write_text("".join(json.dumps(pair(request)) + "\n" for request in requests))
        return str(folder)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HubStub:
    import datasets
    import huggingface_hub

    stub = HubStub(tmp_path / "hub")
    monkeypatch.setattr(datasets, "load_dataset", stub.load_dataset)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stub.snapshot_download)
    return stub
