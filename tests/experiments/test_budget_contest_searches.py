"""Searches on a contest's tasks: they go as their protocol says, and test images judge."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlmix.agent.agent import Agent
from rlmix.agent.files import SHIPPED
from rlmix.agent.population import train_population
from rlmix.agent.values import Forecaster
from rlmix.classifier.mixing import PolicySchedule
from rlmix.classifier.training.config import TrainConfig
from rlmix.envs import ImageLibrary, Source, TaskTrainer
from rlmix.envs.seeds import derive_seed, training_seed
from rlmix.experiments.search.task_family import MENU, SEGMENTS
from rlmix.experiments.studies.broad import contest
from rlmix.experiments.studies.budget import contest_searches as searches
from rlmix.experiments.studies.budget.real import AGAIN, search_task
from tests.agent.loops import agent
from tests.experiments.inline import run_inline

Refused = Callable[[Callable[[Sequence[str]], Any], Sequence[object]], str]


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Folder of the protocol of a contest of tiny trainings, of which one task in two groups is searched."""
    monkeypatch.setattr(contest, "groups_of", lambda **_: {"digits": ("digits",), contest.VIT: ("digits",)})
    monkeypatch.setattr(contest, "USUAL", {"updates": (10, 10), "seconds": 1.5})
    PolicySchedule.fixed(MENU.policy(contest.CHOICES[1])).save(tmp_path / "fixed.json")
    options = ["--data", str(tmp_path), "--best-fixed", str(tmp_path / "fixed.json"), "--tasks", "2"]
    contest.main(["protocol", *options, "--search-tasks", "1", "--out", str(tmp_path / "contest")])
    return str(tmp_path / "contest")


def test_searches_go_as_their_protocol_says(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    trained = run_inline(monkeypatch)
    out = tmp_path / "out"
    run = ["run", "--data", str(tmp_path), "--out", str(out)]
    assert "write it first" in refused(searches.main, run)
    searches.main(["protocol", "--contest", planned, "--budgets", "4", "--populations", "2", "--out", str(out)])
    protocol = json.loads((out / "protocol.json").read_bytes())
    assert protocol["split"] == "test" and protocol["searches"] == [[searches.POPULATION, 2], [searches.OURS, 4]]
    assert protocol["groups"] == ["digits"], "a group of its own is no data set's"
    searches.main(run)
    lines = [json.loads(text) for text in (out / "runs.jsonl").read_text().splitlines()]
    assert [searches.key_of(line) for line in lines] == searches.wanted(protocol)
    (read,) = (out / "test_set_reads.jsonl").read_text().splitlines()
    assert json.loads(read)["entries"] == len(trained) == 2

    # By hand, from the contest's seed: test images of the network that each keeps, then of its policies again.
    library = ImageLibrary({"digits": "digits"})
    task = contest.task_of("digits", 0, [Source.of(library, "digits")], seed=contest.SEED)
    seed = derive_seed(contest.SEED, *b"digits", 0)
    trainer = TaskTrainer(training=TrainConfig(device="cpu"), library=library)
    train_population(trainer, task, menu=MENU, segments=SEGMENTS, seed=seed, members=2)
    by_hand = [trainer.measure(["test"])["test"]]
    after = []  # each step, in the order of their numbers
    train_segment = trainer.train_segment

    def noted(*arguments: Any, **options: Any) -> Any:
        segment = train_segment(*arguments, **options)
        after.append(trainer.measure(["test"])["test"])
        return segment

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_segment", noted)
        found, path = search_task(trainer, task, seed, Agent.load(SHIPPED), Forecaster.load(SHIPPED), 4)
    by_hand.append(after[path[-1].number])
    validation = trainer.measure(["validation"])["validation"]
    assert found.winner is not None and found.results[found.winner.number].accuracy == pytest.approx(validation)
    assert lines[1]["validation"] == round(validation, 4)
    assert [line["accuracy"] for line in lines] == [round(value, 4) for value in by_hand]
    assert path == found.path(found.winner)
    assert [str(MENU.policy(step.action)) for step in path] == lines[1]["policies"]
    assert [step.candidate for step in path] == lines[1]["candidates"] and lines[1]["cost"] == 4
    # The first candidate is what the contest trains for the agent.
    first = [one for one in found.to_json() if one["candidate"] == 0]
    leads = Agent.load(SHIPPED)
    chosen = leads.play(leads.environment(trainer, task), task, seed)
    assert [tuple(one["action"]) for one in first] == [tuple(action) for action in chosen]
    assert first[-1]["accuracy"] == pytest.approx(trainer.measure(["validation"])["validation"])
    held = [*((end, MENU.policy(step.action)) for end, step in zip(SEGMENTS[:-1], path, strict=False))]
    again = PolicySchedule((*held, (1.0, MENU.policy(path[-1].action))))
    trainer.run(again, task, derive_seed(training_seed(seed), AGAIN))
    assert lines[1]["again"] == round(trainer.measure(["test"])["test"], 4)

    trained.clear()
    searches.main(run)
    assert trained == [] and len((out / "test_set_reads.jsonl").read_text().splitlines()) == 1
    assert "choose another --out" in refused(searches.main, ["protocol", "--contest", planned, "--out", out])


def test_what_a_protocol_builds_on_must_stay(planned: str, tmp_path: Path, refused: Refused) -> None:
    out = tmp_path / "out"
    run = ["run", "--data", tmp_path, "--out", out]
    common = ["protocol", "--contest", planned, "--out", str(out)]
    for options, said in (
        (["--budgets", "2"], "--budgets must be some of 4 8 16, got 2"),
        (["--populations", "16"], "--populations must be 2 to 15, got 16"),
        (["--contest", tmp_path], "studies/broad/contest.py writes it"),
    ):
        assert said in refused(searches.main, [*common, *options])
    assert "--data: expected the folder" in refused(searches.main, ["run", "--out", out])
    searches.main(common)
    (mine := tmp_path / "agent").mkdir()
    agent(4).save(mine)
    Forecaster.load(SHIPPED).save(mine)
    protocol = json.loads((out / "protocol.json").read_bytes())
    (out / "protocol.json").write_text(json.dumps({**protocol, "agent": str(mine)}))
    assert f"not the agent of {out / 'protocol.json'}" in refused(searches.main, run)
    (out / "protocol.json").write_text(json.dumps(protocol))
    with (Path(planned) / "protocol.json").open("a") as file:
        file.write("\n")
    assert f"not the contest of {out / 'protocol.json'}" in refused(searches.main, run)
