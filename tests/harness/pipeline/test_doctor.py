"""Guards ``harness doctor``: what would stop a run is found, named and mended, and no key is shown."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import completions_server
import fault_server
import pytest

from harness import config
from harness.mini import seed_model_path
from harness.models import checkpoints
from harness.pipeline import doctor, estimate
from harness.pipeline.checkup import installation, machine, services
from harness.pipeline.checkup.finding import Finding
from harness.plugins import registry
from harness.run.context import RunContext
from harness.servers import http_client

Run = Callable[..., Any]


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.about: finding for finding in findings}


def examined(out: Path, **overrides: Any) -> dict[str, Finding]:
    return by_name(doctor.examine(config.load(None, overrides), out))


def test_the_mini_recipe_passes(command: Run, tmp_path: Path) -> None:
    ended = command("doctor", "--out", tmp_path / "run", "--json")
    assert ended.code == 0, ended.err
    findings = json.loads(ended.out)
    assert {finding["status"] for finding in findings} == {"pass"}
    assert {"packages", "import names", "device", "memory", "disk", "model", "engine"} <= {
        finding["about"] for finding in findings
    }
    assert not (tmp_path / "run").exists()


def test_what_is_missing_fails_with_its_mend(command: Run, tmp_path: Path) -> None:
    ended = command("doctor", "llama2-7b-paper", "--judge", "openai:gpt-4o", "--out", tmp_path, "--json")
    assert ended.code == 1
    assert ended.err.count("\n") == 1
    found = {finding["about"]: finding for finding in json.loads(ended.out)}
    assert found["judge openai:gpt-4o"]["status"] == "fail"
    assert "OPENAI_API_KEY" in found["judge openai:gpt-4o"]["found"]
    assert found["dataset LLM-Tuning-Safety/HEx-PHI"]["status"] == "warn"  # offline here
    assert "--data hexphi_raw=FILE" in found["dataset LLM-Tuning-Safety/HEx-PHI"]["mend"]
    assert found["model meta-llama/Llama-2-7b-chat-hf"]["status"] == "warn"


def test_weights_that_do_not_land_are_found_by_their_names(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    def copy(name: str, change: Callable[[str], str]) -> Path:
        folder = Path(shutil.copytree(seed_model_path(), tmp_path / name))
        tensors = load_file(folder / "model.safetensors")
        renamed = {change(key): value for key, value in tensors.items()}
        save_file(renamed, folder / "model.safetensors", {"format": "pt"})
        return folder

    wrapped = examined(tmp_path / "run", model=str(copy("wrapped", lambda key: f"_orig_mod.{key}")))["model"]
    assert wrapped.status == "warn"
    assert "the wrapper's prefix '_orig_mod.' is taken off" in wrapped.found
    other = examined(tmp_path / "run", model=str(copy("other", lambda key: f"policy.{key}")))["model"]
    assert other.status == "fail"
    assert "'model.embed_tokens.weight' (and 37 more) are missing" in other.found
    endless = checkpoints.load_tokenizer(seed_model_path())
    endless.eos_token = None
    endless.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
    folder = copy("endless", lambda key: key)
    endless.save_pretrained(folder)
    assert "nothing ends an answer" in examined(tmp_path / "run", model=str(folder))["model"].found


def test_a_key_is_never_shown(command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "planted-key-0123")
    monkeypatch.setenv("HF_TOKEN", "planted-token-0123")
    for flags in ([], ["--json"]):
        ended = command("doctor", "--judge", "openai:gpt-4o", "--out", tmp_path, *flags)
        assert "planted" not in ended.out + ended.err


def test_memory_and_disk_are_held_against_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    class Little:
        available = free = 1_000_000

    monkeypatch.setattr(psutil, "virtual_memory", Little)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Little)
    found = examined(tmp_path)
    assert found["memory"].status == "fail"
    assert "--tuning lora" in found["memory"].mend
    assert found["disk"].status == "fail"
    assert "harness clean" in found["disk"].mend


def test_foreign_packages_and_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found_there = [("the package 'judges' also installs 'judges'", "pip uninstall judges")]
    monkeypatch.setattr(registry, "foreign_packages", lambda: found_there)
    metadata = installation.metadata
    real = metadata.version
    monkeypatch.setattr(
        installation.metadata, "version", lambda name: "0.1" if name == "pandas" else real(name)
    )
    found = examined(tmp_path)
    assert found["import names"].status == "fail"
    assert "pip uninstall judges" in found["import names"].mend
    assert found["packages"].status == "fail"
    assert "pandas 0.1, needs" in found["packages"].found


def test_a_source_tree_without_metadata_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise installation.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(installation.metadata, "requires", missing)
    found = examined(tmp_path)
    assert found["installation"].status == "warn"
    assert "safetune-harness is not installed" in found["installation"].found
    assert found["packages"].status == "pass"


def test_servers_are_asked(tmp_path: Path) -> None:
    with completions_server.running(checkpoints.load_tokenizer(seed_model_path())) as server:
        up = examined(tmp_path, engine="openai", **{"responses.server": server.url})
        assert up.get(f"server {server.url}") == Finding("pass", f"server {server.url}", "answers"), up
    down = examined(tmp_path, engine="openai", **{"responses.server": "http://127.0.0.1:9/v1"})
    assert down["server http://127.0.0.1:9/v1"].status == "fail"
    assert "start it" in down["server http://127.0.0.1:9/v1"].mend


@pytest.mark.parametrize(
    ("step", "status", "says"),
    [
        (fault_server.drip, "fail", "no answer (no reply in time)"),
        (fault_server.dripped_headers, "fail", "no answer (no reply in time)"),
        (fault_server.endless, "fail", "no answer (a reply of more than 0.25 MiB)"),
        (fault_server.many_headers, "fail", "no answer (the connection broke)"),
        (fault_server.redirect(302, "http://127.0.0.1:9/"), "fail", "answers 302"),
        (fault_server.error(503, "x", "\x1b[2J"), "fail", "answers 503"),
        (fault_server.error(401, "x", "\x1b[2J"), "pass", "answers 401"),
    ],
)
def test_a_server_of_any_kind_is_one_finding(
    monkeypatch: pytest.MonkeyPatch, step: Any, status: str, says: str
) -> None:
    monkeypatch.setattr(services, "REACH_S", 0.3)
    monkeypatch.setattr(http_client, "MOST_BYTES", 2**18)
    monkeypatch.setenv("OPENAI_API_KEY", "planted-key-0123")
    with fault_server.running() as server:
        server.on_get = step
        found = services.reach(server.url)
        assert (found.status, found.about, found.found) == (status, f"server {server.url}", says)
        assert bool(found.mend) == (status == "fail")
        assert "authorization" not in server.got[0][1]
    assert services.reach("http://[::1").status == "fail"


def test_a_check_that_breaks_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(ctx: Any) -> Any:
        raise RuntimeError("text")

    monkeypatch.setitem(doctor.CHECKS, "disk", broken)
    found = examined(tmp_path)
    assert found["disk"].status == "warn"
    assert found["engine"].status == "pass"


# --- packed rows on a GPU ------------------------------------------------------------------------------


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A GPU, whose kernel for packed rows is tried with these."""
    from harness.training import attention

    tried: list[tuple[Any, ...]] = []
    monkeypatch.setattr(estimate, "on_cuda", lambda ctx: True)
    monkeypatch.setattr(attention, "_takes_kernel", lambda device: True)
    monkeypatch.setattr(attention, "kernel", attention.Kernel(lambda *given: None, (), True))
    monkeypatch.setattr(attention, "_try_kernel", lambda device, *heads: tried.append(heads))
    return tried


def packing(out: Path, **training: Any) -> Finding | None:
    settings = {"dtype": "bfloat16", "batching": "padding-free"} | training
    ctx = RunContext(config.load("mini", {f"training.{k}": v for k, v in settings.items()}), out)
    return next(machine.check_packing(ctx), None)


def test_a_kernel_that_takes_packed_rows(tmp_path: Path, on_cuda: list[Any]) -> None:
    """Tried with the model's own heads."""
    found = packing(tmp_path)
    assert found is not None
    assert found.status == "pass"
    mini = json.loads((seed_model_path() / "config.json").read_text(encoding="utf-8"))
    heads = mini["num_attention_heads"]
    size = mini.get("head_dim") or mini["hidden_size"] // heads
    assert on_cuda == [(heads, mini.get("num_key_value_heads") or heads, size)]


def test_packed_rows_that_will_be_padded_are_said_beforehand(
    tmp_path: Path, on_cuda: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.training import attention

    found = packing(tmp_path, dtype="float32")
    assert found is not None
    assert (found.status, found.about) == ("warn", "batching")
    assert "padding-free becomes grouped here" in found.found
    assert "half precision alone, not float32" in found.found
    assert "training.dtype=bfloat16" in found.mend

    def failing(device: Any, *heads: int) -> None:
        raise RuntimeError("heads of 7\nare not for it")

    monkeypatch.setattr(attention, "_try_kernel", failing)
    found = packing(tmp_path)
    assert found is not None
    assert found.found.endswith("fails (RuntimeError: heads of 7 are not for it)")
    monkeypatch.setattr(attention, "kernel", None)
    found = packing(tmp_path)
    assert found is not None
    assert "has no kernel for packed rows" in found.found


def test_rows_that_are_not_packed_or_not_on_a_gpu_need_no_kernel(
    tmp_path: Path, on_cuda: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert packing(tmp_path, batching="grouped") is None
    assert packing(tmp_path, attention="flash_attention_2") is None
    monkeypatch.setattr(estimate, "on_cuda", lambda ctx: False)
    assert packing(tmp_path) is None
    assert on_cuda == []


def test_a_variants_rows_are_packed_too(tmp_path: Path, on_cuda: list[Any]) -> None:
    packed = {"method": "vanilla", "training": {"batching": "padding-free"}}
    ctx = RunContext(config.load("mini", {"variants": {"packed": packed}}), tmp_path)
    (found,) = machine.check_packing(ctx)
    assert "not float32" in found.found
