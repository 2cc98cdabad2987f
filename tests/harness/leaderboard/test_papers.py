"""Guards that a paper's figures stand beside a run of its setting alone, and are the paper's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import config
from harness.contracts import UsageError
from harness.leaderboard import papers
from harness.plugins import registry


def resolved(**overrides: Any) -> config.RunConfig:
    return config.load("llama2-7b-paper", overrides)


def test_the_figures_average_to_the_papers_own_averages() -> None:
    # Table 1's last three columns: RSR, JSR and utility over both data sets
    averages = {
        "seed": (99.39, 90.30, 25.88),
        "vanilla": (82.88, 38.79, 47.83),
        "sdft": (94.40, 56.97, 32.61),
        "constrained-sft": (84.25, 43.18, 42.81),
        "lookahead-true": (96.67, 55.00, 44.65),
        "lookahead-virtual": (98.03, 59.55, 46.24),
    }
    tables = papers.load("lookahead-tuning").figures
    assert set(tables) == {"gsm8k", "samsum"}
    assert {*tables["gsm8k"], *tables["samsum"]} == set(averages) <= {"seed", *registry.names("method")}
    for method, average in averages.items():
        rows = [tables[task][method] for task in tables]
        means = tuple(sum(row[metric] for row in rows) / 2 for metric in ("rsr", "jsr", "utility"))
        assert means == pytest.approx(average, abs=0.0051)


def test_its_own_recipe_has_them_and_others_do_not() -> None:
    found = papers.figures(resolved())
    assert found["samsum", "lookahead-true", "openai:gpt-4o"] == {
        "utility": 51.08,
        "rsr": 94.85,
        "jsr": 49.39,
    }
    assert len(found) == 12
    assert papers.figures(config.load("llama2-7b-one-gpu")) == found  # the same setting on another machine
    for recipe in {*config.recipe_names()} - {"llama2-7b-paper", "llama2-7b-one-gpu"}:
        assert papers.figures(config.load(recipe)) == {}
        assert papers.notes(config.load(recipe)) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", "other/model"),
        ("training.epochs", 1),
        ("training.learning_rate", 1e-4),
        ("training.tuning", "lora"),
        ("training.max_examples", 100),
        ("train_data", "rows.jsonl"),
        ("safety.prefill_tokens", 5),
        ("responses.limit", 10),
    ],
)
def test_another_setting_leaves_them_out_and_says_why(key: str, value: Any) -> None:
    changed = resolved(**{key: value})
    assert papers.figures(changed) == {}
    assert papers.notes(changed) == [
        f"Not beside LookAhead Tuning, Table 1: this run differs from recipe llama2-7b-paper in {key}."
    ]


def test_devices_seeds_and_other_methods_leave_them_in() -> None:
    changed = resolved(
        **{
            "training.num_processes": 1,
            "training.micro_batch_size": 4,
            "seeds": [1, 2],
            "methods": ["vanilla", "lisa"],
            "train_tasks": ["gsm8k"],
            "method_options.lisa": {"rho": 0.5},
        }
    )
    assert papers.figures(changed) == papers.figures(resolved())
    options = resolved(**{"method_options.lookahead-true": {"preview_tokens": 2}})
    assert papers.differing(options) == ["method_options.lookahead-true"]


def test_another_judge_has_the_utility_alone() -> None:
    changed = resolved(judges=["keyword", "openai:gpt-4o"])
    found = papers.figures(changed)
    assert found["gsm8k", "vanilla", "keyword"] == {"utility": 42.91}
    assert set(found["gsm8k", "vanilla", "openai:gpt-4o"]) == {"utility", "rsr", "jsr"}
    assert any("not put beside those of keyword" in note for note in papers.notes(changed))
    stricter = resolved(**{"judging.threshold": 3.0})
    assert papers.figures(stricter)["gsm8k", "vanilla", "openai:gpt-4o"] == {"utility": 42.91}
    assert any("threshold" in note for note in papers.notes(stricter))


SAYS = {  # RECIPE §8, in a word each
    "turns": "outer white space to the chat template",
    "blank": "one blank after [/INST] and their tests have none",
    "clamp": "without the clamp of token weights at 1e-3",
    "mean": "over those of each micro-batch",
    "rewrites": "rewrites greedily, under system prompts in our words",
    "line": 'end with the label\'s "####" line',
    "judge": "the judge is another model, under a rubric in our words",
    "reply": "a reply of the judge that cannot be read",
    "missing": "an answer that is not there",
}


def departing(changed: config.RunConfig) -> set[str]:
    """Which departures its notes name; each is a line of its own."""
    lines = [line for line in papers.notes(changed) if line.startswith("vs paper, not as there: ")]
    found = {name for name, words in SAYS.items() for line in lines if words in line}
    assert len(found) == len(lines) == len(set(lines))
    assert all(line.endswith(".") and "\n" not in line and "  " not in line for line in lines)
    return found


def test_the_notes_list_every_departure_beside_the_figures() -> None:
    assert departing(resolved()) == set(SAYS)
    assert departing(resolved(methods=["vanilla"])) == set(SAYS) - {"clamp", "mean", "rewrites", "line"}
    assert departing(resolved(methods=["sdft"])) == set(SAYS) - {"clamp", "mean"}
    assert departing(resolved(train_tasks=["samsum"])) == set(SAYS) - {"line"}
    judged = {"judge", "reply", "missing"}
    assert departing(resolved(judges=["keyword"])) == set(SAYS) - judged
    assert departing(resolved(judges=["keyword", "openai:gpt-4o"])) == set(SAYS)
    assert departing(resolved(**{"judging.threshold": 3.0})) == set(SAYS) - judged
    assert departing(resolved(**{"training.epochs": 1})) == set()


def test_they_print_wherever_the_figures_do(tmp_path: Path) -> None:
    import io

    from rich.console import Console

    from harness.leaderboard import build, latex, markdown, show, tables
    from harness.leaderboard.outcomes import CellResult, TaskOutcome

    changed = resolved()
    (judge,) = changed.judges
    values: dict[str, float | None] = {f"d{number}": float(number % 2) for number in range(10)}
    cells = [
        CellResult(
            model=changed.model,
            method=method,
            train_task="gsm8k",
            seed=42,
            judge=judge,
            outcomes={
                "utility": TaskOutcome("gsm8k", "exact_match", values, binary=True),
                "rsr": TaskOutcome("hexphi_raw", "rsr", values, binary=True),
                "jsr": TaskOutcome("hexphi_prefill", "jsr", values, binary=True, prefill_tokens=3),
            },
            status="done",
        )
        for method in ("seed", "vanilla", "constrained-sft")
    ]
    frame = build.build(cells, papers.figures(changed))
    notes = papers.notes(changed)
    tables.write(frame, build.long_scores(cells), tmp_path, title="T", notes=notes)
    markdown.write(frame, tmp_path, title="T", notes=notes)
    latex.write(frame, tmp_path, title="T", notes=notes)
    shown = io.StringIO()
    show.render(frame, Console(file=shown, width=100), title="T", notes=notes)
    texts = [path.read_text(encoding="utf-8") for path in sorted(tmp_path.glob("leaderboard.[jmt]*"))]
    assert len(texts) == 3
    for text in (*texts, shown.getvalue()):
        flat = " ".join(text.replace("\\", "").split())
        assert "without the clamp of token weights at 1e-3" in flat
        assert "the judge is another model" in flat
    assert "vs paper" in texts[1]


def test_an_unknown_paper_is_refused() -> None:
    with pytest.raises(UsageError, match="paper: no figures of 'nobody' are here; known: lookahead-tuning"):
        config.load("mini", {"paper": "nobody"})
