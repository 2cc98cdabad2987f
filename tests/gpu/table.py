"""A report of run.py as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def markdown(report: dict[str, Any]) -> str:
    """The whole report; parts that have not run yet have no line."""
    parts = report["parts"]
    return "\n".join(
        [
            *_head(report),
            *_parts(parts),
            *_training(_results(parts, "mfu", "train", "large")),
            *_answering(_results(parts, "whole_s", "answer")),
            *_comparison(_results(parts, None, "compare")),
            *_checks(_results(parts, "check", "checks")),
        ]
    )


def _results(parts: dict[str, Any], key: str | None, *groups: str) -> list[dict[str, Any]]:
    """The figures of some groups that have ``key``."""
    return [
        {"part": name, **one}
        for name, part in parts.items()
        if part["group"] in groups
        for one in part["results"]
        if key is None or key in one
    ]


def _rows(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A table with the blank line behind it; none without rows."""
    lines = [f"| {' | '.join(_cell(value) for value in row)} |" for row in rows]
    return [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *lines, ""] if lines else []


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", r"\|")


def _head(report: dict[str, Any]) -> list[str]:
    machine, versions = report["machine"], report["versions"]
    seen = machine["torch sees"] or {}
    cards = [f"{one['name']}, {one['memory_bytes'] / 1e9:.0f} GB" for one in seen.get("devices", [])]
    return [
        f"# Measured on {'a CPU, at tiny sizes' if report['device'] == 'cpu' else '; '.join(cards)}",
        "",
        *_rows(
            ("what", "value"),
            [
                ("date", report["started"]),
                ("command", f"`{report['command']}`"),
                ("commit", report["commit"]),
                ("cards", "; ".join(cards) or "none"),
                ("driver", machine["driver"] or "none"),
                ("CUDA of torch", seen.get("cuda") or "none"),
                ("machine", f"{machine['cpus']} CPUs, {machine['system']}, Python {machine['python']}"),
                ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
            ],
        ),
    ]


def _parts(parts: dict[str, Any]) -> list[str]:
    return _rows(
        ("part", "outcome", "seconds", "limit", "reason"),
        [
            (name, one["outcome"], one.get("seconds", ""), one["limit_s"], one.get("reason", ""))
            for name, one in parts.items()
        ],
    )


def _share(value: float | None) -> str:
    return f"{value:.1%}" if value is not None else ""


def _training(results: list[dict[str, Any]]) -> list[str]:
    first = {one["part"]: _speed(one) for one in reversed(results)}
    padded, packing = (first.get(f"train trl {name}") for name in ("padded", "packing"))

    def beside(speed: float, other: float | None) -> str:
        return f"{speed / other:.2f}x" if other else ""

    return _rows(
        (
            *("training", "setting", "real tokens/s", "ms a step", "MFU (flops.py)", "MFU by 6N (LoRA: 4N)"),
            *("whole: tokens/s", "MFU", "by 6N", "peak GB", "beside TRL padded", "beside TRL packing"),
            "steps timed",
        ),
        [
            (
                one["part"].partition(" ")[2],
                one["setting"],
                f"{_speed(one):,.0f}",
                f"{1000 * one['seconds'] / one['steps']:.0f}",
                _share(one["mfu"]),
                _share(one["mfu_by_n"]),
                f"{_speed(one['whole']):,.0f}",
                _share(one["whole"]["mfu"]),
                _share(one["whole"]["mfu_by_n"]),
                f"{one['peak_memory_bytes'] / 1e9:.1f}",
                *(beside(_speed(one), other) for other in (padded, packing)),
                one["steps"],
            )
            for one in results
        ],
    )


def _speed(one: dict[str, Any]) -> float:
    return float(one["tokens"] / one["seconds"])


def _answering(results: list[dict[str, Any]]) -> list[str]:
    ours = next((one for one in results if one["contender"] == "ours, hf"), None)
    return _rows(
        ("answers", "number", "whole s", "generation s", "its whole / ours", "its generation / ours"),
        [
            (
                one["contender"],
                one["answers"],
                f"{one['whole_s']:.1f}",
                f"{one['generation_s']:.1f}",
                *(
                    f"{one[key] / ours[key]:.2f}x" if ours and ours[key] else ""
                    for key in ("whole_s", "generation_s")
                ),
            )
            for one in results
        ],
    )


def _comparison(results: list[dict[str, Any]]) -> list[str]:
    rows = [one for one in results if "method" in one]
    columns = [key for key in rows[0] if key != "part"] if rows else []
    timing = next((one["timing"] for one in results if one.get("timing")), None)
    said = ", ".join(f"{name} {seconds:.1f}" for name, seconds in (timing or {}).items())
    return [
        *_rows(columns, [[one[key] for key in columns] for one in rows]),
        *([f"Seconds by stage: {said}", ""] if said else []),
    ]


def _checks(results: list[dict[str, Any]]) -> list[str]:
    def value(one: Any) -> str:
        return f"{one:.2g}" if isinstance(one, float) else str(one)

    return _rows(
        ("check", "outcome", "seconds", "found"),
        [
            (
                one["check"],
                one["outcome"],
                one["seconds"],
                one.get("reason")
                or ", ".join(f"{name} {value(found)}" for name, found in one.get("values", {}).items()),
            )
            for one in results
        ],
    )
