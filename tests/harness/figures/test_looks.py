"""A method's look goes by its name; looks differ in grey too; colours can be seen on light and dark pages."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.figures import charts, looks
from harness.plugins import registry
from harness.run.plan import shown_method

SHIPPED = ("seed", "vanilla", *(name for name in registry.names("method") if name != "vanilla"))


def mark(look: looks.Look) -> tuple[str, str]:
    return look["marker"], look["fillstyle"]


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, two: str) -> float:
    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_every_shipped_method_has_a_look_of_its_own() -> None:
    assert set(SHIPPED) <= looks._OWN.keys()
    found = looks.looks(SHIPPED)
    assert len({look["color"] for look in found.values()}) == len(SHIPPED)
    assert len({mark(look) for look in found.values()}) == len(SHIPPED)
    assert len({str(look["linestyle"]) for look in found.values()} | {"x"}) > 6


names = st.one_of(st.sampled_from(SHIPPED), st.text(min_size=1, max_size=12))


@given(st.lists(names, unique=True, max_size=12), st.data())
def test_colours_do_not_depend_on_who_else_is_there(chosen: list[str], data: st.DataObject) -> None:
    some = data.draw(st.permutations(chosen))[: data.draw(st.integers(0, len(chosen)))]
    every, fewer = looks.looks(chosen), looks.looks(some)
    assert [*every] == chosen
    for name, look in fewer.items():
        assert look["color"] == every[name]["color"] == looks.look(name)["color"]
        if name in SHIPPED:
            assert look == every[name]
    # In grey, marks tell them apart.
    assert len({mark(look) for look in every.values()}) == len(chosen)


def test_a_mark_moves_only_where_another_name_asks_for_the_same() -> None:
    asks = {name: mark(looks.look(name)) for name in (f"mine-{number}" for number in range(40))}
    pair = next((a, b) for a in asks for b in asks if a < b and asks[a] == asks[b])
    found = looks.looks(pair)
    assert mark(found[pair[0]]) == asks[pair[0]]
    assert mark(found[pair[1]]) != asks[pair[1]]
    apart = next(name for name in asks if asks[name] != asks[pair[0]])
    assert mark(looks.looks([pair[0], apart])[pair[0]]) == asks[pair[0]]


def test_more_names_than_marks_still_have_looks() -> None:
    many = looks.looks(f"own-{number}" for number in range(60))
    assert len(many) == 60
    assert all(look["marker"] for look in many.values())


@pytest.mark.parametrize("colour", [own[0] for own in looks._OWN.values()] + [*looks._FURTHER_COLOURS])
def test_text_in_a_methods_colour_can_be_read_on_both_pages(colour: str) -> None:
    assert contrast(colour, "#ffffff") >= 4.5
    assert contrast(looks.DARK[colour], looks.DARK["#ffffff"]) >= 4.5


def test_the_dark_background_is_the_pages() -> None:
    from importlib import resources

    style = (resources.files("harness.report") / "report.css").read_text(encoding="utf-8")
    dark = style[style.index("prefers-color-scheme: dark") :]
    found = re.search(r"--card: (#\w{6})", dark)
    assert found
    assert looks.DARK["#ffffff"] == found[1]


HOSTILE = (
    '</text><script>window.ran = 1</script>',
    '"><image href="x" onerror="window.ran = 1"/>',
    'fill: #ffffff" onload="window.ran = 1',
    "]]></style><script>1</script>",
    "&lt;script&gt;",
    "<svg onload='1'>",
    "$x^2$",
    'style="fill: #000000"',
)  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_text_in_the_light_figure_and_in_the_dark_one(name: str, tmp_path: object) -> None:
    from pathlib import Path

    path = Path(str(tmp_path)) / "figure.svg"
    figure, axes = charts.canvas(name, "x", "y")
    axes.plot([1, 2], [1, 2], **looks.look(name), label=name)
    axes.annotate(name, (1, 1))
    axes.set_xticks([1, 2], [name, "b"])
    charts.legend(figure, axes)
    charts.save(figure, path)
    plain = {"title": "b", "label": "c"}
    other, axes = charts.canvas("b", "x", "y")
    axes.plot([1, 2], [1, 2], **looks.look(name), label=plain["label"])
    axes.annotate("d", (1, 1))
    axes.set_xticks([1, 2], ["a", "b"])
    charts.legend(other, axes)
    charts.save(other, path.with_name("other.svg"))

    def structure(text: str) -> list[tuple[str, list[str]]]:
        kept = [one for one in ElementTree.fromstring(text).iter() if not one.tag.endswith("path")]
        return [(one.tag, sorted(one.attrib)) for one in kept]

    expected = structure(path.with_name("other.svg").read_text(encoding="utf-8"))
    light = path.read_text(encoding="utf-8")
    for text in (light, looks.dark(light)):
        root = ElementTree.fromstring(text)
        tags = {one.tag.rpartition("}")[2] for one in root.iter()}
        assert not tags & {"script", "foreignObject", "image", "a"}
        assert not any(key.startswith("on") for one in root.iter() for key in one.attrib)
        written = ["".join(one.itertext()).strip() for one in root.iter() if one.tag.endswith("}text")]
        assert sum(name[:30] in one for one in written) >= 3
    assert len(structure(light)) == len(expected)


def test_a_dark_figure_has_no_light_paint_left_and_the_same_words(tmp_path: object) -> None:
    from pathlib import Path

    path = Path(str(tmp_path)) / "figure.svg"
    figure, axes = charts.canvas("title", "x", "y")
    for number, (name, look) in enumerate(looks.looks([*SHIPPED, "mine", "#0063a6"]).items()):
        axes.errorbar([number], [number], yerr=[[1], [1]], **look, label=name)
    charts.legend(figure, axes)
    charts.save(figure, path)
    light = path.read_text(encoding="utf-8")
    dark = looks.dark(light)
    assert looks.themed(light)
    left = {found.lower() for found in re.findall(r"(?:fill|stroke): ?(#[0-9a-fA-F]{6})", dark)}
    assert left
    assert left <= {*looks.DARK.values()}
    assert f'<svg fill="{looks.DARK["#000000"]}"' in dark
    words = [
        ["".join(one.itertext()) for one in ElementTree.fromstring(text).iter() if one.tag.endswith("}text")]
        for text in (light, dark)
    ]
    assert words[0] == words[1]
    assert "#0063a6" in words[1]  # a name, not paint


def test_the_untrained_row_is_shown_as_the_base_model() -> None:
    assert [shown_method(name) for name in ("seed", "vanilla", "seed-2")] == [
        "base model", "vanilla", "seed-2",
    ]  # fmt: skip
