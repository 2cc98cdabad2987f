"""Guards that an adapter says only what is understood: LoRA with plain names, sizes and a base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from saved_weights import edit, refused_unread

from harness.contracts import HarnessError
from harness.mini import seed_model_path
from harness.models import checkpoint_limits as limits
from harness.models import checkpoints, hub


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the mini model, as peft saves it."""
    from peft import LoraConfig, get_peft_model

    model = checkpoints.load_model(seed_model_path(), "float32", "cpu")
    out = tmp_path_factory.mktemp("made") / "adapter"
    settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    checkpoints.save(get_peft_model(model, settings), checkpoints.load_tokenizer(seed_model_path()), out)
    edit(out / limits.ADAPTER_CONFIG, base_model_name_or_path="mini")
    return out


@pytest.fixture
def adapter(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "adapter")
    return tmp_path / "adapter"


BACKTRACKING = "(.*a){30}(.*b)+$"
ADAPTERS: list[dict[str, Any]] = [
    {"peft_type": None}, {"peft_type": "XLORA"}, {"peft_type": "VERA"}, {"peft_type": "PROMPT_TUNING"},
    {"peft_type": "ADALORA"}, {"peft_type": "lora"}, {"peft_type": ["LORA"]}, {"peft_type": 1},
    {"layer_replication": [[0, 1_000_000]]},
    {"target_modules": BACKTRACKING},
    {"target_modules": "(a|b)_proj"},
    {"target_modules": ["q_proj", "(x+)+"]},
    {"target_modules": {"q_proj": 1}},
    {"target_modules": ["q_proj"] * 1_001},
    {"target_modules": ["q" * 201]},
    {"exclude_modules": BACKTRACKING},
    {"layers_to_transform": [0], "layers_pattern": BACKTRACKING},
    {"layers_to_transform": [-1]},
    {"layers_to_transform": "0"},
    {"modules_to_save": [BACKTRACKING]},
    {"modules_to_save": "lm_head"},
    {"target_parameters": [BACKTRACKING]},
    {"rank_pattern": {BACKTRACKING: 4}},
    {"rank_pattern": {"q_proj": 10**9}},
    {"rank_pattern": {"q_proj": 60_000}},
    {"rank_pattern": {"q_proj": "4"}},
    {"rank_pattern": ["q_proj"]},
    {"alpha_pattern": {BACKTRACKING: 4}},
    {"alpha_pattern": {"q_proj": float("nan")}},
    {"r": 0}, {"r": -1}, {"r": 10**9}, {"r": 60_000}, {"r": 4.0}, {"r": True}, {"r": "4"}, {"r": 10**400},
    {"lora_alpha": float("inf")}, {"lora_alpha": "16"}, {"lora_dropout": float("nan")},
    {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}},
    {"init_lora_weights": "eva"}, {"init_lora_weights": "corda"}, {"init_lora_weights": "pissa_niter_999"},
    {"corda_config": {"cache_file": "/tmp/cache.pt", "covariance_file": "/tmp/c.pt"}},
    {"eva_config": {"rho": 1e9}},
    {"arrow_config": {"top_k": 3}},
    {"megatron_config": {"a": 1}},
    {"trainable_token_indices": [2**40]},
    {"trainable_token_indices": {BACKTRACKING: [1]}},
    {"bias": "some"},
    {"use_dora": "yes"},
    {"alora_invocation_tokens": [1, 2]},
    {"adapters": {"1": "someone/another-adapter"}},
    {"a_key_of_tomorrow": {"model": "someone/x"}},
    {"a_key_of_tomorrow": "x"},
]  # fmt: skip


@pytest.mark.parametrize("changes", ADAPTERS, ids=lambda changes: json.dumps(changes)[:60])
@pytest.mark.usefixtures("no_loader")
def test_an_adapter_is_lora_with_plain_names(changes: dict[str, Any], adapter: Path) -> None:
    edit(adapter / limits.ADAPTER_CONFIG, **changes)
    line = refused_unread(adapter)
    assert line.startswith(f"{adapter / limits.ADAPTER_CONFIG}: ")
    assert any(key in line for key in changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"target_modules": "all-linear"},
        {"target_modules": "q_proj"},
        {"target_modules": ["model.layers.0.self_attn.q_proj", "v_proj"], "rank_pattern": {"v_proj": 4}},
        {"modules_to_save": ["lm_head", "embed_tokens"]},
        {"init_lora_weights": "pissa_niter_16"},
        {"use_dora": True, "use_rslora": True},
        {"layers_to_transform": [0, 1], "layers_pattern": "layers"},
        {"runtime_config": {"ephemeral_gpu_offload": False}, "auto_mapping": {"parent_library": "x"}},
        {"a_key_of_tomorrow": None, "another": False, "third": [], "fourth": {}},
    ],
    ids=json.dumps,
)
def test_adapters_as_peft_saves_them_pass(changes: dict[str, Any], adapter: Path) -> None:
    edit(adapter / limits.ADAPTER_CONFIG, **changes)
    assert checkpoints.checkpoint(str(adapter)).base == seed_model_path()


def test_an_adapter_loads_and_differs_in_nothing_at_first(made: Path) -> None:
    model = checkpoints.load_model(made, "float32", "cpu")
    assert type(model).__name__ == "PeftModelForCausalLM"


@pytest.mark.parametrize(
    "base", ["https://example.org/model", "file:///etc", "a\nb", "\x1b[2J", "x" * 5_000, "a\u202eb/c", "a\0b"]
)
@pytest.mark.usefixtures("no_loader")
def test_a_base_is_a_folder_or_a_hub_name(base: str, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "download", lambda *_: pytest.fail("the hub was asked"))
    edit(adapter / limits.ADAPTER_CONFIG, base_model_name_or_path=base)
    for ask in (checkpoints.checkpoint, lambda name: checkpoints.load_model(Path(name), "float32", "cpu")):
        with pytest.raises(HarnessError, match="base_model_name_or_path") as told:
            ask(str(adapter))
        assert str(told.value).isprintable()


@pytest.mark.usefixtures("no_loader")
def test_a_base_is_no_adapter(adapter: Path, made: Path) -> None:
    edit(adapter / limits.ADAPTER_CONFIG, base_model_name_or_path=str(made))
    for ask in (checkpoints.checkpoint, lambda name: checkpoints.load_model(Path(name), "float32", "cpu")):
        with pytest.raises(HarnessError, match="is an adapter; merge that into its model first"):
            ask(str(adapter))
    with pytest.raises(HarnessError, match="an adapter where a whole model is wanted"):
        checkpoints.load_model(made, "float32", "cpu", base=adapter)


def test_vllm_looks_first(adapter: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.config import ResponsesConfig
    from harness.engines import vllm
    from harness.models.checkpoints import Checkpoint

    monkeypatch.setattr(vllm, "Replica", lambda *_, **__: pytest.fail("vLLM was given the folder"))
    edit(adapter / limits.ADAPTER_CONFIG, rank_pattern={"q_proj": "many"})
    edit(folder / "config.json", num_hidden_layers=10**6)
    opened: Callable[..., Any] = vllm.VLLMEngine.open
    for wrong in (Checkpoint(adapter, seed_model_path()), Checkpoint(folder), Checkpoint(adapter, folder)):
        with pytest.raises(HarnessError, match=r"rank_pattern|num_hidden_layers"):
            opened(wrong, ResponsesConfig(), "cpu")
