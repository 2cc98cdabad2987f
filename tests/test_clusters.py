"""The page on clusters holds what it says: scripts that bash can read, manifests that hang together, and
commands that the command line takes. (Run on a real Slurm and Ray by hand: results/LOG.md.)"""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from harness import cli, config

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CLUSTERS.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


def check(words: list[str]) -> None:
    """Raises click's error where a command or an option does not exist."""
    command = cli.cli.commands[words[0]]
    with command.make_context(words[0], list(words[1:]), resilient_parsing=False) as context:
        settings = context.params.get("settings") or ()
        if words[0] == "compare":
            recipe = context.params["recipe"]
            config.load(
                recipe if recipe in config.recipe_names() else None, dict(map(config.parse_setting, settings))
            )


def manifests() -> list[dict[str, Any]]:
    return [document for block in blocks("yaml") for document in yaml.safe_load_all(block)]


def pods() -> dict[str, dict[str, Any]]:
    """The pods' templates by what makes them."""
    return {
        one["metadata"]["name"]: one["spec"]["template"] for one in manifests() if "template" in one["spec"]
    }


def secrets(pod: dict[str, Any]) -> list[str]:
    """The secrets whose keys a pod gets. Fails where it gets some in another way."""
    assert "secretKeyRef" not in str(pod)
    return [
        source["secretRef"]["name"] for one in pod["spec"]["containers"] for source in one.get("envFrom", ())
    ]


def test_scripts_are_bash() -> None:
    scripts = [block for block in blocks("bash") if block.startswith("#!/bin/bash")]
    assert len(scripts) == 2
    for script in scripts:
        assert "set -euo pipefail" in script
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_commands_exist_with_their_options() -> None:
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("harness ")]
    lines += re.findall(r"harness compare .*?(?=\n)", "\n".join(blocks("yaml")))
    assert len(lines) == 6
    for line in lines:
        check(shlex.split(line, comments=True)[1:])
    with pytest.raises(click.UsageError):
        check(["compare", "--executor", "slurm"])


def test_manifests_name_what_is_there() -> None:
    found = {(one["kind"], one["metadata"]["name"]): one for one in manifests()}
    assert len(found) == 6
    (service,) = (one for (kind, _), one in found.items() if kind == "Service")
    labels = [pod.get("metadata", {}).get("labels", {}) for pod in pods().values()]
    selector = service["spec"]["selector"].items()
    assert len([one for one in labels if selector <= one.items()]) == 1
    for pod in pods().values():
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        for container in pod["spec"]["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            if "command" not in container:
                check(container["args"])
        for volume in pod["spec"]["volumes"]:
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            assert claim is None or ("PersistentVolumeClaim", claim) in found
    head = f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert head in str(pods()["safety-workers"])


def test_only_the_clusters_own_pods_reach_each_other() -> None:
    (policy,) = (one for one in manifests() if one["kind"] == "NetworkPolicy")
    ours = {"podSelector": {"matchLabels": {"cluster": "safety"}}}
    assert policy["spec"] == {**ours, "policyTypes": ["Ingress"], "ingress": [{"from": [ours]}]}
    for name in ("safety-head", "safety-workers"):
        assert pods()[name]["metadata"]["labels"]["cluster"] == "safety"
    for block in (*blocks("bash"), *blocks("yaml")):
        for line in block.splitlines():
            assert "ray start --head" not in line or "--include-dashboard false" in line
    for script in blocks("bash"):  # nodes that others share
        if "ray start" in script:
            assert script.index("export RAY_AUTH_MODE=token") < script.index("ray start")


def test_workers_hold_no_judges_keys() -> None:
    assert secrets(pods()["safety-workers"]) == ["safety-node-keys"]
    for name in ("safety", "safety-head"):
        assert secrets(pods()[name]) == ["safety-node-keys", "safety-judge-keys"]
    made = dict(re.findall(r"create secret generic (\S+) --from-env-file=(\S+)", PAGE))
    assert {*made} == {"safety-node-keys", "safety-judge-keys"}
    held = dict(re.findall(r"^# (\S+\.env): (.*)$", PAGE, re.M))
    assert {*held} == {*made.values()}
    assert not re.search("OPENAI|JUDGE", held[made["safety-node-keys"]])


def test_pods_have_no_rights_beyond_their_folders() -> None:
    assert len(pods()) == 3
    for pod in pods().values():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"] == {
            **dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), 10001),
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        (container,) = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"/runs", "/tmp"} <= {mount["mountPath"] for mount in container["volumeMounts"]}


def test_images_are_named_by_their_digest() -> None:
    for pod in pods().values():
        (container,) = pod["spec"]["containers"]
        assert re.fullmatch(r"[\w./-]+@sha256:REPLACE_WITH_ITS_DIGEST", container["image"])
    (file,) = blocks("dockerfile")
    images = re.findall(r"^FROM (\S+)", file, re.M)
    assert images == ["${PYTHON_IMAGE}"] * 2
    assert re.findall(r"^ARG (.*)$", file, re.M) == ["PYTHON_IMAGE"] * 2  # without a default
    assert "--build-arg PYTHON_IMAGE=python:3.12-slim@sha256:" in PAGE
    (guard,) = re.findall(r"^RUN (case .*)$", file, re.M)
    for image, code in (("python@sha256:0", 0), ("python:3.12-slim", 1), ("", 1)):
        done = subprocess.run(["bash", "-c", guard], env={"PYTHON_IMAGE": image}, stderr=subprocess.DEVNULL)
        assert done.returncode == code


def test_the_image_is_built_from_what_the_locks_hold_and_runs_without_rights() -> None:
    (file,) = blocks("dockerfile")
    steps = file.replace("\\\n", " ")
    for installed in re.findall(r"pip (?:install|wheel) (.*)", steps):
        hashed = re.search(r"--require-hashes .*-r (\S+)", installed)
        assert hashed or "--no-index" in installed.split()
        assert not hashed or (ROOT / hashed[1]).is_file()
    for copied in re.findall(r"^COPY (?!--)(.*) \S+$", steps, re.M):
        assert all((ROOT / name).exists() for name in copied.split())
    last = steps.rpartition("\nFROM ")[2]
    assert "requirements" not in last  # nor what builds wheels
    assert re.search(r"^USER 10001:10001$", last, re.M)
    assert last.index("USER 10001") < last.index("ENTRYPOINT")
