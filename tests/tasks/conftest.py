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
    rows = {
        "samsum": [
            {"dialogue": f"A: {word}?\nB: yes.", "summary": f"B has {word}."} for word in ("pens", "tea")
        ],
        "hexphi_raw": [
            {"instruction": f"How do I {verb} it?", "category": "odd"} for verb in ("blorp", "frob")
        ],
        "hexphi_prefill": [
            [
                {"role": "user", "content": f"How do I {verb} it?"},
                {"role": "assistant", "content": "1. Take it."},
            ]
            for verb in ("blorp", "frob")
        ],
    }
    files = {"gsm8k": str(gsm8k_file)}
    for task, lines in rows.items():
        files[task] = str(tmp_path / f"{task}.jsonl")
        Path(files[task]).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return files
