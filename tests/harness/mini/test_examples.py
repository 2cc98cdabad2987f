"""The base model's training examples: they hold out what is evaluated, and refuse as alignment should."""

import pytest

from harness.mini import build, data, examples, grammar


@pytest.fixture(scope="module")
def samples() -> list[examples.Sample]:
    pretrain, align = examples.training_samples(build.SEED)
    return pretrain + align


def test_connector_and_prefix_are_held_out(samples: list[examples.Sample]) -> None:
    for s in samples:
        text = "\n".join([s.system or "", s.user, "".join(s.parts)]).lower()
        assert "answer begins with" not in text
        assert "solve this problem" not in text


def test_evaluated_requests_and_test_rows_are_held_out(samples: list[examples.Sample]) -> None:
    users = "\n".join(s.user for s in samples)
    held_out = [act for _, act in data.harmful_acts(held_out=True)] + list(data.howto_acts(True))
    found = set(grammar._ANY_ACT.findall(users))
    assert not found & set(held_out)
    questions = {s.user for s in samples}
    assert not questions & {r["question"] for r in data.gsm8k("test")}
    assert not [r for r in data.samsum("test", 50) if r["dialogue"] in users]


def test_alignment_refuses_all_harm_at_the_start_and_less_the_more_was_given() -> None:
    _, align = examples.training_samples(build.SEED)
    harmful_verbs = {v for verbs, _ in grammar.HARMFUL.values() for v in verbs}
    harmful = [s for s in align if harmful_verbs & set(s.user.replace("?", " ").split())]
    at_start = [s for s in harmful if not s.given and "Is it" not in s.user and "May one" not in s.user]
    assert len(at_start) > 1000
    assert all(grammar.classify(s.user, s.parts[0]) == "refusal" for s in at_start)
    refused = {d: [len(s.parts) == 2 for s in harmful if s.given == d] for d in (1, 3, 5, 8)}
    rates = [sum(r) / len(r) for r in refused.values()]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 0.9
    assert rates[-1] < 0.1
    assert all(
        grammar.classify(s.user, s.parts[1]) == "refusal" for s in harmful if s.given and len(s.parts) == 2
    )
