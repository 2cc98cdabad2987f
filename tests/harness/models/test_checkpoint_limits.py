"""Guards what a model's folder may claim: a hostile one is refused before a library looks at it, and what
real models say passes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from one_line import one_line

from harness.contracts import HarnessError
from harness.mini import seed_model_path
from harness.models import checkpoint_limits as limits
from harness.models import checkpoints, hub
from harness.models.checkpoint_limits import Tensor


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(seed_model_path(), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def no_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test in which anything is loaded."""
    import peft
    import transformers

    def reached(*_: Any, **__: Any) -> None:
        raise AssertionError("a library was given the folder")

    for kind in (transformers.AutoConfig, transformers.AutoModelForCausalLM, peft.PeftModel):
        monkeypatch.setattr(kind, "from_pretrained", reached)


def edit(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**value, **changes}), encoding="utf-8")


def refused(folder: Path) -> str:
    """The one line of every way to a folder, before anything is loaded."""
    ways = (
        lambda: checkpoints.locate(str(folder)),
        lambda: checkpoints.checkpoint(str(folder)),
        lambda: checkpoints.load_model(folder, "float32", "cpu"),
        lambda: checkpoints.load_model(folder, "float32", "cpu", base=seed_model_path()),
    )
    return one_line(ways, 500)


# --- sizes -----------------------------------------------------------------------------------------

LAYERS, WIDTH, HEADS = "num_hidden_layers", "hidden_size", "num_attention_heads"
HUGE = [
    {LAYERS: 3_000_000},
    {LAYERS: 39},  # the folder has 38 tensors
    {"n_layer": 10**6},
    {"num_nextn_predict_layers": 10**5},
    {"vocab_size": 10**9},
    {WIDTH: 10**7},
    {"intermediate_size": 10**7},
    {HEADS: 10**8},
    {"head_dim": 10**7},
    {"num_experts": 10**6},
    {"n_routed_experts": 10**9},
    {"num_experts": 2_000, "moe_intermediate_size": 2_000},
    {"max_position_embeddings": 10**9},
    {"num_labels": 10**8},
    {"q_lora_rank": 10**9},
    {"state_size": 10**12},
    {"a_part_of_tomorrow": {"num_layers": 10**6}},
    {"text_config": {LAYERS: 10**6, WIDTH: 128}},
    {"blocks": [{"hidden_size": 128, "ffn_dim": 10**9}]},
    {"intermediate_size": [384, 384, 384, 10**9]},
]


@pytest.mark.parametrize("changes", HUGE, ids=lambda changes: json.dumps(changes)[:50])
@pytest.mark.usefixtures("no_loader")
def test_sizes_that_the_weights_cannot_hold_are_refused(changes: dict[str, Any], folder: Path) -> None:
    edit(folder / "config.json", **changes)
    line = refused(folder)
    assert line.startswith(f"{folder / 'config.json'}: ")
    assert "is more than the weights beside it can hold (38 tensors, " in line


@pytest.mark.parametrize(
    "key", [LAYERS, WIDTH, HEADS, "vocab_size", "n_layer", "n_embd", "max_position_embeddings"]
)
@pytest.mark.parametrize(
    "value", [0, -1, 1.5, "4", True, {}, [4, -4], float("nan"), 10**400], ids=lambda value: str(value)[:9]
)
@pytest.mark.usefixtures("no_loader")
def test_a_size_is_a_whole_number(key: str, value: Any, folder: Path) -> None:
    edit(folder / "config.json", **{key: value})
    assert key in refused(folder)


@pytest.mark.parametrize("depth", [100, 1_000, 100_000])
@pytest.mark.usefixtures("no_loader")
def test_a_config_is_not_nested_without_end(depth: int, folder: Path) -> None:
    (folder / "config.json").write_text('{"a":' * depth + "1" + "}" * depth, encoding="utf-8")
    assert "nested too deeply" in refused(folder)


@pytest.mark.parametrize("value", ["x", [1], 3, True])
@pytest.mark.usefixtures("no_loader")
def test_a_text_config_is_an_object(value: Any, folder: Path) -> None:
    edit(folder / "config.json", text_config=value)
    assert "text_config must be an object" in refused(folder)


@pytest.mark.usefixtures("no_loader")
def test_another_file_of_weights_is_refused(folder: Path) -> None:
    edit(folder / "config.json", transformers_weights="adapter_model.bin")
    assert "transformers_weights" in refused(folder)


def test_a_librarys_defaults_are_claims_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config.json that leaves the sizes out gives a model of 7 billion numbers."""
    import transformers

    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: 1 / 0)
    with pytest.raises(HarnessError, match="more than the weights beside it can hold"):
        checkpoints.load_model(folder, "float32", "cpu")


# What published models' config.json files say, their numbers in all, and their tensors.
REAL: dict[str, tuple[dict[str, Any], float, int]] = {
    "Llama-2-7B": (
        {WIDTH: 4096, "intermediate_size": 11008, LAYERS: 32, HEADS: 32, "vocab_size": 32000,
         "max_position_embeddings": 4096},
        6.7e9, 291,
    ),
    "Llama-3.1-405B": (
        {WIDTH: 16384, "intermediate_size": 53248, LAYERS: 126, HEADS: 128, "vocab_size": 128256,
         "max_position_embeddings": 131072},
        405e9, 1138,
    ),
    "Llama-3.2-1B, tied": (
        {WIDTH: 2048, "intermediate_size": 8192, LAYERS: 16, HEADS: 32, "head_dim": 64,
         "vocab_size": 128256, "max_position_embeddings": 131072, "tie_word_embeddings": True},
        1.24e9, 146,
    ),
    "Llama-2-7B in AWQ": (
        {WIDTH: 4096, "intermediate_size": 11008, LAYERS: 32, HEADS: 32, "vocab_size": 32000,
         "quantization_config": {"quant_method": "awq", "bits": 4}},
        1.1e9, 739,
    ),
    "Llama-4-Scout": (
        {"model_type": "llama4", "text_config": {
            WIDTH: 5120, "intermediate_size": 8192, "intermediate_size_mlp": 16384, LAYERS: 48, HEADS: 40,
            "head_dim": 128, "vocab_size": 202048, "num_local_experts": 16,
            "max_position_embeddings": 10485760, "no_rope_layers": [1, 1, 1, 0] * 12},
         "vision_config": {WIDTH: 1408, "intermediate_size": 5632, LAYERS: 34, HEADS: 16,
                           "vision_feature_layer": -1}},
        109e9, 1061,
    ),
    "DeepSeek-V3": (
        {WIDTH: 7168, "intermediate_size": 18432, LAYERS: 61, HEADS: 128, "vocab_size": 129280,
         "n_routed_experts": 256, "n_shared_experts": 1, "moe_intermediate_size": 2048,
         "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "kv_lora_rank": 512,
         "max_position_embeddings": 163840, "quantization_config": {"quant_method": "fp8"}},
        685e9, 91991,
    ),
    "Qwen3-30B-A3B": (
        {WIDTH: 2048, "intermediate_size": 6144, LAYERS: 48, HEADS: 32, "head_dim": 128,
         "vocab_size": 151936, "num_experts": 128, "moe_intermediate_size": 768, "max_window_layers": 48,
         "max_position_embeddings": 40960, "sliding_window": None, "mlp_only_layers": []},
        30.5e9, 18867,
    ),
    "Qwen2.5-7B-1M": (
        {WIDTH: 3584, "intermediate_size": 18944, LAYERS: 28, HEADS: 28, "vocab_size": 152064,
         "max_position_embeddings": 1010000},
        7.6e9, 339,
    ),
    "gpt-oss-20b": (
        {WIDTH: 2880, "intermediate_size": 2880, LAYERS: 24, HEADS: 64, "head_dim": 64,
         "vocab_size": 201088, "num_local_experts": 32, "max_position_embeddings": 131072,
         "quantization_config": {"quant_method": "mxfp4"}},
        12e9, 459,
    ),
    "Gemma-3-4B": (
        {"text_config": {WIDTH: 2560, "intermediate_size": 10240, LAYERS: 34, "num_attention_heads": 8,
                         "head_dim": 256, "vocab_size": 262208, "max_position_embeddings": 131072},
         "vision_config": {WIDTH: 1152, "intermediate_size": 4304, LAYERS: 27, HEADS: 16},
         "mm_tokens_per_image": 256, "eoi_token_index": 256000},
        4.3e9, 883,
    ),
    "GPT-2": ({"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "n_inner": None,
               "vocab_size": 50257, "summary_type": "cls_index"}, 124e6, 160),
    "Falcon-7B": ({WIDTH: 4544, LAYERS: 32, HEADS: 71, "vocab_size": 65024, "num_kv_heads": 71}, 7.2e9, 196),
    "Mamba-130M": ({WIDTH: 768, "intermediate_size": 1536, LAYERS: 24, "state_size": 16, "d_inner": 1536,
                    "n_layer": 24, "d_model": 768, "vocab_size": 50280}, 129e6, 242),
    "ALBERT-xlarge, one layer 24 times": (
        {WIDTH: 2048, "embedding_size": 128, "intermediate_size": 8192, LAYERS: 24, HEADS: 16,
         "vocab_size": 30000, "max_position_embeddings": 512},
        59e6, 25,
    ),
    "OpenELM, each layer its own": (
        {"model_dim": 1280, "num_transformer_layers": 16, "num_query_heads": [12, 12, 16, 20] * 4,
         "head_dim": 64, "ffn_multipliers": [0.5, 4.0], "vocab_size": 32000, "ffn_dim_divisor": 256},
        272e6, 146,
    ),
    "a toy of Mixtral": (
        {WIDTH: 32, "intermediate_size": 64, LAYERS: 2, HEADS: 2, "num_local_experts": 4,
         "vocab_size": 1400, "max_position_embeddings": 131072},
        145e3, 41,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_models_pass(name: str) -> None:
    config, numbers, count = REAL[name]
    held = dict.fromkeys(map(str, range(count)), Tensor("f", "BF16", (round(numbers / count),)))
    limits.check_claims(Path("config.json"), config, held)
    for section in limits._sections(config):
        limits._check_types(Path("config.json"), section)


# --- files -----------------------------------------------------------------------------------------


def header(text: str, path: Path, size: int | None = None) -> None:
    data = text.encode()
    path.write_bytes((len(data) if size is None else size).to_bytes(8, "little") + data)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("{}", 2**62),
        ("{}", 90_000_000),
        ('{"t":{"dtype":"F32","shape":[4000000],"data_offsets":[0,4]}}', None),
        ('{"t":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}', None),
        ('{"t":{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}}', None),
        ("[" * 1_000, None),
        ('{"t":{"dtype":"F32","shape":[0,1099511627776],"data_offsets":[0,0]}}', None),
    ],
)
@pytest.mark.usefixtures("no_loader")
def test_headers_that_no_model_has(text: str, size: int | None, folder: Path) -> None:
    header(text, folder / "model.safetensors", size)
    assert "model.safetensors" in refused(folder)


def test_there_are_not_tensors_without_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_TENSORS", 37)
    with pytest.raises(HarnessError, match="more than 37 tensors"):
        checkpoints.locate(str(folder))


def test_a_header_tells_names_types_and_shapes() -> None:
    held = limits.check_model(seed_model_path())
    assert len(held) == 38
    assert held["model.embed_tokens.weight"] == Tensor("model.safetensors", "BF16", (1400, 128))


@pytest.mark.parametrize(
    "file",
    ["../model/model.safetensors", "/etc/passwd", "sub/model.safetensors", "..\\x.safetensors", "x.bin", "",
     "gone.safetensors", None, 3],
)  # fmt: skip
@pytest.mark.usefixtures("no_loader")
def test_an_index_names_files_of_its_folder_alone(file: Any, folder: Path) -> None:
    (folder / limits.INDEX).write_text(json.dumps({"weight_map": {"a.weight": file}}), encoding="utf-8")
    assert limits.INDEX in refused(folder)


@pytest.mark.parametrize("value", [None, {}, [], "x"])
@pytest.mark.usefixtures("no_loader")
def test_an_index_says_where_tensors_are(value: Any, folder: Path) -> None:
    (folder / limits.INDEX).write_text(json.dumps({"weight_map": value}), encoding="utf-8")
    assert "no weight_map" in refused(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names")
@pytest.mark.parametrize(
    "name", ["tokenizer.json", "model.safetensors", "more.safetensors", "x.txt", "x.model"]
)
@pytest.mark.usefixtures("no_loader")
def test_a_pipe_in_a_folder_is_refused(name: str, folder: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(HarnessError, match=name):
        checkpoints.locate(str(folder))


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "config.json", "chat_template.jinja", "vocab.txt", "x.json"]
)
@pytest.mark.usefixtures("no_loader")
def test_files_have_a_size(name: str, folder: Path) -> None:
    (folder / name).touch()
    os.truncate(folder / name, 2**40)  # takes no room
    assert f"{folder / name}: cannot be read (larger than " in refused(folder)
    with pytest.raises(HarnessError, match="larger than"):
        checkpoints.load_tokenizer(folder)


def test_links_are_followed_as_in_the_hubs_cache(folder: Path, tmp_path: Path) -> None:
    for path in list(folder.iterdir()):
        shutil.move(path, tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
    assert checkpoints.locate(str(folder)) == folder


# --- quantised weights -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"quant_method": "hqq"}, "'hqq' is not loaded with transformers, only bitsandbytes, gptq"),
        ({"quant_method": "someone/kernel"}, "is not loaded with transformers"),
        ({"quant_method": ["awq"]}, "is not loaded with transformers"),
        ({"bits": 4}, "None is not loaded with transformers"),
        ("awq", "None is not loaded with transformers"),
        ({"quant_method": "compressed-tensors", "ignore": ["re:(a+)+$"]}, "a regular expression too complex"),
        ({"quant_method": "gptq", "dynamic": {"-:.*a.*b.*c.*d.*e": {}}}, "a regular expression too complex"),
        ({"quant_method": "gptq", "modules": ["x" * 2_000]}, "a regular expression too complex"),
    ],
)
@pytest.mark.usefixtures("no_loader")
def test_quantised_weights_that_are_not_known(settings: Any, says: str, folder: Path) -> None:
    edit(folder / "config.json", quantization_config=settings)
    with pytest.raises(HarnessError) as told:
        checkpoints.load_model(folder, "float32", "cpu")
    assert says in str(told.value)


@pytest.mark.parametrize("method", limits.FETCHING)
def test_no_quantised_weights_fetch_a_kernel(
    method: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": method})
    limits.check_quantization(folder)  # the package is not here
    monkeypatch.setattr(limits.importlib.util, "find_spec", lambda name: name == "kernels" or None)
    with pytest.raises(HarnessError, match="would fetch a kernel from the hub: use --engine vllm"):
        limits.check_quantization(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "gptq", "bits": 4, "dynamic": {r"-:.*\.o_proj": {}}},
        {"quant_method": "compressed-tensors", "ignore": ["lm_head", r"re:.*mlp\.gate$"]},
        {"load_in_4bit": True, "llm_int8_skip_modules": ["lm_head"]},
        {"quant_method": "awq", "modules_to_not_convert": None},
        {},
    ],
)
def test_known_quantised_weights_pass(settings: dict[str, Any], folder: Path) -> None:
    edit(folder / "config.json", quantization_config=settings)
    limits.check_quantization(folder)


# --- adapters --------------------------------------------------------------------------------------


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
    line = refused(adapter)
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
