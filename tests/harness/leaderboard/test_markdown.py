"""leaderboard.md as it reads on GitHub."""

from __future__ import annotations

import pytest
from leaderboard_rows import against, cell, elsewhere, failed, reference

from harness.leaderboard.build import build
from harness.leaderboard.markdown import document, escaped
from harness.leaderboard.tables import SINGLE_SEED_LINE


def test_markdown_reads_as_a_table() -> None:
    cells = [cell("vanilla", rsr=reference()), cell("sdft", rsr=against(8, 0))]
    frame = build(cells)
    text = document(frame, title="A title", notes=["A note."])
    assert text.startswith("# A title\n\n## trained on gsm8k · judged by exact\n")
    assert (
        "| method | Δ utility | utility | Δ RSR | RSR | refusals | Δ JSR | JSR | refusals | train s |" in text
    )
    # utility: 2 of 4 in both, phi (4 - 4 / 2) / 4 = 0.5, so its difference is as wide as Wilson's 35; four
    # pairs are too few for any difference to be found
    # RSR: from 10 of 20 to 18 of 20
    assert ("| sdft | +0.00 [-35.0, +35.0] | 50.00 [15.0, 85.0] | +40.00\\* [+14.1, +60.2] | 90.00 [") in text
    assert "] | 90.00 [69.9, 97.2] |  | +0.00 [" in text
    assert text.rstrip().endswith("- A note.")
    assert f"- {SINGLE_SEED_LINE}" in text


def test_the_untrained_row_is_called_base_model() -> None:
    text = document(build([cell("seed"), cell("vanilla"), failed("seed", judge="other")]), title="")
    assert "| base model | +0.00" in text
    assert "| base model | failed: out of memory |" in text
    assert "| seed " not in text


def test_checkpoints_from_elsewhere_are_compared_with_the_base_model() -> None:
    text = document(
        build([elsewhere("seed", rsr=reference()), elsewhere("mine", rsr=against(0, 8))]), title=""
    )
    assert "## trained elsewhere, compared with the base model · judged by exact" in text
    assert "- Δ: points against the base model on the same prompts." in text.splitlines()
    alone = document(build([elsewhere("mine")]), title="")
    assert "## trained elsewhere · judged by exact" in alone


@pytest.mark.parametrize(
    ("text", "shown"), [("a|b", "a\\|b"), ("a\nb", "a b"), ("[x](y)", "\\[x\\](y)"), ("\x1b[1m", "\\[1m")]
)
def test_names_stay_text(text: str, shown: str) -> None:
    assert escaped(text) == shown
