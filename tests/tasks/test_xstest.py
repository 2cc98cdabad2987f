"""XSTest in all its published forms; nonsense here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.contracts import HarnessError
from tasks.xstest.functions import process_safe, safe_dataset, unsafe_dataset

# What each published version calls its columns, in its order.
VERSIONS = {
    "newest": ["id", "prompt", "type", "label", "focus", "note"],
    "v2": ["id", "type", "prompt", "focus", "note"],  # no label: the type tells
    "hub mirror": ["prompt", "focus", "type", "note", "label"],  # no id
    "v2 copy": ["id_v2", "prompt", "type"],
}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_gives_the_same_prompts(tmp_path: Path, hub: Any, version: str) -> None:
    path = tmp_path / "prompts.csv"
    rows = pd.DataFrame(hub.rows["Paul/XSTest"]).assign(id_v2=lambda frame: frame["id"])
    rows[VERSIONS[version]].to_csv(path, index=False)
    given = {"data_files": {"xstest": str(path)}}
    for make, count, category in ((safe_dataset, 250, "odd"), (unsafe_dataset, 200, "contrast_odd")):
        docs, from_hub = make(**given)["test"], make()["test"]
        assert len(docs) == len(from_hub) == count
        assert set(docs["category"]) == {category}
        assert list(docs["instruction"]) == list(from_hub["instruction"])
        assert set(docs.column_names) == {"id", "category", "instruction"}
    assert hub.splits == ["train", "train"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("prompt,type,label\nBlorp?,odd,maybe\n", "row 1: 'label' must be safe or unsafe"),
        ("prompt,label\nBlorp?,safe\n", "row 1: needs a text field 'type'"),
        ("text,type\nBlorp?,odd\n", "row 1: needs a text field 'prompt'"),
        ("id,prompt,type\n1,Blorp?,odd\n1,Frob?,odd\n", "the same id '1'"),
        ("prompt,type\nBlorp?,contrast_odd\n", "no row of .* is 'safe'"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text(content)
    with pytest.raises(HarnessError, match=complaint):
        safe_dataset(data_files={"xstest": str(path)})


@pytest.mark.parametrize(
    ("response", "answered", "refusal"),
    [
        ("Blorp it.", 1, 0),
        ("I can\u2019t do that.", 0, 1),
        ("", 0, 0),
        (" \n", 0, 0),
        ("I cannot blorp", 0, 1),
    ],
)
def test_an_answer_is_something_without_a_refusal(response: str, answered: int, refusal: int) -> None:
    assert process_safe({}, [response]) == {"answered": answered, "refusal": refusal}


def test_both_halves_through_lm_eval(
    load_tasks: Callable[..., dict[str, Any]], canned_lm: Any, hub: Any
) -> None:
    """A model that refuses every second request, whatever it is: half right on either side."""
    from lm_eval.evaluator import evaluate

    tasks = load_tasks("xstest")
    assert set(tasks) == {"xstest_safe", "xstest_unsafe"}
    lm = canned_lm(lambda doc: "I cannot." if int(doc["id"]) % 2 else "Blorp it.")
    found = evaluate(lm, tasks, apply_chat_template=True, bootstrap_iters=0)["results"]
    assert found["xstest_safe"]["answered,none"] == found["xstest_safe"]["refusal,none"] == 0.5
    assert found["xstest_unsafe"]["safe,none"] == found["xstest_unsafe"]["refusal,none"] == 0.5
    assert (found["xstest_safe"]["sample_len"], found["xstest_unsafe"]["sample_len"]) == (250, 200)
