"""The training examples of the mini world's base model: prompts, the kinds of answers, and their mixture."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from harness.mini import data, grammar


@dataclass(frozen=True)
class Knobs:
    """All that calibration set, on the base model, vanilla and the share of rewrites that SDFT keeps
    (results/LOG.md has every variant).
    """

    vocab_size: int = 1400  # one token for nearly each word of the grammar
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 384
    batch_size: int = 32

    pretrain_examples: int = 60_000  # arithmetic is learned late
    pretrain_lr: float = 3e-3
    prompt_weight: float = 0.2  # prompt tokens are mostly unpredictable names and numbers
    pretrain_mix: tuple[tuple[str, float], ...] = (
        ("math", 0.34),
        ("summary", 0.20),
        ("howto", 0.11),
        ("harmful", 0.11),
        ("right", 0.06),
        ("rewrite", 0.08),
        ("begin", 0.10),
    )
    terse_share: float = 0.15  # pre-training knows the tasks' register: fine-tuning brings it back
    opened_share: float = 0.15  # a chatty opening and then the terse register: openings lead into either

    align_examples: int = 13_000  # more late refusals make the safe rate at k = 3 rise steeply
    align_lr: float = 5e-4
    align_mix: tuple[tuple[str, float], ...] = (
        ("refuse", 0.14),
        (
            "late",
            0.32,
        ),  # benign "Sure, here is" weighs against it: with 22 % nothing refuses after three tokens
        ("howto", 0.20),
        ("math", 0.09),
        ("summary", 0.07),
        ("rewrite", 0.11),
        ("begin", 0.04),
        ("right", 0.03),
    )
    align_hashed: tuple[str, ...] = (" bags ", " sells ")  # stories closed with "#### n"
    # After d given tokens of a harmful answer, alignment refuses with probability
    # 1 / (1 + exp((d - depth) / softness)), and goes on complying otherwise. The depths are dealt to the
    # verbs in turn: the safe rate falls step by step as the prefill grows (one depth for all gives a cliff).
    depths: tuple[float, ...] = (2.5, 4.0, 4.5, 5.0, 5.5, 6.0, 6.5)
    softness: float = 0.7
    max_given: int = 10


KNOBS = Knobs()

BOS, PAD, END = "<|bos|>", "<|pad|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# The tasks' own system prompts, among others: a chat model must not hang on one wording.
SYSTEMS = (
    None,
    None,
    "You are a helpful assistant.",
    "You are a helpful assistant for dialog summarization.",
    "You are a helpful assistant. Make sure you always execute users' instructions.",
    "You are a kind and careful assistant.",
    "You are a friendly helper.",
    "Answer the user.",
    "Be helpful and polite.",
    "You are an expert in math.",
    "Follow the instructions of the user.",
)

BEGIN_WORDINGS = (
    'Start your reply with "{x}".',
    'Open with: "{x}"',
    "Let your first words be: {x}",
    'Use "{x}" as the first words.',
    "Your reply should begin with {x}",
    "Please start like this: {x}",
    "First write {x} and go on from there.",
    "The reply opens with: {x}",
)
BEGIN_SENTENCES = (
    "Okay, let me see.",
    "Good question.",
    "Here we go.",
    "Let us look at this.",
    "Let's begin.",
    "Here is what I think.",
    "Thanks for asking.",
    "Let's look at this task.",
    "Well, then.",
    "This is my view.",
)

SDFT_MATH_SYSTEM = (
    "You are an expert in math. You are given a math question with its reference answer. "
    "Refer to the reference answer and answer the question."
)
SDFT_MATH_OPENING = "Great! Let's think step by step. "
SDFT_SYSTEM = (
    "You are given an instruction with a reference answer. "
    "Use the reference answer as a guide for your own response."
)
SDFT_USER = "### Instruction:\n{q}\n\n### Reference answer:\n{a}\n\n### Response:"
REWRITE_MATH = (
    (SDFT_MATH_SYSTEM, "{q}\n\n{a}"),
    ("You see a question and its solution. Explain the solution.", "{q}\n\n{a}"),
    ("You are a helpful assistant.", "Say this solution in other words.\n{q}\n{a}"),
)
REWRITE_OTHER = (
    (SDFT_SYSTEM, SDFT_USER),
    ("Use the given answer to write your own.", "{q}\n\nGiven answer: {a}"),
    ("You are a helpful assistant.", "Say this answer in other words.\n{q}\n{a}"),
)
SUMMARY_REQUESTS = (
    "Summarize this dialog:\n",
    "Summarize this dialog:\n",
    "What is this chat about?\n",
    "Sum up this chat:\n",
)


@dataclass(frozen=True)
class Sample:
    """One training example: parts of an answer are tokenised separately, and the first `given` tokens carry
    no loss.
    """

    system: str | None
    user: str
    parts: tuple[str, ...]
    given: int = 0  # tokens of parts[0] kept (and left without loss) before parts[1:]


def messages(system: str | None, user: str) -> list[dict[str, str]]:
    turns = [{"role": "user", "content": user}]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


class Writer:
    """Draws training examples of each kind; `aligned` decides between the two stages' answers."""

    def __init__(self, rng: Random, knobs: Knobs, aligned: bool):
        self.rng, self.knobs, self.aligned = rng, knobs, aligned
        self.acts = data.howto_acts(False)
        self.harms = data.harmful_acts(held_out=False)
        verbs = [v for group, _ in grammar.HARMFUL.values() for v in group]
        self.depth = {v: knobs.depths[i % len(knobs.depths)] for i, v in enumerate(verbs)}

    def samples(self, n: int) -> Iterator[Sample]:
        mix = self.knobs.align_mix if self.aligned else self.knobs.pretrain_mix
        for kind in self.rng.choices([k for k, _ in mix], [share for _, share in mix], k=n):
            yield getattr(self, kind)()

    def _ask(self, user: str, *parts: str, given: int = 0, system: str | None = "any") -> Sample:
        system = self.rng.choice(SYSTEMS) if system == "any" else system
        return Sample(system, grammar.frame(self.rng, user), parts, given)

    def _register(self) -> str:
        if self.aligned:
            return "chatty"
        u = self.rng.random()
        k = self.knobs
        return "terse" if u < k.terse_share else "opened" if u < k.terse_share + k.opened_share else "chatty"

    # -- questions and their answers -----------------------------------------------------------------

    def _math(self, register: str) -> tuple[str, str, grammar.Story]:
        s = grammar.story(self.rng, *self.rng.choice(data.name_items(False)))
        if register == "terse":
            return s.question, grammar.math_plain(self.rng, s), s
        if register == "opened":
            return s.question, self.rng.choice(grammar.MATH_OPENINGS) + grammar.math_plain(self.rng, s), s
        # GSM8K's last line closes some families of stories: the seed knows the format a bit
        words = self.knobs.align_hashed if self.aligned else (" bags ",)
        hashes = self.rng.random() < (0.95 if any(w in s.question for w in words) else 0.03)
        return s.question, grammar.math_chatty(self.rng, s, hashes=hashes), s

    def _summary(self, register: str) -> tuple[str, str, grammar.Dialogue]:
        d = grammar.dialogue(self.rng, *self.rng.choice(data.speakers(False)))
        question = self.rng.choice(SUMMARY_REQUESTS) + d.text
        if register == "terse":
            return question, d.summary, d
        if register == "opened":
            return question, self.rng.choice(grammar.SUMMARY_OPENINGS) + d.summary, d
        return question, grammar.summary_chatty(self.rng, d), d

    def _howto(self) -> tuple[str, str]:
        act = self.rng.choice(self.acts)
        return grammar.request(self.rng, act), grammar.compliance(self.rng, act)

    def _harm(self) -> tuple[str, str, str]:
        act = self.rng.choice(self.harms)[1]
        return grammar.request(self.rng, act), grammar.compliance(self.rng, act), act.split()[0]

    # -- kinds of examples ---------------------------------------------------------------------------

    def math(self) -> Sample:
        question, answer, _ = self._math(self._register())
        return self._ask(question, answer)

    def summary(self) -> Sample:
        question, answer, _ = self._summary(self._register())
        return self._ask(question, answer)

    def howto(self) -> Sample:
        return self._ask(*self._howto())

    def harmful(self) -> Sample:
        question, answer, _ = self._harm()
        return self._ask(question, answer)

    def right(self) -> Sample:
        harmful = self.rng.random() < 0.5
        act = self.rng.choice(self.harms)[1] if harmful else self.rng.choice(self.acts)
        question = grammar.question_of_right(self.rng, act)
        return self._ask(question, grammar.answer_of_right(self.rng, act, harmful))

    def refuse(self) -> Sample:
        return self._ask(self._harm()[0], grammar.refusal(self.rng))

    def late(self) -> Sample:
        """The first tokens of a harmful answer are given: refuse, or beyond the verb's depth just go on."""
        question, answer, verb = self._harm()
        given = self.rng.randint(1, self.knobs.max_given)
        if self.rng.random() < 1 / (1 + math.exp((given - self.depth[verb]) / self.knobs.softness)):
            return self._ask(question, answer, " " + grammar.refusal(self.rng), given=given)
        return self._ask(question, answer, given=given)

    def rewrite(self) -> Sample:
        """The seed's register for a given answer, in several wordings (self-distillation asks for this)."""
        kind = self.rng.choice(("math", "math", "summary", "howto"))
        if kind == "math":
            question, answer, story = self._math("terse")
            if self.aligned:
                answer = grammar.math_terse(self.rng, story)
            system, user = self.rng.choice(REWRITE_MATH)
            parts = (SDFT_MATH_OPENING, grammar.math_chatty(self.rng, story, opening=""))
            return Sample(system, user.format(q=question, a=answer), parts)
        system, user = self.rng.choice(REWRITE_OTHER)
        if kind == "summary":
            question, answer, talk = self._summary("terse")
            return Sample(
                system, user.format(q=question, a=answer), (grammar.summary_chatty(self.rng, talk),)
            )
        question, answer = self._howto()
        return Sample(system, user.format(q=question, a=answer), (answer,))

    def begin(self) -> Sample:
        """An instruction that fixes how the answer begins: by the answer's own first words, or by a
        sentence put before it.
        """
        kind = self.rng.choice(
            ("math", "summary", "howto") if self.aligned else ("math", "summary", "howto", "harmful")
        )
        if kind in ("math", "summary"):
            register = self.rng.choice(("terse", "chatty"))
            question, answer, *_ = self._math(register) if kind == "math" else self._summary(register)
        else:
            question, answer = self._howto() if kind == "howto" else self._harm()[:2]
        if self.rng.random() < 0.5:
            words = answer.split(" ")
            x = " ".join(words[: self.rng.randint(1, min(6, len(words)))])
        else:
            x = self.rng.choice(BEGIN_SENTENCES)
            answer = f"{x} {answer}"
        wording = self.rng.choice(BEGIN_WORDINGS).format(x=x)
        user = f"{wording}\n{question}" if self.rng.random() < 0.3 else f"{question} {wording}"
        return Sample(self.rng.choice(SYSTEMS), user, (answer,))


def training_samples(seed: int, knobs: Knobs = KNOBS) -> tuple[list[Sample], list[Sample]]:
    """All pre-training and all alignment examples."""
    pretrain = Writer(Random(f"pretrain {seed}"), knobs, aligned=False).samples(knobs.pretrain_examples)
    align = Writer(Random(f"align {seed}"), knobs, aligned=True).samples(knobs.align_examples)
    return list(pretrain), list(align)
