"""A run's page: everything that is logged is on it, and nothing from a file is markup."""

import json
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
from PIL import Image
from tiny_run import write_run

from guided_diffusers.training.engine.curves import chart
from guided_diffusers.training.engine.report import report


class Elements(HTMLParser):
    """The names of a page's elements, its words, and the sources of its pictures."""

    def __init__(self, page):
        super().__init__()
        self.names, self.words, self.sources = [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.words += data


def test_a_page_has_the_log_the_pictures_and_the_configuration_and_stands_alone(tmp_path):
    run = tmp_path / "run <script>alert(1)</script>"
    (run / "validation").mkdir(parents=True)
    prompts = ["a <b>bag</b>", "a hat"]
    config = {"training": {"num_images": 400, "seed": 7}, "drawing": {"prompts": prompts}}
    (run / "config.json").write_text(json.dumps(config))
    lines = [
        {"images": 100, "seconds": 1.0, "unet": 0.5, "loss_by_noise": [1.0, 0.5, None, 0.1]},
        {"images": 200, "seconds": 2.0, "unet": None, "images_per_second": 100.0},
        {"images": 200, "seconds": 2.5, "validation": {"<i>kernel": 0.25}},
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"images": 3')
    for images in (100, 200):
        for kind in ("", "-00-a-bag", "-01-a-hat"):
            Image.new("RGB", (8, 8), "red").save(run / "validation" / f"{images:012d}{kind}.png")
    (run / "validation" / "000000000300-00-a-bag.png").write_text("no picture")
    page = report(run)
    found = Elements(page)
    assert {"script", "b", "i", "link"}.isdisjoint(found.names)
    assert found.names.count("svg") == 4 and found.names.count("img") == 4
    assert all(source.startswith("data:image/png;base64,") for source in found.sources)
    for words in ("200 of 400 (50%)", *prompts, "quarter 4 of noise", "validation <i>kernel", "seed"):
        assert words in found.words
    assert "000000000300-00-a-bag.png cannot be read" in found.words


def test_a_run_that_just_began_has_a_page_and_what_is_no_run_is_refused(tmp_path):
    write_run(tmp_path, "old")
    assert "80 of 80 (100%)" in Elements(report(tmp_path)).words
    (tmp_path / "log.jsonl").write_text("")
    assert "no record yet, of 80" in Elements(report(tmp_path)).words
    with pytest.raises(FileNotFoundError, match=r"nowhere has no log\.jsonl; allowed: the folder of a run"):
        report(tmp_path / "nowhere")


@pytest.mark.parametrize("values", [[0.0], [3.0, 3.0], [-2.0, 5.0], [1e-6, 1.0], [1e8, 1e9] * 500])
def test_a_chart_is_svg_whose_lines_lie_within_it(values):
    root = ElementTree.fromstring(chart({"a": list(enumerate(values))}))
    (line,) = root.iter("polyline")
    points = [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
    assert 1 <= len(points) <= 300
    assert all(58 <= x <= 430 and 9.9 <= y <= 204.1 for x, y in points)


def test_values_that_spread_wide_are_on_a_logarithmic_axis():
    root = ElementTree.fromstring(chart({"a": [(0, 1.0), (1, 10.0), (2, 100.0)]}))
    (line,) = root.iter("polyline")
    first, middle, last = (float(pair.split(",")[1]) for pair in line.get("points").split())
    assert first - middle == pytest.approx(middle - last, abs=0.2)
