"""Guards that an adapter's numbers are its own: what does not land on its base is refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from saved_weights import (
    ADAPTER,
    LORA,
    WHOLE,
    Names,
    adapter,
    edit,
    loaded,
    logp,
    more,
    refused,
    renamed,
    seed_logp,
)

from harness.contracts import HarnessError
from harness.mini import seed_model_path
from harness.models import checkpoints

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all-linear": {"target_modules": "all-linear"},
    "rank-patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "saved-modules": {"modules_to_save": ["lm_head"]},
    "saved-norms": {"modules_to_save": ["norm"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "tokens": {"trainable_token_indices": [5, 6]},
    "some-layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "pissa": {"init_lora_weights": "pissa"},
    "biases": {"lora_bias": True},
}


def smaller(place: Path, **changes: Any) -> Path:
    """A model like the seed's of other sizes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(seed_model_path())
    for key, value in changes.items():
        setattr(config, key, value)
    checkpoints.save(
        AutoModelForCausalLM.from_config(config), checkpoints.load_tokenizer(seed_model_path()), place
    )
    return place


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_each_kind_gives_its_own_numbers(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, before = adapter(tmp_path / "adapter", **KINDS[kind])
    model = loaded(folder)
    assert torch.allclose(logp(model), before, atol=1e-5)
    assert not torch.allclose(logp(model), seed_logp(), atol=1e-2)
    assert caplog.messages == []


@pytest.mark.parametrize("kind", KINDS)
def test_each_missing_tensor_refuses_an_adapter(kind: str, tmp_path: Path) -> None:
    folder, _ = adapter(tmp_path / "adapter", **KINDS[kind])
    # Of an embedding, peft saves the base's own weights too.
    names = [name for name in sorted(load_file(folder / ADAPTER)) if kind != "embedding" or "lora" in name]
    for gone in {names[0], names[-1], names[len(names) // 2]}:
        copy = Path(shutil.copytree(folder, tmp_path / "copy", dirs_exist_ok=True))
        line = refused(renamed(copy, lambda name, gone=gone: None if name == gone else name, ADAPTER))
        assert "is missing" in line
        assert gone.removeprefix("base_model.model.").removesuffix(".weight") in line


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda name: name.replace("base_model.model.", ""),
        lambda name: name.replace("layers.3", "layers.9"),
        lambda name: name.replace("q_proj", "query"),
        lambda name: f"module.{name}",
        lambda name: name.replace("v_proj.lora_B", "v_proj.lora_C"),
    ],
    ids=["compiled", "no-prefix", "layer", "module", "parallel", "part"],
)
def test_an_adapter_whose_tensors_do_not_all_land_is_refused(change: Names, tmp_path: Path) -> None:
    folder, _ = adapter(tmp_path / "adapter")
    line = refused(renamed(folder, change, ADAPTER))
    assert line.startswith(f"{folder}: not an adapter of {seed_model_path()}: '")
    assert "nothing of that model's" in line


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": 64}, "has the shape [4, 128], and on that model [4, 64]; give its own base"),
        ({"num_hidden_layers": 3}, "nothing of that model's"),
        ({"num_hidden_layers": 5}, "is not whole"),
    ],
    ids=["narrower", "shallower", "deeper"],
)
def test_an_adapter_of_another_base_is_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder, _ = adapter(tmp_path / "adapter")
    base = smaller(tmp_path / "base", **changes)
    with pytest.raises(HarnessError) as told:
        loaded(folder, base=base)
    says = says.replace("is not whole", "its weights are not whole")
    assert says in str(told.value)
    assert str(folder) in str(told.value)
    assert str(base) in str(told.value)


@pytest.mark.parametrize(
    "saved", [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}], ids=["beside", "saved"]
)
def test_an_adapter_with_a_resized_vocabulary_is_told_in_words(saved: dict[str, Any], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(seed_model_path(), dtype=torch.float32)
    model.resize_token_embeddings(1408)
    folder = tmp_path / "adapter"
    adapted = get_peft_model(model, LoraConfig(**LORA, **saved))
    adapted.save_pretrained(folder, save_embedding_layers=not saved)
    checkpoints.load_tokenizer(seed_model_path()).save_pretrained(folder)
    line = refused(folder)
    assert "has the shape [1408, 128], and on that model [1400, 128]" in line
    assert "the vocabulary was resized before it was trained" in line


def test_an_adapter_without_a_tensor_is_refused(tmp_path: Path) -> None:
    folder, _ = adapter(tmp_path / "adapter")
    assert "r 4 is more than its weights have" in refused(renamed(folder, lambda name: None, ADAPTER))


def test_an_adapter_beside_whole_weights_says_which_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, before = adapter(tmp_path / "adapter")
    shutil.copy(seed_model_path() / WHOLE, folder)
    assert torch.allclose(logp(loaded(folder)), before, atol=1e-5)
    assert caplog.messages == [f"{folder}: {ADAPTER} is read, and not {WHOLE} beside it"]


def test_an_adapter_beside_its_pickle_says_which_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, before = adapter(tmp_path / "adapter")
    (folder / "adapter_model.bin").write_bytes(b"")
    assert torch.allclose(logp(loaded(folder)), before, atol=1e-5)
    assert caplog.messages == [f"{folder}: {ADAPTER} is read, and not adapter_model.bin beside it"]


@pytest.mark.parametrize(
    ("dtype", "written"),
    [(torch.complex64, "C64"), (torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")],
)
def test_an_adapter_of_other_types_than_floats_is_refused(
    dtype: torch.dtype, written: str, tmp_path: Path
) -> None:
    folder, _ = adapter(tmp_path / "adapter")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    value = load_file(folder / ADAPTER)[name]
    line = refused(more(folder, ADAPTER, **{name: value.to(dtype)}))
    assert line.startswith(f"{folder}: '{name}' is of type {written}, and an adapter's weights are of F64")


@pytest.mark.parametrize("value", [None, False, "", []])
@pytest.mark.parametrize(
    ("key", "wanted"),
    [("lora_alpha", "a number"), ("lora_dropout", "a number"), ("r", "a whole number from 1 to"),
     ("rank_pattern", "ranks by plain names"), ("alpha_pattern", "numbers by plain names"),
     ("bias", "none, all or lora_only")],
)  # fmt: skip
def test_an_adapters_numbers_cannot_be_nothing(key: str, wanted: str, value: Any, tmp_path: Path) -> None:
    folder, _ = adapter(tmp_path / "adapter")
    edit(folder / "adapter_config.json", **{key: value})
    path = folder / "adapter_config.json"
    with pytest.raises(HarnessError) as told:
        checkpoints.check(folder)
    assert str(told.value).startswith(f"{path}: {key} must be {wanted}")


@pytest.mark.parametrize("value", [0, 2])
def test_one_tensor_of_an_adapter_under_two_names_is_refused(value: int, tmp_path: Path) -> None:
    """peft reads a name with its own word for the adapter in it, and one without, as the same."""
    folder, _ = adapter(tmp_path / "adapter")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    other = name.replace(".weight", ".default.weight")
    line = refused(more(folder, ADAPTER, **{other: load_file(folder / ADAPTER)[name] * value}))
    assert line.startswith(f"{folder}: two sets of weights: '{other}'")


@pytest.mark.parametrize("base", ["/data/old/llama", "nobody/nothing-at-all"])
def test_an_adapter_whose_base_moved_says_how_to_give_it(base: str, tmp_path: Path) -> None:
    folder, before = adapter(tmp_path / "adapter")
    edit(folder / "adapter_config.json", base_model_name_or_path=base)
    with pytest.raises(HarnessError) as told:
        checkpoints.checkpoint(str(folder))
    line = str(told.value)
    assert line.startswith(f"{folder}: the adapter's base cannot be had")
    assert base in line
    assert f"base_model_name_or_path of {folder / 'adapter_config.json'}" in line
    assert torch.allclose(logp(loaded(folder, base=seed_model_path())), before, atol=1e-5)


def test_an_adapter_on_a_base_with_a_wrappers_prefix(folder: Path, tmp_path: Path) -> None:
    place, before = adapter(tmp_path / "adapter")
    renamed(folder, lambda name: f"_orig_mod.{name}")
    assert torch.allclose(logp(loaded(place, base=folder)), before, atol=1e-5)
    checkpoints.merge(folder, place, "float32", tmp_path / "merged")
    assert torch.allclose(logp(loaded(tmp_path / "merged")), before, atol=1e-4)
    assert load_file(tmp_path / "merged" / WHOLE).keys() == load_file(seed_model_path() / WHOLE).keys()


def test_merging_refuses_what_does_not_land(tmp_path: Path) -> None:
    place, _ = adapter(tmp_path / "adapter")
    renamed(place, lambda name: name.replace("q_proj", "query"), ADAPTER)
    with pytest.raises(HarnessError, match="nothing of that model's"):
        checkpoints.merge(seed_model_path(), place, "float32", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_answers_of_an_adapter_that_does_not_land_are_never_the_bases(
    tmp_path: Path, command: Callable[..., Any], small: Any
) -> None:
    place, _ = adapter(tmp_path / "adapter")
    renamed(place, lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."), ADAPTER)
    ended = command(
        "respond", place, "--tasks", "gsm8k-mini", "--out", tmp_path / "run", "--set", "responses.limit=4"
    )
    assert ended.code == 1
    told = " ".join((ended.out + ended.err).split())
    assert "'base_model.model._orig_mod.model.layers.0.self_attn.q_proj.lora_A.weight' (and 15 more)" in told
    assert "Traceback" not in told
    assert not list((tmp_path / "run").rglob("responses.jsonl"))
