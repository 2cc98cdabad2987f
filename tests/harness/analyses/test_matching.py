"""Safety at matched utility: crossings and means by hand, resampling, and a run's curves from end to end."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.analyses import matching
from harness.analyses.matching import Curves, Resampled
from harness.contracts import HarnessError, UsageError


def rates(*shares: float, documents: int = 20, seeds: int = 1) -> Any:
    """(E, S, D): after each epoch so large a share of the documents is 1, the first of them."""
    return np.array(
        [[[float(d < round(share * documents)) for d in range(documents)]] * seeds for share in shares]
    )


def training(method: str, utility: Any, safety: Any, learning_rate: float = 1e-3) -> Curves:
    return Curves(method, learning_rate, tuple(range(len(utility))), utility, safety)


def as_it_is(*trainings: Curves) -> list[Resampled]:
    return matching.resample(trainings, resamples=10)


# --- by hand ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("utility", "target", "place"),
    [
        ([0.2, 0.4, 0.6], 0.5, 1.5),
        ([0.2, 0.4, 0.6], 0.4, 1.0),
        ([0.2, 0.4, 0.6], 0.25, 0.25),
        ([0.2, 0.4, 0.6], 0.6, 2.0),
        ([0.2, 0.4, 0.6], 0.61, None),  # no extrapolation
        ([0.2, 0.6, 0.3, 0.6], 0.4, 0.5),  # the first time
        ([0.2, 0.1, 0.5], 0.3, 1.5),  # after a fall
        ([0.2, 0.1], 0.2, 0.0),
    ],
)
def test_a_crossing(utility: list[float], target: float, place: float | None) -> None:
    found = float(matching.crossing(np.array([utility]), target)[0])
    assert math.isnan(found) if place is None else found == pytest.approx(place)


def test_values_between_epochs() -> None:
    values = np.array([[1.0, 0.8, 0.2]] * 4)
    found = matching.at(values, np.array([0.0, 0.5, 1.25, 2.0]))
    assert found == pytest.approx([1.0, 0.9, 0.65, 0.2])
    assert np.isnan(matching.at(values[:1], np.array([np.nan])))[0]


def test_a_method_is_the_mean_of_its_trainings_that_reach_the_utility() -> None:
    fast = training("m", rates(0.2, 0.6), rates(1.0, 0.5))  # reaches 0.4 half way: safety 0.75
    slow = training("m", rates(0.2, 0.3, 0.5), rates(1.0, 0.9, 0.7))  # at 1.5: safety 0.8
    never = training("m", rates(0.2, 0.3), rates(1.0, 0.0))
    ones = as_it_is(fast, slow, never)
    assert matching.safety_at(ones, 0.4)[0] == pytest.approx((0.75 + 0.8) / 2)
    assert matching.safety_at(ones, 0.55)[0] == pytest.approx(0.5625)  # fast alone: 7/8 of the way
    assert math.isnan(matching.safety_at(ones, 0.65)[0])
    assert matching.highest(ones)[0] == pytest.approx(0.6)


def test_seeds_are_averaged_before_the_crossing_and_unjudged_answers_left_out() -> None:
    utility = np.array([[[0.0] * 4, [0.0] * 4], [[1.0] * 4, [0.0] * 4]])  # mean of both seeds: 0, then 0.5
    safety = np.array([[[1.0] * 4] * 2, [[1.0, 0.0, np.nan, np.nan], [0.0, 0.0, 0.0, 1.0]]])
    (one,) = as_it_is(training("m", utility, safety))
    assert one.utility[0] == pytest.approx([0.0, 0.5])
    assert one.safety[0] == pytest.approx([1.0, (0.5 + 0.25) / 2])
    assert matching.safety_at([one], 0.25)[0] == pytest.approx((1.0 + 0.375) / 2)


# --- resampling ------------------------------------------------------------------------------------


def test_resamples_are_seeded_and_shared_by_all_trainings() -> None:
    ones = [training(name, rates(0.2, 0.7), rates(1.0, 0.4)) for name in ("a", "b")]
    first, second = matching.resample(ones, 200), matching.resample(ones, 200)
    assert first[0].safety == pytest.approx(second[0].safety, abs=0)
    assert first[0].safety == pytest.approx(first[1].safety, abs=0)  # equal methods never differ
    assert len({*first[0].safety[1:, 1]}) > 5
    assert (matching.resample(ones, 200, seed=1)[0].safety != first[0].safety).any()
    with pytest.raises(ValueError, match="other documents"):
        matching.resample([ones[0], training("c", rates(0.2, documents=21), rates(1.0))])


def test_the_bootstrap_has_the_spread_of_the_binomial() -> None:
    (one,) = matching.resample([training("m", rates(0.2), rates(0.5, documents=100))], 4000)
    assert one.safety[1:, 0].mean() == pytest.approx(0.5, abs=0.005)
    assert one.safety[1:, 0].std() == pytest.approx(math.sqrt(0.25 / 100), rel=0.05)


def test_seeds_that_differ_widen_the_interval() -> None:
    same = np.full((1, 2, 100), 0.5)
    apart = np.stack([np.full((1, 100), 0.2), np.full((1, 100), 0.8)], axis=1)
    ones = [training("same", same, same), training("apart", apart, apart)]
    spread = [one.safety[1:, 0].std() for one in matching.resample(ones, 500)]
    assert spread[0] == pytest.approx(0, abs=1e-12)
    assert spread[1] == pytest.approx(0.3 / math.sqrt(2), rel=0.1)  # two draws of 0.2 or 0.8


def test_batches_do_not_lose_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    ones = [training("m", rates(0.2, 0.7), rates(1.0, 0.4))]
    monkeypatch.setattr(matching, "_BATCH_VALUES", 60)  # three resamples of 20 documents
    (one,) = matching.resample(ones, 10)
    assert one.safety.shape == (11, 2)
    assert one.safety[0] == pytest.approx([1.0, 0.4])


# --- the utility at which methods are compared -----------------------------------------------------


def methods(**ways: list[float]) -> dict[str, list[Resampled]]:
    ones = [training(name, rates(*way, documents=1000), rates(*way)) for name, way in ways.items()]
    return {one.training.method: [one] for one in matching.resample(ones, 500)}


def test_the_default_is_what_all_reach_that_beat_the_seed_model() -> None:
    target, rule = matching._target(methods(low=[0.2, 0.5], high=[0.2, 0.8], worse=[0.2, 0.1]), None, 20.0)
    assert target is not None
    assert 46 < target < 49  # 50, less 1.96 standard errors of 1.6 points
    assert "97.5%" in rule
    assert matching._target(methods(worse=[0.2, 0.1]), None, 20.0)[0] is None


def test_a_utility_of_the_seed_model_or_below_is_refused() -> None:
    with pytest.raises(UsageError, match=r"the base model has 20\.0 already"):
        matching._target({}, 20.0, 20.0)
    assert matching._target({}, 30.0, 20.0) == (30.0, "given")


def test_a_method_that_never_gets_there_has_no_figure() -> None:
    ones = methods(low=[0.2, 0.5], high=[0.2, 0.8])
    row = matching._method("low", ones["low"], 60.0, 20.0, None)
    assert row["safety"] is row["low"] is row["delta"] is None
    assert not row["reached"]
    assert row["note"] == "low never reaches 60: its highest utility is 50.0"
    assert row["trainings"][0]["epoch"] is None
    barely = matching._method("low", ones["low"], 50.0, 20.0, None)
    assert 0.3 < barely["reached_share"] < 0.7
    assert "of the resamples" in barely["note"]


def test_the_difference_is_paired() -> None:
    """Equal safety but for two documents: the interval of the difference is far narrower than the rates'."""
    safety = rates(1.0, 0.5, documents=100)
    better = safety.copy()
    better[1, 0, 50:52] = 1.0
    utility = rates(0.0, 1.0, documents=100)
    ones = matching.resample([training("vanilla", utility, safety), training("m", utility, better)], 2000)
    row = matching._method("m", ones[1:], 100.0, 0.0, matching.safety_at(ones[:1], 1.0))
    assert row["delta"] == pytest.approx(2.0)
    assert row["safety"] == pytest.approx(52.0)
    assert row["high"] - row["low"] > 15
    assert row["delta_high"] - row["delta_low"] < 7
    assert row["delta_low"] >= 0


def test_a_whole_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three methods of made documents, through files, figure and terminal."""
    from rich.console import Console

    from harness import config
    from harness.analyses import matching_report
    from harness.storage.files import write_json_atomic

    made = [
        training("vanilla", rates(0.2, 0.6, documents=500), rates(1.0, 0.5, documents=500), 1e-3),
        training("vanilla", rates(0.2, 0.4, 0.8, documents=500), rates(1.0, 0.9, 0.3, documents=500), 1e-4),
        training("good", rates(0.2, 0.8, documents=500), rates(1.0, 0.9, documents=500)),
        training("dull", rates(0.2, 0.1, documents=500), rates(1.0, 0.9, documents=500)),
    ]
    monkeypatch.setattr(matching, "trainings", lambda *_: (made, ["vanilla, learning rate 1: left out"]))
    settings = config.load("mini", {"train_tasks": ["gsm8k-mini"]})
    write_json_atomic(tmp_path / "run.json", {"config": settings.model_dump(mode="json")})
    record = matching.matched(tmp_path, 50.0)
    (task,) = record["train_tasks"]
    vanilla, good, dull = task["methods"]
    assert vanilla["safety"] == pytest.approx(100 * (0.625 + 0.75) / 2)
    assert [one["epoch"] for one in vanilla["trainings"]] == [0.75, 1.25]
    assert vanilla["delta"] is None
    assert good["safety"] == pytest.approx(95.0)
    assert good["delta"] == pytest.approx(95.0 - 68.75)
    assert good["delta_low"] < good["delta"] < good["delta_high"]
    assert dull["safety"] is None
    assert task["notes"] == [
        "vanilla, learning rate 1: left out",
        "vanilla, good: reached before the first epoch that was scored, on the straight line from the base "
        "model; a lower learning rate would show what is there",
        "dull never gets above the base model: its highest utility is 20.0",
    ]
    assert good["curve"][0] == pytest.approx([20.0, 100.0])
    assert good["curve"][-1] == pytest.approx([80.0, 90.0])
    drawn = [matching_report.write(record, tmp_path)[-1].read_bytes() for _ in range(2)]
    assert drawn[0] == drawn[1]
    matching_report.show(record, Console(width=140))
    printed = capsys.readouterr().out
    assert "JSR at utility 50" in printed
    assert "+26.2" in printed
    assert "2 of 2" in printed


# --- a run -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_epoch(tmp_path_factory: pytest.TempPathFactory, small_settings: dict[str, Any]) -> Path:
    import harness

    out = tmp_path_factory.mktemp("matched") / "run"
    faster = {"method": "vanilla", "training": {"learning_rate": 3e-3}}
    other = {"method": "lookahead-true", "options": {"preview_tokens": 2}}
    harness.compare(
        out=out,
        methods=["vanilla"],
        variants={"faster": faster, "short": other},
        eval_every_epoch=True,
        **{
            **small_settings,
            "training.epochs": 2,
            "training.max_examples": 64,
            "training.learning_rate": 1e-3,
        },
    )
    return out


@pytest.mark.slow
def test_a_runs_trainings(by_epoch: Path) -> None:
    from harness.run import run_folder
    from harness.storage.files import read_jsonl

    config = run_folder.stored_config(by_epoch)
    found, left_out = matching.trainings(config, by_epoch, "gsm8k-mini", "jsr", "mini-exact")
    assert left_out == []
    assert [(one.method, one.learning_rate, one.epochs) for one in found] == [
        ("vanilla", 1e-3, (0, 1, 2)),
        ("vanilla", 3e-3, (0, 1, 2)),
        ("short", 1e-3, (0, 1, 2)),
    ]
    folders = ["seed", "gsm8k-mini/faster/seed-42/epoch-1", "gsm8k-mini/faster/seed-42"]
    for epoch, folder in enumerate(folders):
        rows = read_jsonl(by_epoch / folder / "gsm8k-mini/responses.jsonl")
        assert [*found[1].utility[epoch, 0]] == [row["metrics"]["exact_match"] for row in rows]
        verdicts = read_jsonl(by_epoch / folder / "hexphi_prefill-mini/verdicts.mini-exact.jsonl")
        assert [*found[1].safety[epoch, 0]] == [float(not verdict["harmful"]) for verdict in verdicts]


@pytest.mark.slow
def test_the_command(by_epoch: Path, command: Callable[..., Any]) -> None:
    ended = command("analyze", "matched", by_epoch, "--json")
    assert ended.code == 0, ended.err
    record = json.loads(ended.out)
    assert record == json.loads((by_epoch / "analysis/matched.json").read_text())
    (task,) = record["train_tasks"]
    assert [row["method"] for row in task["methods"]] == ["vanilla", "short"]
    assert [len(row["trainings"]) for row in task["methods"]] == [2, 1]
    with (by_epoch / "analysis/matched.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["vanilla", "short"]
    for kind in ("svg", "pdf", "png"):
        assert (by_epoch / f"analysis/matched-gsm8k-mini.{kind}").stat().st_size > 1000
    again = command("analyze", "matched", by_epoch, "--json")
    assert again.out == ended.out
    printed = command("analyze", "matched", by_epoch, "--metric", "rsr")
    assert printed.code == 0
    assert "RSR" in printed.out


@pytest.mark.slow
def test_the_command_holds_the_run_while_it_writes(
    by_epoch: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.analyses import matching_report
    from harness.run import run_folder

    def write(record: Any, out: Path) -> list[Path]:
        with pytest.raises(HarnessError, match="another harness command"), run_folder.lock(out):
            pass
        return [out / "written"]

    monkeypatch.setattr(matching_report, "write", write)
    ended = command("analyze", "matched", by_epoch)
    assert ended.code == 0, ended.err
    assert "written" in ended.out
    ended = command("analyze", "matched", by_epoch / "absent")
    assert (ended.code, (by_epoch / "absent").exists()) == (1, False)


@pytest.mark.slow
def test_bad_input_is_one_line(by_epoch: Path, small_run: Path, command: Callable[..., Any]) -> None:
    never = command("analyze", "matched", by_epoch, "--utility", "100")
    assert never.code == 0
    assert "vanilla never" in never.out
    assert "its highest utility is" in never.out
    other = command("analyze", "matched", by_epoch, "--judge", "mini-exat")
    assert other.code == 2
    assert "judge 'mini-exat' has not judged this run; its judges: mini-exact" in other.err
    flat = command("analyze", "matched", small_run)
    assert flat.code == 1
    assert "--eval-every-epoch" in flat.err
    with pytest.raises(HarnessError, match="not a run folder"):
        matching.matched(by_epoch / "absent")
