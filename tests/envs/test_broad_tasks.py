"""Tasks over several data sets and settings: what is drawn, what reaches the trainer, what an old task keeps."""

import json
import math
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rlmix.classifier.data import DataError
from rlmix.classifier.errors import InputError
from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.training.config import TrainConfig
from rlmix.envs import BroadTasks, ImageLibrary, MixPolicyEnv, Source, Task, TaskTrainer
from rlmix.envs.broad_tasks import estimated_seconds, network_flops
from rlmix.envs.observation import FEATURES, OBSERVATION_V2, RECORDED_FEATURES
from tests.envs.tiny import digits

SOURCES = (Source("shapes", (400,) * 10, True), Source("digits", tuple(range(30, 300, 30)), False))
TINY = {"model": "plain_batch_16", "batch_size": 16, "device": "cpu", "precision": "fp32"}


@cache
def drawn(count: int = 150) -> list[Task]:
    return [BroadTasks(SOURCES, seed=3).task(number) for number in range(count)]


def test_a_task_is_a_pure_function_of_distribution_and_number() -> None:
    again = BroadTasks(SOURCES, seed=3)
    assert [again.task(number) for number in (7, 3, 7)] == [drawn()[7], drawn()[3], drawn()[7]]
    assert BroadTasks(SOURCES, seed=4).task(3) != drawn()[3]


def test_a_task_survives_json() -> None:
    for task in drawn(50):
        assert Task(**json.loads(json.dumps(task.to_json()))) == task
        assert hash(Task(**asdict(task))) == hash(task)


def test_a_task_of_one_data_set_is_written_as_before_there_were_others() -> None:
    old = Task(100, 20, 0.2, 5, "pair", 0.5)
    assert old.to_json() == {
        "train_size": 100,
        "updates": 20,
        "label_noise": 0.2,
        "data_seed": 5,
        "noise": "pair",
        "lr_scale": 0.5,
    }
    assert list(old.to_json()) == [field.name for field in fields(Task)][:6]


def test_usual_tasks_have_usual_settings_and_are_as_varied_otherwise() -> None:
    tasks = [
        BroadTasks(SOURCES, seed=3, updates=(200, 2000), seconds=18, usual=True).task(number) for number in range(60)
    ]
    options = [dict(task.options) for task in tasks]
    assert {option["lr_schedule"] for option in options} == {"onecycle", "cosine"}
    assert all(option["lr"] >= (0.05 if option["optimizer"] == "sgd" else 1e-3) for option in options)
    assert not any("_none_" in option["model"] for option in options)
    assert {option["batch_size"] for option in options} == {64, 100, 128}
    assert {task.dataset for task in tasks} == {"shapes", "digits"}
    assert all(200 <= task.updates <= 2000 and estimated_seconds(task) <= 18 for task in tasks)
    assert {task.noise for task in tasks} == {"symmetric", "pair", "confusions"}


def test_tasks_cover_what_users_have_within_the_limit_of_cost() -> None:
    tasks = drawn()
    options = [dict(task.options) for task in tasks]
    for values, expected in (
        ({task.dataset for task in tasks}, 2),
        ({task.image_size for task in tasks}, 7),
        ({option["batch_size"] for option in options}, 7),
        ({option["model"].rsplit("_", 1)[0] for option in options}, 6),
        ({option["optimizer"] for option in options}, 2),
        ({option["lr_schedule"] for option in options}, 4),
        ({task.noise for task in tasks if task.label_noise}, 3),
        ({(task.grey, task.flip) for task in tasks}, 4),
    ):
        assert len(values) == expected
    shares = [np.mean(condition) for condition in (
        [task.label_noise == 0 for task in tasks], [task.imbalance > 1 for task in tasks]
    )]  # fmt: skip
    assert shares[0] == pytest.approx(0.5, abs=0.13) and shares[1] == pytest.approx(0.3, abs=0.15)
    for task in tasks:
        source = next(source for source in SOURCES if source.name == task.dataset)
        assert estimated_seconds(task) <= 15
        assert 100 <= task.updates <= 3000 and 100 <= task.train_size <= 6000
        assert task.classes is not None and 2 <= len(set(task.classes)) == len(task.classes)
        assert task.train_size <= sum(source.counts[label] for label in task.classes)
        assert not (task.grey and not source.colour)
        task.training(TrainConfig())  # every drawn option is one of a training


def test_longer_tasks_have_as_many_updates_and_stay_within_their_limit() -> None:
    longer = BroadTasks(SOURCES, seed=3, updates=(400, 600), seconds=7.0)
    tasks = [longer.task(number) for number in range(40)]
    assert all(400 <= task.updates <= 600 for task in tasks) and max(map(estimated_seconds, tasks)) <= 7
    assert max(task.updates for task in tasks) > 420


def test_cost_is_what_a_convolutional_network_takes() -> None:
    # Three convolutions on 32, 16 and 8 pixels and the last layer; a multiplication and an addition each.
    by_hand = 2 * (32**2 * 9 * 3 * 16 + 16**2 * 9 * 16 * 32 + 8**2 * 9 * 32 * 64 + 64 * 10)
    assert network_flops("plain_none_16") == by_hand


def test_too_little_time_or_no_data_is_refused() -> None:
    with pytest.raises(ValueError, match="need a data set"):
        BroadTasks(())
    with pytest.raises(ValueError, match="seconds allows"):
        BroadTasks(SOURCES, seconds=0.1)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ImageLibrary:
    """Digits, and a folder of coloured noise in which each class has a colour of its own."""
    folder = tmp_path_factory.mktemp("colours")
    random = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 4)):
        for label in range(3):
            for number in range(count):
                pixels = random.integers(0, 60, (32, 32, 3))
                pixels[..., label] += 120
                path = folder / part / f"class{label}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return ImageLibrary({"digits": "digits", "colours": str(folder)})


def test_a_librarys_splits_are_the_same_images_at_every_size(library: ImageLibrary) -> None:
    small, large = library.splits("colours", 12), library.splits("colours", 32)
    assert torch.equal(small.train.labels, large.train.labels)
    assert small.train.image_shape == (3, 12, 12)
    assert library.splits("colours", 12) is small
    grey = library.splits("colours", 12, grey=True)
    expected = small.train.images.double().mul(torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)
    assert (grey.train.images[:, 0] - expected).abs().max() <= 2.5  # grey first, then resized: rounded twice
    assert grey.mean[0] == pytest.approx(float(grey.train.images.double().mean() / 255), abs=0.01)
    assert library.colour("colours") and not library.colour("digits")
    with pytest.raises(ValueError, match=r"one of digits, colours.*'birds'"):
        library.splits("birds", 12)


def test_grey_images_stored_in_colour_have_one_channel(tmp_path: Path) -> None:
    for label in range(2):
        for number in range(12):
            path = tmp_path / "train" / f"class{label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((12, 12), 20 * number, dtype=np.uint8)).save(path)
    (tmp_path / "test").symlink_to(tmp_path / "train")
    library = ImageLibrary({"grey": f"{tmp_path}/"})
    assert not library.colour("grey") and library.splits("grey", 12).train.image_shape == (1, 12, 12)


def test_everything_about_a_task_reaches_the_trainer(library: ImageLibrary) -> None:
    task = Task(
        60, 8, 0.25, 11, dataset="colours", classes=(2, 0), image_size=12, flip=False, options={**TINY, "lr": 0.03}
    )
    task_trainer = TaskTrainer(library=library)
    trainer = task_trainer.prepare(replace(task, train_size=40))
    assert (trainer.num_classes, len(trainer.data.train), trainer.data.flip) == (2, 40, False)
    assert trainer.data.class_names == ("class2", "class0")
    assert (trainer.config.model, trainer.config.batch_size, trainer.config.lr) == ("plain_batch_16", 16, 0.03)
    brightest = trainer.data.train.images.float().mean(dim=(2, 3)).argmax(dim=1)
    truth = (brightest == 0).long()  # the classes are numbered anew: 2 first, then 0
    assert int((trainer.data.train.labels != truth).sum()) == 10
    first = trainer
    for changed, same in ((replace(task, train_size=30), True), (replace(task, classes=(0, 1, 2)), False)):
        assert (task_trainer.prepare(changed) is first) == same  # a network only serves its own shapes
    grey = task_trainer.prepare(replace(task, train_size=30, grey=True))
    assert grey.data.train.image_shape == (1, 12, 12)
    with pytest.raises(ValueError, match="library"):
        TaskTrainer(splits=digits()).prepare(task)


def test_a_training_does_not_depend_on_the_one_before(library: ImageLibrary) -> None:
    one = Task(60, 8, 0.25, 11, dataset="colours", image_size=12, noise="confusions", options={**TINY, "lr": 0.03})
    other = Task(100, 6, 0.0, 1, dataset="digits", image_size=14, options={**TINY, "model": "residual_group_8"})
    results = []
    for order in ((one,), (other, one)):
        task_trainer = TaskTrainer(library=library)
        for task in order:
            task_trainer.start(task, 5)
            segment = task_trainer.train_segment(MixPolicy({"clean": 1.0}), task.updates, check=True)
        results.append((segment.evaluation, segment.labels, task_trainer.measure(["development"])))
    assert results[0] == results[1]


def test_confused_labels_follow_the_confusions() -> None:
    confusions = np.zeros((10, 10))
    confusions[:, 3], confusions[3, [4, 8]] = 0.5, (0.1, 0.3)
    clean, noisy = (
        digits().draw(None, data_seed=2),
        digits().draw(None, data_seed=2, label_noise=0.5, confusions=confusions),
    )
    wrong = clean.train.labels != noisy.train.labels
    assert int(wrong.sum()) == round(0.5 * len(wrong))
    true, given = clean.train.labels[wrong], noisy.train.labels[wrong]
    assert bool((given[true != 3] == 3).all())
    threes = given[true == 3].bincount(minlength=10)
    assert threes.sum() == threes[4] + threes[8] and threes[8] > threes[4] > 0


def test_measured_confusions_are_probabilities(library: ImageLibrary) -> None:
    confusions = library.confusions("colours")
    np.testing.assert_allclose(confusions.sum(axis=1), 1, atol=0.01)
    assert (confusions.argmax(axis=1) == np.arange(3)).all()  # colours are easy


def test_long_tails_fall_exponentially_and_some_classes_are_numbered_anew() -> None:
    task = Task(130, 10, 0.0, 7, classes=(5, 1, 8), imbalance=9.0)
    drawn = task.draw(digits())
    counts = drawn.train.labels.bincount().tolist()
    assert sum(counts) == 130
    np.testing.assert_allclose(counts, 130 * np.array([9, 3, 1]) / 13, atol=1)
    source = digits().train
    for image, label in zip(drawn.train.images[:40], drawn.train.labels[:40].tolist(), strict=True):
        (place,) = (source.images == image).flatten(1).all(dim=1).nonzero()[:, 0].tolist()[:1]
        assert int(source.labels[place]) == (5, 1, 8)[label]
    assert set(drawn.validation.labels.tolist()) == {0, 1, 2}
    with pytest.raises(DataError, match="imbalance"):
        replace(task, train_size=170).draw(digits())
    for classes in ((1,), (1, 1), (0, 10)):
        with pytest.raises(DataError, match="2 or more different classes"):
            digits().only(classes)


@pytest.mark.parametrize("number", [0, 1])
def test_an_episode_of_broad_tasks_is_a_training(library: ImageLibrary, number: int) -> None:
    tasks = BroadTasks((Source.of(library, "digits"),), seed=number, updates=(12, 12), seconds=1.5)
    trainer = TaskTrainer(library=library, training={"device": "cpu", "precision": "fp32"})
    env = MixPolicyEnv(task_trainer=trainer, tasks=tasks, segments=3, reward="final", features=OBSERVATION_V2)
    observation, info = env.reset(seed=number)
    assert Task(**info["task"]) == tasks.task(number)
    rows = [dict(zip(OBSERVATION_V2, observation.tolist(), strict=False))]
    for action in ((0, 0, 0, 0), (1, 0, 0, 0), (6, 0, 0, 0)):
        observation, _, terminated, _, _ = env.step(action)
        assert env.observation_space.contains(observation)
        rows.append(dict(zip(OBSERVATION_V2, observation.tolist(), strict=False)))
    assert terminated
    for segment in (2, 3):
        for name in ("validation_way", "contradicted", "clean_way", "log_gradient_norm", "validated"):
            assert rows[segment][f"{name}_1"] == rows[segment - 1][name]
            assert rows[segment][f"{name}_2"] == rows[segment - 2][name]
    assert [row["validated"] for row in rows] == [row["labels_seen"] for row in rows] == [0, 1, 1, 1]
    assert (rows[3]["clean_seen"], rows[3]["mixed_seen"]) == (0, 1)
    trained = env.trainer
    assert rows[0]["log_parameters"] * 8 == pytest.approx(
        math.log10(sum(p.numel() for p in trained._new_model()[0].parameters()) - trained.num_classes * (
            trained.model.get_submodule(trained.head_layer).global_label.in_features + 1)), abs=1e-5
    )  # fmt: skip


def test_the_page_of_the_observation_is_what_agents_see() -> None:
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
    expected = [
        f"| `{name}` | {FEATURES[name].meaning} | {FEATURES[name].low:g} | {FEATURES[name].high:g} |"
        for name in RECORDED_FEATURES
    ]
    assert [line for line in page.splitlines() if line.startswith("| `")] == expected
    lagged = {f"{name}_{lag}" for name in RECORDED_FEATURES[RECORDED_FEATURES.index("clean_seen") :] for lag in (1, 2)}
    assert set(OBSERVATION_V2) == {*RECORDED_FEATURES, *lagged}


def test_a_data_set_that_gives_no_task_is_refused() -> None:
    with pytest.raises(InputError, match="at least 100 images, got 60 of few"):
        BroadTasks((*SOURCES, Source("few", (30, 30), False)), seed=3)
