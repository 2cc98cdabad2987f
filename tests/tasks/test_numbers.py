"""Which numbers are read, and that what could be read in two ways is not read at all."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.numbers import last_number, plain_number

MINUS, EN, EM, NB, THIN = (
    "\N{MINUS SIGN}",
    "\N{EN DASH}",
    "\N{EM DASH}",
    "\N{NO-BREAK SPACE}",
    "\N{THIN SPACE}",
)

# (label, its digits, why)
PLAIN = [
    ("18", "18", "a whole number"),
    (" 18\n", "18", "outer white space"),
    ("1,234", "1234", "groups of three"),
    ("1,234,567.5", "1234567.5", "groups of three and decimals"),
    ("0.50", "0.50", "decimals as they are written"),
    (".5", ".5", "no digit before the point"),
    ("5.", "5", "a final full stop"),
    ("1,800.", "1800", "a final full stop behind groups"),
    ("007", "007", "leading zeros are the same number"),
    ("-3", "-3", "a sign"),
    ("- 3", "-3", "a sign and a blank"),
    (f"{MINUS}3", "-3", "Unicode's minus"),
    ("\N{SMALL HYPHEN-MINUS}3", "-3", "another minus"),
    ("\N{FULLWIDTH HYPHEN-MINUS}3", "-3", "another minus"),
    ("+3", "3", "a plus says nothing"),
    ("$18", "18", "a currency sign"),
    ("\N{EURO SIGN} 18", "18", "another one, and a blank"),
    ("-$5", "-5", "a sign before it"),
    ("$-5", "-5", "a sign behind it"),
    (f"${MINUS}5", "-5", "Unicode's minus behind it"),
    ("-.5", "-.5", "a sign before a point"),
]
# (label, why it is no plain number)
NOT_PLAIN = [
    ("", "nothing"),
    ("eighteen", "words"),
    ("1/2", "a fraction"),
    ("3 1/2", "a mixed number"),
    ("\N{VULGAR FRACTION ONE HALF}", "a fraction in one sign"),
    ("1e3", "an exponent"),
    ("1.5E-3", "an exponent"),
    ("10^3", "a power"),
    ("10\N{SUPERSCRIPT TWO}", "a power"),
    ("1 000", "a blank between digits"),
    (f"1{NB}000", "a blank between digits"),
    ("1'000", "an apostrophe between digits"),
    ("1,23", "a comma that may be a decimal one"),
    ("0,500", "the same"),
    ("1.234,56", "a decimal comma"),
    ("1,2,3", "a list"),
    ("1234,567", "no groups of three"),
    ("18%", "a hundredth"),
    ("18 dollars", "a unit"),
    ("5$", "a currency sign behind"),
    ("$$5", "two of them"),
    ("--5", "two signs"),
    ("-$-5", "two signs"),
    ("+-5", "two signs"),
    (f"{EN}5", "a dash"),
    ("(3)", "brackets: minus in accounting"),
    ("3:4", "a ratio"),
    ("10-12", "a range"),
    ("5..", "two full stops"),
    (".", "no digit"),
    ("-", "no digit"),
    ("\N{FULLWIDTH DIGIT ONE}\N{FULLWIDTH DIGIT EIGHT}", "other digits"),
    ("\N{ARABIC-INDIC DIGIT THREE}", "other digits"),
    ("18\n19", "two numbers"),
]

# (text, its last number, why)
READ = [
    ("It is 18.", "18", "a full stop behind it"),
    ("It is 18, I think", "18", "a comma behind it"),
    ("It is 1,234.50", "1234.5", "groups and decimals"),
    ("1, 2, 18", "18", "the last of several"),
    ("It is $18!", "18", "a currency sign"),
    ("It is 18%", "18", "a unit behind it"),
    ("It is 18th", "18", "letters behind it"),
    ("\\boxed{18}", "18", "brackets"),
    ("**18**", "18", "marks"),
    ("#### -3", "-3", "negative"),
    (f"= {MINUS}3", "-3", "Unicode's minus"),
    ("= -$3", "-3", "a sign before a currency sign"),
    ("= $-3", "-3", "a sign behind a currency sign"),
    ("-3", "-3", "nothing before the sign"),
    ("(-3)", "-3", "in brackets"),
    ("= -.5", "-0.5", "a point first"),
    ("= +3", "3", "a plus"),
    ("20-2", "2", "a minus behind a digit subtracts"),
    ("20 - 2", "2", "with blanks too"),
    ("(20)-2", "2", "behind a bracket"),
    (f"20{MINUS}2", "2", "Unicode's minus subtracts as well"),
    ("20% - 2", "2", "behind a unit"),
    (f"10{EN}18", "18", "a range"),
    ("size-18", "18", "a compound"),
    ("a size-18", "18", "a compound behind another word"),
    ("in plan a-18", "18", "a compound with one letter"),
    (f"total{EM}18", "18", "a dash behind a word"),
    (f"in total {EN} 18", "18", "a dash between blanks"),
    (f"in total {EM} 18", "18", "a dash between blanks"),
    ("step 1,\n18", "18", "another line"),
    ("In 2020 1000 people", "1000", "four digits are no group"),
    ("1/2 of 36 is 18", "18", "a fraction elsewhere"),
    ("2^3 + 10 = 18", "18", "a power elsewhere"),
    ("minus 2 is 18", "18", "the word elsewhere"),
]
# (text, why its last number is not read)
NOT_READ = [
    ("", "nothing"),
    ("eighteen", "words"),
    ("1/18", "a fraction"),
    ("1 / 18", "a fraction"),
    ("x/18", "a denominator"),
    ("1\N{FRACTION SLASH}18", "a fraction"),
    ("36\N{DIVISION SIGN}18", "a division"),
    ("\\frac{1}{18}", "a fraction in TeX"),
    ("18\N{VULGAR FRACTION ONE HALF}", "a mixed number"),
    ("18 or \N{VULGAR FRACTION ONE HALF}", "a fraction in one sign"),
    ("18\N{SUPERSCRIPT TWO}", "a power"),
    ("x\N{SUPERSCRIPT TWO}", "an exponent alone"),
    ("2^18", "a power"),
    ("2 ^ 18", "a power"),
    ("2**18", "a power"),
    ("x^18", "an exponent"),
    ("x^{18}", "an exponent in TeX"),
    ("10^{18}", "an exponent in TeX"),
    ("10^-18", "a negative exponent"),
    ("1e18", "an exponent"),
    ("1.5e+18", "an exponent"),
    ("1E-18", "an exponent"),
    ("1 018", "a blank between digits"),
    (f"1{NB}018", "a blank between digits"),
    (f"1{THIN}018", "a blank between digits"),
    ("1'018", "an apostrophe between digits"),
    ("1_018", "an underscore between digits"),
    ("12,18", "a comma that may be a decimal one"),
    ("0,018", "the same"),
    ("1.234,18", "a decimal comma"),
    ("1.2.18", "two points"),
    ("1:18", "a ratio"),
    ("= - 18", "a sign or a dash"),
    ("- 18", "a sign or a bullet"),
    ("x - 18", "a sign or a subtraction"),
    (f"= {EN}18", "a sign or a dash"),
    (f"= {EM}18", "a sign or a dash"),
    ("= --18", "two signs"),
    (f"= {EN}-18", "two signs"),
    ("minus 18", "a sign in words"),
    ("Negative 18", "a sign in words"),
    ("minus $18", "a sign in words"),
    ("\N{FULLWIDTH DIGIT ONE}\N{FULLWIDTH DIGIT EIGHT}", "other digits"),
]


@pytest.mark.parametrize(("label", "digits", "why"), PLAIN)
def test_plain_numbers(label: str, digits: str, why: str) -> None:
    assert plain_number(label) == digits, why
    assert plain_number(digits) == digits, why


@pytest.mark.parametrize(("label", "why"), NOT_PLAIN)
def test_what_is_no_plain_number(label: str, why: str) -> None:
    assert plain_number(label) is None, why


@pytest.mark.parametrize(("text", "number", "why"), READ)
def test_last_numbers(text: str, number: str, why: str) -> None:
    assert last_number(text) == Decimal(number), why


@pytest.mark.parametrize(("text", "why"), NOT_READ)
def test_what_is_not_read(text: str, why: str) -> None:
    assert last_number(text) is None, why


@given(
    number=st.decimals(-(10**7), 10**7, places=2) | st.integers(-(10**7), 10**7),
    style=st.sampled_from(["{}", "{:,}", " {} ", "{}."]),
    minus=st.sampled_from(["-", MINUS, "- "]),
)
def test_a_plain_number_is_read_as_it_is(number: Decimal | int, style: str, minus: str) -> None:
    label = style.format(number).replace("-", minus)
    digits = plain_number(label)
    assert digits is not None
    assert Fraction(digits) == Fraction(number)
    assert last_number(digits) == number
    assert last_number(f"So it is {digits}.") == number


@given(st.text(alphabet=f"0123456789.,-+/eE^ $%'{MINUS}{EN}\N{VULGAR FRACTION ONE HALF}x", max_size=12))
def test_no_text_is_read_as_another_number(text: str) -> None:
    """What is read is what is left when one strips sign and decoration, and the sign is not lost."""
    digits = plain_number(text)
    if digits is None:
        return
    kept = "".join(character for character in text if character in "0123456789.")
    assert digits.lstrip("-") == kept.removesuffix(".") or digits.lstrip("-") == kept
    assert digits.startswith("-") == any(character in text for character in f"-{MINUS}")
    assert not any(character in text for character in "/eE^%'x\N{VULGAR FRACTION ONE HALF}")


def test_a_text_that_is_all_signs_takes_no_time() -> None:
    assert last_number("- " * 50_000 + "18") is None
    assert last_number("1" * 100_000) is not None
