"""Tokens in the colour of their weights: what is coloured how much, and that it can be read."""

import re

import pytest

from alignlab.experiment.shading import ALONE, STYLE, bounds_of, is_weighed, legend, page, shaded

REPORT = {"light": ("#ffffff", "#1d2127"), "dark": ("#1b1e24", "#e7e9ec")}
"""Paper and ink of a study's report, and of a page of its own."""


def shares(html):
    return [float(share) for share in re.findall(r"--share: ([-\d.]+)", html)]


def test_the_share_of_the_colour_is_that_of_the_way_between_the_bounds():
    assert shares(shaded([["a", 1.0], [" b", 2.0], [" c", 5.0]], (1.0, 5.0))) == [0, 0.25, 1]
    assert shares(shaded([["a", 0.5], [" b", 9.0]], (1.0, 5.0))) == [0, 1]
    assert shares(shaded([["a", 2.0]], (2.0, 2.0))) == [0]


def test_texts_are_text_and_spaces_have_no_colour():
    html = shaded([["<i>", 1.0], ["\n&", 2.0], [" ", 2.0], ["", 3.0]], (1.0, 5.0))
    assert str(html) == (
        '<span class="shaded"><span style="--share: 0.00" title="1.00">&lt;i&gt;</span>'
        '\n<span style="--share: 0.25" title="2.00">&amp;</span> </span>'
    )


def test_a_page_has_both_ends_and_needs_nothing_else():
    item = {"weights": [["a", 1.0], [" red", 4.5]], "bounds": [0.5, 5]}
    whole = page(item)
    assert is_weighed(item) and not is_weighed({"weights": [1.0]})
    assert str(legend(bounds_of(item))) in whole and ">0.5<" in whole and "</i>5<" in whole
    assert str(shaded(item["weights"], (0.5, 5.0))) in whole and STYLE in whole
    assert not re.search(r"<(script|link|iframe)|@import|url\(", whole)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_text_can_be_read_on_all_of_the_colour(theme):
    paper, ink = ([int(color[place : place + 2], 16) for place in (1, 3, 5)] for color in REPORT[theme])
    assert all(color in ALONE for color in REPORT[theme])
    shade = [int(part) for part in re.findall(r"--shade: (\d+) (\d+) (\d+)", STYLE)[theme == "dark"]]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        mixed = [share * a + (1 - share) * b for a, b in zip(shade, paper, strict=True)]
        assert contrast(ink, mixed) >= 4.5  # WCAG 2.2, level AA
    assert contrast(paper, shade) > 2.5  # the ends can be told apart, also in grey


def contrast(first, second):
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(color):
    """Relative luminance of sRGB, https://www.w3.org/TR/WCAG22/#dfn-relative-luminance."""
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in (c / 255 for c in color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
