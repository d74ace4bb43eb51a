"""Find out how large, long and fine the trainings of logs are, and write it beside an agent that learned from them.

    python experiments/studies/broad/experience.py --logs experiments/results/broad/usual.jsonl \
        experiments/results/broad/played.jsonl experiments/results/family/episodes.jsonl \
        --out experiments/policies/shipped experiments/policies/rule

With that file, `replay_policy.py` and `RLMix` say where a training is far from all that the agent learned from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlmix.agent.experience import Experience, Scale
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.search.task_family import DATA
from rlmix.experiments.studies.broad.logs import FEATURES, RecordedLog, read_logs


@dataclass(frozen=True)
class ExperienceConfig:
    """Write the experience of agents that learned from logs."""

    logs: tuple[str, ...]
    """Logs of studies/broad/record.py, or of studies/task_family/collect.py."""
    out: tuple[str, ...]
    """Folders of the agents: there experience.json is written."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/broad/experience", arguments) as call:
        config = call.parse(ExperienceConfig, __doc__)
        for folder in config.out:
            if not Path(folder).is_dir():
                raise RunError(f"--out: expected an agent's folder, got {folder}, which is none")
        experience = experience_of(read_logs(config.logs), call.line)
        for folder in config.out:
            experience.save(Path(folder))
        for unit, (low, high) in experience.ranges.items():
            print(f"{unit:<24} {low:>8,.0f} to {high:>8,.0f}")


def experience_of(logs: Sequence[RecordedLog], line: str) -> Experience:
    """Return the lowest and highest of each quantity over the tasks of logs.

    Args:
        logs: the logs.
        line: command line, which is kept.
    """
    found = [quantities for log in logs for quantities in _of_tasks(log)]
    ranges = {unit: (min(one[unit] for one in found), max(one[unit] for one in found)) for unit in found[0]}
    return Experience({unit: (round(low, 1), round(high, 1)) for unit, (low, high) in ranges.items()}, line)


def _of_tasks(log: RecordedLog) -> list[dict[str, float]]:
    found = []
    first = {training.line["task"]: training.rows[0] for training in reversed(log.trainings)}
    for task, drawn in log.drawn.items():
        seen = dict(zip(FEATURES, first[task].tolist(), strict=True))
        scale = Scale(
            drawn["train_size"],
            drawn["updates"],
            round(2 ** (10 * seen["log_batch_size"])),
            len(drawn["classes"]) if drawn.get("classes") else round(10 ** (3 * seen["log_classes"])),
            drawn.get("image_size", DATA.image_size),
        )
        found.append(scale.quantities())
    return found


if __name__ == "__main__":
    main()
