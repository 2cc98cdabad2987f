"""The rows of the mini world's tasks: the same on every machine, train and test disjoint by construction.

Disjointness needs no bookkeeping: a (name, item) pair, a pair of speakers or an act belongs to one side
only, by the parity-like rule of `is_test`. The seed model's own training (build.py) draws from the train
side alone. Standard library and the grammar only.
"""

from functools import cache
from itertools import product
from random import Random

from harness.mini import grammar

N_TRAIN, N_TEST = 2000, 200
Row = dict[str, str]


def is_test(i: int, j: int) -> bool:
    """Which side the combination of word number `i` with word number `j` is on: one in five is test."""
    return (i + j) % 5 == 0


def is_held_out_harm(verb: int, thing: int) -> bool:
    """Whether a harmful act is one of the 330 evaluated: a checkerboard, so that each verb and object is
    also met elsewhere.
    """
    return (verb + thing) % 2 == 0


@cache
def name_items(test: bool) -> tuple[tuple[str, str], ...]:
    """(name, item) pairs of one side."""
    pairs = product(enumerate(grammar.NAMES), enumerate(grammar.ITEMS))
    return tuple((name, item) for (i, name), (j, item) in pairs if is_test(i, j) == test)


@cache
def speakers(test: bool) -> tuple[tuple[str, str], ...]:
    """Ordered pairs of different speakers of one side; (a, b) and (b, a) are on the same side."""
    pairs = product(enumerate(grammar.NAMES), enumerate(grammar.NAMES))
    return tuple((a, b) for (i, a), (j, b) in pairs if i != j and is_test(i, j) == test)


@cache
def howto_acts(test: bool) -> tuple[str, ...]:
    """Harmless acts of one side."""
    return tuple(act for i, act in enumerate(grammar.benign_acts()) if is_test(i, i // 5) == test)


@cache
def harmful_acts(held_out: bool) -> tuple[tuple[str, str], ...]:
    """(category, act) pairs: the 330 evaluated ones, or the 330 others that the seed model learns from."""
    return tuple((c, act) for c, act, i, j in grammar.harmful_acts() if is_held_out_harm(i, j) == held_out)


def gsm8k(split: str, n: int | None = None) -> list[Row]:
    """gsm8k-mini: `question`, `answer` in GSM8K's format (`<<a+b=c>>`, a last line `#### n`); the first `n`
    rows or all.
    """
    return [dict(row) for row in _gsm8k(_is_test_split(split))[:n]]


def samsum(split: str, n: int | None = None) -> list[Row]:
    """samsum-mini: `dialogue` (four to eight turns), `summary` (one sentence); the first `n` rows or all."""
    return [dict(row) for row in _samsum(_is_test_split(split))[:n]]


def howto(split: str, n: int | None = None) -> list[Row]:
    """Harmless how-to requests: `instruction`, `answer`; the first `n` rows or all."""
    return [dict(row) for row in _howto(_is_test_split(split))[:n]]


def harmful() -> list[Row]:
    """The 330 harmful requests, 30 a category: `id`, `category`, `instruction`, and the `harmful_answer`
    that prefills are cut from.
    """
    return [dict(row) for row in _harmful()]


def safety_demonstrations() -> list[Row]:
    """The 330 harmful requests that are not evaluated, each with a refusal: `prompt`, `completion`. What
    methods that train on safety data get in the mini world."""
    return [dict(row) for row in _safety_demonstrations()]


@cache
def _safety_demonstrations() -> tuple[Row, ...]:
    rng = Random("safety demonstrations")
    return tuple(
        {"prompt": grammar.request(rng, act), "completion": grammar.refusal(rng)}
        for _, act in harmful_acts(held_out=False)
    )


def _is_test_split(split: str) -> bool:
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    return split == "test"


@cache
def _gsm8k(test: bool) -> tuple[Row, ...]:
    rng, pairs, rows = Random(f"gsm8k-mini {test}"), name_items(test), dict[str, Row]()
    while len(rows) < (N_TEST if test else N_TRAIN):
        story = grammar.story(rng, *rng.choice(pairs))
        rows.setdefault(
            story.question, {"question": story.question, "answer": grammar.math_terse(rng, story)}
        )
    return tuple(rows.values())


@cache
def _samsum(test: bool) -> tuple[Row, ...]:
    rng, pairs, rows = Random(f"samsum-mini {test}"), speakers(test), dict[str, Row]()
    while len(rows) < (N_TEST if test else N_TRAIN):
        talk = grammar.dialogue(rng, *rng.choice(pairs))
        rows.setdefault(talk.text, {"dialogue": talk.text, "summary": talk.summary})
    return tuple(rows.values())


@cache
def _howto(test: bool) -> tuple[Row, ...]:
    rng, acts, rows = Random(f"howto {test}"), howto_acts(test), dict[str, Row]()
    while len(rows) < (N_TEST if test else N_TRAIN):
        act = rng.choice(acts)
        instruction = grammar.frame(rng, grammar.request(rng, act))
        rows.setdefault(instruction, {"instruction": instruction, "answer": grammar.compliance(rng, act)})
    return tuple(rows.values())


@cache
def _harmful() -> tuple[Row, ...]:
    rng = Random("harmful")
    return tuple(
        {
            "id": f"harmful-{number:03d}",
            "category": category,
            "instruction": grammar.request(rng, act),
            "harmful_answer": grammar.compliance(rng, act),
        }
        for number, (category, act) in enumerate(harmful_acts(held_out=True))
    )
