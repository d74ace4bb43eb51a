"""Schedules from an agent's greedy episodes."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from rlmix.agent.agent import Agent
from rlmix.agent.decisions import Decision, as_provenance, ask, probabilities_of
from rlmix.agent.workers import EpisodeCursor
from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.envs import Menu


def greedy_schedules(agent: Agent, workers: VecEnv, episodes: int) -> list[PolicySchedule]:
    """Run episodes in which the agent takes its most probable actions, on seeds of their own.

    Args:
        agent: the agent.
        workers: environments; they are moved to the stream of greedy episodes.
        episodes: number of episodes; rounded up to a multiple of the number of workers.

    Returns:
        A schedule for each episode that did not diverge, with the probabilities that the agent gave.
    """
    workers.env_method("seek", EpisodeCursor("greedy"))
    observations = workers.reset()
    rounds = -(-episodes // workers.num_envs)
    finished: list[list[list[Decision]]] = [[] for _ in range(workers.num_envs)]
    running: list[list[Decision]] = [[] for _ in range(workers.num_envs)]
    while any(len(episodes_of_one) < rounds for episodes_of_one in finished):
        assert isinstance(observations, np.ndarray)
        choices = [ask(agent, observation) for observation in observations]
        observations, _, dones, infos = workers.step(np.array([choice.action for choice in choices]))
        for worker, (choice, done, info) in enumerate(zip(choices, dones, infos, strict=True)):
            running[worker].append(choice)
            if done:
                finished[worker].append([] if info["diverged"] else running[worker])
                running[worker] = []
    return [
        PolicySchedule(
            tuple(zip(agent.segments, (choice.policy for choice in choices), strict=True)),
            as_provenance([choice.probabilities for choice in choices]),
        )
        for of_one in finished
        for choices in of_one[:rounds]
        if choices
    ]


def likeliest_schedules(agent: Agent, workers: VecEnv, most: int) -> dict[str, PolicySchedule]:
    """Return the most probable policies of an agent that chooses once, at the start of a training.

    Args:
        agent: an agent with one segment.
        workers: environments; they are moved to the stream of greedy episodes, and the first one is observed.
        most: largest number of schedules.

    Returns:
        Schedules by name, the most probable first, with the probabilities that the agent gave.
    """
    workers.env_method("seek", EpisodeCursor("greedy"))
    observations = workers.reset()
    assert isinstance(observations, np.ndarray)
    given = agent.probabilities(observations[0])
    choices = [list(shares.values()) for shares in given.values()]
    probability: dict[MixPolicy, float] = defaultdict(float)
    for action in agent.menu.combinations():
        policy = agent.menu.policy(action)
        probability[policy] += math.prod(shares[index] for shares, index in zip(choices, action, strict=True))
    likeliest = sorted(probability, key=lambda policy: -probability[policy])[:most]
    return {
        f"choice {place}": PolicySchedule(((1.0, policy),), as_provenance([given]))
        for place, policy in enumerate(likeliest, start=1)
    }


def to_schedule(actions: Sequence[Sequence[int]], menu: Menu, segments: Sequence[float]) -> PolicySchedule:
    """Return the schedule of an episode's actions, one for each segment."""
    return PolicySchedule(tuple((end, menu.policy(action)) for end, action in zip(segments, actions, strict=True)))


def majority(schedules: Sequence[PolicySchedule]) -> PolicySchedule:
    """Return the schedule of each segment's most frequent policy, the first one at a tie; probabilities are means.

    Args:
        schedules: at least one, all with the same segments.
    """
    columns = zip(*(schedule.segments for schedule in schedules), strict=True)
    return PolicySchedule(
        tuple((column[0][0], Counter(policy for _, policy in column).most_common(1)[0][0]) for column in columns),
        _mean_probabilities(schedules),
    )


def candidates(schedules: Sequence[PolicySchedule], most: int) -> dict[str, PolicySchedule]:
    """Return the majority of the greedy schedules, and the most frequent of them that differ from it, by name.

    Args:
        schedules: schedules of the greedy agent, at least one.
        most: highest number of candidates, at least 1.
    """
    chosen = {"majority": majority(schedules)}
    frequent = Counter(schedule.segments for schedule in schedules).most_common()
    for number, (segments, _) in enumerate(frequent):
        if len(chosen) < most and segments not in [schedule.segments for schedule in chosen.values()]:
            same = [schedule for schedule in schedules if schedule.segments == segments]
            chosen[f"greedy {number + 1}"] = PolicySchedule(segments, _mean_probabilities(same))
    return chosen


def _mean_probabilities(schedules: Sequence[PolicySchedule]) -> dict[str, Any]:
    kept = [probabilities_of(schedule) for schedule in schedules]
    asked = [one for one in kept if one is not None]
    if len(asked) < len(kept):
        return {}
    return as_provenance(
        [
            {
                dimension: {name: float(np.mean([one[dimension][name] for one in column])) for name in shares}
                for dimension, shares in column[0].items()
            }
            for column in zip(*asked, strict=True)
        ]
    )
