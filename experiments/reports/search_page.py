"""Report of a search: the learned policy against its rivals, the agent's choices, and its learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from rlmix.classifier.files import LineLog, write_atomic
from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.envs import DIMENSIONS, Menu
from rlmix.experiments.comparison.intervals import MIN_RISE, format_shares, in_words, rise, verdict
from rlmix.experiments.reports import REPORT_FILE, describe_selection, describe_task, short_name
from rlmix.experiments.reports.charts import interval_chart, line_chart, policy_timeline
from rlmix.experiments.reports.html_report import (
    Paragraph,
    Part,
    Reading,
    Section,
    ShareTable,
    Table,
    given_probabilities,
    how_to_read,
    read_json,
    read_mixed_images,
    render_html,
    schedule_table,
)
from rlmix.experiments.runs.options import flatten
from rlmix.experiments.search.plan import describe_start

LATE = 0.25  # share of the last episodes, whose choices show what the agent has learned
TENTHS = 10
WINDOWS = 8  # a running mean is taken over all trainings divided by this
LEAD = (
    ": the final lead of its validation accuracy over a reference training, in standard deviations of the reference's "
    "accuracy; 0 is level with it"
)
RETURNS = {  # of a training, by the reward: unit and meaning
    "relative": (", standard deviations", LEAD),
    "standing": (", standard deviations", LEAD),
    "change": (", accuracy", ": its final validation accuracy, in [0, 1], less that of guessing"),
    "final": (", accuracy", ": its final validation accuracy, in [0, 1]"),
}

Episodes = Sequence[Mapping[str, Any]]


def write_search_report(path: Path, *, reading: Reading = nullcontext) -> None:
    """Write the report of a finished search into its run folder.

    Args:
        path: the run folder, with `config.json`, `summary.json`, `agent.json` and `episodes.jsonl`.
        reading: context in which the files of the run are read, to convert errors of damaged ones; optional.

    Raises:
        ValueError: an episode has a choice that is not in the menu.
    """
    with reading():
        text = _search_html(path)
    write_atomic(path / REPORT_FILE, text.encode())


def _search_html(path: Path) -> str:
    run, summary = read_json(path / "config.json"), read_json(path / "summary.json")
    config, contest = flatten(run["config"]), summary["contest"]
    schedule = PolicySchedule.from_json(summary["policy"])
    menu = Menu.from_json(read_json(path / "agent.json")["menu"])
    episodes = LineLog(path / "episodes.jsonl").read()
    for entry in episodes:
        if any(not 0 <= index < size for a in entry["actions"] for index, size in zip(a, menu.sizes, strict=True)):
            raise ValueError(f"episode {entry['number']} of worker {entry['worker']}: a choice is not in the menu")
    seeds = len(contest["learned"]["accuracies"])
    lead = (
        f"An agent chose the mixing of {len(episodes):,} trainings of the network {config['model']!r}, each of "
        f"{describe_task(config)}. The learned policy reaches {100 * contest['learned']['mean']:.2f} % on development "
        f"images, over {seeds} fresh trainings."
    )
    sections: list[Section] = [
        ("What the agent learned", _learning(episodes, config.get("reward", ""))),  # older searches do not have it
        ("Result", _result(contest, seeds)),
        (
            "The policy",
            [
                *_start(config.get("start"), schedule),  # older searches do not have it
                *_candidates(summary.get("candidates", {}), schedule),  # older summaries do not have them
                *_policy(schedule, menu, episodes),
                *_source_over_search(menu, episodes),
            ],
        ),
        ("Mixed images", read_mixed_images(path / "tensorboard")),
    ]
    return render_html(f"Search for a mixing policy on {short_name(config['dataset'])}", lead, sections, run)


def _result(contest: Mapping[str, Any], seeds: int) -> list[Part]:
    rows, means = [], []
    for name, entry in contest.items():
        ahead = entry["learned_minus_this"], entry["difference_interval"]
        versus = ("", "") if name == "learned" else (format_shares(*ahead, signed=True), verdict(*ahead))
        half_width = entry["interval"]
        rows.append((name, format_shares(entry["mean"], half_width), *versus))
        means.append((name, 100 * entry["mean"], None if half_width is None else 100 * half_width))
    caption = f"Development accuracy, {seeds} fresh trainings each on the same images and seeds, 95 % intervals"
    return [
        interval_chart(means, title=caption, x_label="accuracy, %"),
        Table(["policy", "accuracy, %", "learned is ahead by", "verdict"], rows, caption),
    ]


def _policy(schedule: PolicySchedule, menu: Menu, episodes: Episodes) -> list[Part]:
    late = [e for e in episodes[-max(1, round(LATE * len(episodes))) :] if len(e["actions"]) == len(schedule.segments)]
    chosen = [
        sum(menu.policy(e["actions"][place]) == policy for e in late) / len(late) if late else None
        for place, (_, policy) in enumerate(schedule.segments)
    ]
    parts: list[Part] = [
        policy_timeline(schedule, title="The learned schedule"),
        *given_probabilities(schedule, [_choices(policy, menu) for _, policy in schedule.segments]),
        schedule_table(schedule, chosen),
        Paragraph(
            f"The last column is how often the agent made exactly this choice in the last {len(late)} trainings of "
            "its search, where it sampled from its probabilities."
        ),
        how_to_read([policy for _, policy in schedule.segments]),
    ]
    if late:
        columns = [f"until {100 * until:.3g} %" for until, _ in schedule.segments]
        for name in menu.varied:
            dimension = DIMENSIONS.index(name)
            shares = [
                np.bincount([e["actions"][place][dimension] for e in late], minlength=menu.sizes[dimension]) / len(late)
                for place in range(len(columns))
            ]
            caption = f"{name}: share of choices in the last {len(late)} trainings, %, by progress of the training"
            parts.append(ShareTable(menu.names(name), columns, np.transpose(shares).tolist(), caption))
    return parts


def _choices(policy: MixPolicy, menu: Menu) -> dict[str, str]:
    """Return the menu's choices that make a policy, by dimension; without those that it does not depend on."""
    indices = np.array([action for action in menu.combinations() if menu.policy(action) == policy])
    return {
        dimension: menu.names(dimension)[column[0]]
        for dimension, column in zip(DIMENSIONS, indices.T, strict=False)
        if (column == column[0]).all()
    }


def _start(start: str | None, schedule: PolicySchedule) -> list[Part]:
    sentence = describe_start(start, schedule)
    return [] if sentence is None else [Paragraph(sentence)]


def _candidates(candidates: Mapping[str, Mapping[str, Any]], schedule: PolicySchedule) -> list[Part]:
    """Return what the learned policy was selected from."""
    if not candidates:
        return []
    kept = schedule.provenance["candidate"]
    rows = [
        (
            name,
            " → ".join(entry["policies"]),
            "kept" if name == kept else "",
            format_shares(entry["mean"], entry["interval"]),
        )
        for name, entry in candidates.items()
    ]
    header = ["candidate", "policy", "", "validation accuracy, %"]
    caption = "The agent's candidates, trained again on fresh seeds; 95 % intervals"
    text = describe_selection(candidates)
    if "majority" in candidates:
        text += (
            " Their choices were collected over several trainings in which the agent took its most probable ones: "
            "majority has the most frequent policy of each segment, greedy N is the N-th most frequent whole schedule."
        )
    return [Paragraph(text), Table(header, rows, caption, text_columns=3)]


def _source_over_search(menu: Menu, episodes: Episodes) -> list[Part]:
    if len(episodes) < TENTHS:
        return []
    tenths = np.array_split(np.arange(len(episodes)), TENTHS)
    counts = [
        np.bincount([action[0] for n in tenth for action in episodes[n]["actions"]], minlength=menu.sizes[0])
        for tenth in tenths
    ]
    shares = (np.transpose(counts) / np.sum(counts, axis=1)).tolist()
    columns = [f"{tenth[-1] + 1:,}" for tenth in tenths]
    caption = f"{DIMENSIONS[0]}: share of choices over the search, %, until this training"
    return [ShareTable(menu.names(DIMENSIONS[0]), columns, shares, caption)]


def _learning(episodes: Episodes, reward: str) -> list[Part]:
    unit, meaning = RETURNS.get(reward, ("", ""))
    returns = [sum(episode["rewards"]) for episode in episodes]
    window = max(1, len(episodes) // WINDOWS)
    curves = [
        line_chart(
            {"one training": line, f"mean of {window}": _running_mean(line, window)},
            title=title,
            x_label="training",
            y_label=y_label,
            dots=["one training"],
        )
        for title, y_label, values in (
            (
                f"Learning curve: return, the sum of the agent's rewards in a training{meaning}",
                f"return{unit}",
                returns,
            ),
            (
                "Validation accuracy at the end of each training",
                "accuracy, %",
                [100 * episode["validation_accuracy"][-1] for episode in episodes],
            ),
        )
        if (line := list(enumerate(values, start=1)))
    ]
    return [*curves[:1], *([Paragraph(in_words(rise(returns)))] if len(returns) >= MIN_RISE else []), *curves[1:]]


def _running_mean(line: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    sums = np.cumsum([0.0, *(value for _, value in line)])
    return [
        (place, float((sums[number + 1] - sums[number + 1 - window]) / window))
        for number, (place, _) in enumerate(line)
        if number + 1 >= window
    ]
