"""Reports: what was run, how it went, what the policy did, and how to do it again, as one HTML file each.

A report needs no network and no other file, can be read on a phone and in the dark, without colours and without
pictures.
"""

from __future__ import annotations

import base64
import io
import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment
from markupsafe import Markup
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from rlmix.agent.replay import probabilities_of
from rlmix.classifier.data import DataError, Splits, evaluation_chunks, load_dataset, normalise, split
from rlmix.classifier.evaluation.measures import MEASURES
from rlmix.classifier.files import LineLog, write_atomic
from rlmix.classifier.mixing import METHODS, MixPolicy, PolicySchedule, mix_batch, one_hot
from rlmix.classifier.mixing.saliency import input_gradient, pixel_saliency
from rlmix.classifier.mixing.targets import soft_cross_entropy
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs import DIMENSIONS, Menu
from rlmix.experiments.comparison.intervals import verdict
from rlmix.experiments.comparison.results import (
    any_with_images,
    best_first,
    columns_of,
    format_column,
    format_share,
    images_per_second,
)
from rlmix.experiments.reports.charts import interval_chart, line_chart, probability_timeline, share_table, timeline
from rlmix.experiments.runs.options import flatten

NAME = "report.html"
EXAMPLES = 4
EXAMPLE_UPDATES = 100  # of the network whose saliency a comparison's examples are mixed by
LATE = 0.25  # of a search's episodes: the last ones, whose choices tell what the agent has come to
TENTHS = 10
MEAN_OF = 10  # episodes

Gradient = Callable[[Tensor, Tensor], Tensor]


def write_training_report(path: Path, data: Splits, model: nn.Module, device: torch.device) -> None:
    """Write the report of a finished final training into its run folder.

    Args:
        path: the folder, with `config.json` and `summary.json`.
        data: its images.
        model: the network that was kept, in evaluation mode; maps `[B, C, H, W]` to at least K logits.
        device: where the network is.
    """
    described, summary = _json(path / "config.json"), _json(path / "summary.json")
    config = flatten(described["config"])
    schedule = PolicySchedule.from_json(summary["schedule"])
    scalars, _ = _events(path / "tensorboard")
    test = summary["test"]
    title = f"{config['model']} on {data.name}, under {_of(schedule)}"
    lead = (
        f"A training of {config['updates']:,} updates of {config['batch_size']} on {len(data.train):,} images. "
        f"{100 * test['accuracy']:.2f} % of {test['images']:,} test images are right; they were read once, at the end. "
        f"Kept: the network of {100 * summary['kept']['progress']:.0f} % progress, {summary['kept']['selected_by']}."
    )
    if (went_back := summary.get("went_back")) is not None:  # runs of before it was kept have none
        lead += f" Once {told_going_back(went_back)}."
    rows = [
        (split, _percent(seen["accuracy"]), _percent(seen["calibration_error"]), f"{seen['loss']:.3f}", seen["images"])
        for split in ("validation", "development", "test")
        if (seen := summary[split]) is not None
    ]
    outcome = _table(
        ["images", "accuracy, %", "calibration error, %", "loss", "number"], rows, "The network that was kept"
    )
    accuracy = [(step, 100 * value) for step, value in scalars.get("validation/accuracy", [])]
    curves = []
    if accuracy:
        chart = line_chart({"validation": accuracy}, title="Validation accuracy", x_label="update", y_label="%")
        curves.append(chart)
    losses = {kind: scalars.get(f"train/{kind}_loss", []) for kind in ("clean", "mixed")}
    if any(losses.values()):
        curves.append(
            line_chart(losses, title="Training loss, against the targets as mixed", x_label="update", y_label="nats")
        )
    if rates := scalars.get("train/learning_rate"):
        curves.append(line_chart({"rate": rates}, title="Learning rate", x_label="update", y_label="rate"))
    sections: list[tuple[str, Sequence[Markup]]] = [
        ("Result", [outcome, *_evaluation(path)]),
        ("How it went", curves),
        ("The policy", [timeline(schedule, title="What was mixed when"), *_given(schedule), _schedule_table(schedule)]),
    ]
    policies = {method: policy for _, policy in reversed(schedule.segments) for method in policy.shares}
    mixing = [(method, method, policies[method]) for method in METHODS if method in policies]
    examples = list(_examples(mixing, data, _gradient(model, data.num_classes), device))
    if examples:
        text = Markup(
            "<p>Training images as this schedule mixes them, without augmentation. Beside each, where the loss of the "
            "network that was kept is most sensitive to it (input gradient, the lighter the more).</p>"
        )
        sections.append(("Mixed images", [text, *examples]))
    _write(path, title, lead, sections, described)


def told_going_back(went_back: Mapping[str, Any]) -> str:
    """How a training diverged and what was done about it, as half a sentence; `went_back` as `summary.json` has it."""
    return (
        f"{went_back['reason']}: went back to update {went_back['to_update']:,} and on with half the learning rate, "
        f"at most {went_back['lr']:g}"
    )


def write_search_report(path: Path) -> None:
    """Write the report of a finished search into its run folder.

    Args:
        path: the folder, with `config.json`, `summary.json`, `agent.json` and `episodes.jsonl`.
    """
    described, summary = _json(path / "config.json"), _json(path / "summary.json")
    config, contest = flatten(described["config"]), summary["contest"]
    schedule = PolicySchedule.from_json(summary["policy"])
    menu = Menu.from_json(_json(path / "agent.json")["menu"])
    episodes = LineLog(path / "episodes.jsonl").read()
    _, images = _events(path / "tensorboard")
    seeds = len(contest["learned"]["accuracies"])
    title = f"Search for a mixing policy on {config['dataset']}"
    lead = (
        f"An agent chose the mixing of {len(episodes):,} trainings of {config['model']}. What it learned reaches "
        f"{100 * contest['learned']['mean']:.2f} % on development images, over {seeds} fresh trainings."
    )
    rows = []
    for name, entry in contest.items():
        ahead = entry["learned_minus_this"], entry["difference_interval"]
        versus = ("", "") if name == "learned" else (_plus_minus(*ahead, sign="+"), verdict(*ahead))
        rows.append((name, _plus_minus(entry["mean"], entry["interval"]), *versus))
    means = [(name, 100 * entry["mean"], _times(100, entry["interval"])) for name, entry in contest.items()]
    caption = f"Development accuracy, {seeds} fresh trainings each on the same images and seeds, 95 % intervals"
    comparison = [
        interval_chart(means, title=caption, x_label="%"),
        _table(["", "accuracy, %", "learned is ahead by", ""], rows, caption),
    ]
    returns = [(number, sum(episode["rewards"])) for number, episode in enumerate(episodes, start=1)]
    finals = [(number, 100 * e["validation_accuracy"][-1]) for number, e in enumerate(episodes, start=1)]
    mean_of = f"mean of {MEAN_OF}"
    curves = [
        line_chart(
            {"a training": line, mean_of: _running_mean(line)},
            title=name,
            x_label="training",
            y_label=y,
            dots=["a training"],
        )
        for name, y, line in (
            ("Return, what the agent is rewarded with", "return", returns),
            ("Validation accuracy at the end of each training", "%", finals),
        )
        if line
    ]
    for entry in episodes:
        if any(not 0 <= index < size for a in entry["actions"] for index, size in zip(a, menu.sizes, strict=True)):
            raise ValueError(f"episode {entry['number']} of worker {entry['worker']} chose what the menu does not have")
    late = [e for e in episodes[-max(1, round(LATE * len(episodes))) :] if len(e["actions"]) == len(schedule.segments)]
    chosen = [
        sum(menu.policy(e["actions"][place]) == policy for e in late) / len(late) if late else None
        for place, (_, policy) in enumerate(schedule.segments)
    ]
    text = Markup(
        "<p>Shares tell how often the agent made this very choice in the last {} trainings of its search, where it "
        "drew by its probabilities.</p>"
    ).format(len(late))
    policy = [
        timeline(schedule, title="What was learned"),
        *_given(schedule),
        _schedule_table(schedule, chosen),
        text,
    ]
    if late:
        columns = [f"until {100 * until:.3g} %" for until, _ in schedule.segments]
        for dimension, name in enumerate(DIMENSIONS):
            counts = [
                np.bincount([e["actions"][place][dimension] for e in late], minlength=menu.sizes[dimension]) / len(late)
                for place in range(len(columns))
            ]
            caption = f"{name}: share of choices in the last {len(late)} trainings, %, by progress of the training"
            policy.append(share_table(menu.names(name), columns, np.transpose(counts).tolist(), title=caption))
    if len(episodes) >= TENTHS:
        tenths = np.array_split(np.arange(len(episodes)), TENTHS)
        source = [
            np.bincount([action[0] for n in tenth for action in episodes[n]["actions"]], minlength=menu.sizes[0])
            for tenth in tenths
        ]
        shares = (np.transpose(source) / np.sum(source, axis=1)).tolist()
        columns = [f"{tenth[-1] + 1:,}" for tenth in tenths]
        caption = "source: share of choices over the search, %, until this training"
        policy.append(share_table(menu.names(DIMENSIONS[0]), columns, shares, title=caption))
    sections: list[tuple[str, Sequence[Markup]]] = [
        ("Result", comparison),
        ("The policy", policy),
        ("How the search went", curves),
    ]
    if images:
        picture = Markup('<figure><img src="{}" alt="{}"><figcaption>{}</figcaption></figure>').format(
            _data_uri(images[-1]),
            "Eight images as they were mixed, each with its two largest targets underneath.",
            "Images of the last training that was drawn, as they were mixed, with their targets",
        )
        sections.append(("Mixed images", [picture]))
    _write(path, title, lead, sections, described)


def write_comparison_report(path: Path, report: Mapping[str, Any], data_root: str | None = None) -> None:
    """Write the report of a comparison into its folder.

    Args:
        path: the folder.
        report: what its `results.json` holds.
        data_root: where the data set lies; none = where the comparison looked.
    """
    setting, methods, baseline = report["setting"], report["methods"], report["baseline"]
    seeds = len(report["seeds"])
    title = f"{len(methods)} ways to train {setting['model']} on {setting['dataset']}"
    lead = (
        f"{setting['train_size']:,} training images, {setting['updates']:,} updates of {setting['batch_size']}, "
        f"{seeds} seeds; a seed draws images, weights, order and mixing for all. Accuracy on "
        f"{report['images']:,} {setting['split']} images."
    )
    rows, means = [], []
    for name, row in best_first(report):
        gap = report["less_baseline"].get(name)
        versus = ("", "")
        if gap is not None:
            p_value = f"{gap['p_value']:.3f}" if gap["p_value"] >= 0.001 else "< 0.001"
            versus = (format_share(gap, signed=True), p_value)
        mean, half = row["accuracy"]["mean"], row["accuracy"]["half_width"]
        speed, seconds = f"{images_per_second(setting, row):,.0f}", f"{row['seconds']['mean']:.0f}"
        rows.append((row["title"], format_share(row["accuracy"]), *versus, speed, seconds, row["diverged"]))
        means.append((name, 100 * mean, 100 * half))
    caption = (
        f"95 % intervals over {seeds} seeds; differences are paired by seed, p-values those of paired t tests, "
        "corrected for the number of comparisons (Holm)"
    )
    if any_with_images(report):
        caption += "; in brackets the interval over seeds and images"
    header = ["", "accuracy, %", f"less {baseline}", "p", "images/s", "seconds", "diverged"]
    tables = [_table(header, rows, caption)]
    if columns := columns_of(report):
        cells = [
            (row["title"], *(format_column(column, row["measures"].get(name)) for name, column in columns.items()))
            for _, row in best_first(report)
        ]
        caption = f"Beyond accuracy, in %, on {report['measured_images']:,} images, 95 % intervals over seeds"
        tables.append(_table(["", *columns], cells, caption))
    per_seed = {
        name: [(seed, 100 * value) for seed, value in zip(report["seeds"], row["accuracy"]["per_seed"], strict=True)]
        for name, row in methods.items()
    }
    policies = [
        (row["title"], _told(PolicySchedule.from_json(row["schedule"])), row["saliency"]) for row in methods.values()
    ]
    measured = f"{setting['split'].capitalize()} accuracy, 95 % intervals"
    sections: list[tuple[str, Sequence[Markup]]] = [
        ("Result", [interval_chart(means, title=measured, x_label="%"), *tables]),
        ("Seed by seed", [line_chart(per_seed, title="Accuracy of each seed", x_label="seed", y_label="%")]),
        (
            "The policies",
            [_table(["", "mixes", "saliency"], policies, "What each trains under", text=3)],
        ),
        ("Mixed images", _mixed_by_each(report, data_root)),
    ]
    described = {"command": report["command"], "machine": report["machine"], "config": {**report["config"], **setting}}
    _write(path, title, lead, sections, described)


def _write(
    path: Path, title: str, lead: str, sections: Sequence[tuple[str, Sequence[Markup]]], described: Mapping[str, Any]
) -> None:
    command = described["command"]
    machine = [(name, _plain(value)) for name, value in described["machine"].items()]
    template = Environment(autoescape=True, trim_blocks=True).from_string(
        Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    )
    text = template.render(
        title=title,
        lead=lead,
        sections=[(heading, parts) for heading, parts in sections if parts],
        command=command if isinstance(command, str) else _command_line(command),
        machine=_table(["", ""], machine, "Made on", text=2),
        config=json.dumps(described["config"], indent=2, ensure_ascii=False),
    )
    write_atomic(path / NAME, text.encode())


def _command_line(argv: Sequence[str]) -> str:
    """The command as one writes it in a checkout, wherever the program lay."""
    script = Path(argv[0])
    return shlex.join(("python", f"experiments/{script.name}" if script.suffix == ".py" else str(script), *argv[1:]))


def _evaluation(path: Path) -> list[Markup]:
    """Return the table and charts of what `evaluate.py` measured on development images; nothing if it has not run."""
    if not (path / "evaluation.json").exists():
        return []
    report = _json(path / "evaluation.json")
    measured = [(measure, report[name]) for name, measure in MEASURES.items() if name in report]
    rows = [row for measure, result in measured for row in measure.rows(result)]
    caption = f"Beyond accuracy, on {report['images']:,} {report['split']} images"
    charts = [
        line_chart(chart.lines, title=chart.title, x_label=chart.x_label, y_label=chart.y_label)
        for measure, result in measured
        for chart in measure.charts(result)
    ]
    return [_table(["", "%"], rows, caption), *charts]


def _mixed_by_each(report: Mapping[str, Any], data_root: str | None) -> list[Markup]:
    """The same images as each contestant of a comparison mixes them; those that mix alike share a row."""
    setting = report["setting"]
    titles: dict[MixPolicy, list[str]] = {}
    for row in report["methods"].values():
        for policy in dict.fromkeys(policy for _, policy in PolicySchedule.from_json(row["schedule"]).segments):
            titles.setdefault(policy, []).append(row["title"])
    rows = [
        (method, "; ".join(alike), policy)
        for policy, alike in titles.items()
        for method in policy.shares
        if method != "clean" or len(policy.shares) == 1
    ]
    try:
        dataset = load_dataset(setting["dataset"], data_root or report["config"]["data_root"])
        # As many development images as the comparison had, without which there may be too few to train on.
        data = split(dataset, development_size=setting.get("development_size"))
        data = data.draw(setting["train_size"], data_seed=0)
        training = TrainConfig(
            updates=EXAMPLE_UPDATES, batch_size=setting["batch_size"], device="cpu", precision="fp32"
        )
        trainer = Trainer(training, data, seed=0)
        trainer.train(MixPolicy({"clean": 1.0}), EXAMPLE_UPDATES)
        gradient = _gradient(trainer.model.eval(), data.num_classes)
        examples = list(_examples(rows, data, gradient, trainer.device, clean=True))
    except (DataError, ImportError) as error:
        return [
            Markup("<p>There are none: they cannot be had on the machine that wrote this report ({}).</p>").format(
                error
            )
        ]
    text = Markup(
        "<p>Training images of the first seed as each way mixes them, without augmentation. Saliency, which is shown "
        "beside each, is that of a small network after {} updates of plain training. Where hidden states are mixed "
        "there is nothing to see.</p>"
    ).format(EXAMPLE_UPDATES)
    return [text, *examples]


def _examples(
    rows: Iterable[tuple[str, str, MixPolicy]],
    data: Splits,
    gradient: Gradient,
    device: torch.device,
    *,
    clean: bool = False,
) -> Iterator[Markup]:
    """The first training images as they are mixed, with targets and saliency.

    Args:
        rows: method, heading and policy of each row.
        data: the images.
        gradient: gives the loss's gradient by images `[B, C, H, W]` and targets `[B, K]`.
        device: where that is.
        clean: whether images as they are get a row too.
    """
    mean, std = (torch.tensor(values, device=device) for values in (data.mean, data.std))
    count = min(2 * EXAMPLES, len(data.train))
    pixels, labels = next(evaluation_chunks(data.train, count=count, batch_size=count, device=device, workers=0))
    images, targets = normalise(pixels, mean, std), one_hot(labels, data.num_classes)
    for method, heading, policy in rows:
        # Hidden states cannot be looked at, and images as they are need not always be.
        if (method == "clean" and not clean) or METHODS[method].stage is not None:
            continue
        mixed, mixed_targets = mix_batch(
            images,
            targets,
            policy,
            method=method,
            generator=torch.Generator().manual_seed(0),
            gradient=gradient,
            mean=mean,
            std=std,
        )
        saliency = pixel_saliency(gradient(mixed, mixed_targets))
        pixels = (mixed * std[:, None, None] + mean[:, None, None]).clamp(0, 1)
        pictures = [
            _example(image, where, target, data.class_names)
            for image, where, target in zip(pixels[:EXAMPLES].cpu(), saliency.cpu(), mixed_targets.cpu(), strict=False)
        ]
        yield Markup('<h3>{}</h3><div class="pictures">{}</div>').format(heading, Markup("").join(pictures))


def _example(image: Tensor, saliency: Tensor, target: Tensor, class_names: Sequence[str]) -> Markup:
    shares, classes = target.topk(2)
    told = ", ".join(
        f"{100 * share:.0f} % {class_names[place]}"
        for share, place in zip(shares.tolist(), classes.tolist(), strict=True)
        if share > 0.005
    )
    pictures = [
        Markup('<img src="{}" alt="{}"> ').format(_data_uri(_png(values)), alternative)
        for values, alternative in (
            (image, f"A mixed image, to be taken for {told}"),
            ((saliency / saliency.max().clamp(min=1e-12)).sqrt()[None], "Its saliency"),
        )
    ]
    return Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(Markup("").join(pictures), told)


def _gradient(model: nn.Module, num_classes: int) -> Gradient:
    def gradient(images: Tensor, targets: Tensor) -> Tensor:
        def loss(leaf: Tensor) -> Tensor:
            return soft_cross_entropy(model(leaf)[:, :num_classes].float(), targets).mean()

        return input_gradient(loss, images, model)

    return gradient


def _png(image: Tensor) -> bytes:
    """An image `[C, H, W]` in [0, 1], grey or in colour, as a PNG file."""
    values = (image * 255).round().byte().permute(1, 2, 0).squeeze(2).numpy()
    file = io.BytesIO()
    Image.fromarray(values).save(file, format="PNG")
    return file.getvalue()


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _events(folder: Path) -> tuple[dict[str, list[tuple[float, float]]], list[bytes]]:
    """TensorBoard's scalars by tag, as points (step, value), and the pictures of mixed images, as PNG files."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1, "tensors": 1})
    events.Reload()
    tags = events.Tags()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]}
    pictures = events.Images("mixed_images") if "mixed_images" in tags["images"] else []
    return scalars, [picture.encoded_image_string for picture in pictures]


def _given(schedule: PolicySchedule) -> list[Markup]:
    """The probabilities that an agent gave when it made a schedule; nothing where none did, or none were kept."""
    probabilities = probabilities_of(schedule)
    if probabilities is None:
        return []
    title = "The probability, %, that the agent gave each choice when it was asked; framed: the most probable one"
    return [probability_timeline([until for until, _ in schedule.segments], probabilities, title=title)]


def _schedule_table(schedule: PolicySchedule, chosen: Sequence[float | None] | None = None) -> Markup:
    rows: list[tuple[object, ...]] = [(f"{100 * until:.3g} %", str(policy)) for until, policy in schedule.segments]
    header = ["until", "policy"]
    if chosen is not None:
        header.append("chosen in, %")
        rows = [(*row, "" if share is None else f"{100 * share:.0f}") for row, share in zip(rows, chosen, strict=True)]
    return _table(header, rows, "The schedule", text=2)


def _table(header: Sequence[str], rows: Sequence[Sequence[object]], caption: str, *, text: int = 1) -> Markup:
    """A table whose first `text` columns are words and whose others are numbers."""
    head = Markup("").join(
        Markup('<th scope="col"{}>{}</th>').format(Markup(' style="text-align:left"') if place < text else "", name)
        for place, name in enumerate(header)
    )
    body = Markup("").join(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(
            row[0],
            Markup("").join(
                Markup("<td{}>{}</td>").format(
                    Markup(' class="text"') if place < text else "", f"{cell:,}" if isinstance(cell, int) else cell
                )
                for place, cell in enumerate(row[1:], start=1)
            ),
        )
        for row in rows
    )
    heading = Markup("<thead><tr>{}</tr></thead>").format(head) if any(header) else ""
    return Markup('<div class="wide"><table><caption>{}</caption>{}<tbody>{}</tbody></table></div>').format(
        caption, heading, body
    )


def _running_mean(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    values = np.array([value for _, value in line])
    sums = np.cumsum(np.concatenate(([0.0], values)))
    return [
        (place, float((sums[number + 1] - sums[max(0, number + 1 - MEAN_OF)]) / min(number + 1, MEAN_OF)))
        for number, (place, _) in enumerate(line)
    ]


def _of(schedule: PolicySchedule) -> str:
    policies = list(dict.fromkeys(policy for _, policy in schedule.segments))
    return str(policies[0]) if len(policies) == 1 else f"a schedule of {len(policies)} policies"


def _told(schedule: PolicySchedule) -> str:
    """A schedule in a line."""
    if len(schedule.segments) == 1:
        return str(schedule.segments[0][1])
    return "; ".join(f"until {100 * until:.3g} %: {policy}" for until, policy in schedule.segments)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _plus_minus(mean: float, half_width: float | None, *, sign: str = "-") -> str:
    return f"{100 * mean:{sign}.2f}" + ("" if half_width is None else f" ± {100 * half_width:.2f}")


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(f"{entry:.2f}" if isinstance(entry, float) else str(entry) for entry in value)
    return "none" if value is None else str(value)


def _json(path: Path) -> Any:
    return json.loads(path.read_bytes())
