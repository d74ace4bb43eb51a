"""Reports: charts whose geometry gives the data back, pages that are whole, and the browser's own opinion of them."""

import base64
import io
import json
import math
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rlmix.agent.baselines import FIXED
from rlmix.classifier.data import load_dataset, split
from rlmix.classifier.mixing import LamDistribution, MixPolicy, PolicySchedule
from rlmix.envs.rewards import REWARDS
from rlmix.experiments import evaluate, replay_policy, report, train_classifier
from rlmix.experiments.comparison.contestants import CONTESTANTS
from rlmix.experiments.reports.charts import (
    MAX_POINTS,
    NAME_LENGTH,
    Chart,
    interval_chart,
    line_chart,
    policy_timeline,
    probability_timeline,
)
from rlmix.experiments.reports.comparison_page import write_comparison_report
from rlmix.experiments.reports.examples import mixed_examples
from rlmix.experiments.reports.html_report import ShareTable, how_to_read, render_html
from rlmix.experiments.reports.search_page import write_search_report
from rlmix.experiments.search.plan import START
from tests.soak.inputs import KINDS

Refused = Callable[[Callable[[Sequence[str]], Any], Sequence[object]], str]
OPTIONS = (
    "--dataset digits --train-size 100 --updates 40 --batch-size 20 --lr 0.1 --evaluations 4 --threads 1 "
    "--precision fp32 --device cpu --method rmix"
).split()


def drawing(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(str(chart.svg))


def shapes(svg: ElementTree.Element, kind: str, tag: str = "path") -> list[ElementTree.Element]:
    """The shapes of a kind, in the order of drawing."""
    return [shape for group in svg.iter("g") if group.get("class") == kind for shape in group.findall(tag)]


def points(path: ElementTree.Element) -> np.ndarray:
    """The corners of a path, `[N, 2]`."""
    return np.array(re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path.get("d", "")), dtype=float)


def box(path: ElementTree.Element) -> tuple[float, float, float, float]:
    """Left, top, width and height of a path."""
    low, high = points(path).min(axis=0), points(path).max(axis=0)
    return (*low, *(high - low))


def scale(svg: ElementTree.Element, axis: str) -> Callable[[Any], Any]:
    """From a place in the drawing to a value, read off the first and the last tick as a reader would."""
    ticks = []
    for tick in [group for group in svg.iter("g") if group.get("class") == f"{axis}tick"]:
        line, label = tick.find(".//path"), tick.find(".//text")
        if line is not None and label is not None and label.text:
            ticks.append((points(line)[0, "xy".index(axis)], float(label.text)))
            beside = abs(float(label.get(axis, "nan")) - ticks[-1][0])
            assert beside < (0.01 if axis == "x" else 5), "a number stands at its line"
    (low, first), (high, last) = min(ticks), max(ticks)
    assert low != high
    return lambda place: first + (place - low) * (last - first) / (high - low)


# Charts


def test_a_lines_points_are_where_the_ticks_say() -> None:
    data = {"one": [(0.0, 1.5), (10, -2.25), (35, 4)], "two": [(5.0, 0.5), (20, 3.25)]}
    svg = drawing(line_chart(data, title="A <b>", x_label="steps & more", y_label="y"))
    across, down = scale(svg, "x"), scale(svg, "y")
    for line, path in zip(data.values(), shapes(svg, "line"), strict=True):
        x, y = points(path).T
        assert np.allclose(np.stack([across(x), down(y)], axis=1), line, atol=0.03)
    description = svg.get("aria-label")
    assert description == (
        "A <b>. y over steps & more. one: from 1.5 to 4, highest 4; two: from 0.5 to 3.25, highest 3.25."
    )


def test_a_line_has_gaps_and_what_is_alone_between_them_is_seen() -> None:
    line = [(0.0, 1.0), (1.0, 3.0), (2.0, math.nan), (3.0, 5.0), (4.0, math.nan), (5.0, 1.0), (6.0, 2.0)]
    svg = drawing(line_chart({"a": line, "b": [(0.0, 0.0), (6.0, 0.0)]}, title="t", x_label="x", y_label="y"))
    across, down = scale(svg, "x"), scale(svg, "y")
    path, _ = shapes(svg, "line")
    drawn = [points(ElementTree.Element("path", d=f"M{stroke}")) for stroke in path.get("d", "").split("M")[1:]]
    seen = [[(across(x), down(y)) for x, y in stroke] for stroke in drawn if len(stroke) > 1]
    assert np.allclose(seen, [line[:2], line[5:]], atol=0.03)
    dots = [dot for group in svg.iter("g") if group.get("class") == "alone" for dot in group.iter("use")]
    assert [(across(float(d.get("x", ""))), down(float(d.get("y", "")))) for d in dots] == [
        pytest.approx((3, 5), abs=0.05)
    ]
    assert "a: from 1 to 2, highest 5, with gaps, in 3 parts; b: from 0 to 0" in svg.get("aria-label", "")


def test_a_long_lines_gaps_stay() -> None:
    line = [(x, math.nan if 500 <= x < 520 else 1.0 if x < 500 else 3.0) for x in range(1020)]
    svg = drawing(line_chart({"a": [(float(x), y) for x, y in line]}, title="t", x_label="x", y_label="y"))
    (path,) = shapes(svg, "line")
    values = scale(svg, "y")(points(path)[:, 1])
    assert np.allclose(np.minimum(abs(values - 1), abs(values - 3)), 0, atol=0.01), "no mean of either side of the gap"
    assert path.get("d", "").count("M") == 2


def test_nine_lines_can_be_told_apart() -> None:
    lines = {str(number): [(0.0, number), (1.0, number)] for number in range(9)}
    chart = line_chart(lines, title="t", x_label="x", y_label="y")
    looks = []
    for path in shapes(drawing(chart), "line"):
        style = path.get("style", "")
        colour, dashes = re.search(r"stroke: (\S+?)(;|$)", style), re.search(r"stroke-dasharray: ([\d., ]+)", style)
        assert colour
        looks.append((colour[1], [float(n) for n in dashes[1].split(",")] if dashes else []))
    assert len({str(look) for look in looks}) == 9
    # The legend shows each line as it is drawn, in colours of the page.
    keys = [(key.colour, [float(n) for n in key.dashes.split()] if key.dashes != "none" else []) for key in chart.keys]
    assert keys == looks
    assert all(colour.startswith("var(--c") for colour, _ in looks)


def test_long_lines_are_thinned_to_means_and_single_points_drawn() -> None:
    values = np.random.default_rng(0).random(1000)
    svg = drawing(line_chart({"a": list(enumerate(values))}, title="t", x_label="x", y_label="y", dots=["a"]))
    dots = [dot for group in svg.iter("g") if group.get("class") == "dots" for dot in group.iter("use")]
    assert len(dots) == MAX_POINTS
    heights = scale(svg, "y")(np.array([float(dot.get("y", "")) for dot in dots]))
    assert np.allclose(heights, values.reshape(MAX_POINTS, 5).mean(axis=1), atol=0.01)
    alone = drawing(line_chart({"a": [(3.0, 7.0)]}, title="t", x_label="x", y_label="y", dots=["a"]))
    assert len([dot for group in alone.iter("g") if group.get("class") == "dots" for dot in group.iter("use")]) == 1


def test_a_chart_is_the_same_each_time_in_colours_of_the_page() -> None:
    def make(title: str) -> str:
        return str(line_chart({"a": [(0, 1), (1, 2)]}, title=title, x_label="x", y_label="y", dots=["a"]).svg)

    assert make("t") == make("t")
    assert not re.search("#[0-9a-f]{6}|<style|metadata|font-family", make("t"))
    # Names within one page are one chart's own.
    ids = [set(re.findall(' id="([^"]*)"', make(title))) for title in "tu"]
    assert ids[0] and not ids[0] & ids[1]


def test_the_timelines_areas_are_the_shares_of_all_updates() -> None:
    schedule = PolicySchedule(
        (
            (0.25, MixPolicy({"clean": 1.0})),
            (0.75, MixPolicy({"clean": 0.5, "rmix": 0.5})),
            (1.0, MixPolicy({"clean": 0.1, "rmix": 0.3, "cutmix": 0.6})),
        )
    )
    svg = drawing(policy_timeline(schedule, title="t"))
    areas: dict[str, float] = {}
    edges: dict[float, list[tuple[float, float]]] = {}
    for block in shapes(svg, "block"):
        name = (block.findtext("title") or "").split()[0]
        left, top, width, height = box(block)
        areas[name] = areas.get(name, 0) + width * height
        edges.setdefault(left, []).append((top, top + height))
    total = sum(areas.values())
    expected = {"clean": 0.25 + 0.25 + 0.025, "rmix": 0.25 + 0.075, "cutmix": 0.15}
    assert {name: area / total for name, area in areas.items()} == pytest.approx(expected, abs=0.002)
    # Within a segment one block stands on the other.
    assert [len(stack) for stack in edges.values()] == [1, 2, 3]
    for stack in map(sorted, edges.values()):
        assert all(abs(above[1] - below[0]) < 0.21 for above, below in pairwise(stack))
    assert "until 75 %: clean 50 % + rmix 50 %" in svg.get("aria-label", "")


def test_the_timeline_of_probabilities_gives_them_back() -> None:
    ends, probabilities = (0.08, 0.6, 1.0), [{"lam": {"<a>": p, "b": 1 - p}, "x": {"c": 1.0}} for p in (0.25, 0.5, 0.9)]
    svg = drawing(probability_timeline(ends, probabilities, title="t"))
    cells, framed = shapes(svg, "cells"), [box(shape) for shape in shapes(svg, "most")]
    assert len(cells) == 9
    full = box(cells[0])[2] / 0.08  # of the whole training
    for place, name in enumerate(("<a>", "b")):
        for number, cell in enumerate(cells[3 * place : 3 * place + 3]):
            share = probabilities[number]["lam"][name]
            opacity = re.search(r"fill-opacity: ([\d.]+)", cell.get("style", ""))
            assert opacity and float(opacity[1]) == pytest.approx(0.55 * share, abs=0.006)
            frames = [frame for frame in framed if np.allclose(frame, box(cell), atol=0.02)]
            assert len(frames) == (share >= 0.5)
            start, end = (0, *ends)[number], ends[number]
            left, _, width, _ = box(cell)
            assert (left - box(cells[0])[0]) / full == pytest.approx(start, abs=0.001)
            assert width / full == pytest.approx(end - start, abs=0.001)
            title = f"lam {name} {100 * share:.3g} %, from {100 * start:.3g} to {100 * end:.3g} %"
            assert cell.findtext("title") == title
    chosen = [{"lam": "b"}, {"lam": "<a>", "x": "c"}, {"lam": "<a>"}]
    marked = drawing(probability_timeline(ends, probabilities, kept=chosen, title="t"))
    dots = [dot for group in marked.iter("g") if group.get("class") == "kept" for dot in group.iter("use")]
    places = [(float(dot.get("x", "")), float(dot.get("y", ""))) for dot in dots]
    inside = [
        {number for number, cell in enumerate(cells) if _holds(box(cell), place)} for place in places
    ]  # cells: three of <a>, three of b, three of c
    assert inside == [{3}, {1}, {2}, {7}] and not svg.findall(".//g[@class='kept']")
    # The narrow first segment has no room for numbers.
    numbers = [text.text for group in svg.iter("g") if group.get("class") == "number" for text in group.iter("text")]
    assert numbers == ["50", "90", "50", "10", "100", "100"]
    segments = (
        "until 8 %: lam b 75 %, x c 100 %; until 60 %: lam <a> 50 %, x c 100 %; until 100 %: lam <a> 90 %, x c 100 %"
    )
    assert svg.get("aria-label") == f"t. {segments}."


def _holds(frame: tuple[float, float, float, float], place: tuple[float, float]) -> bool:
    left, top, width, height = frame
    return left < place[0] < left + width and top < place[1] < top + height


def test_intervals_are_where_the_ticks_say() -> None:
    svg = drawing(interval_chart([("a", 80.0, 2.0), ("b <", 84.0, None)], title="t", x_label="%"))
    across = scale(svg, "x")
    bars = [across(points(bar)[:, 0]) for bar in shapes(svg, "LineCollection")]
    assert np.allclose(bars, [(78, 82), (84, 84)], atol=0.05)
    dots = [across(float(dot.get("x", ""))) for dot in svg.iter("use")]
    assert dots == pytest.approx([80, 84], abs=0.05)
    names = [group.findtext(".//text") for group in svg.iter("g") if group.get("class") == "ytick"]
    assert names == ["a", "b <"]


def test_long_names_of_rows_stand_in_lines_beside_the_axis() -> None:
    names = ["RL-Mix, per-image agent on the mixing grid", "plain"]
    svg = drawing(interval_chart([(name, 80.0, 2.0) for name in names], title="t", x_label="%"))
    told = [
        [text.text or "" for text in group.iter() if text.tag in ("text", "tspan") and text.text]
        for group in svg.iter("g")
        if group.get("class") == "ytick"
    ]
    assert [" ".join(lines) for lines in told] == names
    assert max(map(len, told[0])) <= NAME_LENGTH


def test_an_axis_of_accuracies_ends_at_100() -> None:
    svg = drawing(interval_chart([("a", 90.0, 30.0), ("b", 84.0, 1.0)], title="t", x_label="%"))
    ticks = [group.findtext(".//text") for group in svg.iter("g") if group.get("class") == "xtick"]
    assert ticks[0] == "60" and ticks[-1] == "100"


def test_shares_are_a_table_darker_where_they_are_larger() -> None:
    table = ShareTable(["x <", "y", "z"], ["p", "q"], [[0.25, 0.0], [0.75, 1.0], [0.005, 1e-6]], "t")
    text = render_html("t", "l", [("s", [table])], {"command": "c", "machine": {}, "config": {}})
    cells = re.findall(r"var\(--c1\) (\d+)%,transparent\)\">([^<]*)</td>", text)
    assert cells == [("14", "25"), ("0", ""), ("41", "75"), ("55", "100"), ("0", "&lt;1"), ("0", "&lt;1")]
    assert Page(text).open == [] and ">x &lt;</th>" in text


# Pages


class Page(HTMLParser):
    """What a reader and a browser find in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small training that has ended."""
    folder = tmp_path_factory.mktemp("training") / "run"
    train_classifier.main([*OPTIONS, "--out", str(folder)])
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may write into."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_trainings_report_is_whole_and_alone(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    page, shown = Page(text), unescape(text)
    assert page.open == []
    summary = json.loads((finished / "summary.json").read_text())
    for part in ("validation", "development", "test"):
        assert f">{part}</th><td>{100 * summary[part]['accuracy']:.2f}</td>" in shown
    assert "<h1>Network 'search' on digits, trained with clean 50 % + rmix 50 %" in shown
    assert "clean 50 % + rmix 50 %" in shown and "<h2>The policy</h2>" in text
    # Nothing is fetched, nothing runs, and nothing is told by a picture alone.
    assert not page.all("script") and not page.all("link")
    assert all((image["src"] or "").startswith("data:image/png;base64,") and image["alt"] for image in page.all("img"))
    assert all(drawing.get("aria-label") or drawing.get("aria-hidden") for drawing in page.all("svg"))
    assert not re.search(r"https?://", text)
    assert any(meta.get("name") == "viewport" for meta in page.all("meta")) and "prefers-color-scheme: dark" in text
    # The four mixed images and their saliency are images of the data set's size, and not all the same.
    pictures = [base64.b64decode((image["src"] or "").partition(",")[2]) for image in page.all("img")]
    assert len(set(pictures)) == len(pictures) == 8
    assert all(Image.open(io.BytesIO(picture)).size == (8, 8) for picture in pictures)


def test_a_method_has_no_loss_where_it_is_not_used(tmp_path: Path) -> None:
    policies = [MixPolicy({name: 1.0}) for name in ("clean", "cutmix", "clean")]
    PolicySchedule(tuple(zip((0.25, 0.75, 1.0), policies, strict=True))).save(tmp_path / "policy.json")
    options = [*OPTIONS[: OPTIONS.index("--method")], "--policy", str(tmp_path / "policy.json")]
    replay_policy.main([*options, "--out", str(tmp_path / "run")])
    text = (tmp_path / "run" / "report.html").read_text()
    (told,) = re.findall(r'aria-label="Training loss[^"]*"', text)
    clean, mixed = told.split("; mixed: ")
    assert "with gaps, in 2 parts" in clean and "gaps" not in mixed


def test_words_of_policies_are_explained_where_they_occur() -> None:
    plain, rmix = MixPolicy({"clean": 1.0}), MixPolicy({"clean": 0.5, "rmix": 0.5}, label_smoothing=0.1)
    lamix = MixPolicy({"average": 1.0}, lam=LamDistribution.parse("uniform"), threshold=0.5, label_beta=0.5)
    words = ("clean is", "average shows", "beta(A)", "uniform is drawn", "τ is", "drawn anew", "β is", "smoothing is")
    said = {
        name: [word for word in words if word in how_to_read(policies).text]
        for name, policies in {
            "plain": [plain],
            "rmix": [plain, rmix],
            "fixed": [replace(rmix, threshold=0.3, label_smoothing=0.0)],
            "lamix": [lamix],
        }.items()
    }
    assert said == {
        "plain": ["clean is"],
        "rmix": ["clean is", "beta(A)", "τ is", "drawn anew", "smoothing is"],
        "fixed": ["clean is", "beta(A)", "τ is"],
        "lamix": ["average shows", "uniform is drawn", "β is"],
    }


@pytest.mark.parametrize("classes", [2, 3, 4, 7, 10])
def test_images_of_a_report_are_mixed_with_others_of_another_class(classes: int) -> None:
    data = split(load_dataset("digits"))
    few = replace(data, train=data.train.take(np.flatnonzero(data.train.labels.numpy() < classes)))
    rows = [(method, method, MixPolicy({method: 1.0})) for method in ("mixup", "average", "cutmix")]
    shown = list(mixed_examples(rows, few, lambda images, _: images, torch.device("cpu")))
    assert [one.heading for one in shown] == ["mixup", "average", "cutmix"]
    names = [re.findall(r"\d+ % (\w+)", example.target) for one in shown for example in one.examples]
    assert len(names) == 12 and all(len(set(both)) == 2 for both in names)
    assert all(example.target.startswith("65 % ") for one in shown[:2] for example in one.examples)


def test_a_method_has_one_colour_in_all_reports() -> None:
    def colours(*methods: str) -> dict[str, str]:
        schedule = PolicySchedule(
            tuple(((place + 1) / len(methods), MixPolicy({method: 1.0})) for place, method in enumerate(methods))
        )
        return {key.name: key.colour for key in policy_timeline(schedule, title="t").keys}

    all_of_them = colours("clean", "mixup", "cutmix", "rmix")
    assert len(set(all_of_them.values())) == 4
    assert colours("rmix", "mixup") == {name: all_of_them[name] for name in ("mixup", "rmix")}


def test_its_curve_is_the_validation_accuracy(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    summary = json.loads((finished / "summary.json").read_text())
    (told,) = re.findall(r'aria-label="Validation accuracy\. [^"]*highest ([\d.]+)\.?"', text)
    assert float(told.rstrip(".")) == pytest.approx(100 * summary["validation"]["accuracy"], rel=1e-3)


def test_it_is_written_again_with_what_was_measured_since(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("torchmetrics", "torchattack"):
        pytest.importorskip(name)
    before = (run / "report.html").read_bytes()
    report.main(["--run", str(run)])
    assert (run / "report.html").read_bytes() == before
    evaluate.main(["--run", str(run), "--device", "cpu", "--images", "100"])
    report.main(["--run", str(run)])
    after = (run / "report.html").read_text()
    measured = json.loads((run / "evaluation.json").read_text())
    assert "Reliability diagram" in after and "Accuracy under corruptions" in after
    assert f"<td>{100 * measured['attacks']['accuracy']['pgd']:.2f}</td>" in after
    assert capsys.readouterr().out.endswith(f"written: {run}/report.html\n")


def test_words_of_the_user_stay_words(run: Path) -> None:
    value = json.loads((run / "config.json").read_text())
    value["command"] = ["train_classifier.py", "--out", "<script>alert(1)</script>"]
    value["config"]["out"] = "<script>alert(2)</script>"
    (run / "config.json").write_text(json.dumps(value))
    report.main(["--run", str(run)])
    text = (run / "report.html").read_text()
    assert not Page(text).all("script")
    shown = unescape(text)
    assert "python experiments/train_classifier.py --out '<script>alert(1)</script>'" in shown
    assert '"out": "<script>alert(2)</script>"' in shown


def test_what_is_no_finished_run_is_refused(run: Path, tmp_path: Path, refused: Refused) -> None:
    assert "expected a run folder, got none" in refused(report.main, ["--run", tmp_path / "nowhere"])
    (run / "summary.json").unlink()
    assert "expected the files of a finished run, got FileNotFoundError" in refused(report.main, ["--run", run])
    (run / "model.safetensors").unlink()
    assert "this training has not finished" in refused(report.main, ["--run", run])
    other = tmp_path / "other"
    other.mkdir()
    (other / "results.json").write_text('{"kind": "benchmark"}')
    assert "expected results of compare.py, got 'benchmark'" in refused(report.main, ["--run", other])
    (other / "results.json").write_text('{"kind": "comparison"}')
    assert "expected the files of a finished run, got KeyError: 'setting'" in refused(report.main, ["--run", other])


def test_choices_that_the_menu_does_not_have_are_refused(tmp_path: Path) -> None:
    """One huge number in a log must not become an array of as many counts."""
    KINDS["run folder of a search"].make(tmp_path)
    log = tmp_path / "episodes.jsonl"
    first, *rest = log.read_text().splitlines()
    entry = json.loads(first)
    entry["actions"][0][0] = 4 * 10**9
    log.write_text("\n".join([json.dumps(entry), *rest]) + "\n")
    with pytest.raises(ValueError, match="a choice is not in the menu"):
        write_search_report(tmp_path)


def test_a_folder_is_called_by_its_last_name_in_a_title(tmp_path: Path) -> None:
    KINDS["run folder of a search"].make(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["config"]["data"]["dataset"] = "/data/of mine/cats"
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_search_report(tmp_path)
    assert "<h1>Search for a mixing policy on cats</h1>" in (tmp_path / "report.html").read_text()
    write_comparison_report(tmp_path, comparison(["plain", "cutmix"], dataset="/data/of mine/cats"))
    assert "<h1>2 ways to train the network 'search' on cats</h1>" in unescape((tmp_path / "report.html").read_text())


def search_page(folder: Path, policy: PolicySchedule | None = None, **options: object) -> str:
    """The report of a made-up search with these options, which learned this policy."""
    folder.mkdir(exist_ok=True)
    KINDS["run folder of a search"].make(folder)
    config, summary = (json.loads((folder / f"{name}.json").read_text()) for name in ("config", "summary"))
    config["config"].update(options)
    if policy is not None:
        summary["policy"] = {**policy.to_json(), "provenance": summary["policy"]["provenance"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "summary.json").write_text(json.dumps(summary))
    write_search_report(folder)
    return unescape((folder / "report.html").read_text())


def test_a_search_says_that_it_found_no_better_policy_than_its_first(tmp_path: Path) -> None:
    half = PolicySchedule.fixed(FIXED[START])
    told = "The search started from this policy, CutMix half, and found no better one."
    pages = {
        "the same": search_page(tmp_path / "a", half),
        "another": search_page(tmp_path / "b", PolicySchedule.fixed(FIXED["plain"])),
        "of an agent": search_page(tmp_path / "c", half, start="shipped"),
    }
    assert {name for name, page in pages.items() if told in page} == {"the same"}


@pytest.mark.parametrize("reward", REWARDS)
def test_a_search_says_what_its_return_is(reward: str, tmp_path: Path) -> None:
    page = search_page(tmp_path, reward=reward)
    assert ("0 is level" in page and "standard deviations over training" in page) == REWARDS[reward].needs_reference
    assert ("return, accuracy over training" in page) == (not REWARDS[reward].needs_reference)


# Comparisons


def comparison(names: Sequence[str], **setting: object) -> dict[str, Any]:
    """What a comparison of contestants over two seeds of digits leaves, its figures made up."""
    interval = {"mean": 0.5, "half_width": 0.1, "per_seed": [0.4, 0.6]}
    return {
        "command": "python experiments/compare.py",
        "machine": {"processor": "Abacus"},
        "config": {"data_root": None, "processes": 2},
        "setting": {
            "dataset": "digits", "model": "search", "train_size": 100, "updates": 10, "batch_size": 20,
            "split": "development", **setting
        },
        "seeds": [0, 1],
        "baseline": names[0],
        "images": 287,
        "measured_images": 287,
        "less_baseline": {name: {"mean": 0.1, "half_width": 0.2, "p_value": 0.5} for name in names[1:]},
        "methods": {
            name: {
                "title": CONTESTANTS[name].title,
                "schedule": CONTESTANTS[name].policy.to_json(),
                "saliency": CONTESTANTS[name].saliency,
                "accuracy": interval,
                "measures": {},
                "seconds": interval,
                "diverged": 0,
            }
            for name in names
        },
    }  # fmt: skip


def test_a_comparison_shows_the_same_images_as_each_contestant_mixes_them(tmp_path: Path) -> None:
    write_comparison_report(tmp_path, comparison(["plain", "cutmix", "manifold", "rmix", "rmix-exact"]))
    text = (tmp_path / "report.html").read_text()
    assert Page(text).open == []
    rows = re.findall(r'<h3>([^<]*)</h3>\s*<div class="pictures">(.*?)</div>', text, re.DOTALL)
    assert [name for name, _ in rows] == ["no mixing", "CutMix", "R-Mix, recycled saliency; R-Mix, exact saliency"]
    shown, told = {}, {}
    for name, row in rows:
        encoded = re.findall(r'src="data:image/png;base64,([^"]*)" alt="Mixed image', row)
        shown[name] = np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))) for png in encoded])
        told[name] = re.findall("<figcaption>([^<]*)</figcaption>", row)
    drawn = split(load_dataset("digits")).draw(100, data_seed=0).train
    firsts = sorted(drawn.labels.tolist().index(label) for label in range(10))  # the first of each class, as they come
    data = drawn.take(np.array(firsts))
    images = data.images.squeeze(1).numpy()
    assert np.array_equal(shown["no mixing"], images[:4])
    assert told["no mixing"] == [f"100 % {label}" for label in data.labels[:4].tolist()]
    # CutMix: a rectangle of another image of the eight, and targets by its area.
    for place, (mixed, caption) in enumerate(zip(shown["CutMix"], told["CutMix"], strict=True)):
        foreign = mixed != images[place]
        candidates = [other for other in range(8) if np.array_equal(mixed[foreign], images[other][foreign])]
        assert candidates, "every pixel that is not its own is one other image's"
        shares = {name: int(share) for share, name in re.findall(r"(\d+) % (\d)", caption)}
        assert sum(shares.values()) == pytest.approx(100, abs=1)
        if len(shares) == 2:
            assert 100 * foreign.mean() <= 100 - shares[str(int(data.labels[place]))] + 1
            assert set(shares) & {str(int(data.labels[other])) for other in candidates}


def test_a_contestant_has_one_name_in_a_report(tmp_path: Path) -> None:
    report = comparison(["plain", "cutmix", "rmix"])
    report["methods"]["CutMix"] = {**report["methods"]["cutmix"]}  # a schedule of the user's, called like another
    write_comparison_report(tmp_path, report)
    text = unescape((tmp_path / "report.html").read_text())
    names = ["no mixing", "CutMix (cutmix)", "R-Mix, recycled saliency", "CutMix (CutMix)"]
    assert re.findall(r'<th scope="row">([^<]*)</th>', text)[:8] == [*names, *names]
    assert re.findall("</svg>([^<]+)</span>", text) == names, "the legend"
    (chart,) = re.findall('aria-label="(Development accuracy[^"]*)"', text)
    assert all(f"{name}: 50.00 ± 10.00" in chart for name in names)
    assert ">less no mixing</th>" in text


def test_a_comparison_says_what_is_to_be_minded(tmp_path: Path) -> None:
    report = comparison(["plain", "rmix"])
    write_comparison_report(tmp_path, report)
    text = unescape((tmp_path / "report.html").read_text())
    assert "seconds are for orientation: trainings shared the machine (2 at a time" in text and "Note" not in text
    assert re.findall(r'>(no mixing|R-Mix[^<]*)</th>(?:<td class="text">([^<]*)</td>){2}', text) == [
        ("no mixing", "none"),
        ("R-Mix, recycled saliency", "recycled"),
    ]
    write_comparison_report(tmp_path, {**report, "notes": ["the shipped agent: far from all trainings"]})
    assert "<p>Note: the shipped agent: far from all trainings.</p>" in (tmp_path / "report.html").read_text()


def test_equal_neighbours_of_a_schedule_are_told_as_one(tmp_path: Path) -> None:
    report = comparison(["plain", "cutmix"])
    clean, half = MixPolicy({"clean": 1.0}), MixPolicy({"clean": 0.5, "cutmix": 0.5})
    for name, chosen in (("plain", [half] * 4), ("cutmix", [clean, half, half, clean])):
        schedule = PolicySchedule(tuple(zip((0.25, 0.5, 0.75, 1.0), chosen, strict=True)))
        report["methods"][name]["schedule"] = schedule.to_json()
    write_comparison_report(tmp_path, report)
    text = (tmp_path / "report.html").read_text().replace("\u00a0", " ")
    assert f'no mixing</th><td class="text">{half}</td>' in text
    assert f">until 25 %: {clean}; until 75 %: {half}; until 100 %: {clean}</td>" in text


def test_a_comparison_whose_images_are_not_here_says_so(tmp_path: Path) -> None:
    write_comparison_report(tmp_path, comparison(["plain", "cutmix"], dataset="nowhere.to:be_found"))
    text = unescape((tmp_path / "report.html").read_text())
    assert "Not available: the data set could not be loaded on this machine" in text and "nowhere" in text
    assert ">no mixing</th>" in text
