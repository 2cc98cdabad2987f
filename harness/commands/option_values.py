"""What an option's text means: names, pairs, shares, columns, each refused where it is none."""

from __future__ import annotations

from typing import Any

import click


def names(
    ctx: click.Context, param: click.Parameter, value: str | tuple[str, ...] | None
) -> list[str] | None:
    """The names of ``A,B``, and of an option that was given several times."""
    given = (value,) if isinstance(value, str) else value
    if not given:
        return None
    found = []
    for text in given:
        some = [name.strip() for name in text.split(",") if name.strip()]
        if not some:
            raise click.BadParameter("no name in it")
        found += some
    return list(dict.fromkeys(found))


def one(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> str | None:
    """The one name of an option that takes several elsewhere."""
    found = names(ctx, param, value)
    if found is not None and len(found) > 1:
        raise click.BadParameter(f"takes one name here, and there are {len(found)}: {', '.join(found)}")
    return found[0] if found else None


def seeds(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> list[int] | None:
    numbers = names(ctx, param, value)
    try:
        return [int(number) for number in numbers] if numbers is not None else None
    except ValueError:
        given = ",".join(value)
        raise click.BadParameter(f"'{given}' is not a list of whole numbers, as in 1,2,3") from None


def pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not (name and equals and rest):
            raise click.BadParameter(
                f"'{value}': expected {'NAME=COLUMN' if param.name == 'columns' else 'NAME=PATH'}"
            )
        pairs[name] = rest
    return pairs


def columns(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[str, Any]:
    """``A=B,C=D``, or by train task ``T.A=B,T.C=D``."""
    found = pairs(ctx, param, tuple(names(ctx, param, value) or ()))
    by_task: dict[str, Any] = {}
    for name, column in found.items():
        task, dot, field = name.rpartition(".")
        if dot:
            by_task.setdefault(task, {})[field] = column
    if by_task and sum(map(len, by_task.values())) < len(found):
        raise click.BadParameter("name the train task of each column (T.prompt=A,T.answer=B), or of none")
    return by_task or found


def train_data(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> str | dict[str, str] | None:
    """``DATA``, or for each of several train tasks ``TASK=DATA``."""
    from harness.text import is_name

    found: dict[str, str] = {}
    for value in values:
        name, equals, source = value.partition("=")
        if not (equals and is_name(name)):
            if len(values) > 1:
                raise click.BadParameter(f"'{value}': of several, each names its train task: TASK={value}")
            return value
        if not source:
            raise click.BadParameter(f"'{value}': expected TASK=FILE")
        if name in found:
            raise click.BadParameter(f"'{name}' is given twice")
        found[name] = source
    return found or None


def shares(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    shares: dict[str, float] = {}
    for value in values:
        source, _, ratio = value.rpartition(":")
        try:
            share = float(ratio)
        except ValueError:
            share = 0.0
        if not (source and 0 < share < 1):
            raise click.BadParameter(f"'{value}': expected FILE:RATIO, a ratio between 0 and 1")
        if source in shares:
            raise click.BadParameter(f"'{source}' is given twice")
        shares[source] = share
    return shares


def metrics(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Metrics by the name of a set; under "" the one for all sets."""
    found: dict[str, str] = {}
    for value in values:
        name, _, metric = value.rpartition("=")
        if not metric or name in found:
            raise click.BadParameter(f"'{value}': expected METRIC or NAME=METRIC, each once")
        found[name] = metric
    return found


def folders(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[str]:
    """Folders of tasks, which every name of a task that follows may be in."""
    from harness.plugins import plugin_files

    return [plugin_files.name_folder(value) for value in values]
