"""Search within budgets on the third contest's tasks, by real trainings, whose test images judge.

    python experiments/studies/budget/contest_searches.py protocol
    python experiments/studies/budget/contest_searches.py run --data ../shared/data

A search that branches finds what the contest's trainings do not tell. The protocol is written first: the agent and its
forecaster with checksums, the contest with its tasks and seeds, the budgets, and which comparisons count. The run
follows it, and records that the test set is read. A search is what `replay_policy.py --budget` does from 16 trainings
on, its first training the contest's own of that agent. Beside it Population Based Training has fewer members than in
the contest. The policies that were found are trained once more from another seed. `contest_curves.py` compares.
Finished searches do not run again: the same command resumes.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from rlmix.agent.agent import Agent
from rlmix.agent.budget import QUARTER
from rlmix.agent.files import SHIPPED, files_checksum, place_of
from rlmix.agent.population import train_population
from rlmix.agent.values import FORMAT, Forecaster
from rlmix.classifier.errors import require_at_least
from rlmix.classifier.files import with_filename, write_atomic
from rlmix.classifier.hardware import resolve_device, resolve_precision
from rlmix.classifier.training.config import Precision
from rlmix.envs.seeds import derive_seed, training_seed
from rlmix.experiments.comparison.held_out import record_test_read
from rlmix.experiments.comparison.runner import Line, TrainingLog
from rlmix.experiments.runs.command import command, spelling
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.search.task_family import MENU, SEGMENTS
from rlmix.experiments.studies.broad.contest import POPULATION, TRAININGS, accuracies, task_and_seed
from rlmix.experiments.studies.broad.contest_results import NOISE, VIT
from rlmix.experiments.studies.broad.record import data_places, shared_trainer
from rlmix.experiments.studies.budget.anytime import BUDGETS
from rlmix.experiments.studies.budget.real import AGAIN, OURS, schedule_of, search_task

CONTEST = "experiments/results/broad/contest"
SEARCHES = "experiments/results/budget/contest"

Key = tuple[str, int, str, int]  # group, number of the task, method, budget


@dataclass(frozen=True)
class SearchesConfig:
    """Write the protocol of searches on a contest's tasks, or run them."""

    stage: tyro.conf.Positional[Literal["protocol", "run"]]
    """Write the protocol, or run the searches that it lists."""
    data: str | None = None
    """Folder of the data sets: NAME.zip or NAME/, with train/CLASS/* and test/CLASS/* inside; for the run, and needed
    there."""
    contest: str = CONTEST
    """Folder of the contest, with protocol.json."""
    agent: str = SHIPPED
    """Agent that leads the first candidate, with its forecaster: shipped, or the folder of both; for the protocol."""
    budgets: tuple[int, ...] = (4, 16)
    """Updates of our search, in whole trainings, some of 4, 8 and 16; for the protocol."""
    populations: tuple[int, ...] = (4,)
    """Members of Population Based Training, beside the 16 that the contest has; for the protocol."""
    processes: int = 2
    """Number of parallel searches, one thread each."""
    out: str = "runs/contest-searches"
    """Folder of protocol.json and runs.jsonl."""

    def __post_init__(self) -> None:
        require_at_least(self, processes=1)
        branching = [budget for budget in BUDGETS if budget >= QUARTER]  # with less, the contest's trainings tell
        if not self.budgets or not set(self.budgets) <= set(branching):
            known, given = " ".join(map(str, branching)), " ".join(map(str, self.budgets)) or "none"
            raise RunError(f"--budgets must be some of {known}, got {given}")
        if any(not 2 <= members < TRAININGS for members in self.populations):
            raise RunError(f"--populations must be 2 to {TRAININGS - 1}, got {' '.join(map(str, self.populations))}")
        if self.stage == "run" and self.data is None:
            raise RunError("--data: expected the folder of the data sets, got none")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/budget/contest_searches", arguments) as call:
        call.resume = call.line
        config = call.parse(SearchesConfig, __doc__)
        out = Path(config.out)
        if config.stage == "protocol":
            write_protocol(config, out, call.line)
        else:
            run(config, out, call.line)


def key_of(line: Line) -> Key:
    """Return the key of a line of the log."""
    return line["group"], line["task"], line["method"], line["budget"]


def write_protocol(config: SearchesConfig, out: Path, line: str) -> None:
    """Write the protocol: who searches, on which tasks, and what is compared, before anything is trained.

    Raises:
        RunError: searches have been made already, or there is no contest.
    """
    if (out / "runs.jsonl").exists():
        raise RunError(f"{out}: there are searches, so their protocol cannot change; choose another --out")
    contest = _contest(config.contest)
    protocol = {
        "command": line,
        "contest": config.contest,
        "split": contest["split"],
        "agent": config.agent,
        "sha256": _checksums(config.contest, config.agent),
        "searches": sorted(
            [(OURS, budget) for budget in config.budgets] + [(POPULATION, members) for members in config.populations],
            key=lambda one: one[1],
        ),
        "groups": [group for group in contest["groups"] if group not in (VIT, NOISE)],
        "tasks": contest["search_tasks"],
        "kept": "The network that the search keeps: validation and forecast decide, as in the program.",
        "again": "The policies of the kept candidate are trained once more from another seed: what carries over.",
        "statistics": (
            "Means over tasks of paired differences, with 95 % intervals of Student's t: over tasks, and over the "
            "means of data sets; every task alike. A training that diverged counts as at chance."
        ),
        "comparisons": (
            "Ours less each of the contest's contestants and less Population Based Training with as many members, and "
            "less ours without branches, as looked up in the contest. Aims: at 4 the lower end of ours less the oracle "
            "of 16 above -0.2, and that of ours less every rival above 0; at 16 that of ours less Population Based "
            "Training above 0. A search that has not finished on all tasks is not shown."
        ),
    }  # fmt: skip
    with with_filename(out):
        out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "protocol.json", (json.dumps(protocol, indent=1) + "\n").encode())
    print(
        f"written: {out}/protocol.json\n"
        f"next: {spelling('studies/budget/contest_searches')} run --data FOLDER --out {out}"
    )


def run(config: SearchesConfig, out: Path, line: str) -> None:
    """Run the protocol's searches that have not finished.

    Raises:
        RunError: there is no protocol, or contest, agent or forecaster are not those of the protocol.
    """
    file = out / "protocol.json"
    if not file.is_file():
        raise RunError(f"there is no {file}; write it first: {spelling('studies/budget/contest_searches')} protocol")
    with reject_incompatible(file):
        protocol = json.loads(file.read_bytes())
        for what, checksum in _checksums(protocol["contest"], protocol["agent"]).items():
            if checksum != protocol["sha256"][what]:
                raise RunError(f"not the {what} of {file}; restore it, or write another protocol")
        keys, sources = wanted(protocol), _contest(protocol["contest"])["sources"]
    assert config.data is not None
    places = tuple(data_places(config.data, [source["name"] for source in sources]).items())
    log = TrainingLog(out / "runs.jsonl", lambda lines: {key_of(one): one for one in lines})
    precision = resolve_precision("auto", resolve_device("cpu"))
    jobs = {key: functools.partial(search, key, protocol["contest"], protocol["agent"], places, precision)
            for key in keys}  # fmt: skip
    missing = log.missing(jobs)
    if missing and protocol["split"] == "test":
        record_test_read(out, line, entries=len(missing))
    log.run(jobs, processes=config.processes, describe=_describe)
    print(f"finished: {out}/runs.jsonl\nnext: {spelling('studies/budget/contest_curves')} --searches {out}")


def wanted(protocol: Mapping[str, Any]) -> list[Key]:
    """Return the searches of a protocol in their order: method by method, groups in turn."""
    return [
        (group, number, method, budget)
        for method, budget in protocol["searches"]
        for number in range(protocol["tasks"])
        for group in protocol["groups"]
    ]


def search(
    key: Key, contest: str, agent: str, places: tuple[tuple[str, str], ...], precision: Precision
) -> dict[str, Any]:
    """Search within a budget on a task, train what was found again, and return the line of the log.

    Args:
        key: group, number of the task, method and budget.
        contest: folder of the contest.
        agent: folder of the agent and its forecaster.
        places: name of each data set and what `load_dataset` takes for it.
        precision: number format of the network.

    Returns:
        The key; accuracy of the network that is kept, on the contest's split and on validation images, in [0, 1] and at
        chance after a divergence; its policies; their accuracy when trained again; what was spent, in whole trainings;
        of our search the candidate of each segment.
    """
    group, number, method, budget = key
    protocol = _contest(contest)
    task, seed = task_and_seed(protocol, group, number)
    trainer, split = shared_trainer(places, precision), protocol["split"]
    if method == POPULATION:
        found = train_population(trainer, task, menu=MENU, segments=SEGMENTS, seed=seed, members=budget)
        actions = [tuple(action) for action in found]
        more: dict[str, Any] = {"cost": float(budget)}
    else:
        ours, path = search_task(trainer, task, seed, Agent.load(agent), Forecaster.load(agent), budget)
        actions = [step.action for step in path]
        more = {"cost": round(ours.cost, 3), "candidates": [step.candidate for step in path]}
    kept = accuracies(trainer, split)
    trainer.run(schedule_of(actions), task, derive_seed(training_seed(seed), AGAIN))
    return {
        "group": group,
        "task": number,
        "method": method,
        "budget": budget,
        "dataset": task.dataset,
        **kept,
        "again": accuracies(trainer, split)["accuracy"],
        **more,
        "policies": [str(MENU.policy(action)) for action in actions],
    }


def _checksums(contest: str, agent: str) -> dict[str, str]:
    """Return the SHA-256 of all that a protocol builds on."""
    leads, folder = Agent.load(agent), place_of(agent)
    Forecaster.load(agent)
    return {
        "contest": hashlib.sha256(_contest_file(contest).read_bytes()).hexdigest(),
        "agent": leads.checksum,
        "forecaster": files_checksum({name: (folder / name).read_bytes() for name in FORMAT.files}),
    }


def _contest_file(contest: str) -> Path:
    file = Path(contest) / "protocol.json"
    if not file.is_file():
        raise RunError(f"--contest: there is no {file}; studies/broad/contest.py writes it")
    return file


@functools.cache
def _contest(folder: str) -> dict[str, Any]:
    file = _contest_file(folder)
    with reject_incompatible(file):
        return json.loads(file.read_bytes())


def _describe(line: Line) -> str:
    which = f"{line['group']:<12} {line['task']:>3}  {line['method']:<24} {line['budget']:>2}"
    return f"{which}  {100 * line['accuracy']:.1f} %"


if __name__ == "__main__":
    main()
