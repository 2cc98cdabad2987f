"""Guards which folders count as a model, what identifies one, and the one line for each that does not."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.contracts import HarnessError
from harness.mini import seed_model_path
from harness.models import checkpoints


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(seed_model_path(), tmp_path / "model")
    return tmp_path / "model"


def test_mini_and_folders_are_located(folder: Path) -> None:
    assert checkpoints.locate("mini") == seed_model_path()
    assert checkpoints.locate(str(folder)) == folder


def test_a_fingerprint_is_the_content_and_not_the_place(folder: Path) -> None:
    assert checkpoints.fingerprint(folder) == checkpoints.fingerprint(seed_model_path())
    (folder / "notes.md").write_text("not the model", encoding="utf-8")
    assert checkpoints.fingerprint(folder) == checkpoints.fingerprint(seed_model_path())
    config = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(config + "\n", encoding="utf-8")
    changed = {
        name
        for name, value in checkpoints.fingerprint(seed_model_path()).items()
        if checkpoints.fingerprint(folder)[name] != value
    }
    assert changed == {"config.json"}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{", encoding="utf-8"), "cannot be read as JSON"),
        (lambda f: (f / "model.safetensors").unlink(), "pickle checkpoints are refused"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pickle checkpoints are"),
        (lambda f: (f / "model.safetensors").write_bytes(b"short"), "damaged or cut short"),
        (lambda f: os.truncate(f / "model.safetensors", 2_000_000), "damaged or cut short"),
        (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "save the tokenizer beside the model"),
    ],
)  # fmt: skip
def test_a_broken_folder_is_refused_before_any_work(
    folder: Path, damage: Callable[[Path], Any], says: str
) -> None:
    damage(folder)
    with pytest.raises(HarnessError, match=says) as error:
        checkpoints.locate(str(folder))
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "nowhere", "a/b/c", "~/nowhere-at-all"])
def test_what_is_neither_a_folder_nor_a_hub_name(name: str) -> None:
    with pytest.raises(HarnessError, match="give a folder, a hub name"):
        checkpoints.locate(name)


def test_a_hub_name_that_cannot_be_had_says_so_in_one_line() -> None:
    with pytest.raises(HarnessError, match="no local folder and cannot be had from the hub") as error:
        checkpoints.locate("nobody/nothing-at-all")
    assert "\n" not in str(error.value)


def test_what_is_saved_is_safetensors_and_loads_again(tmp_path: Path) -> None:
    import torch

    model = checkpoints.load_model(seed_model_path(), "float32", "cpu")
    checkpoints.save(model, checkpoints.load_tokenizer(seed_model_path()), tmp_path / "saved")
    assert checkpoints.locate(str(tmp_path / "saved"))
    assert not [p for p in (tmp_path / "saved").iterdir() if p.suffix in (".bin", ".pt", ".pkl")]
    again = checkpoints.load_model(tmp_path / "saved", "float32", "cpu")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert checkpoints.load_model(tmp_path / "saved", "bfloat16", "cpu").dtype == torch.bfloat16


def test_a_model_that_transformers_cannot_load_is_one_line(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "no-such-architecture"}', encoding="utf-8")
    with pytest.raises(HarnessError, match="the model cannot be loaded") as error:
        checkpoints.load_model(folder, "float32", "cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("declared", [{"a": 1}, [[2]], "2", 2.5, [True], [None, {}]])
def test_what_ends_an_answer_is_a_token(declared: Any, folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": declared}), encoding="utf-8")
    with pytest.raises(HarnessError, match="eos_token_id must be a token's id") as told:
        checkpoints.stop_ids(checkpoints.declared_stops(folder), checkpoints.load_tokenizer(folder))
    assert str(told.value).isprintable()


# --- folders that would run something ----------------------------------------------------------------


class Evil:
    """What a pickle of it does when it is read: leaves a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "pytorch_model.bin"])
def test_a_pickled_adapter_is_refused_whatever_lies_beside_it(
    name: str, folder: Path, tmp_path: Path
) -> None:
    import torch

    config = {"base_model_name_or_path": "mini", "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 1}
    (folder / checkpoints.ADAPTER_CONFIG).write_text(json.dumps(config), encoding="utf-8")
    torch.save({"a": Evil(tmp_path / "mark")}, folder / name)
    assert list(folder.glob("*.safetensors"))  # the decoy
    with pytest.raises(HarnessError, match="pickle checkpoints are refused"):
        checkpoints.checkpoint(str(folder))
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("base", [None, 1, "", ["mini"]])
def test_an_adapter_without_a_base_is_one_line(base: Any, folder: Path) -> None:
    (folder / checkpoints.ADAPTER_CONFIG).write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}), "utf-8"
    )
    (folder / "model.safetensors").rename(folder / checkpoints.ADAPTER_WEIGHTS)
    with pytest.raises(HarnessError, match="of which model is it"):
        checkpoints.checkpoint(str(folder))


@pytest.mark.parametrize("known", [True, False], ids=["known-architecture", "its-own-architecture"])
def test_a_folders_own_code_is_never_run(known: bool, folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (folder / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
        "class Config: pass\nclass Model: pass\nclass Tokenizer: pass\n",
        encoding="utf-8",
    )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    config["model_type"] = config["model_type"] if known else "evil"
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    named = json.loads(path.read_text(encoding="utf-8"))
    named["auto_map"] = {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
    named["tokenizer_class"] = named.get("tokenizer_class") if known else "Tokenizer"
    path.write_text(json.dumps(named), encoding="utf-8")
    for load in (
        lambda: checkpoints.load_model(folder, "float32", "cpu"),
        lambda: checkpoints.load_tokenizer(folder),
    ):
        with contextlib.suppress(HarnessError) if known else pytest.raises(HarnessError) as error:
            load()
        if not known:
            assert str(error.value).isprintable()
    assert not mark.exists()


# --- whose attention ---------------------------------------------------------------------------------

KERNEL = "someone/kernel"


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test in which transformers would fetch code."""
    from transformers import modeling_utils
    from transformers.integrations import hub_kernels

    def reached(*given: Any, **_: Any) -> None:
        raise AssertionError(f"a kernel would be fetched: {given}")

    monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", reached)
    monkeypatch.setattr(hub_kernels, "get_kernel", reached)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attn_implementation": KERNEL},
        {"_attn_implementation": KERNEL},
        {"_attn_implementation_internal": KERNEL},
        {"attn_implementation": "eager"},
        {"attn_implementation": "flash_attention_2"},
        {"attn_implementation": {"": KERNEL}},
        {"_attn_implementation": 3},
        {"experts_implementation": KERNEL, "_experts_implementation": KERNEL},
        {"kernel_config": {"RMSNorm": f"{KERNEL}:RMSNorm"}, "use_kernels": True},
    ],
    ids=json.dumps,
)
@pytest.mark.usefixtures("no_kernel")
def test_a_folders_word_on_attention_never_counts(changes: dict[str, Any], folder: Path) -> None:
    import torch

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    generation = folder / "generation_config.json"
    settings = json.loads(generation.read_text(encoding="utf-8"))
    generation.write_text(json.dumps({**settings, "attn_implementation": KERNEL}), encoding="utf-8")
    model = checkpoints.load_model(folder, "float32", "cpu")
    ours = checkpoints.load_model(seed_model_path(), "float32", "cpu")
    assert model.config._attn_implementation == ours.config._attn_implementation == "sdpa"
    assert model.config._experts_implementation == ours.config._experts_implementation
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, ours(ids).logits)


@pytest.mark.usefixtures("no_kernel")
def test_nor_does_a_parts_word(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, Gemma3Config, Gemma3ForConditionalGeneration

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": 1400, "num_key_value_heads": 1, "head_dim": 8}
    config = Gemma3Config(
        text_config=text,
        vision_config={**small, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=3,
    )
    tokenizer = checkpoints.load_tokenizer(seed_model_path())
    checkpoints.save(Gemma3ForConditionalGeneration(config), tokenizer, tmp_path)
    path = tmp_path / "config.json"
    named = json.loads(path.read_text(encoding="utf-8"))
    for part in (named, named["text_config"], named["vision_config"]):
        part |= {"attn_implementation": KERNEL, "_attn_implementation": KERNEL}
    path.write_text(json.dumps(named), encoding="utf-8")
    model = checkpoints.load_model(tmp_path, "float32", "cpu", kind=AutoModelForImageTextToText)
    for part in (model.config, model.config.text_config, model.config.vision_config):
        assert part._attn_implementation == "sdpa"


def test_no_architecture_fetches_code_from_the_hub() -> None:
    from transformers.integrations import hub_kernels

    assert os.environ["USE_HUB_KERNELS"] == "NO"
    assert not hub_kernels._kernels_enabled


def test_every_load_chooses_its_own_attention() -> None:
    """Of models: a tokenizer and a configuration have none."""
    root = Path(checkpoints.__file__).parents[2]
    files = [
        path
        for package in ("harness", "backends", "judges", "tasks")
        for path in (root / package).rglob("*.py")
    ]
    calls = [
        call
        for text in (path.read_text(encoding="utf-8") for path in files)
        if ".from_pretrained(" in text or "from_config(" in text
        for call in ast.walk(ast.parse(text))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in ("from_pretrained", "from_config", "_from_config")
        and ast.unparse(call.func.value)
        not in ("AutoTokenizer", "PreTrainedTokenizerFast", "AutoConfig", "PeftModel")
    ]
    assert len(calls) == 2  # built for the rehearsal (weights.py), and loaded
    for call in calls:
        named = {word.arg for word in call.keywords}
        assert {"config", "attn_implementation", "experts_implementation"} <= named


def test_of_generation_settings_the_end_of_an_answer_alone_makes_another_model(folder: Path) -> None:
    """What a user corrects in them so that they can be saved changes no result."""
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**settings, "eos_token_id": 3}), encoding="utf-8")
    one = checkpoints.fingerprint(folder)
    path.write_text(json.dumps({**settings, "eos_token_id": 3, "temperature": 0.9}), encoding="utf-8")
    assert checkpoints.fingerprint(folder) == one
    path.write_text(json.dumps({**settings, "eos_token_id": [3, 4]}), encoding="utf-8")
    assert checkpoints.fingerprint(folder) != one


# In bfloat16 the adapter itself is 0.037 nats from what it says in float32, and the merged model 0.029.
@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_a_merged_model_says_what_its_adapter_says(
    folder: Path, tmp_path: Path, dtype: str, most: float
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    options = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(checkpoints.load_model(folder, "float32", "cpu"), options)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    checkpoints.save(adapted, checkpoints.load_tokenizer(folder), tmp_path / "adapter")
    checkpoints.merge(folder, tmp_path / "adapter", dtype, tmp_path / "merged")
    ids = torch.arange(20, 60)[None]
    places = [(tmp_path / "adapter", {"base": folder}), (tmp_path / "merged", {}), (folder, {})]
    with torch.inference_mode():
        said = [
            checkpoints.load_model(place, dtype, "cpu", **more)(input_ids=ids).logits.float().log_softmax(-1)
            for place, more in places
        ]
    adapter, merged, before = (one[0, :-1].gather(-1, ids[0, 1:, None]) for one in said)
    assert float((adapter - merged).abs().mean()) < most
    assert float((adapter - before).abs().mean()) > 0.1  # the adapter does something


def test_a_model_that_caps_its_attention_answers_so(tmp_path: Path) -> None:
    """Gemma 2: under transformers' default attention the cap would be left out in silence."""
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, attn_logit_softcapping=0.5, initializer_range=2.0,
    )  # fmt: skip
    made = Gemma2ForCausalLM(config).eval()
    made.save_pretrained(tmp_path)
    ids = torch.arange(2, 30)[None]
    loaded = checkpoints.load_model(tmp_path, "float32", "cpu")
    with torch.inference_mode():
        made.set_attn_implementation("eager")
        capped = made(input_ids=ids).logits
        made.set_attn_implementation("sdpa")
        assert float((made(input_ids=ids).logits - capped).abs().max()) > 0.1
        torch.testing.assert_close(loaded.eval()(input_ids=ids).logits, capped, rtol=0, atol=1e-4)
