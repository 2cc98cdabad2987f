"""What holds of every task that can be fine-tuned on, ours and the README's example."""

import importlib
from pathlib import Path

from lm_eval.tasks._yaml_loader import load_yaml


def training_and_scoring_agree(folder: Path) -> None:
    """The two sides of ``tasks/<folder>``: the same prompts, the same answers, the metric that is there."""
    train_task = importlib.import_module(f"tasks.{folder.name}.train").TRAIN_TASK
    config = load_yaml(next(folder.glob("*.yaml")), resolve_func=False)
    assert train_task.utility_task == config["task"]
    assert train_task.utility_metric == config["metric_list"][0]["metric"]
    assert train_task.system_prompt == config["description"]
    assert train_task.fields[1] == config["doc_to_target"]
    template = config["doc_to_text"] if "{{" in config["doc_to_text"] else "{{" + config["doc_to_text"] + "}}"
    assert template.replace("{{" + train_task.fields[0] + "}}", "{prompt}") == train_task.prompt_template
