"""Reports in a real browser: what is in them is shown, quietly, on a phone and in the dark."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rlmix.agent.decisions import as_provenance
from rlmix.agent.ppo import new_policy, to_agent
from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.envs import DIMENSIONS, Menu
from rlmix.experiments import train_classifier
from rlmix.experiments.comparison.contestants import CONTESTANTS
from rlmix.experiments.reports.comparison_page import write_comparison_report
from rlmix.experiments.reports.html_report import Picture, Table, render_html
from rlmix.experiments.reports.search_page import write_search_report
from tests.experiments.test_report import OPTIONS, comparison

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE = {"width": 360, "height": 740}
READABLE = 4.5  # contrast of text, WCAG 2.2, level AA
BOLD = 3.0  # of the method's name on its block, which stands in the legend and in the table too

# Of every element that holds words of its own: these words and their contrast, in the colours that are really drawn.
CONTRASTS = """() => {
    const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const over = (layers) => {  // colours from the bottom to the top, as one
        pen.clearRect(0, 0, 1, 1);
        for (const [colour, opacity] of layers) {
            pen.globalAlpha = opacity;
            pen.fillStyle = colour;
            pen.fillRect(0, 0, 1, 1);
        }
        return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const luminance = (rgb) => {
        const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const found = [];
    for (const element of document.body.querySelectorAll("*")) {
        const words = [...element.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data.trim()).join(" ");
        const style = getComputedStyle(element);
        if (!words || !element.getClientRects().length || element.tagName === "title") continue;
        const layers = [];
        for (let at = element; at; at = at.parentElement) layers.unshift([getComputedStyle(at).backgroundColor, 1]);
        const drawn = element instanceof SVGElement;
        if (drawn) {  // on whatever filled shapes of its chart were drawn before it, where its middle is
            const at = element.getBoundingClientRect();
            const [x, y] = [at.left + at.width / 2, at.top + at.height / 2];
            for (const shape of element.ownerSVGElement.querySelectorAll("path, use, rect")) {
                if (shape.compareDocumentPosition(element) !== Node.DOCUMENT_POSITION_FOLLOWING) continue;
                const box = shape.getBoundingClientRect(), fill = getComputedStyle(shape);
                if (x < box.left || x > box.right || y < box.top || y > box.bottom || fill.fill === "none") continue;
                if (shape.closest("defs")) continue;
                layers.push([fill.fill, Number(fill.fillOpacity)]);
            }
        }
        const below = luminance(over(layers));
        const above = luminance(over([...layers, [drawn ? style.fill : style.color, 1]]));
        const contrast = (Math.max(below, above) + 0.05) / (Math.min(below, above) + 0.05);
        found.push([words, contrast, Boolean(element.closest(".on"))]);
    }
    return found;
}"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of each kind: a training, a search with its record made up, a comparison of every contestant."""
    folder = tmp_path_factory.mktemp("reports")
    train_classifier.main([*OPTIONS, "--out", str(folder / "training")])
    (folder / "search").mkdir()
    write_search(folder / "search")
    (folder / "comparison").mkdir()
    write_comparison_report(folder / "comparison", comparison(list(CONTESTANTS)))
    return {kind: folder / kind / "report.html" for kind in ("training", "search", "comparison")}


def write_search(folder: Path) -> None:
    menu, segments = Menu(), (0.1, 0.25, 0.5, 0.75, 1.0)
    random = np.random.default_rng(0)
    actions = [[[int(random.integers(size)) for size in menu.sizes] for _ in segments] for _ in range(20)]
    probabilities = [
        {
            name: dict(zip(menu.names(name), random.dirichlet(np.ones(size)).tolist(), strict=True))
            for name, size in zip(DIMENSIONS, menu.sizes, strict=True)
        }
        for _ in segments
    ]
    chosen = tuple((until, menu.policy(action)) for until, action in zip(segments, actions[0], strict=True))
    entry = {"mean": 0.5, "interval": 0.1, "accuracies": [0.4, 0.6], "difference_interval": 0.1}
    contest = {name: {**entry, "learned_minus_this": gap} for name, gap in (("learned", 0.0), ("plain", 0.2))}
    policy = PolicySchedule(chosen, as_provenance(probabilities)).to_json()
    task = {"image_size": 8, "train_size": [100, 200], "updates": [10, 10], "label_noise": [0.0, 0.4]}
    config = {"dataset": "digits", "model": "search", **task}
    described = {"config": config, "command": ["train_agent.py"], "machine": {"processor": "Abacus"}}
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "summary.json").write_text(json.dumps({"policy": policy, "contest": contest}))
    to_agent(new_policy(menu, [4]), menu, segments, {}).save(folder)
    steps = {"rewards": [0.1] * len(segments), "validation_accuracy": [0.5] * len(segments)}
    (folder / "episodes.jsonl").write_text("".join(json.dumps({"actions": one, **steps}) + "\n" for one in actions))
    (folder / "tensorboard").mkdir()
    write_search_report(folder)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The machine's own Chromium."""
    library = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make install-dev")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no Chromium on the PATH (looked for {', '.join(BROWSERS)})")
    with library.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser: Any, report: Path, **context: Any) -> tuple[Any, list[str]]:
    """A page that shows a report, and all that it says and asks for: console messages, errors, requests."""
    page, noise = browser.new_page(**context), []
    page.on("console", lambda message: noise.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: noise.append(f"error: {error}"))
    page.on("request", lambda request: noise.append(f"request: {request.url:.80}"))
    page.goto(report.as_uri())
    return page, noise


@pytest.mark.parametrize(
    ("kind", "charts", "tables"),
    [
        (
            "training",
            ["Mixing methods over the training.", "Validation accuracy."],
            ["The selected network", "The schedule"],
        ),
        (
            "search",
            ["The learned schedule.", "Probability, %, that the agent gave to each choice", "Learning curve: return"],
            ["Development accuracy, 2 fresh trainings each", "The schedule", "source: share of choices"],
        ),
        ("comparison", ["Development accuracy, 95 % intervals.", "Accuracy by seed."], ["95 % intervals over 2"]),
    ],
)
def test_charts_and_tables_are_shown_without_a_word_or_a_request(
    kind: str, charts: list[str], tables: list[str], reports: dict[str, Path], browser: Any
) -> None:
    page, noise = opened(browser, reports[kind])
    assert noise == [f"request: {reports[kind].as_uri():.80}"]
    for name in charts:
        chart = page.locator(f'figure svg[role=img][aria-label^="{name}"]')
        assert chart.count() == 1 and chart.is_visible()
        box = chart.bounding_box()
        assert box["width"] > 300 and box["height"] > 100
        assert chart.locator(".block path, .cells path, .line path, use").first.is_visible()
    for name in tables:
        table = page.locator("table", has=page.locator("caption", has_text=name)).first
        assert table.is_visible() and table.locator("tbody tr").count() > 0
    shown = page.evaluate("[...document.images].map((image) => image.complete && image.naturalWidth)")
    assert all(shown) and (shown or kind == "search")
    page.close()


@pytest.mark.parametrize("kind", ["training", "search", "comparison"])
def test_on_a_phone_nothing_sticks_out(kind: str, reports: dict[str, Path], browser: Any) -> None:
    page, _ = opened(browser, reports[kind], viewport=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    page.close()


def test_on_a_phone_words_and_pictures_keep_their_size_and_scroll(browser: Any, tmp_path: Path) -> None:
    png = io.BytesIO()
    Image.new("RGB", (896, 146)).save(png, format="PNG")
    policy = str(MixPolicy({"clean": 0.5, "rmix": 0.5}))
    table = Table(["until", "policy", "then", "a", "b"], [("10 %", policy, "kept", *["12.34 ± 0.56"] * 2)], "t", 3)
    parts = [table, Picture(png.getvalue(), "d", "c")]
    text = render_html("t", "l", [("s", parts)], {"command": "c", "machine": {}, "config": {}})
    (tmp_path / "page.html").write_text(text)
    page, _ = opened(browser, tmp_path / "page.html", viewport=PHONE)
    assert page.locator("img").bounding_box()["width"] == 896
    widths = [page.locator("td.text", has_text=text).bounding_box()["width"] for text in (policy, "kept")]
    assert widths[0] >= 14 * 16 > widths[1]
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    # A shadow at the right edge tells that there is more; at the end it has gone.
    outer = page.locator(".wide").first
    assert outer.evaluate("element => element.scrollWidth > element.clientWidth")
    assert _edge(outer) < 250
    outer.evaluate("element => element.scrollTo(element.scrollWidth, 0)")
    assert _edge(outer) > 250
    page.close()


def _edge(element: Any) -> int:
    """How light the paper is at the right edge of an element, above its first line: from 0 to 255."""
    shown = Image.open(io.BytesIO(element.screenshot())).convert("L")
    return int(np.asarray(shown)[6, -3])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["training", "search", "comparison"])
def test_words_stand_out_from_what_is_below_them(
    kind: str, scheme: str, reports: dict[str, Path], browser: Any
) -> None:
    page, _ = opened(browser, reports[kind], color_scheme=scheme)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}[scheme]
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 50
    assert [entry for entry in contrasts if entry[1] < (BOLD if entry[2] else READABLE)] == []
    page.close()


def test_contrast_is_that_of_the_standard(browser: Any, tmp_path: Path) -> None:
    # Published values: #777 on white is 4.48, #767676 is 4.54. Black at half strength on white is #7f7f7f or #808080:
    # 4.00 or 3.95.
    (tmp_path / "page.html").write_text(
        '<body style="background:#fff"><p style="color:#777">a</p><p style="color:#767676">b</p>'
        '<svg><rect width="90" height="40" fill="#000" fill-opacity="0.5"/><text y="20" fill="#fff">c</text></svg>'
    )
    page, _ = opened(browser, tmp_path / "page.html")
    found = {words: contrast for words, contrast, _ in page.evaluate(CONTRASTS)}
    assert found == pytest.approx({"a": 4.48, "b": 4.54, "c": 3.975}, abs=0.03)
    page.close()
