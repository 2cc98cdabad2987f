"""Guards that a model's numbers are its folder's own: what does not land is refused by name, before any
engine, and what lands gives the log-probabilities of the model that was saved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from one_line import one_line
from safetensors.torch import load_file, save_file

from harness.contracts import HarnessError
from harness.mini import seed_model_path
from harness.models import checkpoints, load_notes, weights
from harness.models.checkpoints import Checkpoint

WHOLE, ADAPTER = "model.safetensors", "adapter_model.safetensors"
IDS = torch.tensor([[5, 6, 7, 40, 900, 3]])
Names = Callable[[str], str | None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(seed_model_path(), tmp_path / "model"))


@pytest.fixture(autouse=True)
def _untold() -> None:
    load_notes._told.clear()


def renamed(folder: Path, change: Names, file: str = WHOLE) -> Path:
    """The folder with its tensors under other names; without those that ``change`` gives none."""
    found = {change(name): value for name, value in load_file(folder / file).items()}
    save_file({name: value for name, value in found.items() if name}, folder / file, {"format": "pt"})
    return folder


def more(folder: Path, file: str = WHOLE, **tensors: torch.Tensor) -> Path:
    save_file({**load_file(folder / file), **tensors}, folder / file, {"format": "pt"})
    return folder


def edit(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**value, **changes}), encoding="utf-8")


def logp(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(ids).logits.log_softmax(-1)
    return found


def loaded(folder: Path, **options: Any) -> Any:
    return checkpoints.load_model(folder, "float32", "cpu", **options)


def seed_logp() -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    return logp(AutoModelForCausalLM.from_pretrained(seed_model_path(), dtype=torch.float32))


def refused(folder: Path, **options: Any) -> str:
    """The one line of every way to a folder."""
    base = checkpoints.base_folder(folder) if checkpoints.is_adapter(folder) else None
    ways = (
        lambda: loaded(folder, **options),
        lambda: checkpoints.fit(Checkpoint(folder, base), options.get("kind")),
        lambda: checkpoints.fit_for_vllm(Checkpoint(folder, base), options.get("kind")),
    )
    return one_line(ways, 800)


def test_vllm_is_not_started_with_what_does_not_land(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fills an adapter's gaps with nothing, too."""
    from harness.config import ResponsesConfig
    from harness.engines import vllm, vllm_process
    from harness.judging import models

    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("vLLM was started")

    monkeypatch.setattr(vllm_process, "Replica", started)
    monkeypatch.setattr(vllm, "Replica", started)
    place, _ = adapter(tmp_path / "adapter")
    renamed(place, lambda name: name.replace("model.layers", "_orig_mod.model.layers"), ADAPTER)
    renamed(folder, lambda name: None if "layers.2.mlp.up" in name else name)
    settings = ResponsesConfig()
    with pytest.raises(HarnessError, match="nothing of that model's"):
        vllm.VLLMEngine.open(Checkpoint(place, seed_model_path()), settings, "cpu")
    for ask in (
        lambda: vllm.VLLMEngine.open(Checkpoint(folder), settings, "cpu"),
        lambda: vllm.VLLMEngine.open(Checkpoint(place, folder), settings, "cpu"),
        lambda: models.load(folder, "vllm", "float32", "cpu", 2),
    ):
        with pytest.raises(HarnessError, match=r"'model\.layers\.2\.mlp\.up_proj\.weight' is missing"):
            ask()


# --- names -----------------------------------------------------------------------------------------

WRAPPED: dict[str, Names] = {
    "_orig_mod.": lambda name: f"_orig_mod.{name}",
    "module.": lambda name: f"module.{name}",
    "module._orig_mod.": lambda name: f"module._orig_mod.{name}",
    "_orig_mod.module.": lambda name: f"_orig_mod.module.{name}",
    "module.module.": lambda name: f"module.module.{name}",
    "_forward_module.": lambda name: f"_forward_module.{name}",
    "model._orig_mod.": lambda name: f"model._orig_mod.{name}",
    "base_model.model.": lambda name: f"base_model.model.{name}",
    "language_model.": lambda name: f"language_model.{name}",
    "of FSDP": lambda name: (
        "_fsdp_wrapped_module." + name.replace("layers.", "layers._fsdp_wrapped_module._orig_mod.", 1)
    ),
    "within": lambda name: name.replace("self_attn.", "_checkpoint_wrapped_module.self_attn."),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_a_wrappers_prefix_is_taken_off_with_a_note(
    how: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    renamed(folder, WRAPPED[how])
    model = loaded(folder)
    assert torch.equal(logp(model), seed_logp())
    (note,) = caplog.messages
    assert "the wrapper's prefix '" in note
    assert str(folder) in note
    checkpoints.save(model, checkpoints.load_tokenizer(folder), tmp_path / "again")
    assert load_file(tmp_path / "again" / WHOLE).keys() == load_file(seed_model_path() / WHOLE).keys()
    with pytest.raises(HarnessError, match="is not taken off by vLLM: use --engine hf"):
        checkpoints.fit_for_vllm(Checkpoint(folder))


@given(
    outer=st.lists(st.sampled_from(["_orig_mod.", "_forward_module.", "_fsdp_wrapped_module."]), max_size=4),
    front=st.sampled_from(["", "module.", "model.", "base_model.model."]),
    inner=st.lists(st.sampled_from(["_orig_mod.", "_checkpoint_wrapped_module."]), max_size=2),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_stack_of_wrappers_is_taken_off(
    outer: list[str], front: str, inner: list[str], tmp_path: Path
) -> None:
    place = Path(shutil.copytree(seed_model_path(), tmp_path / "stack", dirs_exist_ok=True))

    def change(name: str) -> str:
        return "".join(outer) + front + name.replace("mlp.", f"{''.join(inner)}mlp.")

    assert torch.equal(logp(loaded(renamed(place, change))), seed_logp())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda name: f"policy.{name}", "'model.embed_tokens.weight' (and 37 more) are missing; there"),
        (lambda name: name.replace("model.", "decoder."), "(and 37 more) are missing; there are 'decoder."),
        (lambda name: None if "layers.2.mlp.up" in name else name,
         "'model.layers.2.mlp.up_proj.weight' is missing"),
        (lambda name: None if "norm" in name else name, "layernorm.weight' (and 8 more) are missing"),
        (lambda name: None if "embed" in name else name, "'model.embed_tokens.weight' is missing"),
        (lambda name: name.replace("layers.3", "layers.7"), "'model.layers.3.input_layernorm.weight'"),
        (lambda name: f"\x1b[31m{name}", "are missing"),
    ],
    ids=["unknown-prefix", "other-names", "one", "norms", "embedding", "a-layer", "colours"],
)  # fmt: skip
def test_missing_tensors_refuse_a_model_by_name(change: Names, says: str, folder: Path) -> None:
    line = refused(renamed(folder, change))
    assert says in line
    assert line.startswith(f"{folder}: not the weights of its LlamaForCausalLM: ")


@pytest.mark.parametrize("config", [{"num_hidden_layers": 3}, {}], ids=["a-layer", "a-bias"])
def test_tensors_in_the_models_own_parts_are_not_left_out(config: dict[str, Any], folder: Path) -> None:
    if not config:
        more(folder, **{"model.layers.0.self_attn.q_proj.bias": torch.ones(128)})
    edit(folder / "config.json", **config)
    assert "in no part that config.json describes" in refused(folder)


@pytest.mark.parametrize("front", ["_orig_mod.", "module.", "module._orig_mod."])
def test_a_second_set_under_a_wrappers_names_is_refused(front: str, folder: Path) -> None:
    given = load_file(folder / WHOLE)
    more(folder, **{f"{front}{name}": value + 1 for name, value in given.items()})
    assert "two sets of weights" in refused(folder)


Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name.removeprefix("model."),
        lambda name: name.removeprefix("model.") if name == Q_PROJ else None,
        lambda name: f"model.{name}",
        lambda name: f"_orig_mod.{name.removeprefix('model.')}",
        lambda name: f"language_model.{name}",
        lambda name: f"language_model.{name.removeprefix('model.')}",
        lambda name: f"base_model.model.{name}",
    ],
    ids=["bare", "one", "doubled", "compiled", "of-several", "of-several-bare", "of-peft"],
)
def test_a_second_set_that_transformers_would_rename_is_refused(change: Names, folder: Path) -> None:
    """It would be read in place of the first, without a word."""
    second = {change(name): value * 0 for name, value in load_file(folder / WHOLE).items()}
    more(folder, **{name: value for name, value in second.items() if name})
    line = refused(folder)
    assert line.startswith(f"{folder}: two sets of weights: '")
    assert "which one counts? take one out" in line


def test_both_names_of_one_tensor_are_told(folder: Path) -> None:
    more(folder, **{Q_PROJ.removeprefix("model."): torch.zeros(128, 128)})
    assert (
        f"two sets of weights: '{Q_PROJ.removeprefix('model.')}' and '{Q_PROJ}' are both read as '{Q_PROJ}';"
    ) in refused(folder)


def test_a_second_set_beside_a_wrappers_is_refused(folder: Path) -> None:
    renamed(folder, lambda name: f"_orig_mod.{name}")
    more(folder, **{f"_orig_mod.{Q_PROJ.removeprefix('model.')}": torch.zeros(128, 128)})
    assert f"are both read as '{Q_PROJ}'" in refused(folder)


def test_a_second_set_of_quantised_weights_is_refused() -> None:
    model = loaded(seed_model_path())
    held = {
        f"{front}layers.0.mlp.up_proj.{part}": weights.Tensor("x", "I32", (1,))
        for front in ("", "model.")
        for part in ("qweight", "scales")
    }
    plain = {name: tensor for name, tensor in held.items() if name.startswith("model.")}
    found = weights.fit(Path("x"), lambda: model, None, plain)
    assert found is not None
    assert found.rows == 1400
    with pytest.raises(HarnessError, match=r"qweight' are both read as .* \(and 1 more\)"):
        weights.fit(Path("x"), lambda: model, None, held)


@pytest.mark.parametrize(
    "outside", ["v_head.summary.weight", "vision_tower.0.weight", "model.visual.w", "ema.x"]
)
def test_what_is_outside_of_the_language_model_is_left_out_with_a_note(
    outside: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more(folder, **{outside: torch.ones(2)})
    assert torch.equal(logp(loaded(folder)), seed_logp())
    (note,) = caplog.messages
    assert (
        f"are left out: {outside.rpartition('.')[0].removesuffix('.summary').removesuffix('.0')} (1)" in note
    )


def test_what_older_versions_saved_and_all_compute_is_no_weight(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more(folder, **{f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(16) for n in range(4)})
    assert torch.equal(logp(loaded(folder)), seed_logp())
    assert caplog.messages == []


def test_a_language_model_within_a_folder_of_several_parts(folder: Path) -> None:
    renamed(folder, lambda name: f"language_model.{name}")
    more(folder, **{"vision_tower.layer.weight": torch.ones(2), "projector.weight": torch.ones(2)})
    assert torch.equal(logp(loaded(folder)), seed_logp())


# --- shapes ----------------------------------------------------------------------------------------


def test_a_resized_vocabulary_is_told_in_words(folder: Path) -> None:
    given = load_file(folder / WHOLE)["model.embed_tokens.weight"]
    more(folder, **{"model.embed_tokens.weight": torch.cat([given, given[:3]])})
    line = refused(folder)
    assert "'model.embed_tokens.weight' has the shape [1403, 128], and by config.json [1400, 128]" in line
    assert line.endswith("config.json needs vocab_size 1403")
    edit(folder / "config.json", vocab_size=1403)
    assert torch.allclose(logp(loaded(folder))[..., 1400:], logp(loaded(folder))[..., :3])


@pytest.mark.parametrize("shape", [(128, 64), (0,), (128,), (64, 128)])
def test_misshapen_tensors_refuse_a_model_by_name(shape: tuple[int, ...], folder: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    assert f"'{name}' has the shape {list(shape)}" in refused(more(folder, **{name: torch.ones(shape)}))


def test_packed_numbers_without_a_word_on_them_are_refused(folder: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    line = refused(more(folder, **{name: torch.ones((128, 128), dtype=torch.int8)}))
    assert f"'{name}' is of type I8" in line


@pytest.mark.parametrize(
    ("dtype", "written"),
    [
        (torch.complex64, "C64"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.float8_e5m2, "F8_E5M2"),
        (torch.float8_e8m0fnu, "F8_E8M0"), (torch.uint16, "U16"), (torch.bool, "BOOL"), (torch.int64, "I64"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "change",
    [lambda name: name, lambda name: name.removeprefix("model."), lambda name: f"_orig_mod.{name}"],
    ids=["plain", "bare", "compiled"],
)
def test_weights_of_other_types_than_floats_are_refused(
    dtype: torch.dtype, written: str, change: Names, folder: Path
) -> None:
    name = change("model.layers.1.self_attn.k_proj.weight")
    assert name is not None
    shape = load_file(folder / WHOLE)["model.layers.1.self_attn.k_proj.weight"].shape
    renamed(folder, change)
    more(folder, **{name: torch.ones(shape).to(dtype)})
    assert f"'{name}' is of type {written}, and config.json has no quantization_config" in refused(folder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_weights_of_each_type_of_floats_are_read(dtype: torch.dtype, folder: Path) -> None:
    before = load_file(folder / WHOLE)
    more(folder, **{name: value.to(dtype) for name, value in before.items()})
    kept = dict(loaded(folder).named_parameters())[Q_PROJ]
    assert torch.equal(kept, before[Q_PROJ].to(dtype).to(torch.float32))


def test_an_untied_head_must_be_there(folder: Path) -> None:
    edit(folder / "config.json", tie_word_embeddings=False)
    assert "'lm_head.weight' is missing" in refused(folder)
    embedding = load_file(folder / WHOLE)["model.embed_tokens.weight"]
    more(folder, **{"lm_head.weight": embedding.clone()})
    assert torch.allclose(logp(loaded(folder)), seed_logp())


def test_a_head_that_is_tied_and_differs_is_not_for_vllm(folder: Path) -> None:
    """transformers reads it, and vLLM does not."""
    embedding = load_file(folder / WHOLE)["model.embed_tokens.weight"]
    more(folder, **{"lm_head.weight": embedding.clone()})
    assert checkpoints.fit_for_vllm(Checkpoint(folder)) == 1400
    more(folder, **{"lm_head.weight": embedding * 2})
    logits = torch.log_softmax(2 * loaded(seed_model_path())(IDS).logits, -1)
    assert torch.allclose(logp(loaded(folder)), logits, atol=1e-4)
    with pytest.raises(HarnessError, match=r"ties 'lm_head\.weight' to 'model\.embed_tokens\.weight'"):
        checkpoints.fit_for_vllm(Checkpoint(folder))


def test_a_classifier_without_its_head_is_refused(folder: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    edit(folder / "config.json", architectures=["LlamaForSequenceClassification"])
    line = refused(folder, kind=AutoModelForSequenceClassification)
    assert "'score.weight' is missing" in line
    assert "give the folder of a model that has this head" in line
    from harness.judging import models

    with pytest.raises(HarnessError, match=r"'score\.weight' is missing"):
        models.load(folder, "hf", "float32", "cpu", 2)


@pytest.mark.parametrize(
    "names",
    [["LlamaForSequenceClassification"], ["LlamaModel"], "LlamaForTokenClassification",
     ["LlamaForCausalLMEagle", "LlamaForReward"]],
)  # fmt: skip
def test_an_architecture_that_is_no_causal_model_is_told(
    names: Any, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own head is not there, and the tied one answers."""
    edit(folder / "config.json", architectures=[names] if isinstance(names, str) else names)
    assert torch.equal(logp(loaded(folder)), seed_logp())
    checkpoints.fit_for_vllm(Checkpoint(folder))
    (note,) = caplog.messages
    name = names if isinstance(names, str) else names[0]
    assert note == (
        f"{folder}: config.json names the architecture {name}, which is no causal language model; it is "
        "loaded as one"
    )


@pytest.mark.parametrize(
    "names",
    [None, [], ["MistralForCausalLM"], ["GPT2LMHeadModel"], ["LlavaForConditionalGeneration"],
     ["LlamaModel", "LlamaForCausalLM"]],
)  # fmt: skip
def test_an_architecture_that_answers_or_is_not_named_needs_no_note(
    names: Any, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit(folder / "config.json", architectures=names)
    checkpoints.fit_for_vllm(Checkpoint(folder))
    assert caplog.messages == []


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 96},
    "gpt_neox": {"hidden_size": 32, "intermediate_size": 64},
    "opt": {"hidden_size": 32, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "gemma": {"hidden_size": 32, "intermediate_size": 64, "head_dim": 16, "num_key_value_heads": 1},
    "qwen3_moe": {"hidden_size": 32, "intermediate_size": 64, "num_experts": 4, "moe_intermediate_size": 16,
                  "num_experts_per_tok": 2, "num_key_value_heads": 2},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "phi": {"hidden_size": 32, "intermediate_size": 64},
}  # fmt: skip


@pytest.fixture(params=ARCHITECTURES)
def another(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A small model of another architecture as transformers saves it, and what it computed before."""
    from transformers import AutoConfig, AutoModelForCausalLM

    heads = {"num_hidden_layers": 2, "num_attention_heads": 2}
    own = ARCHITECTURES[request.param]
    common = {} if "n_layer" in own else heads
    torch.manual_seed(3)
    config = AutoConfig.for_model(request.param, vocab_size=1400, **common, **own)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.tie_weights()
    checkpoints.save(model, checkpoints.load_tokenizer(seed_model_path()), tmp_path / "another")
    return tmp_path / "another", logp(model)


def test_other_architectures_load_as_they_were_saved(
    another: tuple[Path, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    folder, before = another
    assert torch.allclose(logp(loaded(folder)), before, atol=1e-5)
    assert checkpoints.fit(Checkpoint(folder)).rows == 1400
    assert caplog.messages == []
    renamed(folder, lambda name: f"_orig_mod.{name}")
    assert torch.allclose(logp(loaded(folder)), before, atol=1e-5)


def test_other_architectures_refuse_each_missing_tensor(another: tuple[Path, torch.Tensor]) -> None:
    folder, _ = another
    names = sorted(load_file(folder / WHOLE))
    for gone in (names[0], names[len(names) // 2], names[-1]):
        copy = Path(shutil.copytree(folder, folder.parent / "copy", dirs_exist_ok=True))
        with pytest.raises(HarnessError, match="not the weights of its"):
            loaded(renamed(copy, lambda name, gone=gone: None if name == gone else name))


@pytest.mark.parametrize("another", ["gpt2", "opt", "gemma"], indirect=True)
def test_weights_of_the_part_without_a_head_need_no_prefix(another: tuple[Path, torch.Tensor]) -> None:
    """As AutoModel saves them."""
    folder, before = another
    model = loaded(folder)
    front = f"{model.base_model_prefix}."
    assert all(name.startswith(front) for name in load_file(folder / WHOLE))
    renamed(folder, lambda name: name.removeprefix(front))
    assert torch.allclose(logp(loaded(folder)), before, atol=1e-5)


@pytest.mark.parametrize("another", ["qwen3_moe"], indirect=True)
@pytest.mark.parametrize(
    ("gone", "shape"), [(".1.up_proj", None), (".1.up_proj", (16, 8)), (".3.down_proj", (4, 4))]
)
def test_experts_that_do_not_make_one_tensor_are_named(
    gone: str, shape: tuple[int, ...] | None, another: tuple[Path, torch.Tensor]
) -> None:
    """transformers puts them together, and reports the whole."""
    folder, _ = another
    name = f"model.layers.1.mlp.experts{gone}.weight"
    if shape:
        more(folder, **{name: torch.ones(shape)})
    else:
        renamed(folder, lambda one: None if one == name else one)
    assert "'model.layers.1.mlp.experts." in refused(folder)


@pytest.mark.parametrize("another", ["qwen3_moe"], indirect=True)
@pytest.mark.parametrize("second", ["bare", "merged"])
def test_a_second_set_of_experts_is_refused(second: str, another: tuple[Path, torch.Tensor]) -> None:
    folder, _ = another
    given = load_file(folder / WHOLE)
    if second == "bare":
        name = "model.layers.1.mlp.experts.1.up_proj.weight"
        more(folder, **{name.removeprefix("model."): given[name] * 0})
    else:
        more(folder, **{"model.layers.1.mlp.experts.down_proj": torch.zeros(4, 32, 16)})
    line = refused(folder)
    assert line.startswith(f"{folder}: two sets of weights: '")
    assert "layers.1.mlp.experts." in line


@pytest.mark.parametrize("gone", ["model.norm.weight", "model.layers.0.mlp.up_proj.qweight"])
def test_a_quantised_model_lacks_no_weights_either(gone: str) -> None:
    """Its scales are its own code's, which reads or does without them."""
    model = loaded(seed_model_path())
    nothing: dict[str, Any] = {"mismatched_keys": [], "error_msgs": []}
    scales = {"unexpected_keys": {"model.layers.0.mlp.up_proj.weight_scale"}}
    optional = {"missing_keys": {"model.layers.0.mlp.up_proj.g_idx", "model.layers.0.self_attn.k_scale"}}
    weights.check_loaded(Path("x"), model, {**nothing, **scales, **optional}, scales=True)
    with pytest.raises(HarnessError, match="weight_scale' is in no part that config"):
        weights.check_loaded(Path("x"), model, {**nothing, **scales, "missing_keys": set()}, scales=False)
    with pytest.raises(
        HarnessError, match=f"x: not the weights of its LlamaForCausalLM: '{gone}' is missing"
    ):
        weights.check_loaded(Path("x"), model, {**nothing, **scales, "missing_keys": {gone}}, scales=True)


# --- two sets in a folder --------------------------------------------------------------------------


def shards(folder: Path, where: Callable[[str], str]) -> dict[str, str]:
    """The folder's tensors in several files, and their index."""
    given = load_file(folder / WHOLE)
    files: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in given.items():
        files.setdefault(where(name), {})[name] = value
    for file, tensors in files.items():
        save_file(tensors, folder / file, {"format": "pt"})
    index = {name: where(name) for name in given}
    (folder / f"{WHOLE}.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index}), encoding="utf-8"
    )
    return index


def halves(name: str) -> str:
    return f"model-0000{1 + ('layers.2' in name or 'layers.3' in name)}-of-00002.safetensors"


def test_shards_load_and_a_whole_file_beside_them_is_refused(folder: Path) -> None:
    shards(folder, halves)
    assert "two sets of weights: model.safetensors, and the files of" in refused(folder)
    (folder / WHOLE).unlink()
    assert torch.equal(logp(loaded(folder)), seed_logp())
    assert checkpoints.fit_for_vllm(Checkpoint(folder)) == 1400


def test_an_index_that_names_what_the_shards_do_not_hold(folder: Path) -> None:
    index = shards(folder, halves)
    (folder / WHOLE).unlink()
    path = folder / f"{WHOLE}.index.json"
    edit(path, weight_map={**index, "model.extra.weight": halves("")})
    line = refused(folder)
    assert "tensor 'model.extra.weight' is not in the file that it names" in line
    assert str(path) in line


def test_one_tensor_in_two_shards_is_refused(folder: Path) -> None:
    shards(folder, halves)
    (folder / WHOLE).unlink()
    more(folder, halves(""), **{"model.layers.3.mlp.up_proj.weight": torch.zeros(384, 128)})
    assert "tensor 'model.layers.3.mlp.up_proj.weight' is in model-0000" in refused(folder)


def test_shards_without_their_index_are_refused(folder: Path) -> None:
    shards(folder, halves)
    (folder / WHOLE).unlink()
    (folder / f"{WHOLE}.index.json").unlink()
    assert "no model.safetensors and no model.safetensors.index.json" in refused(folder)


@pytest.mark.parametrize("name", ["consolidated.safetensors", "model.fp16.safetensors", ADAPTER])
def test_other_weights_in_the_folder_are_named_and_not_read(
    name: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_file({"model.embed_tokens.weight": torch.zeros(1400, 128)}, folder / name)
    assert torch.equal(logp(loaded(folder)), seed_logp())
    (note,) = caplog.messages
    assert note == f"{folder}: {WHOLE} is read, and not {name} beside it"
    with pytest.raises(HarnessError, match="vLLM would read them too"):
        checkpoints.fit_for_vllm(Checkpoint(folder))


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json",
     "model.Q4_K.gguf", "consolidated.00.pth", "adapter_model.bin", "model.PT", "tf_model.h5",
     "flax_model.msgpack"],
)  # fmt: skip
def test_weights_of_other_formats_in_the_folder_are_named_and_not_read(
    name: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """vLLM does not read them either."""
    (folder / name).write_text("{}", encoding="utf-8")
    assert torch.equal(logp(loaded(folder)), seed_logp())
    assert checkpoints.fit_for_vllm(Checkpoint(folder)) == 1400
    assert caplog.messages == [f"{folder}: {WHOLE} is read, and not {name} beside it"]


def test_what_training_saves_beside_the_weights_needs_no_note(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state_0.pth",
        "trainer_state.json",
    ):
        (folder / name).write_bytes(b"")
    checkpoints.fit_for_vllm(Checkpoint(folder))
    assert caplog.messages == []


@pytest.mark.parametrize("metadata", [{}, {"metadata": None}, {"metadata": []}])
def test_an_index_without_metadata_says_so(metadata: dict[str, Any], folder: Path) -> None:
    index = shards(folder, halves)
    (folder / WHOLE).unlink()
    path = folder / f"{WHOLE}.index.json"
    path.write_text(json.dumps({"weight_map": index, **metadata}), encoding="utf-8")
    assert refused(folder).startswith(f"{path}: no metadata, which transformers looks for there; write")


# --- adapters --------------------------------------------------------------------------------------

LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
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


def adapter(place: Path, **options: Any) -> tuple[Path, torch.Tensor]:
    """A saved adapter whose every tensor matters, and what it computed before."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(seed_model_path(), dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(**{**LORA, **options}))
    for name, weight in adapted.named_parameters():
        if weight.requires_grad and "lora_magnitude" not in name:
            torch.nn.init.normal_(weight, std=0.3)
    adapted.save_pretrained(place)
    checkpoints.load_tokenizer(seed_model_path()).save_pretrained(place)
    return place, logp(adapted)


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


# --- through the command line ------------------------------------------------------------------------


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
