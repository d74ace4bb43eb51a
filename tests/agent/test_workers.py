"""Workers: each episode's seed follows from where it stands, and an unfinished one is repeated."""

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from rlmix.agent.vec_env import ProcessVecEnv, WorkerFailedError
from rlmix.agent.workers import STREAMS, EpisodeCursor, Job, Worker, episode_seed, run_jobs
from rlmix.classifier.errors import InputError
from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.experiments.search.task_family import MENU
from tests.agent.stub import Stub, stub_workers
from tests.agent.test_agent_files import new_agent
from tests.envs.tiny import play, tiny, train_under

ACTIONS = [(2, 0, 0, 0), (4, 1, 2, 1), (0, 0, 1, 0), (6, 0, 0, 2)]


def stub(index: int = 0, position: EpisodeCursor | None = None, search_seed: int = 3) -> Worker:
    return Worker(Stub(), search_seed, index, position or EpisodeCursor())  # type: ignore[arg-type]


def seeds(worker: Worker, count: int) -> list[int]:
    return [worker.reset()[1]["episode_seed"] for _ in range(count)]


def test_seeds_differ_wherever_anything_does_and_are_the_same_again() -> None:
    places = list(itertools.product(range(5), STREAMS, range(4), range(50)))
    found = {place: episode_seed(*place) for place in places}
    assert len(set(found.values())) == len(places)
    assert all(0 <= seed < 2**31 for seed in found.values())
    assert found == {place: episode_seed(*place) for place in reversed(places)}


def test_a_worker_gives_its_episodes_their_seeds() -> None:
    for search_seed, index in ((3, 0), (3, 1), (4, 0)):
        expected = [episode_seed(search_seed, "search", index, number) for number in range(4)]
        assert seeds(stub(index, search_seed=search_seed), 4) == expected
    assert seeds(stub(1, EpisodeCursor("greedy", 2)), 2) == [episode_seed(3, "greedy", 1, number) for number in (2, 3)]
    worker = stub()
    seeds(worker, 3)
    worker.seek(EpisodeCursor("contest", 7))
    assert seeds(worker, 1) == [episode_seed(3, "contest", 0, 7)]
    assert worker.reset(seed=12345)[1]["episode_seed"] == episode_seed(3, "contest", 0, 8), "a seed is not used"


def test_a_process_holds_no_more_environments_than_its_pipe_has_room_for() -> None:
    with pytest.raises(ValueError, match="at most 64 environments, got 129 for 2"):
        ProcessVecEnv(stub, [EpisodeCursor()] * 129, processes=2)


class Holding(Stub):
    """As a worker whose networks are compiled: holds something of the system's, and is busy when it is ended."""

    def reset(self, **keywords: Any) -> Any:
        self.held = multiprocessing.get_context("spawn").Lock()
        return super().reset(**keywords)


def holding(index: int, position: EpisodeCursor) -> Worker:
    return Worker(Holding(), 3, index, position)  # type: ignore[arg-type]


def test_processes_that_are_ended_give_back_what_they_hold(tmp_path: Path) -> None:
    script = (
        "from rlmix.agent.vec_env import ProcessVecEnv; from rlmix.agent.workers import EpisodeCursor; "
        "from tests.agent.test_workers import holding\n"
        "if __name__ == '__main__':\n"
        "    workers = ProcessVecEnv(holding, [EpisodeCursor()] * 2, processes=2); workers.reset(); workers.close()\n"
        "    assert not any(process.is_alive() for process in workers.processes)\n"
    )
    file = tmp_path / "ended.py"
    file.write_text(script)
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    ended = subprocess.run([sys.executable, file], capture_output=True, text=True, check=True, env=environment)
    assert ended.stderr == ""


class Failing(Stub):
    """An environment whose step raises the error of its number, or kills its process."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self._index = index

    def step(self, action: Any) -> Any:
        if self._index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        raise (RuntimeError("boom\nin two lines"), InputError("no grid"))[self._index]


def failing(index: int, position: EpisodeCursor) -> Worker:
    return Worker(Failing(index), 3, index, position)  # type: ignore[arg-type]


def test_what_ended_a_worker_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    """The parent's message holds the worker's own error or the signal, instead of a pipe's "EOFError"."""
    workers = ProcessVecEnv(failing, [EpisodeCursor()] * 3, processes=3)
    told = []
    try:
        workers.reset()
        for index in (0, 1, 2, 2):  # the last one finds the pipe closed
            with pytest.raises(WorkerFailedError) as failed:
                workers.env_method("step", ACTIONS[0], indices=index)
            told.append(str(failed.value))
    finally:
        workers.close()
    assert told == [
        "worker 0 failed: RuntimeError: boom in two lines",
        "worker 1 failed: no grid",
        *["worker 2's process was ended by signal 9 (Killed, from outside or for lack of memory)"] * 2,
    ]
    assert capfd.readouterr().err.count("Traceback") == 1, "of the error that is no user's mistake"


def test_vector_environments_start_the_next_episode_by_themselves() -> None:
    workers = stub_workers([EpisodeCursor(), EpisodeCursor("search", 5)])
    workers.reset()
    seen: list[list[int]] = [[], []]
    for _ in range(8):
        _, _, dones, infos = workers.step(np.array([ACTIONS[0]] * 2))
        for worker, (done, info) in enumerate(zip(dones, infos, strict=True)):
            if done:
                seen[worker].append(info["episode_seed"])
    assert seen == [
        [episode_seed(3, "search", 0, number) for number in (0, 1)],
        [episode_seed(3, "search", 1, number) for number in (5, 6)],
    ]


@pytest.mark.parametrize("known", [0, 1, 2, 3])
def test_an_unfinished_episode_is_repeated(known: int) -> None:
    position = EpisodeCursor("search", 4, tuple(ACTIONS[:known]))
    worker = Worker(tiny(reward="change"), 3, 1, position)
    env = tiny(reward="change")
    observations, rewards, _ = play(env, ACTIONS, seed=episode_seed(3, "search", 1, 4))
    observation, _ = worker.reset()
    np.testing.assert_array_equal(observation, observations[known])
    for step in range(known, 4):
        observation, reward, terminated, _, _ = worker.step(ACTIONS[step])
        np.testing.assert_array_equal(observation, observations[step + 1])
        assert reward == rewards[step]
        assert terminated == (step == 3)
    observation, info = worker.reset()
    assert info["episode_seed"] == episode_seed(3, "search", 1, 5)
    np.testing.assert_array_equal(observation, env.reset(seed=info["episode_seed"])[0]), "repeated only once"


def test_jobs_are_spread_over_workers_and_come_back_in_order() -> None:
    env = tiny(reward="change")
    schedules = [
        PolicySchedule.fixed(MixPolicy({"clean": 1.0})),
        PolicySchedule(((0.4, MixPolicy({"mixup": 1.0})), (1.0, MixPolicy({"clean": 1.0}))), {"note": "not sent"}),
        PolicySchedule.fixed(MixPolicy({"clean": 0.5, "rmix": 0.5}, threshold=0.25)),
    ]
    jobs = [
        Job.from_chooser(f"job {number}", schedule, env.tasks.task(0), number, ["validation", "development"])
        for number, schedule in enumerate(schedules)
    ]
    assert all(job.schedule is not None and job.schedule["provenance"] == {} for job in jobs)
    workers = DummyVecEnv(
        [
            lambda: Worker(tiny(reward="change"), 3, 0, EpisodeCursor()),
            lambda: Worker(tiny(reward="change"), 3, 1, EpisodeCursor()),
        ]
    )
    results = list(run_jobs(workers, jobs))
    assert [job for job, _ in results] == jobs
    for (_, accuracies), schedule, number in zip(results, schedules, range(3), strict=True):
        expected = train_under(env, schedule, env.tasks.task(0), number, ["validation", "development"])
        assert accuracies == expected
    assert list(run_jobs(workers, [])) == []


def test_an_agent_with_a_menu_and_segments_of_its_own_is_asked_live() -> None:
    agent = new_agent(MENU)
    worker = Worker(tiny(reward="relative", reference_seeds=1), 3, 0, EpisodeCursor())
    task = worker.mix_policy_env.tasks.task(0)
    before = play(worker.mix_policy_env, ACTIONS, seed=5)[1]
    job = Job.from_chooser("asked", agent, task, 7, ["validation", "development"])
    found = worker.train_under([job])
    env = tiny(reward="final", menu=MENU, segments=agent.segments)
    agent.play(env, task, 7)
    assert found == {name: env.trainer.evaluate(name).accuracy for name in ("validation", "development")}
    assert play(worker.mix_policy_env, ACTIONS, seed=5)[1] == before, "its own episodes are as they were"


def test_references_are_spread_over_workers(tmp_path: Path) -> None:
    tasks = {"pool": 3}

    def worker(index: int) -> Worker:
        env = tiny(tasks=tasks, reference_seeds=1, reference_cache=tmp_path / str(index))
        return Worker(env, 3, index, EpisodeCursor())

    vector = DummyVecEnv([lambda index=index: worker(index) for index in range(2)])
    vector.env_method("prepare_reference", [2])
    vector.env_method("prepare_reference", [0, 1])
    task = tiny(tasks=tasks).tasks.task
    for index, numbers in ((0, (0, 2)), (1, (1,))):
        measured = [json.loads(file.read_text())["key"][0] for file in (tmp_path / str(index)).iterdir()]
        assert sorted(measured, key=str) == sorted((task(number).to_json() for number in numbers), key=str)
