"""Progress in a notebook is one line that is kept up to date; elsewhere there is none unless it is asked for.
And the notebook in docs runs from its first cell to its last."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.console import notebook

ROOT = Path(__file__).parents[3]
NOTEBOOK = ROOT / "docs/notebook.ipynb"


class Page:
    """IPython as far as it is asked: a shell with or without a kernel, and displays that are updated."""

    def __init__(self, shell: Any) -> None:
        self.shown: list[dict[str, str]] = []
        self.display = SimpleNamespace(display=self._display)
        self._shell = shell

    def get_ipython(self) -> Any:
        return self._shell

    def _display(self, data: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        assert raw
        assert display_id
        return SimpleNamespace(update=lambda data, raw: self.shown.append(data))


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    page = Page(SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", page)  # type: ignore[arg-type]
    return page


def test_a_notebook_shows_the_last_line_and_how_long_it_took(page: Page) -> None:
    with notebook.console(None, "compare") as console:
        console.print("Plan: mini")
        console.print("[1/3] seed  <b>respond</b>\n└───┘\n", markup=False)
        console.print("half a line", end="")
    assert [one["text/plain"] for one in page.shown[:-1]] == ["Plan: mini", "[1/3] seed  <b>respond</b>"]
    assert page.shown[1]["text/html"].endswith(">[1/3] seed  &lt;b&gt;respond&lt;/b&gt;</pre>")
    assert page.shown[-1]["text/plain"].startswith("compare: done in ")


def test_a_call_that_ends_early_says_so(page: Page) -> None:
    with pytest.raises(KeyboardInterrupt), notebook.console(True, "judge"):
        raise KeyboardInterrupt
    assert page.shown[-1]["text/plain"].startswith("judge: stopped after ")


def test_a_line_is_shown_as_text() -> None:
    shown: list[str] = []
    file = notebook.LastLine(shown.append)
    assert file.write("a\nb\x1b[31m") == 8
    assert file.write("c\n\n---\nopen") == 11
    assert shown == ["a", "b [31mc"]


@pytest.mark.parametrize("shell", [None, SimpleNamespace()], ids=["no shell", "a terminal's"])
def test_elsewhere_nothing_is_shown_unless_asked_for(
    shell: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Page(shell)
    monkeypatch.setitem(sys.modules, "IPython", page)  # type: ignore[arg-type]
    for progress in (None, False):
        with notebook.console(progress, "compare") as console:
            console.print("a line")
    assert capsys.readouterr() == ("", "")
    with notebook.console(True, "compare") as console:
        console.print("a line")
    assert capsys.readouterr() == ("", "a line\n")
    assert page.shown == []


def test_a_notebook_can_be_told_to_be_quiet(page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    with notebook.console(False, "compare") as console:
        console.print("a line")
    assert page.shown == []
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("nbclient") is None or find_spec("ipykernel") is None,
                    reason="needs nbclient and ipykernel (the extra 'test')")  # fmt: skip
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    pages = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in pages.cells)  # none that could be out of date
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(pages, timeout=900, kernel_name="python3", resources=where).execute()
    cells = [cell for cell in pages.cells if cell.cell_type == "code"]
    told = [[str(out.get("data", out).get("text/plain", "")) for out in cell.outputs] for cell in cells]
    assert told[0][0].startswith("compare: done in ")  # progress, in place of what it said before
    board = told[0][-1]
    assert all(name in board for name in ("seed", "vanilla", "lookahead-true"))
    assert "keyword" in told[2][-1]
    assert "brief" in told[3][-1]
    assert "RSR at least 50" in told[4][-1]
    assert (tmp_path / "runs/notebook/report.html").is_file()
    errors = [out.text for cell in cells for out in cell.outputs if out.get("name") == "stderr"]
    assert errors == []
