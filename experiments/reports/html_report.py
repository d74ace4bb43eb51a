"""One HTML file from the parts of a report: tables, charts, images and paragraphs, laid out by Jinja templates.

A report needs no network and no other file, and is readable on a phone, in dark mode, without colours and without
pictures.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from rlmix.agent.decisions import probabilities_of, reasons_of
from rlmix.agent.tags import Tag
from rlmix.classifier.mixing import METHODS, MixPolicy, PolicySchedule
from rlmix.classifier.mixing.picture import shown_channels
from rlmix.experiments.reports.charts import Chart, probability_timeline

LAM_KINDS = {  # how λ is drawn, by the kind of its distribution
    "beta": "beta(A) is drawn from the Beta distribution with both parameters A, which is uniform for A = 1",
    "uniform": "uniform is drawn from 0 to 1",
    "fixed": "fixed(V) is always V",
}


@dataclass(frozen=True)
class Paragraph:
    """Paragraph of text."""

    macro: ClassVar = "paragraph"
    text: str


@dataclass(frozen=True)
class Table:
    """Table whose first `text_columns` columns are words and whose others are numbers."""

    macro: ClassVar = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str
    text_columns: int = 1


@dataclass(frozen=True)
class ShareTable:
    """Shares in [0, 1] by row and column, in cells that are darker for larger shares."""

    macro: ClassVar = "share_table"
    names: Sequence[str]
    columns: Sequence[str]
    shares: Sequence[Sequence[float]]
    caption: str


@dataclass(frozen=True)
class Picture:
    """PNG image with a description for readers who do not see it."""

    macro: ClassVar = "picture"
    png: bytes
    description: str
    caption: str

    @property
    def uri(self) -> str:
        """The image as a data URI."""
        return data_uri(self.png)


@dataclass(frozen=True)
class Example:
    """Mixed image and its saliency, as data URIs, and its target in words."""

    image: str
    saliency: str
    target: str


@dataclass(frozen=True)
class Examples:
    """Mixed images of one method or policy."""

    macro: ClassVar = "examples"
    heading: str
    examples: Sequence[Example]


Reading = Callable[[], AbstractContextManager[None]]  # context in which a run's files are read
Part = Paragraph | Table | ShareTable | Picture | Examples | Chart
Section = tuple[str, Sequence[Part]]


def render_html(title: str, lead: str, sections: Sequence[Section], run: Mapping[str, Any]) -> str:
    """Return a report as HTML.

    Args:
        title: heading of the report.
        lead: first paragraph, with the result.
        sections: heading and parts of each section; one without parts is left out.
        run: `command` (text or argument list), `machine` and `config` of the run.
    """
    command = run["command"]
    machine = [(name, _plain(value)) for name, value in run["machine"].items()]
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, undefined=StrictUndefined
    )
    return templates.get_template("report.html.j2").render(
        title=title,
        lead=lead,
        sections=[(heading, parts) for heading, parts in sections if parts],
        command=command if isinstance(command, str) else _command_line(command),
        machine=Table(["", ""], machine, "Made on", text_columns=2),
        config=json.dumps(run["config"], indent=2, ensure_ascii=False),
    )


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_bytes())


def read_scalars(folder: Path) -> dict[Tag, list[tuple[float, float]]]:
    """Return TensorBoard's scalars by tag, as points (step, value)."""
    events = _events(folder, scalars=0)
    written = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in Tag if tag in written}


def _events(folder: Path, *, scalars: int) -> EventAccumulator:
    """Return TensorBoard's events: the newest so many scalars of each tag, all for 0, and what else is newest."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": scalars, "images": 1, "tensors": 1})
    logger = logging.getLogger("tensorboard")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of steps that a resumed run has written again
    events.Reload()
    logger.setLevel(level)
    return events


def read_mixed_images(folder: Path) -> list[Picture]:
    """Return TensorBoard's newest picture of mixed images of a search; empty if there is none."""
    events = _events(folder, scalars=1)
    if Tag.MIXED_IMAGES not in events.Tags()["images"]:
        return []
    caption = "Mixed images and their targets, from the last training that was drawn"
    if (tag := f"{Tag.MIXED_IMAGES_POLICY}/text_summary") in events.Tags()["tensors"]:  # older searches do not have it
        (policy,) = events.Tensors(tag)[-1].tensor_proto.string_val
        caption += f". The agent tried this policy there: {policy.decode()}"
    description = "Eight mixed images, each with its two largest targets underneath."
    return [Picture(image.encoded_image_string, description, caption) for image in events.Images(Tag.MIXED_IMAGES)[-1:]]


def given_probabilities(schedule: PolicySchedule, kept: Sequence[Mapping[str, str]] = ()) -> list[Chart]:
    """Return a chart of the probabilities that an agent gave to its schedule; empty if they were not stored.

    Args:
        schedule: the schedule, with its provenance.
        kept: of each segment, its choices by dimension, which are marked; optional.
    """
    given = probabilities_of(schedule)
    if given is None:
        return []
    varied = [name for name, shares in given[0].items() if len(shares) > 1] or list(given[0])
    probabilities = [{name: one[name] for name in varied} for one in given]  # without what was no choice
    title = "Probability, %, that the agent gave to each choice; framed: the most probable one"
    if kept:
        title += "; with a dot: that of the learned policy"
    return [probability_timeline([until for until, _ in schedule.segments], probabilities, kept=kept, title=title)]


def schedule_table(schedule: PolicySchedule, chosen: Sequence[float | None] | None = None) -> Table:
    """Return a schedule as a table, a row for each segment.

    Args:
        schedule: the schedule.
        chosen: share of trainings in which each segment's policy was chosen; optional.
    """
    rows: list[tuple[object, ...]] = [(f"{100 * until:.3g}\u00a0%", str(policy)) for until, policy in schedule.segments]
    header = ["until", "policy"]
    if any(reasons := reasons_of(schedule)):
        header.append("the rule saw")
        rows = [(*row, why or "") for row, why in zip(rows, reasons, strict=True)]
    if chosen is not None:
        header.append("chosen in, %")
        rows = [(*row, "" if share is None else f"{100 * share:.0f}") for row, share in zip(rows, chosen, strict=True)]
    return Table(header, rows, "The schedule", text_columns=2 + any(reasons))


def how_to_read(policies: Sequence[MixPolicy]) -> Paragraph:
    """Return an explanation of the words and symbols that occur in the names of policies."""
    methods = {method for policy in policies for method in policy.shares}
    lams = {policy.lam.kind for policy in policies if set(policy.shares) != {"clean"}}
    thresholds = {p.threshold for p in policies if any(METHODS[method].needs_threshold for method in p.shares)}
    betas = [policy for policy in policies if policy.label_beta != 1]
    sentences = ["How to read a policy: the shares are those of the updates that each method has."]
    if "clean" in methods:
        sentences.append("clean is plain training, without mixing.")
    if "average" in methods:
        sentences.append("average shows the mean of two images, whatever λ is; their targets follow λ (LaMix).")
    if lams:
        drawn = "; ".join(text for kind, text in LAM_KINDS.items() if kind in lams)
        sentences.append(f"λ is the first image's share where two are mixed, one for each mixed batch: {drawn}.")
    if thresholds:
        each = ", drawn anew for each image of a mixed batch" if None in thresholds else ""
        sentences.append(f"τ is R-Mix's threshold: the quantile of an image's saliency from which patches count{each}.")
    if betas:
        detached = " (detached: a constant for the gradient)" if any(policy.label_detach for policy in betas) else ""
        sentences.append(
            f"β is the weight of the mixed targets; the rest is LaMix's label, predicted by the network{detached}."
        )
    if any(policy.label_smoothing for policy in policies):
        sentences.append("smoothing is the share of each target that is spread over all classes.")
    return Paragraph(" ".join(sentences))


def percent(share: float) -> str:
    """Return a share in [0, 1] as text in percent."""
    return f"{100 * share:.2f}"


def png_uri(image: Tensor) -> str:
    """Return an image `[C, H, W]` in [0, 1] as a PNG file in a data URI; see `shown_channels`."""
    values = (shown_channels(image) * 255).round().byte().permute(1, 2, 0).squeeze(2).numpy()
    file = io.BytesIO()
    Image.fromarray(values).save(file, format="PNG")
    return data_uri(file.getvalue())


def data_uri(png: bytes) -> str:
    """Return a PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _command_line(argv: Sequence[str]) -> str:
    """Return the command as it is written in a checkout, wherever the program is installed."""
    script = Path(argv[0])
    return shlex.join(("python", f"experiments/{script.name}" if script.suffix == ".py" else str(script), *argv[1:]))


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(f"{entry:.2f}" if isinstance(entry, float) else str(entry) for entry in value)
    return "none" if value is None else str(value)
