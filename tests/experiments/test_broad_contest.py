"""The third contest: its protocol, who trains how, and what its tables say of planted results."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import VisionTransformer

from rlmix.agent.agent import Agent
from rlmix.agent.files import SHIPPED
from rlmix.agent.rule import Leaf, Rule
from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs import BroadTasks, ImageLibrary, Source
from rlmix.envs.seeds import derive_seed, training_seed
from rlmix.experiments.comparison.intervals import format_interval, mean_interval
from rlmix.experiments.search.task_family import MENU
from rlmix.experiments.studies.broad import contest, contest_results
from rlmix.experiments.studies.broad.small_vit import small_vit
from tests.agent.loops import agent
from tests.experiments.inline import run_inline

Refused = Callable[[Callable[[Sequence[str]], Any], Sequence[object]], str]
SOURCES = [Source("a", (300, 300), True), Source("b", (200, 100, 300), False)]


def test_tasks_of_other_groups_change_what_they_say() -> None:
    for number in range(12):
        task = contest.task_of("eurosat", number, SOURCES[:1], seed=1)
        assert (
            task
            == contest.task_of("eurosat", number, SOURCES[:1], seed=1)
            != contest.task_of("omniglot", number, SOURCES[:1], seed=1)
        )
        vit = contest.task_of(contest.VIT, number, SOURCES, seed=1)
        assert vit.dataset == "ab"[number % 2] and vit.image_size == 24 and dict(vit.options)["optimizer"] == "adamw"
        wrong = contest.task_of(contest.NOISE, number, SOURCES, seed=1)
        assert 0.65 <= wrong.label_noise <= 0.8 and wrong.noise == "symmetric"
    assert len({contest.task_of("eurosat", number, SOURCES[:1], seed=1) for number in range(12)}) == 12


def test_groups_are_the_unseen_data_sets_and_more() -> None:
    groups = contest.groups_of(rehearsal=False)
    assert list(groups) == [*contest.UNSEEN, *contest.REHEARSED, contest.VIT, contest.NOISE]
    assert not set(contest.UNSEEN) & {name for names in contest.groups_of(rehearsal=True).values() for name in names}


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_small_transformer_sees_every_patch(channels: int) -> None:
    network = small_vit(5, channels).eval()
    images = torch.zeros(2, channels, 24, 24)
    images[1, :, 20:, 20:] = 1
    torch.nn.init.normal_(network.heads[0].weight)
    logits = network(images)
    assert logits.shape == (2, 5) and not torch.allclose(logits[0], logits[1])
    assert 8e4 < sum(weights.numel() for weights in network.parameters()) < 2e5
    # torchvision's own attention says the same.
    with torch.no_grad():
        own = VisionTransformer.forward(network, images)  # type: ignore[arg-type]
    assert torch.allclose(own, logits, atol=1e-5)


@pytest.fixture
def folder(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a small data set, of which contests are, with tiny trainings."""
    monkeypatch.setattr(contest, "groups_of", lambda **_: {"squares": ("squares",), contest.VIT: ("squares",)})
    few = ("plain", "CutMix half")
    monkeypatch.setattr(contest, "FIXED", {name: contest.FIXED[name] for name in few})
    monkeypatch.setattr(contest, "USUAL", {"updates": (8, 8), "seconds": 1.5})
    contest.PolicySchedule.fixed(MENU.policy(contest.CHOICES[1])).save(tmp_path / "fixed.json")
    return squares


def test_a_contest_goes_as_its_protocol_says(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    trained = run_inline(monkeypatch)
    monkeypatch.setattr(contest, "TRAININGS", 2)
    monkeypatch.setattr(contest, "CHOICES", contest.CHOICES[:2])
    (tmp_path / "agent").mkdir()
    agent(3).save(tmp_path / "agent")
    out = tmp_path / "out"
    common = ["--data", str(folder), "--out", str(out)]
    assert "write it first" in refused(contest.main, ["run", *common])
    plain = MENU.find(contest.FIXED["plain"].segments[0][1])
    Rule(MENU, contest.SEGMENTS, (), Leaf((plain,) * len(contest.SEGMENTS))).save(tmp_path)
    contest.FIXED["CutMix half"].save(tmp_path / "schedule.json")
    options = ["--agents", f"mine={tmp_path / 'agent'}", "--tasks", "2", "--search-tasks", "1"]
    options += ["--best-fixed", str(tmp_path / "fixed.json")]
    options += ["--rules", f"simple={tmp_path / 'rule.json'}", "--schedules", f"mixed={tmp_path / 'schedule.json'}"]
    contest.main(["protocol", *common, *options])
    protocol = json.loads((out / "protocol.json").read_bytes())
    assert protocol["split"] == "test" and list(protocol["contestants"])[:2] == ["mine", "mine, one look"]
    contest.main(["run", *common])
    singles = [name for name, entry in protocol["contestants"].items() if entry["kind"] != "search"]
    assert len(trained) == 2 * (2 * len(singles) + 3)
    lines = [json.loads(text) for text in (out / "runs.jsonl").read_text().splitlines()]
    found = {(line["group"], line["task"], line["contestant"]): line for line in lines}

    held = found["squares", 1, "mine, one look"]["chosen"]
    mine = found["squares", 1, "mine"]["chosen"]
    assert (
        len(set(held)) == 1 and held[0] == mine[0] and found["squares", 1, "mine, two looks"]["chosen"][:2] == mine[:2]
    )

    for number in range(2):
        for group in ("squares", contest.VIT):
            for name, same in (("simple", "plain"), ("mixed", "CutMix half")):
                assert found[group, number, name]["accuracy"] == found[group, number, same]["accuracy"]

    # By hand: the test images of the task, from the seed that all contestants have.
    library = ImageLibrary({"squares": str(folder / "squares")})
    task = contest.task_of("squares", 1, [Source.of(library, "squares")], seed=contest.SEED)
    data = task.draw(library.splits("squares", task.image_size or 0, grey=task.grey))
    trainer = Trainer(task.training(TrainConfig(device="cpu")), data)
    seed = training_seed(derive_seed(contest.SEED, *b"squares", 1))
    trainer.reset(seed)
    trainer.train(MixPolicy({"clean": 0.5, "cutmix": 0.5}), task.updates)
    assert found["squares", 1, "CutMix half"]["accuracy"] == round(trainer.evaluate("test").accuracy, 4)

    menu = found[contest.VIT, 0, contest.MENU_16]
    best = max(menu["every"], key=lambda pair: pair[1])
    assert (menu["accuracy"], menu["validation"]) == tuple(best) and 0 <= menu["again"] <= 1
    reads = (out / "test_set_reads.jsonl").read_text().splitlines()
    assert len(reads) == 1 and json.loads(reads[0])["entries"] == len(trained)
    assert "oracle's policy, trained again" not in (out / "results.md").read_text(), "one task of a group says nothing"
    trained.clear()
    contest.main(["run", *common])
    assert trained == []
    assert "cannot change" in refused(contest.main, ["protocol", *common, *options])
    agent(4).save(tmp_path / "agent")
    assert "not the agent mine of the protocol" in refused(contest.main, ["run", *common])


def test_a_protocol_needs_its_contestants(folder: Path, tmp_path: Path, refused: Refused) -> None:
    options = ["protocol", "--data", str(folder), "--out", str(tmp_path / "out")]
    assert "--best-fixed: expected the file of a schedule" in refused(contest.main, options)
    options += ["--best-fixed", str(tmp_path / "fixed.json")]
    assert "at most --tasks" in refused(contest.main, [*options, "--tasks", "3", "--search-tasks", "4"])
    assert "give it by --rules rule=FILE" in refused(contest.main, [*options, "--agents", "rule"])
    for option in ("--rules", "--schedules"):
        assert "another contestant" in refused(contest.main, [*options, option, f"plain={tmp_path / 'fixed.json'}"])
    twice = f"one={tmp_path / 'fixed.json'}"
    assert "another contestant" in refused(contest.main, [*options, "--schedules", twice, twice])


def planted(tasks: int = 4) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A protocol, and lines in which the agent is 3 points ahead of plain training on `a`, 1 on `b`, and so on."""
    best = contest.PolicySchedule.fixed(MENU.policy(contest.CHOICES[1]))
    entries = contest.contestants_of({"mine": Agent.load(SHIPPED)}, {"mine": SHIPPED}, best, {}, {})
    groups = {"a": ("a",), "eurosat": ("b",), contest.VIT: ("a",), contest.NOISE: ("b",)}
    ahead = {"a": 0.03, "eurosat": 0.01, contest.VIT: -0.02, contest.NOISE: 0.0}
    lines = []
    for group, (dataset,) in groups.items():
        for number in range(tasks):
            for name, entry in entries.items():
                lead = {"mine": ahead[group], contest.BEST_FIXED: 0.005, contest.MENU_16: 0.04}.get(name, 0.0)
                accuracy = 0.5 + lead + number / 100
                lines.append({"group": group, "task": number, "contestant": name, "dataset": dataset,
                              "accuracy": accuracy, "validation": accuracy, "diverged": False,
                              **({"again": accuracy - 0.01} if entry["kind"] == "search" else {})})  # fmt: skip
    protocol = {"split": "test", "contestants": entries, "groups": groups, "tasks": tasks, "statistics": "Means."}
    return protocol, lines


def test_tables_tell_data_sets_from_other_groups() -> None:
    protocol, lines = planted()
    result = contest_results.summarise(protocol, lines)
    single, whole = result["tables"]
    assert single["tasks"] == {contest_results.ALL: 8, contest_results.NEW: 4, contest.VIT: 4, contest.NOISE: 4}
    over = single["agent_minus"]["plain"]
    assert over[contest_results.ALL]["data_sets"] == pytest.approx(mean_interval([3.0, 1.0]))
    assert over[contest_results.ALL]["tasks"] == pytest.approx(mean_interval([3.0] * 4 + [1.0] * 4))
    assert over[contest.VIT]["tasks"][0] == pytest.approx(-2)
    assert contest_results.ORACLE not in single["agent_minus"]
    assert whole["agent_minus"][contest_results.ORACLE][contest_results.ALL]["tasks"][0] == pytest.approx(-2)
    assert whole["agent_minus"][contest_results.ORACLE_AGAIN][contest_results.ALL]["tasks"][0] == pytest.approx(-1)
    assert over[contest_results.NEW]["tasks"] == pytest.approx((1.0, 0.0)) and over[contest_results.NEW][
        "by_data_set"
    ].keys() == {"b"}
    aims = list(result["aims"].items())
    assert [aim["reached"] for _, aim in aims] == [False] * 9 + [True]  # 2 of 4 data sets, and so on
    came = [aim["came"][0] if isinstance(aim["came"], list) else aim["came"] for _, aim in aims]
    assert came == pytest.approx([1.5, 2.0, 2.0, 0.5, 1.0, 1.0, -2.0, -2.5, -2.0, 1.5 / 2.5])
    assert [name.startswith(contest_results.NEW) for name, _ in aims] == [False] * 3 + [True] * 3 + [False] * 4
    for part, lead in ((contest_results.ALL, 2.0), (contest.VIT, -2.0)):
        assert single["less_plain"]["mine"][part]["tasks"][0] == pytest.approx(lead)
    assert whole["less_plain"][contest.BEST_FIXED][contest_results.ALL]["tasks"] == pytest.approx((0.5, 0.0))
    shown = contest_results.markdown({**result, "command": "it"})
    assert "| plain " in shown and "+2.00 ± " in shown and "-2.0 ± 0.0" in shown
    assert contest_results.summarise(protocol, lines[:3])["tables"] == []


def test_the_plot_has_a_row_for_each_contestant_the_best_on_top() -> None:
    result = contest_results.summarise(*planted())
    rows = contest_results.plot(result).subfigs
    assert len(rows) == 2
    for row, table in zip(rows, result["tables"], strict=True):
        assert [panel.get_title() for panel in row.axes] == [f"{part}\n{n} tasks" for part, n in table["tasks"].items()]
        names = [label.get_text() for label in row.axes[0].get_yticklabels()]
        assert set(names) == table["less_plain"].keys()
        dots = [line for line in row.axes[0].get_lines() if line.get_marker() == "o"]
        shown = {names[round(line.get_ydata()[0])]: line.get_xdata()[0] for line in dots}
        assert list(shown.values()) == sorted(shown.values())
        assert shown["mine"] == pytest.approx(2.0) and shown[contest.BEST_FIXED] == pytest.approx(0.5)
    assert names[-1] == contest_results.ORACLE


def test_an_agent_may_look_less_often() -> None:
    tasks = BroadTasks((Source("digits", (80,) * 10, False),), seed=5, updates=(10, 10), seconds=1.5)
    trainer = contest.shared_trainer((("digits", "digits"),), "fp32")
    mine = agent(3)
    actions = mine.play(mine.environment(trainer, tasks.task(0)), tasks.task(0), 3, looks=2)
    free = mine.play(mine.environment(trainer, tasks.task(0)), tasks.task(0), 3)
    assert actions[:2] == free[:2] and set(actions[1:]) == {actions[1]} and len(actions) == len(free)


def test_the_documents_show_the_contest() -> None:
    result = json.loads((ROOT / "experiments/results/broad/contest/results.json").read_bytes())
    (table,) = result["tables"][:1]
    page, readme, card = (
        (ROOT / name).read_text() for name in ("docs/agent.md", "README.md", "experiments/policies/README.md")
    )
    shown = {
        "rule": "the rule in words",
        contest.AS_TIMM: "mixup and CutMix in turn with smoothing 0.1, much as timm mixes",
        "new": "the shipped agent",
        "old": "the earlier agent",
        "R-Mix half": "R-Mix on half",
        "switch": "CutMix on half, then clean, the best such switch in the surrogate",
        "CutMix half": "CutMix on half",
        "new, two looks": "the shipped agent, its choices frozen after the second look",
        contest.BEST_FIXED: "mixup on half, the best fixed policy in the surrogate",
        contest.RANDOM: "a random policy for each segment",
        "new, one look": "the shipped agent, its first choice held",
        "label smoothing": "label smoothing of 0.3",
    }
    ahead, parts = table["less_plain"], (contest_results.ALL, contest_results.NEW)
    assert {*shown, "mixup half"} == ahead.keys() and ahead["mixup half"] == ahead[contest.BEST_FIXED]
    assert list(shown) == sorted(shown, key=lambda name: -ahead[name][parts[0]]["tasks"][0])
    for name, title in shown.items():
        cells = [
            cell
            for part in parts
            for cell in (format_interval(*ahead[name][part]["tasks"], signed=True), _width(ahead[name][part]))
        ]
        assert f"| {title} | {' | '.join(cells)} |" in page, name
        if name in (*list(shown)[:3], "R-Mix half", "CutMix half"):
            assert f"| {cells[0]} | {cells[1]} |\n" in readme, name
    for part, count in zip((*parts, contest.VIT), (192, 96, 24), strict=True):
        assert table["tasks"][part] == count
    less = {name: over[contest_results.ALL] for name, over in table["agent_minus"].items()}
    for name in (contest.BEST_FIXED, "rule", contest.AS_TIMM, "R-Mix half"):
        text = format_interval(*less[name]["tasks"], signed=True)
        assert text.removeprefix("+") in page and text.removeprefix("+") in card, name
    assert f"({format_interval(*less[contest.BEST_FIXED]['tasks'], signed=True)})" in readme
    for name, words in (("new, one look", "ahead of one"), ("new, two looks", "ahead of two")):
        text = format_interval(*less[name]["tasks"])
        assert re.search(rf"{text}\s+{words} \({_width(less[name])}\)", page), name
    assert sum(aim["reached"] for aim in result["aims"].values()) == 1
    others = {(name, part) for name, over in ahead.items() for part in (contest.VIT, contest.NOISE)
              if over[part]["tasks"][0] > over[part]["tasks"][1]}  # fmt: skip
    assert others == {("new, one look", contest.VIT)}
    assert format_interval(*ahead["new, one look"][contest.VIT]["tasks"], signed=True) in page
    worst = {
        name: ahead[name][contest_results.ALL]["worst_tenth"] for name in ("rule", contest.AS_TIMM, "R-Mix half", "old")
    }
    own = ahead["new"][contest_results.ALL]["worst_tenth"]
    assert (
        f"({own:.2f} less plain training) is below theirs ({max(worst.values()):.2f} to {min(worst.values()):.2f})"
        in page
    )


def test_the_documents_show_those_who_search() -> None:
    folder = ROOT / "experiments/results/broad/contest"
    result = json.loads((folder / "results.json").read_bytes())
    _, table = result["tables"]
    page = (ROOT / "docs/agent.md").read_text()
    part, ahead = contest_results.ALL, table["less_plain"]
    assert table["tasks"][part] == 80
    shown = {
        "Population Based Training": "Population Based Training, 16 members | 16",
        contest_results.ORACLE: "the oracle: the best of all 16 fixed policies by validation | 16",
        contest_results.ORACLE_AGAIN: "its policy, trained again from another seed | 17",
        "rule": "the rule in words | 1",
        contest.COPIES: "CutMix on half, the best of 16 trainings by validation | 16",
        "R-Mix half": "R-Mix on half | 1",
        contest.AS_TIMM: "timm's mixing | 1",
        "CutMix half": "CutMix on half | 1",
        "new": "the shipped agent | 1",
        contest.BEST_FIXED: "mixup on half, the best fixed policy in the surrogate | 1",
    }
    for name, title in shown.items():
        assert (
            f"| {title} | {format_interval(*ahead[name][part]['tasks'], signed=True)} | {_width(ahead[name][part])} |"
            in page
        )
    fixed, oracle = (ahead[name][part]["tasks"][0] for name in (contest.BEST_FIXED, contest_results.ORACLE_AGAIN))
    way = {name: round(100 * (ahead[name][part]["tasks"][0] - fixed) / (oracle - fixed)) for name in ("new", "rule")}
    assert re.search(rf"the agent comes {way['new']} % of\s+it on these tasks, the rule {way['rule']} %", page)
    lines = {contest.key_of(line): line for line in map(json.loads, (folder / "runs.jsonl").read_text().splitlines())}
    for group in (contest.VIT, contest.NOISE):
        mean, width = table["agent_minus"]["Population Based Training"][group]["tasks"]
        assert f"{-mean:.1f} ± {width:.1f}" in page, group
    lost = {
        task: lines[*task, "new"]["accuracy"] - lines[*task, "plain"]["accuracy"]
        for group, number, name in lines
        if name == contest.MENU_16
        for task in [(group, number)]
    }
    assert min(lost, key=lambda task: lost[task]) == ("digits", 1) and round(100 * lost["digits", 1]) == -27


def _width(over: dict[str, Any]) -> str:
    return f"± {over['data_sets'][1]:.2f}"
