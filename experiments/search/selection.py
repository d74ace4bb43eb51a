"""End of a search: the agent's candidates, selection of the best one, and its comparison with other policies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from tabulate import tabulate
from torch.utils.tensorboard.writer import SummaryWriter
from tqdm import tqdm

from rlmix.agent.agent import Agent
from rlmix.agent.baselines import FIXED, balanced_schedules
from rlmix.agent.files import SHIPPED, files_checksum
from rlmix.agent.replay import candidates, greedy_schedules, likeliest_schedules
from rlmix.agent.tags import Tag
from rlmix.agent.workers import Job, episode_seed, run_jobs
from rlmix.classifier.errors import InputError
from rlmix.classifier.files import LineLog
from rlmix.classifier.mixing import PolicySchedule
from rlmix.envs.segments import require_updates
from rlmix.experiments.comparison.intervals import (
    MIN_RISE,
    format_shares,
    in_words,
    mean_interval,
    paired_difference,
    rise,
    verdict,
)
from rlmix.experiments.reports import describe_selection
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.runs.folder import RunFolder
from rlmix.experiments.search.config import SearchConfig
from rlmix.experiments.search.plan import Search, describe_start, load_start

GREEDY_EPISODES = 4  # rounded up to at least one per worker; the first candidate is their majority
MAX_CANDIDATES = 3
LIVE, START_AGENT, SHIPPED_AGENT = "its agent, live", "start agent, live", "shipped agent, live"  # contestants
CONTEST_SEED_OFFSET = 1  # added to the tasks' seed, for images that the search has not trained on


def find_candidates(search: Search, run: RunFolder, workers: VecEnv, agent: Agent) -> dict[str, PolicySchedule]:
    """Return the candidates by name, or those that the run folder already has.

    They are greedy rollouts of the agent; where it decides once, its most probable choices.

    Raises:
        RunError: all of these trainings diverged.
    """
    if (run.path / "candidates.json").exists():
        return {name: PolicySchedule.from_json(value) for name, value in run.read_json("candidates.json").items()}
    if search.one_decision:
        named = likeliest_schedules(agent, workers, MAX_CANDIDATES)
    else:
        schedules = greedy_schedules(agent, workers, GREEDY_EPISODES)
        if not schedules:
            raise RunError("every training under the greedy agent diverged: search longer, or with a lower --lr")
        named = candidates(schedules, MAX_CANDIDATES)
    run.write_json("candidates.json", {name: schedule.to_json() for name, schedule in named.items()})
    return named


def select_best(
    search: Search, run: RunFolder, trainings: Trainings, schedules: dict[str, PolicySchedule], facts: dict[str, Any]
) -> tuple[PolicySchedule, dict[str, dict[str, Any]]]:
    """Return the candidate that is best on fresh seeds, and each one's result; save the best as `policy.json`.

    Args:
        search: setting of the search.
        run: run folder.
        trainings: runs the candidates' trainings.
        schedules: candidates by name.
        facts: provenance of the candidates.

    Returns:
        The best candidate, and by name each one's policies, validation accuracies, mean and interval.
    """
    config = search.config
    jobs = [
        Job.from_chooser(name, schedule, search.tasks.task(number), _seed(config, "candidates", number), ["validation"])
        for number in range(config.candidate_seeds)
        for name, schedule in schedules.items()
    ]
    results = trainings.run("candidates", jobs)
    candidates: dict[str, dict[str, Any]] = {}
    for name, candidate in schedules.items():
        accuracies = [r["validation"] for job, r in zip(jobs, results, strict=True) if job.name == name]
        mean, width = mean_interval(accuracies)
        candidates[name] = {
            "policies": [str(policy) for _, policy in candidate.segments],
            "accuracies": accuracies,
            "mean": mean,
            "interval": width if np.isfinite(width) else None,
        }
    best = max(candidates, key=lambda name: candidates[name]["mean"])
    origin = {
        "learned_by": facts["learned_by"],
        "candidate": best,
        "validation_accuracy": candidates[best]["mean"],
        "validation_interval": candidates[best]["interval"],
        "validation_seeds": config.candidate_seeds,
        **facts,
        **schedules[best].provenance,
    }
    schedule = PolicySchedule(schedules[best].segments, origin)
    schedule.save(run.path / "policy.json")
    return schedule, candidates


def compare_contestants(
    search: Search,
    schedule: PolicySchedule,
    trainings: Trainings,
    agents: Mapping[str, Agent],
    *,
    alone: bool = False,
) -> dict[str, dict[str, Any]]:
    """Train all contestants on the same fresh images and seeds; return development-test accuracies and differences.

    Args:
        search: setting of the search.
        schedule: learned schedule.
        trainings: runs the contestants' trainings.
        agents: further contestants by name: agents that choose as they train.
        alone: train the learned schedule only.
    """
    config = search.config
    tasks = replace(search.tasks, pool=None, seed=search.tasks.seed + CONTEST_SEED_OFFSET)
    names = ["learned"] if alone else ["learned", *agents, *FIXED, "random"]
    random = balanced_schedules(search.menu, search.segments, config.contest_seeds, _seed(config, "contest", 0))
    jobs = []
    for number in range(config.contest_seeds):
        seed = _seed(config, "contest", number)
        contestants: dict[str, PolicySchedule | Agent] = {
            "learned": schedule,
            **agents,
            **{name: PolicySchedule.fixed(policy) for name, policy in FIXED.items()},
            "random": random[number],
        }
        splits = ["validation", "development"]
        jobs += [Job.from_chooser(name, contestants[name], tasks.task(seed), seed, splits) for name in names]
    results = trainings.run("comparison", jobs)
    accuracies = {
        name: [r["development"] for job, r in zip(jobs, results, strict=True) if job.name == name] for name in names
    }
    contest = {}
    for name in names:
        mean, width = mean_interval(accuracies[name])
        difference, difference_width = paired_difference(accuracies["learned"], accuracies[name])
        contest[name] = {
            "accuracies": accuracies[name],
            "mean": mean,
            "interval": width if np.isfinite(width) else None,
            "learned_minus_this": difference,
            "difference_interval": difference_width if np.isfinite(difference_width) else None,
        }
    return contest


def trainings_after(search: Search, run: RunFolder) -> tuple[int, int, int]:
    """Return the maximum number of trainings after the search: greedy rollouts, candidates, contestants."""
    greedy = 0 if search.one_decision else GREEDY_EPISODES
    contestants = 2 + len(FIXED) + len(known_agents(search, run)) + (not search.one_decision)
    return greedy, MAX_CANDIDATES * search.config.candidate_seeds, contestants * search.config.contest_seeds


def known_agents(search: Search, run: RunFolder) -> dict[str, Agent]:
    """Return agents that the search did not make by name: the one that it started from, if any, and the shipped one.

    The shipped one is missing if a training of the search is too short for its segments.

    Args:
        search: setting of the search.
        run: run folder, which keeps the first one.

    Raises:
        DamagedFileError: one of them cannot be used.
    """
    agents, start, shipped = {}, load_start(search, run), Agent.load(SHIPPED)
    if start is not None and start.checksum != shipped.checksum:
        agents[START_AGENT] = start
    try:
        require_updates(shipped.segments, *search.tasks.updates)
    except InputError:
        return agents
    return {**agents, SHIPPED_AGENT: shipped}


class Trainings:
    """Trainings of jobs, logged in a run folder so that each runs once even if the search is resumed.

    One of the same name and seed under another schedule or agent, such as another best trial's, is another training.

    Args:
        run: run folder; results are kept in its `trainings.jsonl`.
        workers: environments that train.
    """

    def __init__(self, run: RunFolder, workers: VecEnv) -> None:
        self._log = LineLog(run.path / "trainings.jsonl")
        with reject_incompatible(self._log.path):
            entries = self._log.read()
            self._done = {
                (e["stage"], e["name"], e["seed"], _chosen_by(e)): {
                    split: float(value) for split, value in e["accuracy"].items()
                }
                for e in entries
            }
        self._log.keep(len(entries))
        self._workers = workers

    def run(self, stage: str, jobs: Sequence[Job]) -> list[dict[str, float]]:
        """Run the jobs that are not in the log; return every job's accuracy by split, in order."""
        logged = [{**asdict(job), "agent": _weights_checksum(job), "stage": stage} for job in jobs]
        keys = [(stage, entry["name"], entry["seed"], _chosen_by(entry)) for entry in logged]
        missing = [number for number, key in enumerate(keys) if key not in self._done]
        bar = tqdm(total=len(jobs), initial=len(jobs) - len(missing), desc=stage, unit="training")
        with bar:
            finished = run_jobs(self._workers, [jobs[number] for number in missing])
            for number, (_, accuracy) in zip(missing, finished, strict=True):
                self._log.append({**logged[number], "number": number, "accuracy": accuracy})
                self._done[keys[number]] = accuracy
                bar.update(1)
        return [self._done[key] for key in keys]


def _weights_checksum(job: Job) -> str | None:
    """Return the checksum of an agent's weights; its description names folders, which may have moved."""
    if job.agent is None:
        return None
    return files_checksum({name: content for name, content in job.agent.items() if name.endswith(".safetensors")})


def _chosen_by(entry: Mapping[str, Any]) -> str:
    """Return the schedule or the agent of a line of the log as text."""
    return json.dumps([entry["schedule"], entry.get("agent")], sort_keys=True)


def report(search: Search, run: RunFolder) -> None:
    """Print the policy and the table of contestants with verdicts; write both to TensorBoard too."""
    summary = run.read_json("summary.json")
    schedule, contest = PolicySchedule.from_json(summary["policy"]), summary["contest"]
    returns = [sum(episode["rewards"]) for episode in LineLog(run.path / "episodes.jsonl").read()]
    if len(returns) >= MIN_RISE:
        print(f"\n{in_words(rise(returns))}")
    print("\nThe learned policy")
    for until, policy in schedule.segments:
        print(f"  until {100 * until:5.1f} %  {policy}")
    if candidates := summary.get("candidates"):  # those of tune_agent.py are of many searches
        print(f"\n{describe_selection(candidates)} Validation accuracy in %, 95 % intervals:")
        kept = schedule.provenance["candidate"]
        rows = [
            (
                name,
                format_shares(entry["mean"], entry["interval"]),
                "kept" if name == kept else "",
                entry["policies"][0] if len(entry["policies"]) == 1 else "",
            )
            for name, entry in candidates.items()
        ]
        print(tabulate(rows, tablefmt="plain", disable_numparse=True))
    if (started := describe_start(search.config.start, schedule)) is not None:
        print(f"  {started}")
    headers, rows = ("", "accuracy", "learned is ahead by", ""), []
    for name, entry in contest.items():
        versus = ("", "")
        if name != "learned":
            difference, width = entry["learned_minus_this"], entry["difference_interval"]
            versus = (format_shares(difference, width, signed=True), verdict(difference, width))
        rows.append((name, format_shares(entry["mean"], entry["interval"]), *versus))
    seeds = len(contest["learned"]["accuracies"])
    print(f"\nDevelopment-test accuracy in %, {seeds} fresh trainings each, 95 % intervals")
    print(tabulate(rows, headers, tablefmt="plain", disable_numparse=True))
    noisy = any(
        verdict(entry["learned_minus_this"], entry["difference_interval"]) == "within noise"
        for name, entry in contest.items()
        if name != "learned"
    )
    if noisy and search.config.preset == "clean":
        print(
            "\nOn clean images a search this short mostly ends within noise. `--preset fashion` makes ten times as "
            "many trainings, each twice as long, in an estimated 2.5 hours on 2 cores."
        )
    with SummaryWriter(str(run.events)) as writer:
        writer.add_text(Tag.COMPARISON, tabulate(rows, headers, tablefmt="github", disable_numparse=True))
        text = "\n".join(f"- until {100 * until:.1f} %: {policy}" for until, policy in schedule.segments)
        writer.add_text(Tag.LEARNED_POLICY, text)


def _seed(config: SearchConfig, stream: str, number: int) -> int:
    return episode_seed(config.seed, stream, number)


def provenance(search: Search) -> dict[str, Any]:
    """Return the provenance of a policy: data, network and tasks that it was learned on."""
    config = search.config
    return {
        "dataset": config.data.dataset,
        "image_size": config.data.image_size,
        "model": config.train.model,
        "train_size": list(config.train_size),
        "updates": list(config.updates),
        "label_noise": list(config.label_noise),
        "lr_scale": list(config.lr_scale),
        "clean": config.clean,
        "batch_size": config.train.batch_size,
        "seed": config.seed,
    }
