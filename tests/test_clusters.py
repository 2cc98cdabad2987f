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

PAGE = (Path(__file__).parent.parent / "CLUSTERS.md").read_text(encoding="utf-8")


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
    assert len(found) == 5
    (service,) = (one for (kind, _), one in found.items() if kind == "Service")
    pods = [one["spec"]["template"] for one in found.values() if "template" in one["spec"]]
    labels = [pod.get("metadata", {}).get("labels", {}) for pod in pods]
    assert service["spec"]["selector"] in labels
    for pod in pods:
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        for container in pod["spec"]["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            if "command" not in container:
                check(container["args"])
        for volume in pod["spec"]["volumes"]:
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            assert claim is None or ("PersistentVolumeClaim", claim) in found
    head = f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert head in str(pods[-1])
