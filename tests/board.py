"""A run in TensorBoard: its events, read back as TensorBoard's own backend reads them."""

import re
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import ScalarEvent
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

FOLLOWED = ("policy/", "reward/", "validation/")  # what is chosen, what it is paid, how well it goes


def read(folder: Path) -> EventMultiplexer:
    """The events of a folder and of the runs below it, nothing left out."""
    events = EventMultiplexer(size_guidance={"scalars": 0, "tensors": 0})
    events.AddRunsFromDirectory(str(folder))
    events.Reload()
    return events


def scalars(folder: Path, tag: str, run: str = ".") -> list[ScalarEvent]:
    """A scalar's events, of the folder itself or of a run below it."""
    return read(folder).Scalars(run, tag)


def written(folder: Path) -> set[str]:
    """The tags of everything that was written, of the folder's runs and those below, less TensorBoard's own."""
    tags: set[str] = set()
    for entry in read(folder).Runs().values():
        for kind in ("scalars", "images", "histograms", "tensors"):
            tags |= {tag.removesuffix("/text_summary") for tag in entry[kind]}
    return {tag for tag in tags if not tag.startswith(("custom_scalars__", "_hparams_"))}


def charts(folder: Path) -> dict[str, dict[str, set[str]]]:
    """By category and title, the scalars of each custom chart; none is empty, and all `FOLLOWED` are in one."""
    events = read(folder)
    tags = {tag for entry in events.Runs().values() for tag in entry["scalars"]}
    (event, *_) = events.Tensors(".", "custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    found: dict[str, dict[str, set[str]]] = {}
    for category in layout.category:
        found[category.title] = {}
        for chart in category.chart:
            shown = {tag for pattern in chart.multiline.tag for tag in tags if re.compile(pattern).match(tag)}
            for series in chart.margin.series:
                shown |= {series.value, series.lower, series.upper}
            assert shown and shown <= tags, f"{chart.title} has nothing to show"
            found[category.title][chart.title] = shown
    laid_out = set().union(*(shown for category in found.values() for shown in category.values()))
    assert {tag for tag in tags if tag.startswith(FOLLOWED)} <= laid_out, "a scalar that has no chart"
    return found
