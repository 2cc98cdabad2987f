"""The page: one file without a request, without harmful text unless asked for, with nothing that runs but its
own script."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import made_run
import pytest

from harness import report
from harness.contracts import HarnessError
from harness.report import page
from harness.text import LEFT_OUT

EVIL = '</script><script>window.ran = 1</script><img src=x onerror="window.ran = 1">\x1b]0;title\x07'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "run"
    methods = ("seed", "vanilla", "sdft")
    return made_run.make(folder, methods=methods, response=f"{made_run.PLANTED} {EVIL}", documents=40)


@pytest.fixture(scope="module")
def plain(run: Path) -> str:
    return page.render(run)


@pytest.fixture(scope="module")
def full(run: Path) -> str:
    return page.render(run, show_harmful=True)


class Tags(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def data(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found
    loaded: dict[str, Any] = json.loads(found[1])
    return loaded


def test_harmful_text_is_nowhere_unless_asked_for(plain: str, full: str) -> None:
    assert made_run.PLANTED not in plain
    assert "window.ran" not in plain
    assert made_run.PLANTED in full


def test_model_output_stays_text(full: str) -> None:
    tags = Tags(full)
    assert len(tags.all("script")) == 2
    sources = [image["src"] for image in tags.all("img")] + [one["srcset"] for one in tags.all("source")]
    assert all(str(source).startswith("data:image/svg+xml;base64,") for source in sources)
    assert any(EVIL[:40] in text for text in data(full)["texts"])
    assert "\x1b" not in full
    assert any("␛]0;title␇" in text for text in data(full)["texts"])


def test_the_policy_lets_in_what_is_there_and_nothing_else(plain: str) -> None:
    policy = Tags(plain).all("meta")[1]["content"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    style = re.search(r"<style>(.*?)</style>", plain, re.S)
    script = re.search(r"<script>(.*?)</script>", plain, re.S)
    for part, found in (("style-src", style), ("script-src", script)):
        assert found
        digest = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
        assert f"{part} 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_the_page_refers_to_nothing_outside(plain: str) -> None:
    for tag, attributes in Tags(plain).tags:
        for name in ("src", "href", "action", "style", "srcset", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name)
        assert not any(name.startswith("on") for name in attributes), tag
    assert "innerHTML" not in plain
    assert "@import" not in plain


def test_every_link_of_the_page_has_its_place(plain: str) -> None:
    tags = Tags(plain)
    ids = [attributes["id"] for _, attributes in tags.tags if attributes.get("id")]
    assert len(ids) == len({*ids})
    assert {link["href"] for link in tags.all("a")} <= {f"#{name}" for name in ids}
    for _, attributes in tags.tags:
        assert {*(attributes.get("aria-labelledby") or "").split()} <= {*ids}


def test_the_picture_comes_first_then_the_bottom_line_then_the_verdict(plain: str) -> None:
    first = plain.index("<img")
    assert "Safety against utility, trained on gsm8k-mini." in plain[first : plain.index('class="answer"')]
    places = [
        plain.index(text)
        for text in (
            'id="result"',
            "The judges disagree",
            "<img",
            'class="choice"',
            "Plain fine-tuning on gsm8k-mini lowers JSR",
            'id="verdict"',
            "Plain fine-tuning on gsm8k-mini lowers the prefilled",
            'id="leaderboard"',
            'id="figures"',
        )
    ]
    assert places == sorted(places)
    assert "Mini world: a generated language" in plain


def test_judges_that_disagree_are_called_out_with_the_rule(plain: str, run: Path, tmp_path: Path) -> None:
    start = plain.index("The judges disagree")
    notice = plain[start : plain.index("</div>", start)]
    assert "The result below is mini-exact's." in notice
    assert "alpha over all answers is" in notice
    assert "below 0.667" in notice
    one = made_run.make(tmp_path / "one", judges=("mini-exact",), documents=20)
    assert "judges disagree" not in page.render(one)
    assert 'id="judges"' not in page.render(one)


def test_the_untrained_row_is_the_base_model_wherever_it_is_shown(plain: str, full: str) -> None:
    for text in (plain, full):
        shown = re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.S)
        assert "seed model" not in shown + text[text.rindex("<script>") :]
        before = shown[: shown.index('id="configuration"')]
        words = re.sub(r"<[^>]*>", " ", before)
        assert not re.findall(r"(?<!training )\bseeds?\b(?!-\d)", words)
        for source in re.findall(r"base64,([A-Za-z0-9+/=]+)", before):
            svg = base64.b64decode(source).decode()
            labels = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
            assert labels
            assert "seed" not in labels


def test_each_own_figure_has_a_dark_counterpart(plain: str) -> None:
    tags = Tags(plain)
    images = tags.all("img")
    assert len(tags.all("source")) == len(images)
    assert {source["media"] for source in tags.all("source")} == {"screen and (prefers-color-scheme: dark)"}
    assert "filter:" not in plain


def test_the_explanation_of_marks_knows_families(plain: str) -> None:
    said = " ".join(plain[plain.index('id="leaderboard"') :][:3000].split())
    assert "all comparisons of its family are counted" in said
    assert "the base model over all train tasks; all methods over all train tasks" in said
    assert "† marks a difference only when taken alone" in said
    assert "trained elsewhere" not in said[: said.index("Choose a heading")]


def test_figures_are_there_and_what_is_missing_is_said(run: Path, plain: str, tmp_path: Path) -> None:
    assert len(Tags(plain).all("img")) == 6  # it opens with one; two judges: safety, cost; training once
    assert "<code>harness analyze kl RUN</code>" in plain
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "analysis").mkdir()
    (copy / "analysis" / "kl.svg").write_text(
        "<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>"
    )
    (copy / "analysis" / "own<b>.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    text = page.render(copy)
    captions = [image["alt"] for image in Tags(text).all("img")]
    assert len(captions) == 8
    assert captions[6] is not None
    assert captions[6].startswith("KL(base ‖ tuned) by answer token")
    assert "(own&lt;b&gt;)" in text
    assert len(Tags(text).all("source")) == 6  # what others drew is shown as it is
    assert "harness analyze kl" not in text


def test_the_same_run_gives_the_same_bytes(run: Path, plain: str) -> None:
    assert page.render(run) == plain


def test_names_from_outside_are_escaped(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    board = json.loads((copy / "leaderboard.json").read_text())
    board["notes"].append("<script>window.ran = 1</script>")
    for row in board["rows"]:
        if row["method"] == "sdft":
            row["method"] = "<b onclick=x>sdft</b>"
    (copy / "leaderboard.json").write_text(json.dumps(board))
    text = page.render(copy)
    assert len(Tags(text).all("script")) == 2
    assert not Tags(text).all("b")
    assert "&lt;b onclick=x&gt;sdft&lt;/b&gt;" in text


def test_keys_and_folders_stay_at_home() -> None:
    secret = "sk-abcdefgh12345678"
    for text in (
        f"--set a={secret}",
        "hf_abcdefghijkl",
        "Authorization: Bearer abc.def",
        "https://me:pass@host/v1",
        "OPENAI_API_KEY=abc123",
        "token: abc",
    ):
        shown = page.public(text)
        assert LEFT_OUT in shown, text
        assert not re.search(r"abcdefgh|abc\.def|me:pass|abc123|abc$", shown), text
    assert page.public("/home/me/models/llama") == "…/llama"
    assert page.public("harness compare --out /tmp/runs/mini x/y/z") == "harness compare --out …/mini x/y/z"
    assert page.public("http://localhost:8000/v1 meta/llama results/runs/mini") == (
        "http://localhost:8000/v1 meta/llama results/runs/mini"
    )


def test_the_command_and_settings_can_be_repeated(run: Path, plain: str) -> None:
    assert "harness compare --methods seed,vanilla,sdft" in plain
    assert "/somewhere/bin" not in plain
    assert "max_examples: 1000" in plain


def test_report_writes_where_it_is_told(run: Path, tmp_path: Path, command: Any) -> None:
    ended = command("report", run, "--out", tmp_path / "r.html")
    assert (ended.code, ended.err) == (0, "")
    assert made_run.PLANTED not in (tmp_path / "r.html").read_text(encoding="utf-8")
    ended = command("report", run, "--show-harmful", "--out", tmp_path / "h.html")
    assert "mind who gets it" in ended.err
    assert made_run.PLANTED in (tmp_path / "h.html").read_text(encoding="utf-8")


def test_no_run_is_one_line(tmp_path: Path, command: Any, run: Path) -> None:
    ended = command("report", tmp_path)
    assert ended.code == 1
    assert "no run.json" in ended.err
    (tmp_path / "file").touch()
    with pytest.raises(HarnessError, match="cannot be written"):
        report.write(run, tmp_path / "file" / "report.html")
