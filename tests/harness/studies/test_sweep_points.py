"""Guards the points of a sweep: which of a run's tasks they come from."""

from __future__ import annotations

from harness import config
from harness.studies import sweep_points


def test_depths_are_those_of_the_prefilled_tasks_own_family() -> None:
    both = ["hexphi_prefill_depths-mini", "hexphi_prefill_depths"]
    settings = config.load("mini", {"safety_tasks": both})
    named = {"train_task": "gsm8k-mini", "judge": "mini-exact", "seed": "42", "method": "vanilla"}
    row = named | {"status": "done", "hexphi_prefill_k3-mini": 30.0, "hexphi_prefill_k3": 3.0}
    points = sweep_points._by_depth(settings, [row])
    assert [(point["value"], point["task"]) for point in points] == [
        (k, f"hexphi_prefill_k{k}-mini") for k in (1, 3, 5, 7, 10)
    ]
    assert [point["jsr"] for point in points] == [None, 30.0, None, None, None]
    other = settings.model_copy(
        update={"safety": settings.safety.model_copy(update={"prefill_task": "hexphi_prefill"})}
    )
    assert [point["jsr"] for point in sweep_points._by_depth(other, [row])] == [None, 3.0, None, None, None]
