"""The contest: its protocol, who trains how, and what its tables say of planted results."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlmix.agent.agent import Agent
from rlmix.agent.ppo import new_policy, to_agent
from rlmix.classifier.data import load_dataset, split
from rlmix.classifier.hardware import resolve_device, resolve_precision
from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs import Menu, TaskDistribution
from rlmix.envs.seeds import training_seed
from rlmix.experiments.comparison.results import pack_hits, unpack_hits
from rlmix.experiments.search import task_family
from rlmix.experiments.search.task_family import MENU, SEGMENTS
from rlmix.experiments.studies.contest import contest
from rlmix.experiments.studies.contest.contest_results import (
    ALL,
    BEST,
    ORACLE,
    PLAIN,
    RANDOM,
    _spread,
    markdown,
    plot_contest,
    summarise_contest,
)
from tests.experiments.inline import run_inline

ROOT = Path(__file__).parents[2]
EARLIER = ROOT / "experiments/policies/fashion"  # the agent that these contests were held for
TINY = contest.TaskGroup(
    "tiny",
    TaskDistribution(train_size=(100, 120), updates=(8, 12), label_noise=(0.0, 0.2), pool=None, seed=3),
    dataset="digits",
    image_size=None,
    validation_size=100,
)
CUTMIX = PolicySchedule.fixed(MixPolicy({"clean": 0.5, "cutmix": 0.5}, label_smoothing=0.1))


def saved_agent(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    to_agent(new_policy(MENU, [8]), MENU, SEGMENTS, {}).save(folder)
    return folder


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Those of a tiny contest's protocol; its trainings run in this process."""
    monkeypatch.setattr(contest, "GROUPS", {"tiny": TINY, "one": TINY})
    run_inline(monkeypatch)
    CUTMIX.save(tmp_path / "fixed.json")
    agent = saved_agent(tmp_path / "agent")
    options = f"--agent {agent} --fixed {tmp_path}/fixed.json --groups tiny --out {tmp_path}/out"
    return ["protocol", *options.split()]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


ONLY = ["--only", "agent", "best fixed", "random", PLAIN, "fixed: rmix all, β 1", "population", "rl-mix"]


def test_a_contest_as_its_protocol_says_goes_on_and_reads_the_test_set_once(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    contest.main([*arguments, "--count", "2", *ONLY])
    protocol = json.loads((out / "protocol.json").read_text())
    assert protocol["split"] == "test" and list(protocol["contestants"]) == ONLY[1:]
    contest.main(["run", "--out", str(out)])
    found = lines(out / "runs.jsonl")
    assert len(found) == 2 * len(ONLY[1:])
    assert len(lines(out / "test_set_reads.jsonl")) == 1
    test = split(load_dataset("digits"), validation_size=100).test
    assert all(line["images"] == len(test) for line in found)
    assert all(unpack_hits(line["hits"], line["images"]).mean() == pytest.approx(line["accuracy"]) for line in found)
    assert {line["trainings"] for line in found if line["contestant"] == "population"} == {16}
    first = {line["contestant"]: line for line in found if line["task"] == 0}
    task = TINY.tasks.task(0)
    assert all(line["task_drawn"]["data_seed"] == task.data_seed for line in first.values())

    # By hand: the same images, weights and order for all, whoever chooses.
    data = task.draw(split(load_dataset("digits"), validation_size=100))
    setting = TrainConfig(
        model="search", updates=task.updates, device="cpu", precision=resolve_precision("auto", resolve_device("cpu"))
    )
    seed = training_seed(first["agent"]["seed"])
    assert {line["seed"] for line in first.values()} == {contest.seed_of(contest.CONTEST, TINY.tasks, 0)}
    trainer = Trainer(setting, data, seed=seed)
    trainer.train(CUTMIX.segments[0][1], task.updates)
    assert trainer.evaluate("validation").accuracy == first["best fixed"]["validation"]
    trainer.reset(seed)
    for end, action in zip(SEGMENTS, first["agent"]["chosen"], strict=True):
        trainer.train(MENU.policy(action), round(end * task.updates) - trainer.updates_done)
    assert trainer.evaluate("validation").accuracy == first["agent"]["validation"]

    before = (out / "runs.jsonl").read_bytes()
    (out / "runs.jsonl").write_bytes(b"".join(before.splitlines(keepends=True)[:-3]))
    contest.main(["run", "--out", str(out)])
    assert (out / "runs.jsonl").read_bytes() == before
    assert len(lines(out / "test_set_reads.jsonl")) == 2, "going on reads it for those that were missing"
    trained = run_inline(monkeypatch)
    contest.main(["run", "--out", str(out)])
    assert trained == []
    assert "the agent, asked live" in (out / "results.md").read_text()


def test_rivals_may_train_more_tasks_and_come_first(arguments: list[str], tmp_path: Path) -> None:
    contest.main([*arguments, "--count", "2", "--rivals-count", "3", "--only", "agent", PLAIN, "fixed: rmix all, β 1"])
    contest.main(["run", "--out", str(tmp_path / "out")])
    trained = [(line["contestant"], line["task"]) for line in lines(tmp_path / "out" / "runs.jsonl")]
    first = [(name, task) for task in range(3) for name in ("agent", PLAIN)]
    assert trained == [*first, *(("fixed: rmix all, β 1", task) for task in range(2))]


def test_schedules_that_a_search_found_take_part(arguments: list[str], tmp_path: Path) -> None:
    schedule = PolicySchedule(
        ((0.5, MixPolicy({"clean": 1.0})), (1.0, MixPolicy({"mixup": 1.0}))), {"learned_by": "hand"}
    )
    schedule.save(tmp_path / "found.json")
    options = ["--count", "2", "--only", "agent", "found", PLAIN, "--schedules", f"found={tmp_path}/found.json"]
    contest.main([*arguments, *options])
    contest.main(["run", "--out", str(tmp_path / "out")])
    found = {(line["task"], line["contestant"]): line for line in lines(tmp_path / "out/runs.jsonl")}
    task = TINY.tasks.task(1)
    setting = TrainConfig(
        model="search", updates=task.updates, device="cpu", precision=resolve_precision("auto", resolve_device("cpu"))
    )
    trainer = Trainer(
        setting,
        task.draw(split(load_dataset("digits"), validation_size=100)),
        seed=training_seed(found[1, "found"]["seed"]),
    )
    half = round(0.5 * task.updates)
    trainer.train(MixPolicy({"clean": 1.0}), half)
    trainer.train(MixPolicy({"mixup": 1.0}), task.updates - half)
    assert trainer.evaluate("validation").accuracy == found[1, "found"]["validation"]


def test_a_rehearsal_has_other_tasks_and_other_images(arguments: list[str], tmp_path: Path) -> None:
    contest.main([*arguments, "--rehearsal", "--count", "2", "--only", "agent", PLAIN])
    contest.main(["run", "--out", str(tmp_path / "out")])
    found = lines(tmp_path / "out" / "runs.jsonl")
    real = {TINY.tasks.task(number).data_seed for number in range(20)}
    assert not real & {line["task_drawn"]["data_seed"] for line in found}
    assert {line["images"] for line in found} == {len(split(load_dataset("digits"), validation_size=100).development)}
    assert not (tmp_path / "out" / "test_set_reads.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["--groups", "nowhere"], "--groups must be among tiny, one, got nowhere"),
        (["--count", "1"], "count must be at least 2"),
        (["--rivals-count", "9"], "--rivals-count must be at least --count, 10, got 9"),
        (["--only", "agent", "nobody"], "--only must be agent and others among .*got nobody"),
        (["--only", PLAIN], "--only must be agent and others"),
        (["--others", "agent=x"], "--others must be new names"),
        (["--others", "oracle=x"], "--others must be new names"),
        (["--others", "nobody"], "--others must be new names"),
        (["--others", "one=nowhere"], "no usable agent"),
        (["--schedules", "agent=x"], "--schedules must be new names as NAME=FILE, got 'agent=x'"),
        (["--schedules", "found=nowhere.json"], "nowhere.json"),
        (["--groups", "tiny", "one"], "--groups one is a contest of its own"),
        (["--processes", "0"], "processes must be at least 1"),
    ],
)
def test_a_protocol_refuses(changes: list[str], named: str, arguments: list[str], capsys: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        contest.main([*arguments, *changes])
    told = capsys.readouterr().err
    assert stopped.value.code != 0 and "Traceback" not in told
    assert re.search(named, told), told
    assert not (tmp_path / "out").exists()


def test_a_protocol_stays_and_its_agent_is_the_one_that_trains(
    arguments: list[str], tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit):
        contest.main(["run", "--out", str(out)])
    assert "write it first" in capsys.readouterr().err
    contest.main([*arguments, "--only", "agent", PLAIN])
    torch.manual_seed(1)
    to_agent(new_policy(MENU, [8]), MENU, SEGMENTS, {}).save(tmp_path / "agent")
    with pytest.raises(SystemExit):
        contest.main(["run", "--out", str(out)])
    assert "not the agent of the protocol" in capsys.readouterr().err
    (out / "runs.jsonl").write_text("")
    with pytest.raises(SystemExit):
        contest.main([*arguments])
    assert "its protocol cannot change" in capsys.readouterr().err


# What the tables say


SMALL = Menu(  # of two policies, which take part
    sources=(("clean", {"clean": 1.0}), ("cutmix half", {"clean": 0.5, "cutmix": 0.5})),
    thresholds=(None,),
    labels=((1.0, 0.0),),
    lams=("beta(1)",),
)


def planted(count: int, images: int = 400) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Two groups, of which the first has the images of 80 % for the agent, 78 for the best fixed, 70 for plain."""
    random = np.random.default_rng(0)
    level = {"agent": 0.8, "best fixed": 0.78, "random": 0.75, PLAIN: 0.7, "fixed: cutmix half, β 1": 0.79}
    names = {name: {"kind": "schedule", "of_the_menu": name.startswith("fixed"), "count": count} for name in level}
    group = {"title": "one", "dataset": "fashion_mnist"}
    protocol = {
        "split": "development",
        "menu": SMALL.to_json(),
        "statistics": "",
        "contestants": names,
        "groups": {"a": group, "b": {**group, "title": "two"}},
    }
    found = []
    for letter in "ab":
        for task in range(count):
            luck = random.random(images)
            for name, share in level.items():
                right = luck < share - (0.04 if letter == "b" and name == "agent" else 0)
                found.append(
                    {
                        "group": letter, "task": task, "contestant": name, "accuracy": float(right.mean()),
                        "validation": share + (0.2 if name == PLAIN and task == 0 else 0), "hits": pack_hits(right),
                        "images": images, "diverged": False,
                    }
                )  # fmt: skip
    return protocol, found


def test_the_results_are_those_that_were_put_in() -> None:
    protocol, found = planted(40)
    found = [line for line in found if (line["group"], line["task"], line["contestant"]) != ("b", 39, "random")]
    told = summarise_contest(protocol, found)
    (table,) = told["tables"]
    assert table["groups"]["a"]["tasks"] == 40 and table["groups"]["b"]["tasks"] == 39, "whole tasks count"
    assert table["groups"]["a"]["agent_minus"]["best fixed"]["mean"] == pytest.approx(2, abs=0.6)
    assert table["groups"]["b"]["agent_minus"]["best fixed"]["mean"] == pytest.approx(-2, abs=0.6)
    overall = table[ALL]["agent_minus"]
    assert overall["random"]["mean"] == pytest.approx(3, abs=0.6)
    accuracy = {(line["group"], line["task"], line["contestant"]): line["accuracy"] for line in found}
    tasks = [("a", task) for task in range(40)] + [("b", task) for task in range(39)]
    for name in ("best fixed", PLAIN):
        by_hand = np.mean([accuracy[*place, "agent"] - accuracy[*place, name] for place in tasks])
        assert overall[name]["mean"] == pytest.approx(100 * by_hand)
        assert overall[name]["low"] < overall[name]["mean"] < overall[name]["high"]
    # The oracle looks at validation images: at CutMix, but for each group's first task, where plain training is lucky.
    oracle = [accuracy[*place, PLAIN if place[1] == 0 else "fixed: cutmix half, β 1"] for place in tasks]
    by_hand = np.mean([accuracy[*place, "agent"] for place in tasks]) - np.mean(oracle)
    assert overall[ORACLE]["mean"] == pytest.approx(100 * by_hand)
    (partial,) = summarise_contest({**protocol, "menu": MENU.to_json()}, found)["tables"]
    assert ORACLE not in partial[ALL]["agent_minus"]
    aims = {name.split(",")[0]: aim["reached"] for name, aim in told["aims"].items()}
    assert aims["ahead of best fixed by 0.5 points"] is False
    assert aims["ahead of random by 1 points"] is True
    assert aims["in no group more than 0.3 points behind plain training"] is True
    assert f"({table[ALL]['tasks']})" in markdown(told) and "**not reached**" in markdown(told)
    assert len(plot_contest(told).axes) == 3, "one for each group, and one for all"


def test_other_agents_are_compared_with_the_rivals_too() -> None:
    protocol, found = planted(10)
    (table,) = summarise_contest(protocol, found)["tables"]
    assert table[ALL]["others_minus"] == {} and "all groups, less" not in markdown(summarise_contest(protocol, found))
    protocol["contestants"]["twin"] = {"kind": "agent", "count": 10}
    twin = [{**line, "contestant": "twin"} for line in found if line["contestant"] == "agent"]
    told = summarise_contest(protocol, [*found, *twin])
    minus = told["tables"][0][ALL]["others_minus"]
    assert minus == {"twin": {name: table[ALL]["agent_minus"][name] for name in ("best fixed", "random", PLAIN)}}
    assert "| twin " in markdown(told)


def test_a_contest_of_one_task_has_aims_of_its_own() -> None:
    protocol, found = planted(40)
    protocol["groups"] = {"one": protocol["groups"]["a"]}
    told = summarise_contest(protocol, [{**line, "group": "one"} for line in found if line["group"] == "a"])
    aimed = {"best fixed": "0.3", "random": "0.5"}
    assert list(told["aims"]) == [
        f"ahead of {name} by {by} points, interval without zero" for name, by in aimed.items()
    ]


def test_how_far_policies_differ_and_how_much_is_left_to_single_trainings() -> None:
    random = np.random.default_rng(0)
    policies, tasks = np.array([-2.0, -1.0, 0.0, 1.0, 2.0]), random.normal(0, 5, 4000)
    values = 60 + policies[:, None] + tasks + random.normal(0, 1.5, (5, 4000))
    told = _spread((values / 100).tolist())
    assert told == pytest.approx({"policies": np.std(policies, ddof=1), "single_training": 1.5}, rel=0.03)
    noise = _spread((random.normal(0.6, 0.01, (5, 3))).tolist())
    assert noise is not None and noise["policies"] < 0.5 and _spread([[0.5, 0.6]]) is None


def test_a_diverged_training_stands_at_chance_and_one_task_says_nothing() -> None:
    protocol, found = planted(3)
    for line in found:
        if line["contestant"] == "random" and line["group"] == "a":
            line.update(hits=None, images=None, accuracy=0.1, diverged=True)
    (told,) = summarise_contest(protocol, found)["tables"]
    assert told["groups"]["a"]["diverged"]["random"] == 3
    assert told["groups"]["a"]["agent_minus"]["random"]["mean"] == pytest.approx(70, abs=5)
    assert summarise_contest(*planted(1))["tables"] == []


def test_rivals_of_more_tasks_have_a_table_of_their_own_by_which_aims_are_judged() -> None:
    protocol, found = planted(30)
    for name in ("random", "fixed: cutmix half, β 1"):
        protocol["contestants"][name]["count"] = 10
    for line in found:  # the last tasks, which these two do not train, are bad ones for the best fixed policy
        if line["contestant"] == "best fixed" and line["task"] >= 10:
            line.update(hits=None, accuracy=0.1, diverged=True)
    kept = [line for line in found if line["task"] < protocol["contestants"][line["contestant"]]["count"]]
    told = summarise_contest(protocol, kept)
    assert told == summarise_contest(protocol, found), "what is beyond their tasks does not count"
    rivals, everybody = told["tables"]
    assert (rivals[ALL]["tasks"], everybody[ALL]["tasks"]) == (60, 20)
    assert rivals[ALL]["agent_minus"].keys() == {"best fixed", PLAIN}
    assert everybody[ALL]["agent_minus"].keys() == {"best fixed", PLAIN, "random", "fixed: cutmix half, β 1", ORACLE}
    aim = told["aims"]["ahead of best fixed by 0.5 points, interval without zero"]
    assert aim == {"came": rivals[ALL]["agent_minus"]["best fixed"], "reached": True}
    assert everybody[ALL]["agent_minus"]["best fixed"]["mean"] < 2 < 20 < aim["came"]["mean"]
    way = next(value for name, value in told["aims"].items() if "of the way" in name)
    assert way["came"]["oracle_minus_best_fixed"] < 3, "both of one table"
    assert markdown(told).count("| the agent, asked live, less ") == 2
    assert len(plot_contest(told).axes) == 6
    cut = [line for line in kept if line["contestant"] != "random"]
    assert len(summarise_contest(protocol, cut)["tables"]) == 1


def test_the_groups_are_apart_from_what_the_agent_has_seen() -> None:
    tasks = {
        task_family.task(part.first + number).data_seed for part in task_family.PARTS.values() for number in range(2000)
    }
    for name, group in contest.GROUPS.items():
        assert not tasks & {group.tasks.task(number).data_seed for number in range(100)}, name
    seeds = [
        contest.seed_of(first, group.tasks, number)
        for first in (contest.CONTEST, contest.REHEARSAL)
        for group in contest.GROUPS.values()
        for number in range(100)
    ]
    assert len(set(seeds)) == len(seeds), "no two tasks are trained from one seed"
    assert contest.GROUPS["lenet"].model != contest.GROUPS["wide"].model != "search"


def test_schedules_of_the_contest_of_one_task_are_those_that_its_searches_found() -> None:
    folder = ROOT / "experiments/results/one_task"
    contestants = json.loads((folder / "protocol.json").read_text())["contestants"]
    for name, found in (("best fixed", "fixed"), ("ppo", "ppo"), ("pbt", "pbt"), ("random search", "random")):
        schedule = PolicySchedule.load(folder / found / "policy.json")
        assert PolicySchedule.from_json(contestants[name]["schedule"]).segments == schedule.segments, name
    assert contestants["shipped"]["sha256"] == Agent.load(EARLIER).checksum


@pytest.mark.parametrize(
    ("name", "read", "agent"),
    [
        ("rehearsal", "development", EARLIER),
        ("learning/rehearsal", "development", EARLIER),
        ("surrogate/rehearsal", "development", EARLIER),
        ("contest", "test", EARLIER),
        ("broad/home", "development", ROOT / "experiments/policies/shipped"),
        ("one_task", "test", ROOT / "experiments/results/one_task/ppo"),
    ],
)
def test_the_committed_results_follow_from_their_log_and_are_the_agents(name: str, read: str, agent: Path) -> None:
    folder = ROOT / "experiments/results" / name
    protocol = json.loads((folder / "protocol.json").read_text())
    written = json.loads((folder / "results.json").read_text())
    assert protocol["split"] == read
    assert (folder / "test_set_reads.jsonl").exists() == (read == "test")
    assert protocol["contestants"]["agent"]["sha256"] == Agent.load(agent).checksum
    others = [entry for entry in protocol["contestants"].values() if entry["kind"] == "agent" and "folder" in entry]
    assert all(entry["sha256"] == Agent.load(ROOT / entry["folder"]).checksum for entry in others)
    found = summarise_contest(protocol, lines(folder / "runs.jsonl"))
    assert len(found["tables"]) == len(written["tables"]) > 0
    assert found["aims"].keys() == written["aims"].keys()
    for aim, entry in found["aims"].items():
        assert entry["reached"] == written["aims"][aim]["reached"]
        assert entry["came"] == pytest.approx(written["aims"][aim]["came"])
    for one, other in zip(found["tables"], written["tables"], strict=True):
        assert one["groups"].keys() == other["groups"].keys()
        for rival, gap in one[ALL]["agent_minus"].items():
            assert other[ALL]["agent_minus"][rival] == pytest.approx(gap)
        assert one[ALL]["others_minus"].keys() == other[ALL]["others_minus"].keys()
        for agent_name, rivals in one[ALL]["others_minus"].items():
            for rival, gap in rivals.items():
                assert other[ALL]["others_minus"][agent_name][rival] == pytest.approx(gap)
    assert (folder / "results.md").read_text() == markdown(written)


def test_the_documents_report_the_contest_as_it_came() -> None:
    table = json.loads((ROOT / "experiments/results/contest/results.json").read_text())["tables"][0]
    for rival in (BEST, RANDOM, PLAIN):
        gap = table[ALL]["agent_minus"][rival]
        overall = f"{gap['mean']:+.2f} ({gap['low']:+.2f} to {gap['high']:+.2f})"
        means = [f"{group['agent_minus'][rival]['mean']:+.2f}" for group in table["groups"].values()]
        assert f"| {' | '.join([f'**{overall}**', *means])} |" in (ROOT / "docs/agent.md").read_text(), rival


def test_the_documents_report_what_the_agent_does_where_the_earlier_one_is_at_home() -> None:
    (table,) = json.loads((ROOT / "experiments/results/broad/home/results.json").read_text())["tables"]
    page, card, readme = (
        (ROOT / name).read_text() for name in ("docs/agent.md", "experiments/policies/README.md", "README.md")
    )

    def lead(gap: dict[str, float], sign: int, digits: int) -> str:
        low, high = sorted((sign * gap["low"], sign * gap["high"]))
        return f"{sign * gap['mean']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    whole, lenet = table[ALL]["agent_minus"], table["groups"]["lenet"]["agent_minus"]
    said = [
        (whole[BEST], 1, 2),
        (whole[PLAIN], 1, 2),
        (whole["earlier"], -1, 2),
        (lenet["earlier"], -1, 2),
        (lenet[PLAIN], -1, 2),
    ]
    for gap, sign, digits in said:
        assert lead(gap, sign, digits) in page.replace(" points\n", " "), gap
    for gap, sign, digits in (
        (lenet["earlier"], -1, 1),
        (lenet[PLAIN], -1, 1),
        (whole["earlier"], -1, 2),
        (whole[BEST], 1, 2),
    ):
        assert lead(gap, sign, digits) in card.replace(" points", "").replace("\n", " "), gap
    assert lead(lenet[PLAIN], -1, 1) in readme.replace(" points", "")


def test_the_documents_report_the_agents_of_the_surrogate_as_they_came() -> None:
    (table,) = json.loads((ROOT / "experiments/results/surrogate/rehearsal/results.json").read_text())["tables"]
    shown = {"shipped": "comes with the program (round 0)", "round 1": "round 1", "round 3": "round 3"}
    page = (ROOT / "docs/surrogate.md").read_text()
    for name, title in shown.items():
        leads = [table[ALL]["others_minus"][f"surrogate, {name}"][rival] for rival in (BEST, RANDOM, PLAIN)]
        gap = table[ALL]["agent_minus"][f"surrogate, {name}"]
        leads.append({"mean": -gap["mean"], "low": -gap["high"], "high": -gap["low"]})
        cells = [f"{lead['mean']:+.2f} ({lead['low']:+.2f} to {lead['high']:+.2f})" for lead in leads]
        assert f"| PPO, {title} | {' | '.join(cells)} |" in page


@pytest.mark.parametrize(
    ("name", "table", "rival"),
    [("contest", 1, ORACLE), ("contest", 1, "population"), ("one_task", 0, BEST), ("one_task", 0, RANDOM)],
)
def test_the_documents_report_other_differences_with_their_intervals(name: str, table: int, rival: str) -> None:
    written = json.loads((ROOT / "experiments/results" / name / "results.json").read_text())
    gap = written["tables"][table][ALL]["agent_minus"][rival]
    mean, low, high = (f"{abs(gap[value]):.2f}" for value in ("mean", "low", "high"))
    if gap["mean"] < 0:
        low, high = high, low
    page = "docs/agent.md" if name == "contest" else "docs/results.md"
    text = " ".join((ROOT / page).read_text().split()).replace(" points ", " ")
    assert f"{mean} ({low} to {high}" in text
