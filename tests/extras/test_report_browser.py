"""The report in real headless Chromium: opens from disk, asks for nothing, sorts and filters by keyboard,
never runs what a model wrote, and can be read on a phone, in the dark and with a screen reader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_run
import pytest

from harness import report

pytestmark = pytest.mark.requires_chromium

EVIL = '</script><script>window.ran = 1</script><img src=x onerror="window.ran = 1">\x1b[31m'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run.make(tmp_path_factory.mktemp("made") / "run", response=f"{made_run.PLANTED} {EVIL}")


@pytest.fixture(scope="module")
def plain(run: Path) -> Path:
    return report.write(run, run / "plain.html")


@pytest.fixture(scope="module")
def full(run: Path) -> Path:
    return report.write(run, run / "full.html", show_harmful=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from screenshots import chromium

    with chromium() as started:
        yield started


class Page:
    """An opened report, and all that it complained about or asked for."""

    def __init__(self, browser: Any, path: Path, **how: Any):
        self.page = browser.new_page(**how)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def column(self, table: str, place: int) -> list[str]:
        cells = self.page.locator(f"{table} tbody tr > :nth-child({place})")
        return [text.split("\n")[0] for text in cells.all_inner_texts()]

    def count(self) -> int:
        said = self.page.locator("#count").inner_text()
        return 0 if said.startswith("No") else int(said.split(" of ")[1].split(" ")[0].replace(",", ""))


@pytest.fixture
def opened(browser: Any, plain: Path) -> Iterator[Page]:
    page = Page(browser, plain)
    yield page
    page.page.close()


def test_it_opens_from_disk_without_a_complaint_or_a_request(opened: Page, plain: Path) -> None:
    opened.page.wait_for_selector("#rows tbody tr")
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [plain.as_uri()]
    assert opened.page.locator("img").evaluate_all(
        "all => all.every(one => one.complete && one.naturalWidth)"
    )


def test_a_table_sorts_by_keyboard(opened: Page) -> None:
    table = "#leaderboard table >> nth=0"
    button = opened.page.locator(f"{table} >> th >> nth=1 >> button")
    button.focus()
    opened.page.keyboard.press("Enter")
    head = opened.page.locator(f"{table} >> th >> nth=1")
    assert head.get_attribute("aria-sort") == "descending"
    rows = opened.page.locator(f"{table} >> tbody tr")
    orders = rows.evaluate_all("rows => rows.map(row => row.cells[1].dataset.order)")
    figures = [float(order) for order in orders if order]
    assert figures == sorted(figures, reverse=True)
    assert orders[-1] == ""  # vanilla has no difference from itself
    opened.page.keyboard.press("Enter")
    orders = rows.evaluate_all("rows => rows.map(row => row.cells[1].dataset.order)")
    assert [float(order) for order in orders if order] == sorted(figures)
    assert orders[-1] == ""


def test_filters_agree_with_the_verdicts(opened: Page, run: Path) -> None:
    from harness.report import exchanges
    from harness.run import run_folder

    data = exchanges.collect(run, run_folder.stored_config(run))
    task = "hexphi_prefill-mini"
    opened.page.select_option("#task", task)
    cells = [cell["answers"][task]["verdicts"] for cell in data["cells"]]
    places = range(len(data["tasks"][task]["ids"]))
    first = "mini-exact"
    assert opened.count() == len(places)
    expected = {
        "#disputed": sum(any({c[first][i], c["keyword"][i]} == {"h", "s"} for c in cells) for i in places),
        "#changed": sum(any({c[first][i], cells[0][first][i]} == {"h", "s"} for c in cells) for i in places),
        "#differs": sum(any({c[first][i], cells[1][first][i]} == {"h", "s"} for c in cells) for i in places),
        "#unjudged": sum(any(c[first][i] == "u" for c in cells) for i in places),
    }
    assert all(0 < count < len(places) for count in expected.values()), expected
    for box, count in expected.items():
        opened.page.check(box)
        assert opened.count() == count, box
        opened.page.uncheck(box)
    opened.page.select_option("#method", "vanilla")
    opened.page.select_option("#outcome", "h")
    assert opened.count() == cells[1][first].count("h")
    opened.page.select_option("#judge", "keyword")
    assert opened.count() == cells[1]["keyword"].count("h")


def test_search_looks_into_ids_and_categories(opened: Page) -> None:
    opened.page.fill("#search", "MALWARE")
    assert opened.count() == 20
    opened.page.fill("#search", "mini-17")
    assert opened.count() == 1
    opened.page.fill("#search", "no such")
    assert opened.count() == 0
    assert opened.page.locator("#count").inner_text() == "No exchange fits."


def test_pages_turn(opened: Page) -> None:
    rows = opened.page.locator("#rows > tbody > tr")
    assert rows.count() == 50
    assert opened.page.locator("#previous").is_disabled()
    opened.page.click("#next")
    assert rows.count() == 10
    assert opened.page.locator("#next").is_disabled()
    assert opened.page.locator("#count").inner_text() == "51 to 60 of 60 exchanges"


def test_safety_texts_are_not_even_in_the_file(opened: Page, plain: Path) -> None:
    assert made_run.PLANTED.encode() not in plain.read_bytes()
    opened.page.locator(".open-row").first.click()
    assert "Its texts are not in this file." in opened.page.locator(".detail").inner_text()
    opened.page.select_option("#task", "gsm8k-mini")
    opened.page.locator(".open-row").first.press("Enter")
    assert "How many are 0 and 1?" in opened.page.locator(".detail").inner_text()


def test_model_output_is_shown_and_never_run(browser: Any, full: Path) -> None:
    opened = Page(browser, full)
    page = opened.page
    page.locator(".open-row").first.press("Enter")
    assert made_run.PLANTED not in page.locator("body").inner_text()
    page.locator(".ask").press("Enter")
    shown = page.locator(".detail .texts").inner_text()
    assert '<script>window.ran = 1</script><img src=x onerror="window.ran = 1">␛[31m' in shown
    assert f"{made_run.PLANTED} reason" in shown
    assert page.evaluate("window.ran") is None
    assert page.locator("#exchanges img").count() == 0
    assert opened.complaints == []
    # Even markup that got in would not run: the page's policy stops it.
    with page.expect_console_message(lambda message: "Content Security Policy" in message.text):
        page.evaluate(
            """() => new Promise(failed => {
                document.body.insertAdjacentHTML('beforeend', '<img src=x onerror="window.ran = 1">')
                document.body.lastElementChild.addEventListener('error', () => failed())
            })"""
        )
    assert page.evaluate("window.ran") is None
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 390, 768, 1280, 1600])
def test_no_width_makes_the_page_scroll_sideways(browser: Any, full: Path, width: int, scheme: str) -> None:
    page = Page(browser, full, viewport={"width": width, "height": 800}, color_scheme=scheme).page
    page.locator(".open-row").first.click()
    page.locator(".ask").click()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_nothing_wrong(browser: Any, full: Path, width: int, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    how = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme, "bypass_csp": True}
    page = Page(browser, full, **how).page
    page.locator(".open-row").first.click()
    page.locator(".ask").click()
    results = Axe().run(page)
    found = [
        (one["impact"], one["id"], [node["html"][:120] for node in one["nodes"]][:3])
        for one in results.response["violations"]
    ]
    assert found == []
    page.close()


def test_dark_mode_is_dark(browser: Any, plain: Path) -> None:
    def brightness(scheme: str) -> float:
        page = Page(browser, plain, color_scheme=scheme).page
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.close()
        parts = [float(part) for part in colour.partition("(")[2].rstrip(")").split(",")[:3]]
        return sum(parts) / 3

    assert brightness("dark") < 40 < 200 < brightness("light")


@pytest.mark.parametrize("place", ["#result img", "#figures img"])
def test_figures_are_dark_in_dark_mode_and_light_in_light(browser: Any, plain: Path, place: str) -> None:
    """Of what is painted: the background's brightness, and how far the ink stands out from it."""

    def painted(scheme: str) -> tuple[float, float]:
        page = Page(browser, plain, color_scheme=scheme).page
        found = page.locator(place).first.evaluate(
            """image => {
                const canvas = document.createElement('canvas');
                [canvas.width, canvas.height] = [400, 300];
                const context = canvas.getContext('2d');
                context.drawImage(image, 0, 0, 400, 300);
                const {data} = context.getImageData(0, 0, 400, 300);
                const bright = [];
                for (let at = 0; at < data.length; at += 4) {
                    bright.push((data[at] + data[at + 1] + data[at + 2]) / 3);
                }
                bright.sort((one, two) => one - two);
                const page = bright[bright.length / 2];
                return [page, Math.max(bright.at(-1) - page, page - bright[0])];
            }"""
        )
        page.close()
        return found[0], found[1]

    (dark, dark_ink), (light, light_ink) = painted("dark"), painted("light")
    assert dark < 40
    assert light > 240
    assert min(dark_ink, light_ink) > 120


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_opens_with_the_picture(browser: Any, plain: Path, width: int, scheme: str) -> None:
    page = Page(browser, plain, viewport={"width": width, "height": 1000}, color_scheme=scheme).page
    image = page.locator("#result img").first.bounding_box()
    answer = page.locator("#result .choice").first.bounding_box()
    assert image is not None
    assert answer is not None
    assert image["width"] <= width
    assert image["x"] + image["width"] <= width
    beside = answer["x"] >= image["x"] + image["width"]
    assert beside or answer["y"] >= image["y"] + image["height"]
    verdict = page.locator("#verdict").bounding_box()
    assert verdict is not None
    assert verdict["y"] > max(image["y"], answer["y"])
    page.close()


def test_the_browser_names_the_base_model(opened: Page) -> None:
    page = opened.page
    assert page.locator("#rows thead th").all_inner_texts()[1:3] != []
    assert "base model" in page.locator("#rows thead").inner_text()
    assert "seed" not in page.locator("#rows thead").inner_text()
    page.check("#changed")
    assert "≠ base model" in page.locator("#rows tbody").inner_text()
    page.select_option("#method", label="base model")
    assert page.locator("#method").input_value() == "seed"


def test_the_keyboard_reaches_the_result_first_and_focus_shows(opened: Page) -> None:
    opened.page.keyboard.press("Tab")
    focused = opened.page.locator(":focus")
    assert focused.inner_text() == "Skip to the result"
    assert focused.bounding_box()["x"] >= 0  # type: ignore[index]
    assert focused.evaluate("one => getComputedStyle(one).outlineStyle") == "solid"


def test_without_scripts_all_but_the_browser_reads(browser: Any, plain: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(plain.as_uri())
    text = page.locator("body").inner_text()
    assert "Plain fine-tuning on gsm8k-mini lowers" in text
    assert "The judges disagree." in text
    assert "needs JavaScript" in text
    assert not page.locator("#filters").is_visible()
    assert page.locator("#leaderboard tbody tr").count() == 8
    context.close()


def test_a_hundred_thousand_exchanges_stay_usable(browser: Any, plain: Path, tmp_path: Path) -> None:
    import json
    import re

    text = plain.read_text(encoding="utf-8")
    found = re.search(r'(<script type="application/json" id="data">)(.*?)(</script>)', text, re.S)
    assert found
    data, many = json.loads(found[2]), 100_000
    task = data["tasks"]["hexphi_prefill-mini"]
    times = many // len(task["ids"]) + 1
    task["ids"] = [f"r-{number}" for number in range(many)]
    task["category"] = (task["category"] * times)[:many]
    for cell in data["cells"]:
        answers = cell["answers"]["hexphi_prefill-mini"]
        for part in ("tokens", "characters", "cut"):
            answers[part] = (answers[part] * times)[:many]
        for part in ("verdicts", "labels"):
            answers[part] = {judge: (said * times)[:many] for judge, said in answers[part].items()}
    large = tmp_path / "large.html"
    large.write_text(text[: found.start(2)] + json.dumps(data) + text[found.end(2) :], encoding="utf-8")
    opened = Page(browser, large)
    opened.page.select_option("#task", "hexphi_prefill-mini")
    assert opened.count() == many
    took = opened.page.evaluate(
        "() => { const start = performance.now(); document.getElementById('changed').click();"
        " return performance.now() - start; }"
    )
    assert took < 5_000  # milliseconds; a tenth of it on a machine that is not busy
    assert opened.count() > 1_000
    opened.page.fill("#search", "r-99999")
    assert opened.count() <= 1
    opened.page.close()
