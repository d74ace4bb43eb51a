"""RLMix: the policy inside somebody's own training loop."""

import copy
import importlib
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, distributed, multiprocessing, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from rlmix import RLMix, Rule
from rlmix.agent.rule import Leaf, Split
from rlmix.classifier.errors import InputError
from rlmix.classifier.files import load_state, save_state
from rlmix.classifier.mixing import METHODS, MixPolicy, PolicySchedule, one_hot, soft_cross_entropy
from rlmix.classifier.mixing.method import MixInput
from rlmix.classifier.models import build_model
from rlmix.classifier.training import resting
from rlmix.classifier.training.batches import BatchSource
from rlmix.classifier.training.draws import UpdateDraws, stream_seed
from rlmix.classifier.training.optimisers import LR_SCHEDULES, OPTIMISERS
from rlmix.envs import Menu
from rlmix.envs.observation import DEFAULT_FEATURES
from rlmix.experiments import replay_policy
from rlmix.experiments.runs.config import stored_config
from rlmix.experiments.training.config import ReplayConfig
from rlmix.experiments.training.resolve import load_data
from tests.agent.loops import KNOWN, TRANSFER, agent, batches, network, rule, sgd

ROOT = Path(__file__).parents[2]
HALF_RMIX = MixPolicy({"clean": 0.5, "rmix": 0.5})


def train(
    mix: RLMix, model: nn.Module, data: list[tuple[Tensor, Tensor]], optimizer: torch.optim.Optimizer, **observed: float
) -> None:
    for images, labels in data:
        if mix.due and observed:
            mix.observe(**observed)  # type: ignore[arg-type]
        images, targets = mix(images, labels, model)
        mix.loss(model(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture
def plain_loop(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example's module."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("plain_loop")


@pytest.mark.parametrize(("seed", "features"), [(3, DEFAULT_FEATURES), (4, DEFAULT_FEATURES), (3, TRANSFER)])
def test_the_plain_loop_trains_as_the_projects_own_program(
    plain_loop: Any, tmp_path: Path, seed: int, features: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same choices and, to the last bit, the same weights."""
    monkeypatch.setattr(resting, "REST", 1)  # so that every saliency update mixes a clean batch, as `loader` takes it
    (tmp_path / "agent").mkdir()
    agent(seed, features=features).save(tmp_path / "agent")
    options = (
        "--dataset digits --train-size 100 --updates 40 --batch-size 25 --validation-size 100 --lr 0.1 --evaluations 1 "
        "--threads 1 --precision fp32 --compile off --no-augmentation"
    ).split()
    run = tmp_path / "run"
    replay_policy.main([*options, "--agent", str(tmp_path / "agent"), "--out", str(run)])
    config = stored_config(ReplayConfig, json.loads((run / "config.json").read_bytes())["config"])
    data = load_data(config)
    torch.manual_seed(stream_seed(config.seed, "data", -1))
    channels = data.train.image_shape[0]
    model = build_model(config.train.model, num_classes=10, in_channels=channels, image_size=data.train.image_shape[1:])
    model.to(memory_format=torch.channels_last)
    optimizer = OPTIMISERS[config.train.optimizer](model, config.train)
    schedule = LR_SCHEDULES[config.train.lr_schedule](optimizer, config.train)
    counts = data.train.labels.bincount()
    known = {"num_classes": 10, "total_updates": 40, "train_size": 100, "imbalance": counts.max() / counts.min()}
    mix = RLMix(tmp_path / "agent", **known, optimizer=optimizer, seed=config.seed)
    source = BatchSource(config.train, data, seed=config.seed, device=torch.device("cpu"))

    def loader() -> Iterator[tuple[Tensor, Tensor]]:
        number = 0
        for _ in range(40):
            batch = source.batch(number)
            yield batch.images, source.labels(batch)
            number += not METHODS[mix.method].needs_gradient  # in whose place one of before was mixed

    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
    images = ((data.validation.images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
    plain_loop.train(model, loader(), optimizer, schedule, mix, (images, data.validation.labels))
    theirs = PolicySchedule.from_json(json.loads((run / "summary.json").read_bytes())["schedule"])
    assert mix.schedule() == theirs
    assert len({policy for _, policy in theirs.segments}) > 1
    reads = any(METHODS[name].needs_gradient for _, policy in theirs.segments for name in policy.shares)
    assert reads or (seed, features) != (3, DEFAULT_FEATURES)
    found = load_file(run / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("cut", "features"), [(3, DEFAULT_FEATURES), (4, DEFAULT_FEATURES), (5, DEFAULT_FEATURES), (11, TRANSFER)]
)
def test_a_resumed_training_ends_as_one_without_a_break(cut: int, features: Sequence[str], tmp_path: Path) -> None:
    chooser, data = agent(features=features), batches(20)
    outcomes = []
    for stops in ([], [cut]):
        model = network()
        optimizer = sgd(model)
        mix = RLMix(chooser, **KNOWN, optimizer=optimizer)
        start = 0
        for stop in stops:
            train(mix, model, data[:stop], optimizer, val_accuracy=0.4, val_loss=1.5)
            torch.save([mix.state_dict(), model.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
            states = torch.load(tmp_path / "state.pt")  # without code
            model, start = network(9), stop
            optimizer = sgd(model)
            mix = RLMix(chooser, **KNOWN, optimizer=optimizer)
            for part, state in zip((mix, model, optimizer), states, strict=True):
                part.load_state_dict(state)
        train(mix, model, data[start:], optimizer, val_accuracy=0.4, val_loss=1.5)
        outcomes.append((mix, model))
    (whole, expected), (resumed, found) = outcomes
    assert resumed.choices == whole.choices and len({choice.policy for choice in whole.choices}) > 1
    for one, other in zip(expected.state_dict().values(), found.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("cut", [3, 4, 5, 9, 13, 17])
def test_a_rule_needs_no_validation_and_goes_on_where_it_was(cut: int, tmp_path: Path, recwarn: Any) -> None:
    """The question is answered once, from losses alone, also if training stops after it."""
    questions = {("mixed_excess_loss", 0.01): "above", ("mixed_excess_loss", 3.9): "below", ("progress", 0.3): "below"}
    for (feature, threshold), answer in questions.items():  # progress is 0.2 at the look, and more later
        asks, outcomes = rule(feature, threshold), []
        for stops in ([], [cut]):
            model, data = network(), batches(20)
            optimizer, start = sgd(model), 0
            mix = RLMix(asks, **KNOWN, optimizer=optimizer)
            for stop in stops:
                train(mix, model, data[:stop], optimizer)
                torch.save(mix.state_dict(), tmp_path / "state.pt")
                mix, start = RLMix(asks, **KNOWN, optimizer=optimizer), stop
                mix.load_state_dict(torch.load(tmp_path / "state.pt"))
            train(mix, model, data[start:], optimizer)
            expected = [*asks.first, *getattr(asks.tree, answer).actions]
            assert [choice.policy for choice in mix.choices] == [asks.menu.policy(action) for action in expected]
            assert [choice.update for choice in mix.choices] == [0, 4, 8, 12, 16]
            given = [choice.reason for choice in mix.choices]
            assert given[0] is None and given[2:] == [None] * 3
            relation = {"above": "≥", "below": "<"}[answer]
            words = r" \([\d.]+ % of guessing's loss; limit [\d.]+ % of guessing's loss\)" * (feature != "progress")
            assert re.fullmatch(rf"{feature} [\d.]+ {relation} {threshold}{words}", given[1] or "")
            outcomes.append(model.state_dict())
        one, other = outcomes
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not recwarn.list


@pytest.mark.parametrize(("observed_at", "expected"), [(8, [0, 0, 1, 1]), (12, [0, 0, 0, 1]), (None, [0, 0, 0, 0])])
def test_a_rule_about_validation_waits_for_it(observed_at: int | None, expected: list[int]) -> None:
    """Until validation is given the policy before holds; what was seen first decides, and it is asked for once."""
    menu = Menu(labels=((1.0, 0.0), (1.0, 0.3)))
    first, below, above = menu.actions()[:3]
    tree = Split("validation_way", 0.5, Leaf((below, below)), Leaf((above, above)))
    asks = Rule(menu, (0.2, 0.4, 0.6, 1.0), (first, first), tree)
    model, data = network(), batches(20)
    optimizer = sgd(model)
    mix = RLMix(asks, **KNOWN, optimizer=optimizer)
    due = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for number, batch in enumerate(data):
            if mix.due:
                due.append(number)
            if number == observed_at:
                mix.observe(val_accuracy=0.9, val_loss=0.5, val_confidence=0.9, val_calibration_error=0.0)
            train(mix, model, [batch], optimizer)
    chosen = [choice.policy for choice in mix.choices]
    assert chosen == [menu.policy((first, above)[which]) for which in expected]
    assert due == [8]
    assert any("no validation was given" in str(one.message) for one in told) == (observed_at != 8)


@pytest.mark.parametrize(("noted_from", "expected"), [(0, "fbbbb"), (3, "fbbbb"), (5, "ffbbb"), (99, "fffff")])
def test_a_rule_about_losses_waits_for_them(noted_from: int, expected: str) -> None:
    """A loss that was not noted is not a low one: the first policy holds until one was."""
    asks = rule("mixed_excess_loss", 3.9)
    model, data = network(), batches(20)
    optimizer = sgd(model)
    mix = RLMix(asks, **KNOWN, optimizer=optimizer)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for number, (images, labels) in enumerate(data):
            mixed, targets = mix(images, labels, model)
            if number >= noted_from:
                mix.loss(model(mixed), targets)
    below = [asks.menu.policy(action) for action in asks.tree.below.actions]  # type: ignore[union-attr]
    played = [
        asks.menu.policy(asks.first[0]) if letter == "f" else below[place - 1] for place, letter in enumerate(expected)
    ]
    assert [choice.policy for choice in mix.choices] == played
    waited = [str(one.message) for one in told if "no training loss was given before the choice" in str(one.message)]
    assert len(waited) == (noted_from > 4) and all("at batch 4, so the one before holds" in text for text in waited)


def test_a_rule_counts_updates_as_they_are_called() -> None:
    """With gradients accumulated, segments are shares of the calls."""
    asks = rule("progress", 0.3)
    mix = RLMix(asks, num_classes=10, total_updates=8, train_size=200, accumulate=4)
    model = network()
    train(mix, model, batches(8), sgd(model))
    played = [*asks.first, *asks.tree.below.actions]  # type: ignore[union-attr]
    assert [choice.update for choice in mix.choices] == [0, 2, 3, 5, 6]
    assert [choice.policy for choice in mix.choices] == [asks.menu.policy(action) for action in played]


def test_a_rule_without_a_first_policy_is_asked_at_the_start() -> None:
    menu = Menu(labels=((1.0, 0.0), (1.0, 0.3)))
    leaves = [Leaf(tuple(menu.actions()[start : start + 3])) for start in (0, 3)]
    asks = Rule(menu, (0.2, 0.5, 1.0), (), Split("validation_way", 0.5, *leaves))
    model = network()
    mix = RLMix(asks, **KNOWN)
    train(mix, model, batches(20), sgd(model))
    assert [choice.policy for choice in mix.choices] == [menu.policy(action) for action in leaves[0].actions]


def test_a_rule_is_refused_where_a_loop_cannot_follow_it(tmp_path: Path) -> None:
    mix = RLMix("rule", **{**KNOWN, "train_size": 4})
    with pytest.raises(InputError, match=r"rmix mixes by saliency; call mix\(images, labels, model\)"):
        mix(*batches(1)[0])
    with pytest.raises(InputError, match="mixes by saliency"):
        mix(*batches(1)[0])  # again
    RLMix("rule", **KNOWN)(*batches(1)[0])  # of few passes, so that it never mixes by saliency
    menu = Menu((("clean", {"clean": 1.0}), ("puzzle", {"puzzlemix": 1.0})), (None,), ((1.0, 0.0),), ("beta(1)",))
    plain, puzzle = menu.actions()
    for threshold, refused in ((0.0, True), (2.0, False)):
        tree = Split("log_passes", threshold, Leaf((plain,)), Leaf((puzzle,)))
        own = RLMix(Rule(menu, (0.5, 1.0), (plain,), tree), **KNOWN)
        if refused:
            with pytest.raises(InputError, match="puzzlemix looks at colours"):
                own(*batches(1)[0], network())
        else:
            own(*batches(1)[0], network())
    with pytest.raises(InputError, match="pass total_updates"):
        RLMix(Rule(Menu(), (1.0,), (), Leaf((Menu().actions()[0],))), num_classes=10, train_size=200)
    with pytest.warns(UserWarning, match="len\\(dataset\\)"):
        RLMix("rule", **{**KNOWN, "train_size": 4})(*batches(1)[0], network())
    Rule.load("rule").save(tmp_path)
    for place in (tmp_path, tmp_path / "rule.json", Rule.load("rule")):
        assert RLMix(place, **KNOWN).source == mix.source
    (tmp_path / "rule.json").write_text('{"format": "rl-mix rule", "version": 7}')
    with pytest.raises(InputError, match="cannot be used as a rule"):
        RLMix(tmp_path / "rule.json", **KNOWN)


@pytest.mark.parametrize("cut", [6, 9])
def test_accumulated_gradients_resume_in_the_midst_of_a_step(cut: int) -> None:
    chooser, data = agent(), batches(20)

    def train_on(mix: RLMix, model: nn.Module, optimizer: torch.optim.Optimizer, start: int, end: int) -> None:
        for number in range(start, end):
            if mix.due:
                mix.observe(val_accuracy=0.4, val_loss=1.5)
            images, targets = mix(*data[number], model)
            (mix.loss(model(images), targets) / 4).backward()
            if number % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()

    def new(seed: int) -> tuple[RLMix, nn.Module, torch.optim.Optimizer]:
        model = network(seed)
        optimizer = sgd(model)
        return RLMix(chooser, **KNOWN, optimizer=optimizer, accumulate=4), model, optimizer

    mix, model, optimizer = new(0)
    train_on(mix, model, optimizer, 0, cut)
    states = copy.deepcopy([mix.state_dict(), model.state_dict(), optimizer.state_dict()])
    gradients = [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()]
    assert all(gradient is not None for gradient in gradients), "it stops between two steps"
    train_on(mix, model, optimizer, cut, 20)
    resumed, again, other = new(9)
    for part, state in zip((resumed, again, other), states, strict=True):
        part.load_state_dict(state)
    for parameter, gradient in zip(again.parameters(), gradients, strict=True):
        parameter.grad = gradient
    train_on(resumed, again, other, cut, 20)
    assert resumed.choices == mix.choices and len({choice.policy for choice in mix.choices}) > 1
    for one, two in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_recycled_saliency_is_the_same_under_autocast_and_a_scaler(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resting, "REST", 1)
    data, model = batches(6), network()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=2.0**8)
    mix = RLMix(HALF_RMIX, num_classes=10)
    before: tuple[Tensor, Tensor, Tensor] | None = None
    for number, (images, labels) in enumerate(data):
        with torch.autocast("cpu", dtype=dtype):
            shown, targets = mix(images, labels, model)
            if mix.method == "clean":
                leaf, plain = images.clone().requires_grad_(), copy.deepcopy(model)
                (gradient,) = torch.autograd.grad(soft_cross_entropy(plain(leaf), targets).mean(), leaf)
                before = images, one_hot(labels, 10), gradient
            else:
                assert before is not None
                draw = UpdateDraws(0).draw(number, 16, images.device)
                expected, _ = HALF_RMIX.mix("rmix", MixInput(*before), draw)
                # In half precision small gradients are rounded otherwise once they are scaled.
                alike = torch.isclose(shown, expected).float().mean()
                assert alike == 1 if dtype == torch.bfloat16 else alike > 0.9
            loss = mix.loss(model(shown), targets)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert shown.dtype == torch.float32 and loss.dtype == torch.float32 and loss.isfinite()
    assert scaler.get_scale() == 2.0**8, "no gradient was infinite"


def test_an_overflow_under_a_scaler_leaves_the_mixed_images_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resting, "REST", 1)
    data, model = batches(2), network()
    mix = RLMix(HALF_RMIX, num_classes=10)
    images, targets = mix(*data[0], model)
    (mix.loss(model(images), targets) * float("inf")).backward()  # as in a scaler's first updates
    images, targets = mix(*data[1], model)
    assert mix.method == "rmix" and images.isfinite().all() and targets.isfinite().all()


def test_a_state_of_another_policy_is_refused() -> None:
    with pytest.raises(InputError, match="under another policy"):
        RLMix("mixup", num_classes=3).load_state_dict(RLMix("cutmix", num_classes=3).state_dict())


def test_a_state_of_other_arguments_is_refused() -> None:
    state = RLMix("mixup", num_classes=3, total_updates=64).state_dict()
    RLMix("mixup", num_classes=3, total_updates=64).load_state_dict(state)
    with pytest.raises(InputError, match=r"total_updates=64.* got .*total_updates=40"):
        RLMix("mixup", num_classes=3, total_updates=40).load_state_dict(state)
    for other, got in ({"seed": 7}, "seed=7"), ({"saliency": "exact"}, "saliency='exact'"):
        with pytest.raises(InputError, match=rf"seed=0, saliency='recycled', got .*{got}"):
            RLMix("mixup", num_classes=3, total_updates=64, **other).load_state_dict(state)


def test_a_loaders_worker_is_told_to_leave_mixing_to_the_loop() -> None:
    mix = RLMix("mixup", num_classes=3)
    data = [(torch.zeros(1, 8, 8), 0)] * 4

    def collate(items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        return mix(torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items]))

    with pytest.raises(InputError, match="after the loader"):
        next(iter(DataLoader(data, batch_size=2, num_workers=1, collate_fn=collate)))  # type: ignore[arg-type]


def test_recycled_saliency_is_the_loops_own_gradient_without_a_second_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resting, "REST", 1)
    data, model, passes = batches(2), network(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    mix = RLMix(HALF_RMIX, num_classes=10)
    (images, labels), (later, other) = data
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(soft_cross_entropy(copy.deepcopy(model)(leaf), one_hot(labels, 10)).mean(), leaf)
    shown, targets = mix(images, labels, model)
    assert mix.method == "clean" and torch.equal(shown, images)
    passes.clear()  # the first call has tried one
    mix.loss(model(shown), targets).backward()
    assert shown.grad is None and not images.requires_grad
    mixed, targets = mix(later, other, model)
    assert mix.method == "rmix" and len(passes) == 1
    draw = UpdateDraws(0).draw(1, 16, images.device)
    expected = HALF_RMIX.mix("rmix", MixInput(images, one_hot(labels, 10), gradient), draw)
    assert torch.equal(mixed, expected[0]) and torch.equal(targets, expected[1])


def test_exact_saliency_mixes_the_batch_that_came(monkeypatch: pytest.MonkeyPatch) -> None:
    data, model = batches(2), network()
    before = copy.deepcopy(model.state_dict())
    mix = RLMix(HALF_RMIX, num_classes=10, saliency="exact")
    mix(*data[0], model)
    images, labels = data[1]
    mixed, _ = mix(images, labels, model)
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(soft_cross_entropy(copy.deepcopy(model)(leaf), one_hot(labels, 10)).mean(), leaf)
    draw = UpdateDraws(0).draw(1, 16, images.device)
    assert torch.equal(mixed, HALF_RMIX.mix("rmix", MixInput(images, one_hot(labels, 10), gradient), draw)[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("evaluating", [False, True])
def test_layers_that_are_frozen_stay_so_in_a_second_pass(evaluating: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "rmix", replace(METHODS["rmix"], gradient_in_eval=evaluating))
    data, model = batches(2), network()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    norms[0].eval()
    frozen = copy.deepcopy(norms[0].state_dict())
    mix, modes = RLMix(HALF_RMIX, num_classes=10, saliency="exact"), []
    model.register_forward_hook(lambda *_: modes.append([norm.training for norm in norms]))
    for images, labels in data:
        mix(images, labels, model)
    assert mix.method == "rmix" and modes == [[False] + [not evaluating] * (len(norms) - 1)] * 2  # the first is a trial
    assert [norm.training for norm in norms] == [False] + [True] * (len(norms) - 1) and model.training
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in norms[0].state_dict().items())


class WithoutGradient(nn.Module):
    """A network that gives no gradient at its images in a pass of its own.

    Args:
        fault: `no_grad` around all but the last layer; `checkpoint` of the first ones in the old way; or `raises`, for
            a forward pass that needs more than the images.
    """

    def __init__(self, fault: str) -> None:
        super().__init__()
        *first, self.last = network()
        self.first, self.fault = nn.Sequential(*first), fault

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.fault == "raises" and mask is None:
            raise TypeError("mask is missing\nin a second line")
        if self.fault == "checkpoint":
            return self.last(checkpoint(self.first, images, use_reentrant=True))
        with torch.no_grad():
            hidden = self.first(images)
        return self.last(hidden)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("no_grad", "torch.no_grad"), ("checkpoint", "use_reentrant=False"), ("raises", "TypeError: mask is missing;")],
)
def test_a_network_without_a_gradient_at_its_images_is_told_at_the_first_batch(fault: str, reason: str) -> None:
    model, data = WithoutGradient(fault), batches(20)
    with pytest.raises(InputError, match=reason) as told:
        RLMix(MixPolicy({"clean": 0.9, "rmix": 0.1}), num_classes=10)(*data[0], model)
    assert "\n" not in str(told.value) and len(str(told.value)) < 300
    chooser = agent(sources=(("clean", {"clean": 1.0}), ("rmix all", {"rmix": 1.0})))
    mix = RLMix(chooser, **KNOWN, optimizer=sgd(model))
    mix.observe(val_accuracy=0.4, val_loss=1.5)
    with pytest.warns(UserWarning, match=f"left out of the agent's choices: rmix mixes by saliency, .*{reason}"):
        mix(*data[0], model)
    for images, labels in data[1:]:
        mix(images, labels, model)
    assert len(mix.choices) == 4 and all(set(choice.policy.shares) == {"clean"} for choice in mix.choices)
    RLMix("cutmix", num_classes=10)(*data[0], model)  # needs none


def test_a_lack_of_memory_is_not_blamed_on_the_network() -> None:
    model = network()

    def fills_the_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(fills_the_memory)
    with pytest.raises(torch.OutOfMemoryError):
        RLMix("rmix", num_classes=10)(*batches(1)[0], model)


def test_a_second_pass_draws_nothing_from_the_loops_own_generator() -> None:
    """Dropout in it draws from the mixer's seed and the number of the call, whatever was drawn before."""
    images, labels = batches(1)[0]
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
    dropped: list[Tensor] = []
    model[1].register_forward_hook(lambda _module, _inputs, output: dropped.append(output.detach() == 0))
    for seed in (0, 1):
        mix = RLMix("rmix", num_classes=10, share=1.0, saliency="exact", seed=3)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        for _ in range(2):
            mix(images, labels, model)
        assert torch.equal(torch.get_rng_state(), before)
    first, *others = dropped[1:3], dropped[4:6]  # without the trial at the first call
    assert len(dropped) == 6 and all(torch.equal(*pair) for pair in zip(first, *others, strict=True))
    assert not torch.equal(*first)


def test_no_batch_is_kept_while_mixing_is_off() -> None:
    mix, model = RLMix(HALF_RMIX, num_classes=10), network()
    for number, (images, labels) in enumerate(batches(30)):
        mix.mixup_enabled = number < 3
        shown, targets = mix(images, labels, model)
        mix.loss(model(shown), targets).backward()
        if number == 2:
            kept = len(mix.state_dict()["resting"])
    assert len(mix.state_dict()["resting"]) == kept > 0


def test_a_state_does_not_hold_the_data_set_of_which_a_batch_is_a_view(tmp_path: Path) -> None:
    everything, model, mix = torch.randn(2000, 1, 8, 8), network(), RLMix(HALF_RMIX, num_classes=10)
    shown, targets = mix(everything[:16], torch.arange(16) % 10, model)
    mix.loss(model(shown), targets).backward()
    torch.save(mix.state_dict(), tmp_path / "state.pt")
    assert mix.state_dict()["resting"] and (tmp_path / "state.pt").stat().st_size < everything.nbytes / 8


def test_a_loader_may_write_into_a_kept_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resting, "REST", 1)
    mixed = []
    for reuses in (False, True):
        (images, labels), (later, other) = batches(2)
        model, mix = network(), RLMix(HALF_RMIX, num_classes=10)
        shown, targets = mix(images, labels, model)
        mix.loss(model(shown), targets).backward()
        if reuses:
            later = images.copy_(later)
        mixed.append(mix(later, other, model)[0])
        assert mix.method == "rmix"
    assert torch.equal(*mixed)


@pytest.mark.parametrize("saliency", ["recycled", "exact"])
def test_batches_kept_by_another_process_are_left_out(saliency: str, recwarn: Any) -> None:
    """Accelerate and Lightning give every process the first one's state."""
    policy, data = HALF_RMIX, batches(30)
    mix, model = RLMix(policy, num_classes=10, saliency=saliency), network()
    optimizer = sgd(model)
    train(mix, model, data[:5], optimizer)
    state = mix.state_dict()
    assert state["process"] == [0, 1] and bool(state["resting"]) == (saliency == "recycled")
    again = RLMix(policy, num_classes=10, saliency=saliency)
    again.load_state_dict(state)
    assert len(again.state_dict()["resting"]) == len(state["resting"]) and not recwarn.list
    state["process"] = [0, 2]
    for _ in range(2):
        other = RLMix(policy, num_classes=10, saliency=saliency)
        other.load_state_dict(state)
        assert not other.state_dict()["resting"]
        train(other, model, data[5:], optimizer)
        state = {**other.state_dict(), "process": [1, 2]}
    told = [str(entry.message) for entry in recwarn.list]
    said = "process 0 of 1 resumes from the state of process 0 of 2"
    assert len(told) == (saliency == "recycled") and all(said in text for text in told)


def test_a_batch_may_be_mixed_on_another_device_than_the_networks() -> None:
    """As in a loop that mixes before `.to(device)`."""
    for mix in RLMix(agent(), **KNOWN, optimizer=sgd(network())), RLMix("mixup", num_classes=10):
        for images, labels in batches(3):
            _, targets = mix(images, labels)
            mix.loss(torch.zeros(16, 10, device="meta"), targets.to("meta"))
            mix.note(torch.zeros(16, 10, device="meta"), targets.to("meta"))
        assert {tensor.device.type for tensor in mix.state_dict()["sums"]["sums"].values()} == {"meta"}


def test_saliency_of_a_network_on_another_device_is_refused_at_the_first_batch() -> None:
    mix, model = RLMix(MixPolicy({"clean": 0.9, "rmix": 0.1}), num_classes=10), network().to("meta")
    with pytest.raises(InputError, match=r"on one device, got cpu and meta; call mix after images\.to"):
        mix(*batches(1)[0], model)


def test_kept_batches_are_forgotten_though_no_clean_one_comes() -> None:
    schedule = PolicySchedule(((0.2, HALF_RMIX), (1.0, MixPolicy({"mixup": 1.0}))))
    mix, model = RLMix(schedule, num_classes=10, total_updates=150), network()
    kept = []
    for images, labels in batches(10) * 15:
        shown, targets = mix(images, labels, model)
        mix.loss(model(shown), targets).backward()
        kept.append(len(mix.state_dict()["resting"]))
    assert kept[29] > 0 and kept[-1] == 0


def test_batches_of_one_size_are_drawn_as_a_trainers_and_a_short_one_fits() -> None:
    draws = UpdateDraws(5)
    device = torch.device("cpu")
    long, short = draws.draw(3, 16, device), draws.draw(3, 7, device)
    assert sorted(short.partner.tolist()) == list(range(7))
    assert (long.lam_quantile != draws.draw(4, 16, device).lam_quantile) and draws.draw(3, 16, device) is long


@pytest.mark.parametrize("form", ["one-hot", "int one-hot", "half", "int32"])
def test_labels_of_every_form_give_the_same_targets(form: str) -> None:
    images, labels = batches(1)[0]
    forms = {
        "one-hot": one_hot(labels, 10),
        "int one-hot": one_hot(labels, 10).long(),
        "half": one_hot(labels, 10).half(),
        "int32": labels.int(),
    }
    policy = MixPolicy({"cutmix": 1.0}, label_smoothing=0.1)
    expected = RLMix(policy, num_classes=10)(images, labels)
    found = RLMix(policy, num_classes=10)(images, forms[form])
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert found[1].dtype == torch.float32 and torch.allclose(found[1].sum(1), torch.ones(16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("method", ["clean", "mixup", "cutmix", "rmix"])
def test_images_keep_their_type_and_memory_format(method: str, dtype: torch.dtype) -> None:
    images = torch.randn(6, 3, 8, 8).to(dtype).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)).to(dtype)
    mixed, targets = RLMix(method, num_classes=10, share=1.0)(images, torch.arange(6), model)
    assert mixed.dtype == dtype and mixed.is_contiguous(memory_format=torch.channels_last)
    assert targets.shape == (6, 10) and torch.equal(images, before)


def test_evaluation_is_the_identity_and_mixing_can_be_switched_off() -> None:
    images, labels = batches(1)[0]
    mix = RLMix("cutmix", num_classes=10, share=1.0)
    same, answers = mix.eval()(images, labels)
    assert same is images and answers is labels
    mix.train().mixup_enabled = False  # timm's switch
    shown, targets = mix(images, labels)
    assert torch.equal(shown, images) and torch.equal(targets, one_hot(labels, 10))
    mix.mixup_enabled = True
    assert not torch.equal(mix(images, labels)[0], images)


def test_what_a_loop_does_not_give_is_said_once_and_left_out() -> None:
    model, data = network(), batches(20)
    chooser = agent(sources=(("clean", {"clean": 1.0}), ("rmix all", {"rmix": 1.0})))
    mix = RLMix(chooser, **KNOWN)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for images, labels in data:
            mix(images, labels)  # no model, no loss, no validation, no optimiser
    texts = [str(warning.message) for warning in said]
    for part in ("mixes by saliency", "learning rate", "no training loss", "no validation"):
        assert sum(part in text for text in texts) == 1, part
    assert {choice.policy for choice in mix.choices} == {mix.choices[0].policy}, "the first choice holds"
    assert set(mix.choices[0].policy.shares) == {"clean"}
    mix(*data[0])
    with pytest.warns(UserWarning, match="no validation"):
        train(RLMix(chooser, **KNOWN, optimizer=sgd(model)), model, data, sgd(model))


def test_an_agent_that_looks_at_the_network_is_told_where_it_is_not_given() -> None:
    images, labels = batches(1)[0]
    mix = RLMix(agent(features=TRANSFER), **KNOWN, optimizer=sgd(network()))
    with pytest.warns(UserWarning, match="the network is not known.*call mix"):
        mix(images, labels)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        RLMix(agent(features=TRANSFER), **KNOWN, optimizer=sgd(network()))(images, labels, network())
    assert not told


def test_validation_logits_are_measured_and_numbers_are_completed() -> None:
    logits, labels = torch.randn(50, 10), torch.randint(10, (50,))
    mix = RLMix(agent(), **KNOWN)
    mix.observe(logits=logits, labels=labels)
    told = mix.state_dict()["observed"]
    assert told["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert told["loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    with pytest.warns(UserWarning, match="calibrated"):
        mix.observe(val_accuracy=0.1)
    assert mix.state_dict()["observed"]["loss"] == pytest.approx(2.302585, rel=1e-5), "chance"
    with pytest.raises(InputError, match="divide percent by 100"):
        mix.observe(val_accuracy=71.0)


@pytest.mark.parametrize("how", ["loss", "note the loss", "note the loss, divided in place", "note the factor"])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_the_agent_sees_the_gradient_of_the_loss_before_a_scaler(scale: float, how: str) -> None:
    model, data = network(), batches(20)
    mix = RLMix(agent(sources=(("clean", {"clean": 1.0}),)), **KNOWN, optimizer=sgd(model))
    mix.observe(val_accuracy=0.4)
    expected = []
    for images, labels in data[:5]:
        images, targets = mix(images, labels, model)
        logits = model(images)
        if how == "loss":
            loss = mix.loss(logits, targets)
        else:
            loss = soft_cross_entropy(logits, targets).mean()
            told = {"scale": scale / 4} if how == "note the factor" else {"loss": loss}
            mix.note(logits, targets, **told)
        if how == "note the loss, divided in place":  # as timm's script does
            loss /= 4
        else:
            loss = loss / 4
        (loss * scale).backward()
        gradients = torch.cat(
            [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
        )
        weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
        expected.append(float(gradients.norm() / (scale / 4) / weights.norm()))
        model.zero_grad()
    mix(*data[5], model)  # the second segment begins
    segment = mix.state_dict()["scheduler"]["state"]["stretch"]
    assert segment["gradient_norm"] == pytest.approx(sum(expected[1:5]) / 4, rel=1e-3)
    assert 0 < segment["saliency_entropy"] <= 1


@pytest.mark.parametrize("how", ["function", "method", "part"])
def test_a_compiled_network_is_compiled_no_more_often(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A second pass in another mode than the training's would be compiled too.
    monkeypatch.setitem(METHODS, "rmix", replace(METHODS["rmix"], gradient_in_eval=True))

    def frames(mix: Callable[..., tuple[Tensor, Tensor]] | None) -> int:
        torch._dynamo.reset()
        compiled = []

        def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
            compiled.append(module)
            return module.forward

        model = network()
        if how == "method":
            model.compile(backend=backend)
        else:
            model = torch.compile(model, backend=backend)
        if how == "part":  # as DistributedDataParallel holds it
            model = nn.Sequential(model)
        optimizer = sgd(model)
        for images, labels in [*batches(9), *batches(1, 5), *batches(9), *batches(1, 5)]:
            images, targets = (images, one_hot(labels, 10)) if mix is None else mix(images, labels, model)
            soft_cross_entropy(model(images), targets).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return len(compiled)

    shares = {"clean": 0.4, "rmix": 0.2, "mixup": 0.2, "cutmix": 0.2}
    assert frames(RLMix(MixPolicy(shares), num_classes=10)) == frames(None)
    chooser = agent(sources=(("all", shares), ("clean", {"clean": 1.0})))
    mix = RLMix(chooser, **KNOWN)
    mix.observe(val_accuracy=0.5)
    assert frames(mix) == frames(None)


def one_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(network())
    optimizer = sgd(model)
    mix = RLMix(agent(), **KNOWN, optimizer=optimizer)
    if rank == 0:  # the other process knows nothing of it
        mix.observe(val_accuracy=0.4, val_loss=1.5)
    for number, (images, labels) in enumerate(batches(20)):
        # Each epoch ends with fewer images, on each process with another number of them.
        left = (9, 5)[rank] if number % 5 == 4 else 16
        images, targets = mix(images[:left], labels[:left], model)
        assert len(images) == len(targets) and torch.allclose(targets.sum(1), torch.ones(len(targets)))
        mix.loss(model(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    partners = mix._draws.draw(18, 16, torch.device("cpu")).partner
    choices, weights = [str(choice) for choice in mix.choices], model.module.state_dict()
    own = {name for name in weights if "running" in name}  # each process's own statistics
    shared = {name: tensor for name, tensor in weights.items() if name not in own}
    save_state(folder / f"left{rank}", {"choices": choices, "partners": partners, "weights": shared})
    distributed.destroy_process_group()


def test_the_first_of_two_processes_decides_and_partners_differ(tmp_path: Path) -> None:
    multiprocessing.spawn(one_of_two, (tmp_path,), nprocs=2)
    one, other = (load_state(tmp_path / f"left{rank}") for rank in range(2))
    assert one["choices"] == other["choices"] and len(set(one["choices"])) == 4
    assert not torch.equal(one["partners"], other["partners"])
    for name, tensor in one["weights"].items():
        assert torch.equal(tensor, other["weights"][name]), name


def test_what_was_chosen_can_be_saved_and_replayed(tmp_path: Path) -> None:
    model = network()
    mix = RLMix(agent(), **KNOWN, optimizer=sgd(model))
    with pytest.raises(InputError, match="nothing has been chosen"):
        mix.save(tmp_path / "policy.json")
    train(mix, model, batches(20)[:7], sgd(model), val_accuracy=0.4, val_loss=1.5)
    assert [until for until, _ in mix.schedule().segments] == [0.25, 1.0], "the last one holds to the end"
    train(mix, model, batches(20)[7:], sgd(model), val_accuracy=0.4, val_loss=1.5)
    mix.save(tmp_path / "policy.json")
    again = RLMix(str(tmp_path / "policy.json"), num_classes=10, total_updates=20)
    for images, labels in batches(20):
        again(images, labels, model)
    assert [choice.policy for choice in again.choices] == [choice.policy for choice in mix.choices]
    assert [choice.update for choice in mix.choices] == [0, 5, 10, 15]
    assert sum(mix.scalars().values()) >= 1


def test_one_output_and_class_weights_and_binary_losses() -> None:
    images, _ = batches(1)[0]
    answers, logits = torch.arange(16) % 2, torch.randn(16)
    mix = RLMix("mixup", num_classes=1)
    _, targets = mix(images, answers)
    expected = nn.functional.binary_cross_entropy_with_logits(logits[:, None], targets)
    assert targets.shape == (16, 1) and mix.loss(logits, targets).item() == pytest.approx(expected.item(), rel=1e-6)
    labels, wide, weights = torch.randint(10, (16,)), torch.randn(16, 10), torch.rand(10)
    mix = RLMix(MixPolicy({"mixup": 1.0}, label_smoothing=0.1), num_classes=10, class_weights=weights)
    _, targets = mix(images, labels)
    expected = nn.functional.cross_entropy(wide, targets, weight=weights)
    assert mix.loss(wide, targets).item() == pytest.approx(expected.item(), rel=1e-5)
    mix = RLMix("cutmix", num_classes=10, loss="binary_cross_entropy")
    _, targets = mix(images, labels)
    expected = nn.functional.binary_cross_entropy_with_logits(wide, targets)
    assert mix.loss(wide, targets).item() == pytest.approx(expected.item(), rel=1e-5)


def test_accuracy_on_clean_batches_is_offered() -> None:
    mix = RLMix("mixup", num_classes=10)
    assert mix.clean_accuracy is None
    for images, labels in batches(4):
        _, targets = mix(images, labels)
        mix.note(one_hot(labels, 10) if mix.method == "clean" else torch.zeros(16, 10), targets)
    assert mix.clean_accuracy == 1.0


def test_choosing_takes_only_torch(tmp_path: Path) -> None:
    code = """
import sys, warnings, torch
warnings.simplefilter("ignore")
before = set(sys.modules)
from rlmix import RLMix
mix = RLMix(num_classes=10, total_updates=10, train_size=100)
mix(torch.zeros(4, 1, 8, 8), torch.zeros(4).long())
slow = ("stable_baselines3", "gymnasium", "scipy", "ray", "matplotlib", "tensorboard", "sklearn", "torchvision",
        "torch._dynamo", "tyro")
print(mix.choices[0].update, [name for name in slow if name in set(sys.modules) - before])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "0 []", done.stdout + done.stderr
