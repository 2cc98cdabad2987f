"""Guards the configuration: strict keys with the nearest offered, recipe files, names that cannot leave the
run folder, and packaged recipes that all load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness import config
from harness.config import RunConfig
from harness.contracts import UsageError


def complaint(recipe: str | None = None, **overrides: Any) -> str:
    with pytest.raises(UsageError) as error:
        config.load(recipe, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", config.recipe_names())
def test_every_packaged_recipe_loads_under_its_own_name(name: str) -> None:
    loaded = config.load(name)
    assert loaded.name == name
    assert RunConfig.model_validate(loaded.model_dump(mode="json")) == loaded


def test_the_default_recipe_is_the_mini_world() -> None:
    assert config.load() == config.load("mini")
    assert config.load().model == "mini"


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("train_task", "train_tasks"),
        ("training.epoch", "training.epochs"),
        ("training.lerning_rate", "training.learning_rate"),
        ("responses.batchsize", "responses.batch_size"),
        ("safety.prefil_tokens", "safety.prefill_tokens"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_full_key(key: str, nearest: str) -> None:
    assert complaint(**{key: 1}).endswith(f"unknown key '{key}': did you mean '{nearest}'?")


def test_an_unknown_key_that_is_like_no_other_lists_the_known_ones() -> None:
    assert "known: raw_task, prefill_task" in complaint(**{"safety.zzzzzzz": 1})


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"training.epochs": 0}, "training.epochs: Input should be greater than or equal to 1"),
        ({"training.epochs": "many"}, "training.epochs: "),
        ({"training.schedule": "square"}, "training.schedule: "),
        ({"training.learning_rate": float("nan")}, "training.learning_rate: "),
        ({"training": 3}, "training: "),
        ({"name": "../elsewhere"}, "name: "),
        ({"methods": []}, "methods: must not be empty"),
        ({"seeds": [-1]}, "seeds.0: "),
        ({"seeds": ["one"]}, "seeds.0: "),
        ({"name.deeper": 1}, "'name' is not a section"),
        ({"methods.vanilla.rate": 1}, "'methods' is not a section"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_full_key(overrides: dict[str, Any], says: str) -> None:
    assert says in complaint(**overrides)


def test_a_recipe_extends_another_section_by_section(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("methods: [vanilla]\ntraining: {epochs: 2, batch_size: 8}\n")
    own = tmp_path / "own.yaml"
    own.write_text(f"extends: {tmp_path / 'base.yaml'}\ntraining: {{epochs: 5}}\n")
    loaded = config.load(str(own))
    assert (loaded.name, loaded.methods) == ("own", ("vanilla",))
    assert (loaded.training.epochs, loaded.training.batch_size) == (5, 8)
    own.write_text(f"extends: {own}\n")
    with pytest.raises(UsageError, match="extends goes round in a circle"):
        config.load(str(own))
    own.write_text("extends: nowhere\n")
    with pytest.raises(UsageError, match="no recipe 'nowhere'"):
        config.load(str(own))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"training.merge": True}, "merge is for tuning lora or qlora"),
        ({"training.tuning": "qlora", "training.num_processes": 2, "training.distributed": "zero3"}, "zero3"),
        ({"training.report_to": ["print"]}, "report_to"),
    ],
)
def test_settings_that_do_not_fit_together(settings: dict[str, Any], says: str) -> None:
    assert says in complaint(**settings)


@pytest.mark.parametrize("name", ["../x", "/x", "x/y", "", "..", ".hidden", "-flag", "a b", "a\nb", "a\\b"])
def test_a_checkpoint_name_cannot_leave_the_run_folder(name: str) -> None:
    assert "checkpoint" in complaint(checkpoints={name: "somewhere"})


@pytest.mark.parametrize("name", ["../x", "con", "x" * 101, "ｘ", "x."])
def test_a_runs_name_is_a_folders(name: str) -> None:
    assert complaint(name=name).startswith("recipe 'mini': name: name ")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"judging": {"threshold": float("nan")}}, "judging.threshold: Input should be a finite number"),
        ({"judging": {"prices": {"m": (-1.0, 1.0)}}}, "judging.prices.m.0: "),
        ({"judging": {"timeout_s": float("inf")}}, "judging.timeout_s: Input should be a finite number"),
        ({"training": {"epochs": 10**18}}, "training.epochs: "),
        ({"method_options": {"sdft": {"a": 10**30}}}, "method_options.sdft.a: a number with 100 bits"),
        ({"method_options": {"sdft": {"a": {1, 2}}}}, "method_options.sdft.a: a set is no value"),
        ({"method_options": {"sdft": {"a": b"x"}}}, "method_options.sdft.a: a bytes is no value"),
        ({"note": "a\x1b[2J"}, "note: holds a control character"),
        ({"train_data": "a\0b"}, "train_data: holds a control character"),
        ({"model": "a\udcffb"}, "not valid Unicode"),
        ({"checkpoints": {"x": "openai:m@http://u:p@h/v1"}}, "checkpoints: no key in a server's URL"),
        ({"judges": ["openai:m@https://h/v1?key=x"]}, "judges: no key in a server's URL"),
        ({"responses": {"server": "ftp://u:p@h"}}, "responses.server: no key in a server's URL"),
        ({"responses": {"server": "u:p@h:80/v1"}}, "responses.server: no key in a server's URL"),
        ({"ray": {"storage": "ftp://user:password@h/x"}}, "ray.storage: no key in a server's URL"),
        ({"ray": {"storage": "s3://b/f?token=x"}}, "ray.storage: no key in a server's URL"),
        ({"ray": {"address": "u:p@h:6379"}}, "ray.address: no key in a server's URL"),
    ],
)
def test_what_no_recipe_may_hold(settings: dict[str, Any], says: str) -> None:
    assert says in complaint(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"ray.address": "h:6379"},
        {"ray.address": "ray://h:10001"},
        {"ray.storage": "s3://b/f"},
        {"ray.storage": "abfs://container@account.dfs.core.windows.net/f"},
        {"ray.storage": "/shared/f"},
    ],
)
def test_a_cluster_is_named_without_keys(settings: dict[str, Any]) -> None:
    loaded = config.load(None, settings).ray
    assert [*settings.values()] == [value for value in (loaded.address, loaded.storage) if value]


def test_a_launchers_key_is_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "planted-0123456789")
    given = config.load(None, {"training.launcher": "env A=planted-0123456789 torchrun"})
    assert given.training.launcher == "env A=planted-0123456789 torchrun"
    assert given.model_dump(mode="json")["training"]["launcher"] == "env A=(left out) torchrun"


@pytest.mark.parametrize("name", ["mine", "my-model_v1.2", "7b"])
def test_ordinary_checkpoint_names_are_fine(name: str) -> None:
    assert config.load(None, {"checkpoints": {name: "somewhere"}}).checkpoints == {name: "somewhere"}


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("training.epochs=1", "training.epochs", 1),
        (" note = a=b ", "note", "a=b"),
        ("seeds=[1, 2]", "seeds", [1, 2]),
        ("training.max_examples=null", "training.max_examples", None),
        ("training.learning_rate=3e-4", "training.learning_rate", "3e-4"),  # YAML 1.1: a text
    ],
)
def test_settings_are_yaml(text: str, key: str, value: Any) -> None:
    assert config.parse_setting(text) == (key, value)
    assert config.load(None, dict([config.parse_setting(text)]))  # and what they give is understood


def test_a_number_in_scientific_notation_is_a_number() -> None:
    loaded = config.load(None, dict([config.parse_setting("training.learning_rate=3e-4")]))
    assert loaded.training.learning_rate == 3e-4


@pytest.mark.parametrize("text", ["training.epochs", "=1", "a=[1", "a='"])
def test_a_malformed_setting_says_what_is_expected(text: str) -> None:
    with pytest.raises(UsageError, match="--set"):
        config.parse_setting(text)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "expected keys and values"),
        (b"- a\n- b\n", "expected keys and values"),
        (b"training: [", "not valid YAML"),
        (b"a: \xff\xfe\xfa", "not valid YAML"),
        (b"trainig: {}", "unknown key 'trainig': did you mean 'training'?"),
        (b"training: {epochz: 1}", "unknown key 'training.epochz': did you mean 'training.epochs'?"),
    ],
)
def test_a_broken_recipe_file_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    assert complaint(str(path)).startswith(f"{path}: ")
    assert says in complaint(str(path))


def test_a_recipe_file_is_named_after_itself(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("methods: vanilla\nseeds: 7\n", encoding="utf-8")
    loaded = config.load(str(path))
    assert (loaded.name, loaded.methods, loaded.seeds) == ("mine", ("vanilla",), (7,))
    assert config.load(str(path), {"seeds": [1, 1, 2]}).seeds == (1, 2)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    assert "did you mean 'mini'?" in complaint("mine")
    assert "neither a file nor a packaged recipe" in complaint(str(tmp_path))


# --- variants --------------------------------------------------------------------------------------

M2 = {"method": "lookahead-true", "options": {"preview_tokens": 2}, "training": {"epochs": 2}}


def test_a_variant_is_laid_over_the_recipe() -> None:
    loaded = config.load(
        None,
        {
            "variants": {"m2": M2 | {"training": {"learning_rate": "1e-3", "lora": {"r": 4}}}},
            "method_options": {"lookahead-true": {"connector": " It is ", "preview_tokens": 8}},
        },
    )
    row, plain = loaded.row("m2"), loaded.row("lookahead-true")
    assert row.method == plain.method == "lookahead-true"
    assert row.options == {"connector": " It is ", "preview_tokens": 2}
    assert plain.options == {"connector": " It is ", "preview_tokens": 8}
    assert (row.training.learning_rate, row.training.lora.r) == (1e-3, 4)
    assert (row.training.epochs, row.training.lora.alpha) == (3, 32)
    assert plain.training == loaded.training
    assert RunConfig.model_validate(loaded.model_dump(mode="json")) == loaded


def test_a_variant_is_set_key_by_key() -> None:
    flags = ("variants.m2.method=lookahead-true", "variants.m2.options.preview_tokens=2")
    loaded = config.load(None, dict(config.parse_setting(flag) for flag in flags))
    assert loaded.row("m2").options == {"preview_tokens": 2}


@pytest.mark.parametrize(
    ("variant", "says"),
    [
        ({"options": {}}, "variants.m2.method: Field required"),
        (M2 | {"option": {}}, "unknown key 'variants.m2.option': did you mean 'variants.m2.options'?"),
        (
            M2 | {"training": {"epoch": 2}},
            "unknown key 'variants.m2.training.epoch': did you mean 'variants.m2.training.epochs'?",
        ),
        (M2 | {"training": {"epochs": 0}}, "variants.m2.training.epochs: Input should be greater"),
        (M2 | {"training": {"lora": {"rr": 1}}}, "unknown key 'variants.m2.training.lora.rr': "),
        (M2 | {"training": {"merge": True}}, "variants.m2.training: merge is for tuning lora or qlora"),
        (M2 | {"training": {"max_examples": 5}}, "variants.m2.training.max_examples: all rows share it"),
        (M2 | {"training": {"device": "cuda"}}, "variants.m2.training.device: all rows share it"),
        (M2 | {"training": {"save_steps": 5}}, "variants.m2.training.save_steps: all rows share it"),
    ],
)
def test_a_variant_that_cannot_be_is_named_with_its_key(variant: dict[str, Any], says: str) -> None:
    assert says in complaint(variants={"m2": variant})


@pytest.mark.parametrize("name", ["../x", "x/y", "", ".hidden", "a b", "epoch-1"])
def test_a_variants_name_cannot_leave_the_run_folder(name: str) -> None:
    assert "variants" in complaint(variants={name: M2})


def test_a_changed_configuration_keeps_what_is_not_written() -> None:
    launcher = "srun --token=planted-0123456789 torchrun"
    given = config.load("mini", {"training.launcher": launcher, "variants.one": {"method": "sdft"}})
    assert "planted" not in given.model_dump_json()
    changed = config.changed(given, {"training.epochs": 2}, "a test")
    assert changed.training.launcher == launcher
    assert changed == given.model_copy(update={"training": given.training.model_copy(update={"epochs": 2})})


def test_every_key_of_a_recipe_is_listed_with_its_default(tmp_path: Path) -> None:
    """What is listed, written as it is into a recipe, makes the default configuration."""
    listed = {key: default for key, default, _ in config.meanings()}
    values: dict[str, Any] = {}
    for key, default in listed.items():
        config.put(values, key, default)
    (tmp_path / "own.yaml").write_text(json.dumps(values), encoding="utf-8")
    assert config.load(str(tmp_path / "own.yaml")) == config.RunConfig()
    flat = config.RunConfig().model_dump()
    assert {key.split(".")[0] for key in listed} == {"extends", *flat} - {"code"}  # a run's record
    assert {key for key in listed if key.startswith("training.lora.")} == {
        f"training.lora.{name}" for name in flat["training"]["lora"]
    }


def test_a_key_says_what_it_means_and_which_values_it_takes() -> None:
    meanings = {key: meaning for key, _, meaning in config.meanings()}
    assert meanings["training.batch_size"] == "the global batch, in examples"
    assert meanings["training.distributed"].endswith("; ddp | zero2 | zero3 | fsdp2")
    assert all(f"{name}:" in meanings["variants"] for name in config.VariantConfig.model_fields)
    untold = [key for key, meaning in meanings.items() if not meaning]
    assert untold == [
        "training.learning_rate",
        "training.warmup_steps",
        "training.betas",
        "training.weight_decay",
        "training.lora.alpha",
        "training.lora.target_modules",
    ]  # their names say it


# --- what a training depends on ------------------------------------------------------------------------

# Of trainings of release 1: a key that is added here, or a default that changes, makes all of them anew.
IDENTITY = {
    *("epochs", "learning_rate", "batch_size", "schedule", "warmup_steps", "betas", "weight_decay"),
    *(
        "max_grad_norm",
        "max_examples",
        "max_length",
        "too_long",
        "tuning",
        "lora",
        "merge",
        "dtype",
        "device",
    ),
    *("micro_batch_size", "micro_batch_tokens", "batching", "attention", "optimizer", "compile", "liger"),
    *("gradient_checkpointing", "num_processes", "distributed"),
}


@pytest.mark.parametrize("recipe", config.recipe_names())
def test_an_older_training_stays_what_it_is(recipe: str) -> None:
    training = config.load(recipe).training
    found = training.identity()
    assert found.keys() == IDENTITY
    assert found == {key: training.model_dump(mode="json")[key] for key in IDENTITY}


@pytest.mark.parametrize(
    ("key", "value"), [("chunked_loss", True), ("cudnn_attention", False), ("adapter_casts", False)]
)
def test_a_later_key_is_part_of_a_training_that_asks_for_it(key: str, value: bool) -> None:
    usual, asked = (config.load("mini", {f"training.{key}": one}).training for one in (not value, value))
    assert usual == config.load("mini").training
    assert asked.identity() == usual.identity() | {key: value}


def test_how_memory_grows_is_no_part_of_a_training() -> None:
    asked = config.load("mini", {"training.expandable_segments": True}).training
    assert asked.identity() == config.load("mini").training.identity()
    with pytest.raises(UsageError, match="expandable_segments: all rows share it"):
        config.load("mini", {"variants.x": {"method": "vanilla", "training": {"expandable_segments": True}}})
