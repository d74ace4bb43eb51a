"""Reports: charts whose geometry gives the data back, pages that are whole, and the browser's own opinion of them."""

import base64
import io
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rlmix.classifier.data import load_dataset, split
from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.experiments import evaluate, report, train_classifier
from rlmix.experiments.comparison.contestants import CONTESTANTS
from rlmix.experiments.reports.charts import (
    MOST_POINTS,
    interval_chart,
    line_chart,
    probability_timeline,
    share_table,
    timeline,
)
from rlmix.experiments.reports.pages import write_comparison_report, write_search_report
from tests.soak.inputs import KINDS

Refused = Callable[[Callable[[Sequence[str]], Any], Sequence[object]], str]
OPTIONS = (
    "--dataset digits --train-size 100 --updates 40 --batch-size 20 --lr 0.1 --evaluations 4 --threads 1 "
    "--precision fp32 --device cpu --method rmix"
).split()


def parse(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(str(chart))


def scale(chart: ElementTree.Element, axis: str) -> Callable[[float], float]:
    """From a place in the drawing to a value, read off the first and the last tick as a reader would."""
    ticks = []
    lines = [
        line
        for line in chart.iter("line")
        if line.get("class") == "grid" and line.get(f"{axis}1") == line.get(f"{axis}2")
    ]
    texts = [
        text for text in chart.iter("text") if text.get("x") and text.text and re.fullmatch(r"-?[\d.e+-]+", text.text)
    ]
    for line in lines:
        place = float(line.get(f"{axis}1", ""))
        for text in texts:
            # Numbers of the horizontal axis are centred under their lines, those of the vertical one stand beside.
            centred = text.get("text-anchor") == "middle"
            if centred == (axis == "x") and abs(float(text.get(axis, "")) - (0 if centred else 4) - place) < 0.11:
                ticks.append((place, float(text.text or "")))
    (low, first), (high, last) = min(ticks), max(ticks)
    assert low != high
    return lambda place: first + (place - low) * (last - first) / (high - low)


# Charts


def test_a_lines_points_are_where_the_ticks_say() -> None:
    data = {"one": [(0.0, 1.5), (10, -2.25), (35, 4)], "two": [(5.0, 0.5), (20, 3.25)]}
    chart = parse(line_chart(data, title="A <b>", x_label="steps & more", y_label="y"))
    across, down = scale(chart, "x"), scale(chart, "y")
    drawn = [
        [tuple(map(float, point.split(","))) for point in line.get("points", "").split()]
        for line in chart.iter("polyline")
    ]
    for line, points in zip(data.values(), drawn, strict=True):
        found = [(across(x), down(y)) for x, y in points]
        assert np.allclose(found, line, atol=0.03)
    told = next(chart.iter("svg")).get("aria-label", "")
    assert told == "A <b>. y over steps & more. one: from 1.5 to 4, highest 4; two: from 0.5 to 3.25, highest 3.25."


def test_nine_lines_can_be_told_apart() -> None:
    lines = {str(number): [(0.0, number), (1.0, number)] for number in range(9)}
    looks = [
        (line.get("stroke"), line.get("stroke-dasharray"))
        for line in parse(line_chart(lines, title="t", x_label="x", y_label="y")).iter("polyline")
    ]
    assert len(set(looks)) == 9


def test_long_lines_are_thinned_to_means_and_single_points_drawn() -> None:
    values = np.random.default_rng(0).random(1000)
    chart = parse(line_chart({"a": list(enumerate(values))}, title="t", x_label="x", y_label="y"))
    points = next(chart.iter("polyline")).get("points", "").split()
    assert len(points) == MOST_POINTS
    down = scale(chart, "y")
    heights = [down(float(point.split(",")[1])) for point in points]
    assert np.allclose(heights, values.reshape(MOST_POINTS, 5).mean(axis=1), atol=0.01)
    alone = parse(line_chart({"a": [(3.0, 7.0)]}, title="t", x_label="x", y_label="y", dots=["a"]))
    assert len(list(alone.iter("circle"))) == 1


def test_the_timelines_areas_are_the_shares_of_all_updates() -> None:
    schedule = PolicySchedule(
        (
            (0.25, MixPolicy({"clean": 1.0})),
            (0.75, MixPolicy({"clean": 0.5, "rmix": 0.5})),
            (1.0, MixPolicy({"clean": 0.1, "rmix": 0.3, "cutmix": 0.6})),
        )
    )
    chart = parse(timeline(schedule, title="t"))
    areas: dict[str, float] = {}
    for block in chart.iter("rect"):
        if block.get("class") == "block":
            name = (block.findtext("title") or "").split()[0]
            areas[name] = areas.get(name, 0) + float(block.get("width", 0)) * float(block.get("height", 0))
    total = sum(areas.values())
    expected = {"clean": 0.25 + 0.25 + 0.025, "rmix": 0.25 + 0.075, "cutmix": 0.15}
    assert {name: area / total for name, area in areas.items()} == pytest.approx(expected, abs=0.002)
    # Within a segment one block stands on the other.
    edges: dict[str, list[tuple[float, float]]] = {}
    for block in [block for block in chart.iter("rect") if block.get("class") == "block"]:
        top = float(block.get("y", 0))
        edges.setdefault(block.get("x", ""), []).append((top, top + float(block.get("height", 0))))
    assert [len(stack) for stack in edges.values()] == [1, 2, 3]
    for stack in map(sorted, edges.values()):
        assert all(abs(above[1] - below[0]) < 0.21 for above, below in pairwise(stack))
    assert "until 75 %: clean 50 % + rmix 50 %" in next(chart.iter("svg")).get("aria-label", "")


def test_the_timeline_of_probabilities_gives_them_back() -> None:
    ends, probabilities = (0.08, 0.6, 1.0), [{"lam": {"<a>": p, "b": 1 - p}, "x": {"c": 1.0}} for p in (0.25, 0.5, 0.9)]
    chart = parse(probability_timeline(ends, probabilities, title="t"))
    cells = [cell for cell in chart.iter("rect") if (cell.get("class") or "").startswith("cell")]
    assert len(cells) == 9
    scale_of = (420 - 150 - 16) / 100  # from the names of the choices to the right edge
    for place, name in enumerate(("<a>", "b")):
        for number, cell in enumerate(cells[3 * place : 3 * place + 3]):
            share = probabilities[number]["lam"][name]
            assert float(cell.get("fill-opacity", "")) == pytest.approx(0.55 * share, abs=0.006)
            assert ("most" in (cell.get("class") or "")) == (share >= 0.5)
            start, end = (0, *ends)[number], ends[number]
            left, width = float(cell.get("x", "")) - 1, float(cell.get("width", "")) + 2
            assert (left - 150) / scale_of == pytest.approx(100 * start, abs=0.1)
            assert width / scale_of == pytest.approx(100 * (end - start), abs=0.1)
            told = f"lam {name} {100 * share:.3g} %, from {100 * start:.3g} to {100 * end:.3g} %"
            assert cell.findtext("title") == told
    # The narrow first segment has no room for numbers.
    numbers = [text.text for text in chart.iter("text") if text.get("text-anchor") == "middle"]
    assert numbers[:6] == ["50", "90", "50", "10", "100", "100"]
    told = "until 8 %: lam b 75 %, x c 100 %; until 60 %: lam <a> 50 %, x c 100 %; until 100 %: lam <a> 90 %, x c 100 %"
    assert next(chart.iter("svg")).get("aria-label") == f"t. {told}."


def test_intervals_and_shares() -> None:
    chart = parse(interval_chart([("a", 80.0, 2.0), ("b <", 84.0, None)], title="t", x_label="%"))
    across = scale(chart, "x")
    whiskers = [line for line in chart.iter("line") if line.get("class") == "whisker"]
    ends = [(across(float(line.get("x1", ""))), across(float(line.get("x2", "")))) for line in whiskers]
    assert np.allclose(ends, [(78, 82), (84, 84)], atol=0.05)
    assert [across(float(circle.get("cx", ""))) for circle in chart.iter("circle")] == pytest.approx([80, 84], abs=0.05)
    table = parse(share_table(["x", "y"], ["p", "q"], [[0.25, 0.0], [0.75, 1.0]], title="t"))
    assert [cell.text or "" for cell in table.iter("td")][1:] == ["25", "", "75", "100"]


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
    assert "no run is there" in refused(report.main, ["--run", tmp_path / "nowhere"])
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
    with pytest.raises(ValueError, match="what the menu does not have"):
        write_search_report(tmp_path)


# Comparisons


def comparison(names: Sequence[str], **setting: object) -> dict[str, Any]:
    """What a comparison of contestants over two seeds of digits leaves, its figures made up."""
    interval = {"mean": 0.5, "half_width": 0.1, "per_seed": [0.4, 0.6]}
    return {
        "command": "python experiments/compare.py",
        "machine": {"processor": "Abacus"},
        "config": {"data_root": None},
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
                "schedule": CONTESTANTS[name].schedule.to_json(),
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
    rows = re.findall(r'<h3>([^<]*)</h3><div class="pictures">(.*?)</div>', text)
    assert [name for name, _ in rows] == ["no mixing", "CutMix", "R-Mix, recycled saliency; R-Mix, exact saliency"]
    shown, told = {}, {}
    for name, row in rows:
        encoded = re.findall(r'src="data:image/png;base64,([^"]*)" alt="A mixed image', row)
        shown[name] = np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))) for png in encoded])
        told[name] = re.findall("<figcaption>([^<]*)</figcaption>", row)
    data = split(load_dataset("digits")).draw(100, data_seed=0).train
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


def test_a_comparison_whose_images_are_not_here_says_so(tmp_path: Path) -> None:
    write_comparison_report(tmp_path, comparison(["plain", "cutmix"], dataset="nowhere.to:be_found"))
    text = unescape((tmp_path / "report.html").read_text())
    assert "they cannot be had on the machine that wrote this report" in text and "nowhere" in text
    assert ">no mixing</th>" in text
