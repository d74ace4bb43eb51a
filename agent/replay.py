"""From an agent, which is stochastic and watches, to a schedule, which is neither; and an agent asked live."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from agent.ppo import Agent
from agent.workers import Position
from classifier.mixing import MixPolicy, PolicySchedule
from envs import Menu
from envs.observation import TrainingState, observe

Chooser = Callable[[TrainingState], tuple[MixPolicy, tuple[int, ...] | None]]


def greedy_schedules(agent: Agent, workers: VecEnv, episodes: int) -> list[PolicySchedule]:
    """What the agent does when it always takes the most probable action, on fresh seeds.

    Args:
        agent: chooses.
        workers: moved to the stream of greedy episodes.
        episodes: how many; rounded up to a multiple of the number of workers.

    Returns:
        One schedule for each episode that did not diverge.
    """
    workers.env_method("move", Position("greedy"))
    observations = workers.reset()
    rounds = -(-episodes // workers.num_envs)
    finished: list[list[list[tuple[int, ...]]]] = [[] for _ in range(workers.num_envs)]
    running: list[list[tuple[int, ...]]] = [[] for _ in range(workers.num_envs)]
    while any(len(episodes_of_one) < rounds for episodes_of_one in finished):
        assert isinstance(observations, np.ndarray)
        actions = [agent.choose(observation) for observation in observations]
        observations, _, dones, infos = workers.step(np.array(actions))
        for worker, (action, done, info) in enumerate(zip(actions, dones, infos, strict=True)):
            running[worker].append(action)
            if done:
                finished[worker].append([] if info["diverged"] else running[worker])
                running[worker] = []
    return [
        to_schedule(actions, agent.menu, agent.segments)
        for of_one in finished
        for actions in of_one[:rounds]
        if actions
    ]


def to_schedule(actions: Sequence[Sequence[int]], menu: Menu, segments: Sequence[float]) -> PolicySchedule:
    """The schedule of an episode's actions, one for each segment."""
    return PolicySchedule(tuple((end, menu.policy(action)) for end, action in zip(segments, actions, strict=True)))


def majority(schedules: Sequence[PolicySchedule]) -> PolicySchedule:
    """Each segment's most frequent policy; the first seen where several are.

    Args:
        schedules: at least one, all with the same segments.
    """
    columns = zip(*(schedule.segments for schedule in schedules), strict=True)
    return PolicySchedule(
        tuple((column[0][0], Counter(policy for _, policy in column).most_common(1)[0][0]) for column in columns)
    )


def candidates(schedules: Sequence[PolicySchedule], most: int) -> dict[str, PolicySchedule]:
    """The majority of the greedy schedules, and the most frequent of them that differ from it.

    Args:
        schedules: what the greedy agent did, at least one.
        most: how many candidates at most, at least 1.
    """
    chosen = {"majority": majority(schedules)}
    frequent = Counter(schedule.segments for schedule in schedules).most_common()
    for number, (segments, _) in enumerate(frequent):
        if len(chosen) < most and segments not in [schedule.segments for schedule in chosen.values()]:
            chosen[f"greedy {number + 1}"] = PolicySchedule(segments)
    return chosen


def follow(schedule: PolicySchedule) -> Chooser:
    """A chooser that reads each segment's policy from a schedule."""

    def choose(state: TrainingState) -> tuple[MixPolicy, None]:
        # Progress is a quotient of updates; a segment that ends here is over although rounding may say otherwise.
        policy = next(policy for until, policy in schedule.segments if round(until * state.task.updates) > done(state))
        return policy, None

    def done(state: TrainingState) -> int:
        return round(state.progress * state.task.updates)

    return choose


def ask(agent: Agent) -> Chooser:
    """A chooser that asks the agent at every segment."""

    def choose(state: TrainingState) -> tuple[MixPolicy, tuple[int, ...]]:
        action = agent.choose(observe(state, agent.menu))
        return agent.menu.policy(action), action

    return choose
