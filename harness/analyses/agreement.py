"""``harness agreement``: how far a run's judges agree, with each other and with people.

Between judges: raw agreement, Cohen's kappa (Cohen 1960), Krippendorff's alpha (nominal), the confusion table
and the exchanges that they dispute; a vote is none of them. With people's labels: each judge's precision and
recall on harm, and safe rates corrected for its errors (Rogan and Gladen 1978, interval of Lang and Reiczigel
2014). Texts are neither read nor shown: exchanges go by their ids.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.contracts import HarnessError, UsageError
from harness.judging import verdict_files
from harness.leaderboard.spread import ALPHA
from harness.leaderboard.statistics import Estimate, rate
from harness.plugins import registry
from harness.run import plan, run_folder
from harness.run.resolve import resolve
from harness.storage.files import jsonl_lines, write_jsonl_atomic

Key = tuple[str, str, str]  # cell's folder, task, exchange id
Verdicts = dict[str, dict[Key, bool | None]]  # judge -> harmful; None unjudged
SEED = 0


@dataclass(frozen=True)
class Pair:
    """Two judges on the ``n`` exchanges that both judged. ``confusion``: counts by (first, second)."""

    judges: tuple[str, str]
    n: int
    agreement: float | None
    kappa: float | None
    kappa_low: float | None
    kappa_high: float | None
    confusion: dict[str, int]


@dataclass(frozen=True)
class Accuracy:
    """A judge against people: on the labelled exchanges that it judged. Harm is what is looked for."""

    judge: str
    n: int
    unjudged: int
    precision: Estimate
    recall: Estimate  # sensitivity
    specificity: Estimate
    confusion: dict[str, int]  # by (judge, people)


@dataclass(frozen=True)
class Corrected:
    """A cell's safe rate as a judge has it, and as it would be without the judge's errors."""

    judge: str
    cell: str
    task: str
    n: int
    safe: float
    corrected: float | None
    low: float | None
    high: float | None


# --- figures ---------------------------------------------------------------------------------------


def between(first: str, second: str, verdicts: Verdicts) -> Pair:
    """Raw agreement and Cohen's kappa with its large-sample interval (Fleiss, Cohen and Everitt 1969).

    Kappa is None where it is not defined: no common exchange, or both judges always say the same one thing.
    """
    import numpy as np
    from statsmodels.stats.inter_rater import cohens_kappa

    both = [
        (one, two)
        for key, one in verdicts[first].items()
        if one is not None and (two := verdicts[second].get(key)) is not None
    ]
    table = [[both.count((one, two)) for two in (True, False)] for one in (True, False)]
    confusion = _named(table)
    agreement = (table[0][0] + table[1][1]) / len(both) if both else None
    kappa = low = high = None
    if both and 0 < sum(table[0]) + table[0][0] + table[1][0] < 2 * len(both):
        with np.errstate(invalid="ignore", divide="ignore"):  # its z value, which nobody reads
            found = cohens_kappa(table)
        kappa, low, high = float(found.kappa), float(found.kappa_low), float(found.kappa_upp)
        if not math.isfinite(low) or not math.isfinite(high):
            low = high = None
    return Pair((first, second), len(both), agreement, kappa, low, high, confusion)


def alpha(verdicts: Verdicts) -> float | None:
    """Krippendorff's alpha of all judges, nominal, unjudged taken as missing. None where nothing varies."""
    import krippendorff
    import numpy as np

    keys = sorted({key for given in verdicts.values() for key in given})
    coded = {True: 1.0, False: 0.0, None: math.nan}
    data = np.array([[coded[given.get(key)] for key in keys] for given in verdicts.values()])
    if len(data) < 2 or not keys:
        return None
    paired = data[:, (~np.isnan(data)).sum(axis=0) >= 2]
    if paired.size == 0 or len(np.unique(paired[~np.isnan(paired)])) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=data, level_of_measurement="nominal"))


def disputed(verdicts: Verdicts) -> list[Key]:
    """Exchanges that one judge finds harmful and another does not."""
    keys = sorted({key for given in verdicts.values() for key in given})
    return [key for key in keys if {True, False} <= {given.get(key) for given in verdicts.values()}]


def accuracy(judge: str, given: Mapping[Key, bool | None], labels: Mapping[Key, bool]) -> Accuracy:
    pairs = [(given.get(key), label) for key, label in labels.items() if key in given]
    judged = [(verdict, label) for verdict, label in pairs if verdict is not None]
    return Accuracy(
        judge=judge,
        n=len(judged),
        unjudged=len(pairs) - len(judged),
        precision=rate(label for verdict, label in judged if verdict),
        recall=rate(verdict for verdict, label in judged if label),
        specificity=rate(not verdict for verdict, label in judged if not label),
        confusion=_named([[judged.count((said, true)) for true in (True, False)] for said in (True, False)]),
    )


def rogan_gladen(
    positive: int, n: int, true_positive: int, n_positive: int, true_negative: int, n_negative: int
) -> tuple[float | None, float | None, float | None]:
    """A prevalence corrected for the errors of the test that found it: (estimate, low, high), in [0, 1].

    ``positive`` of ``n`` tested positive; of ``n_positive`` known positives the test found ``true_positive``,
    of ``n_negative`` known negatives ``true_negative``. Estimate: (p + Sp - 1) / (Se + Sp - 1), Rogan and
    Gladen 1978, Am J Epidemiol 107:71-76. Interval: Lang and Reiczigel 2014, Prev Vet Med 113:13-22 (pseudo-
    counts, delta method and a shift), which holds its level where Wald's does not. All None where the test
    is no better than chance or one kind was never seen.
    """
    from scipy.stats import norm

    if not (n and n_positive and n_negative):
        return None, None, None
    sensitivity, specificity = true_positive / n_positive, true_negative / n_negative
    if sensitivity + specificity <= 1:
        return None, None, None
    estimate = (positive / n + specificity - 1) / (sensitivity + specificity - 1)

    z = float(norm.ppf(1 - ALPHA / 2))
    size, size_positive, size_negative = n + z**2, n_positive + 2, n_negative + 2
    p = (positive + z**2 / 2) / size
    se, sp = (true_positive + 1) / size_positive, (true_negative + 1) / size_negative
    if se + sp <= 1:
        return _clipped(estimate), None, None
    centre = (p + sp - 1) / (se + sp - 1)
    se_term, sp_term = se * (1 - se) / size_positive, sp * (1 - sp) / size_negative
    shift = 2 * z**2 * (centre * se_term - (1 - centre) * sp_term)
    variance = p * (1 - p) / size + centre**2 * se_term + (1 - centre) ** 2 * sp_term
    half = z * math.sqrt(variance) / (se + sp - 1)
    return _clipped(estimate), _clipped(centre + shift - half), _clipped(centre + shift + half)


def corrected(judge: str, given: Mapping[Key, bool | None], labels: Mapping[Key, bool]) -> list[Corrected]:
    """Each cell's and task's safe rate under one judge, corrected for the errors that the labels show."""
    found = accuracy(judge, given, labels)
    groups: dict[tuple[str, str], list[bool]] = {}
    for (cell, task, _), harmful in given.items():
        if harmful is not None:
            groups.setdefault((cell, task), []).append(harmful)
    counts = found.confusion
    rows = []
    for (cell, task), verdicts in groups.items():
        harm, low, high = rogan_gladen(
            sum(verdicts),
            len(verdicts),
            counts["harmful, harmful"],
            counts["harmful, harmful"] + counts["safe, harmful"],
            counts["safe, safe"],
            counts["safe, safe"] + counts["harmful, safe"],
        )
        rows.append(
            Corrected(
                judge,
                cell,
                task,
                len(verdicts),
                1 - sum(verdicts) / len(verdicts),
                _safe(harm),
                _safe(high),
                _safe(low),
            )
        )
    return rows


def _safe(harmful: float | None) -> float | None:
    return None if harmful is None else 1 - harmful


def _clipped(value: float) -> float:
    return min(1.0, max(0.0, value))


def _named(table: Sequence[Sequence[int]]) -> dict[str, int]:
    names = ("harmful", "safe")
    return {f"{one}, {two}": table[i][j] for i, one in enumerate(names) for j, two in enumerate(names)}


# --- files -----------------------------------------------------------------------------------------


def collect(run: Path) -> Verdicts:
    """What each of a run's judges found, by exchange. Raises HarnessError where nothing is judged."""
    config = run_folder.stored_config(run)
    verdicts: Verdicts = {}
    for cell in resolve(config).cells():
        for one in (cell, *plan.epochs(config, cell)):
            for task in one.safety_tasks:
                for judge in config.judges:
                    if not (run / one.folder / task / verdict_files.marker_file(judge)).is_file():
                        continue
                    for row in verdict_files.read_verdicts(run / one.folder / task, judge):
                        key = (one.folder.as_posix(), task, row["exchange_id"])
                        verdicts.setdefault(judge, {})[key] = row["harmful"]
    if not verdicts:
        raise HarnessError(f"{run}: nothing is judged yet (harness judge {run} --judge ...)")
    return verdicts


def read_labels(path: Path, known: Iterable[Key]) -> dict[Key, bool]:
    """People's labels: ``{"cell", "task", "exchange_id", "harmful": true | false}`` a line; null is skipped.

    Raises UsageError with the line for what is none, and for an exchange that the run does not have.
    """
    exchanges, labels = set(known), dict[Key, bool]()
    for number, row in jsonl_lines(path):
        try:
            key = (str(row["cell"]), str(row["task"]), str(row["exchange_id"]))
            harmful = row["harmful"]
        except KeyError as error:
            raise UsageError(
                f"{path}, line {number}: no {error} (cell, task, exchange_id, harmful)"
            ) from None
        if harmful is None:
            continue
        if not isinstance(harmful, bool):
            raise UsageError(f"{path}, line {number}: harmful must be true, false or null")
        if key not in exchanges:
            raise UsageError(f"{path}, line {number}: the run has no exchange {' / '.join(key)}")
        if key in labels:
            raise UsageError(f"{path}, line {number}: {' / '.join(key)} is labelled twice")
        labels[key] = harmful
    if not labels:
        raise UsageError(f"{path}: no line has a label (harmful: true or false)")
    return labels


def write_template(run: Path, path: Path, sample: int) -> int:
    """A file to label: a random sample of the run's exchanges, by id, without texts. Returns how many.

    Random over all, and not where judges dispute: only so do the labels give a judge's error rates.
    """
    if path.exists():
        raise UsageError(f"{path} is there already; choose another file, so that no label is lost")
    verdicts = collect(run)
    draws = random.Random(SEED)
    every = sorted({key for given in verdicts.values() for key in given})
    chosen = sorted(draws.sample(every, min(sample, len(every))))
    names = ("cell", "task", "exchange_id")
    rows = [dict(zip(names, key, strict=True)) | {"harmful": None} for key in chosen]
    write_jsonl_atomic(path, rows)
    return len(rows)


def analyse(run: Path, labels_file: Path | None = None) -> dict[str, Any]:
    """All figures as JSON values; rates are fractions."""
    verdicts = collect(run)
    own = {name: given for name, given in verdicts.items() if not registry.combines(name)}
    if len(own) < 2 and labels_file is None:
        raise HarnessError(
            f"{run}: only '{next(iter(own))}' has judged it; add another (harness judge RUN --judge ...) "
            "or compare it with people (--labels FILE)"
        )
    pairs = [between(one, two, own) for one, two in itertools.combinations(own, 2)]
    record: dict[str, Any] = {
        "judges": {
            judge: {"n": len(given), "unjudged": sum(v is None for v in given.values())}
            for judge, given in verdicts.items()
        },
        "pairs": [asdict(pair) for pair in pairs],
        "alpha": alpha(own),
        "disputed": [
            dict(zip(("cell", "task", "exchange_id"), key, strict=True))
            | {"harmful": {judge: given.get(key) for judge, given in own.items()}}
            for key in disputed(own)
        ],
    }
    if labels_file is not None:
        every = {key for given in verdicts.values() for key in given}
        labels = read_labels(labels_file, every)
        record["labels"] = {"n": len(labels), "harmful": sum(labels.values())}
        record["accuracy"] = [asdict(accuracy(judge, given, labels)) for judge, given in verdicts.items()]
        record["corrected"] = [
            asdict(row) for judge, given in verdicts.items() for row in corrected(judge, given, labels)
        ]
    return record
