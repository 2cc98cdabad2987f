"""Questions with answers of the user's own: which rows are taken, and what each metric counts."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from harness.contracts import HarnessError
from tasks.questions import functions
from tasks.questions.functions import dataset, document

ROOT = Path(__file__).parents[2] / "tasks/questions"
METRICS = ("exact", "contains", "regex", "rouge1")


def load(tmp_path: Path, *rows: Any, metric: str = "exact", **metadata: Any) -> list[dict[str, Any]]:
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found: list[dict[str, Any]] = dataset(metric, data_files={"questions": str(path)}, **metadata)[
        "test"
    ].to_list()
    return found


@pytest.mark.parametrize("question", ["prompt", "question", "instruction", "input"])
@pytest.mark.parametrize("answer", functions.REFERENCE)
def test_columns(question: str, answer: str, tmp_path: Path) -> None:
    (doc,) = load(tmp_path, {question: "6 * 7?", answer: "42", "category": "maths"})
    assert doc == {
        "id": "questions-0000",
        "category": "maths",
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "6 * 7?"},
        ],
        "instruction": "6 * 7?",
        "references": ["42"],
    }


def test_ids_systems_lists_and_numbers(tmp_path: Path) -> None:
    rows = [
        {"id": 7, "question": "a?", "answer": ["1", "one"], "system": "Be brief."},
        {"question": "b?", "answer": 42, "input": "", "context": None, "choices": []},
        {"input": "c?", "answer": [4, "four"]},
    ]
    docs = load(tmp_path, *rows)
    assert [doc["id"] for doc in docs] == ["7", "questions-0001", "questions-0002"]
    assert [doc["references"] for doc in docs] == [["1", "one"], ["42"], ["4", "four"]]
    assert docs[0]["messages"][0]["content"] == "Be brief."


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"answer": "42"}, "needs a text field 'prompt' or 'question' or 'instruction'"),
        ({"question": " ", "answer": "42"}, "needs a text field"),
        ({"question": "a?"}, "needs an answer, a text or a list of texts, under 'answer' or "),
        ({"question": "a?", "answer": ""}, "needs an answer"),
        ({"question": "a?", "answer": []}, "needs an answer"),
        ({"question": "a?", "answer": ["a", ""]}, "needs an answer"),
        ({"question": "a?", "answer": ["a", None]}, "needs an answer"),
        ({"question": "a?", "answer": True}, "needs an answer"),
        ({"question": "a?", "answer": 4.0}, r"needs an answer.*\(in quotes: is it 4 or 4\.0\?\)"),
        ({"question": "a?", "answer": {"text": "x"}}, "needs an answer"),
        ({"question": "a?", "answer": "x", "context": "of b"}, "'context' is not used here and changes"),
        ({"question": "a?", "answer": "x", "choices": ["x", "y"]}, "'choices' is not used here"),
        ({"question": "a?", "answer": "x", "options": ["x", "y"]}, "'options' is not used here"),
        ({"instruction": "a?", "input": "of b", "output": "x"}, "'input' is not used here"),
        ({"question": "a?", "answer": "x", "tools": [{"name": "f"}]}, "'tools' is not used here"),
        ({"question": "a?", "answer": "x", "history": [["b", "c"]]}, "'history' is not used here"),
        ("a?", "needs a text field"),
    ],
)
def test_what_is_no_question_is_refused_by_its_place(row: Any, says: str, tmp_path: Path) -> None:
    good = {"question": "a?", "answer": "SECRET"}
    with pytest.raises(HarnessError, match=says) as caught:
        load(tmp_path, good, row)
    assert "set.jsonl, line 2: " in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_no_file_and_one_id_twice(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="questions: no data; give a file of questions and answers"):
        dataset("exact")
    with pytest.raises(HarnessError, match="two rows have the same id '1'"):
        load(tmp_path, *[{"id": 1, "question": "a?", "answer": "b"}] * 2)


def test_an_expression_that_is_none_is_found_before_anything_is_asked(tmp_path: Path) -> None:
    row = {"question": "a?", "answer": "(42"}
    with pytest.raises(HarnessError, match=r"line 1: its answer is no regular expression \(missing \)"):
        load(tmp_path, row, metric="regex")
    for metric in ("exact", "contains", "rouge1"):
        assert load(tmp_path, row, metric=metric)


# (metric, references, answer, score, why)
CASES = [
    ("exact", ["42"], " 42\n", 1, "white space around it"),
    ("exact", ["42 "], "42", 1, "around the reference, too"),
    ("exact", ["a", "b"], "b", 1, "any of them"),
    ("exact", ["Lima"], "lima", 0, "capitals count"),
    ("exact", ["Lima"], "Lima.", 0, "and so does all else"),
    ("exact", ["a b"], "a  b", 0, "white space inside, too"),
    ("contains", ["Lima"], "It is Lima.", 1, "anywhere"),
    ("contains", [" Lima "], "Lima", 1, "without white space around it"),
    ("contains", ["Rome", "Lima"], "Lima", 1, "any of them"),
    ("contains", ["Lima"], "LIMA", 0, "capitals count"),
    ("contains", ["a.b"], "axb", 0, "no expression"),
    ("regex", [r"\b4[12]\b"], "so 42 it is", 1, "anywhere"),
    ("regex", ["^42$"], "x\n42", 0, "^ is the whole text's beginning"),
    ("regex", ["(?m)^42$"], "x\n42", 1, "unless it says otherwise"),
    ("regex", ["lima"], "Lima", 0, "capitals count"),
    ("regex", ["(?i)lima"], "Lima", 1, "unless it says otherwise"),
    ("regex", ["x", "y"], "y", 1, "any of them"),
    ("rouge1", ["the cat sat"], "the cat sat", 1, "all words"),
    ("rouge1", ["the cat sat"], "a dog", 0, "none"),
    ("rouge1", ["a dog", "the cat sat"], "the cat", 0.8, "the best: P 2/2, R 2/3, F = 2 * 2/3 / (5/3)"),
    ("rouge1", ["?", "the cat"], "the cat", 1, "one that it cannot read counts for nothing"),
]


@pytest.mark.parametrize(("metric", "references", "answer", "score", "why"), CASES)
def test_scores(metric: str, references: list[str], answer: str, score: float, why: str) -> None:
    found = getattr(functions, metric)({"references": references}, [answer])
    assert found == {metric: pytest.approx(score)}, why


def test_where_rouge_can_read_no_reference_there_is_no_score() -> None:
    assert functions.rouge1({"references": ["?", "。"]}, ["?"]) == {}


@given(st.lists(st.text("ab ."), min_size=1, max_size=3), st.text("ab ."))
def test_scores_are_what_the_definitions_say(references: list[str], answer: str) -> None:
    doc = {"references": references}
    assert functions.exact(doc, [answer])["exact"] == (answer.strip() in [one.strip() for one in references])
    held = [one.strip() for one in references if re.search(re.escape(one.strip()), answer)]
    assert functions.contains(doc, [answer])["contains"] == bool(held)
    found = [one for one in references if re.search(one, answer)]
    assert functions.regex(doc, [answer])["regex"] == bool(found)
    scorer = RougeScorer(["rouge1"], use_stemmer=True)
    readable = [one for one in references if re.search("[a-z0-9]", one)]
    best = max((scorer.score(one, answer)["rouge1"].fmeasure for one in readable), default=None)
    assert functions.rouge1(doc, [answer]) == ({} if best is None else {"rouge1": pytest.approx(best)})


def test_an_expression_without_an_end_is_stopped_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "LONGEST_S", 0.2)
    start = time.monotonic()
    with pytest.raises(
        HarnessError, match=r"document 'q7': its regular expression is still searching"
    ) as caught:
        functions.regex({"id": "q7", "references": ["(x+x+)+y"]}, ["x" * 5000])
    assert time.monotonic() - start < 20
    assert "xxx" not in str(caught.value)


@pytest.mark.parametrize("metric", METRICS)
def test_lm_eval_runs_it(
    metric: str, data_files: dict[str, str], load_tasks: Callable[..., Any], canned_lm: Any
) -> None:
    from lm_eval.evaluator import evaluate

    name = f"questions-{metric}"
    lm = canned_lm(lambda doc: "blorp")
    found = evaluate(
        lm, {"tasks": load_tasks(name, data_files=data_files)}, apply_chat_template=True, bootstrap_iters=0
    )
    assert found["results"][name][f"{metric},none"] == 0.5  # of blorp and frob
    assert lm.requests[0].args[0] == "[system]You are a helpful assistant.[user]What is blorp?"


def test_lm_eval_says_which_it_asks_otherwise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"question": "a?", "answer": "b", "system": "Be brief."}, {"question": "c?", "answer": "d"}]
    load(tmp_path, *rows)
    assert caplog.messages == [
        "questions: 1 of 2 documents have a system prompt of their own, which lm-eval does not show"
    ]
    caplog.clear()
    load(tmp_path, *rows, token_exact=True)
    assert caplog.messages == []


def test_the_readme_s_rows_and_metrics_are_ours() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    docs = [document((f"line {n}", json.loads(row)), "exact") for n, row in enumerate(block.splitlines(), 1)]
    assert [doc["references"] for doc in docs] == [["Lima"], ["42", "forty-two"]]
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == [*METRICS]
