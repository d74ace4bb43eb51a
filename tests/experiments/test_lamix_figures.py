"""The figures of LaMix's paper on tiny settings: labels by hand, trainings that looks do not change, resuming."""

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rlmix.classifier.data import load_dataset, split
from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.trainer import Trainer
from rlmix.experiments.comparison.contestants import CONTESTANTS, only_policy
from rlmix.experiments.studies.lamix import figures as lamix
from rlmix.experiments.studies.lamix import looks
from tests.experiments.inline import run_inline

Refused = Callable[[Callable[[Sequence[str]], Any], Sequence[object]], str]

SETTING = ("--dataset", "digits", "--train-size", "60", "--batch-size", "20", "--precision", "fp32", "--epochs", "2")
FIGURES = {
    "targets": ("--pairs", "3"),
    "labels": ("--at", "1", "2", "--pairs", "40", "--seeds", "2"),
    "beta": ("--betas", "0.5", "1", "--seeds", "2"),
    "smoothing": ("--factors", "0.2", "--seeds", "2"),
    "curves": ("--points", "2", "--seeds", "2"),
    "embedding": ("--at", "1", "2", "--images", "60", "--seeds", "2"),
}
LAMIX = only_policy(CONTESTANTS["lamix"])


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds every figure's, made as a user makes it."""
    folder = tmp_path_factory.mktemp("lamix")
    handler, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    torch.set_num_threads(1)  # as workers have
    with pytest.MonkeyPatch.context() as patch:
        run_inline(patch)
        for name, options in FIGURES.items():
            lamix.main([name, *SETTING, *options, "--out", str(folder / name)])
    signal.signal(signal.SIGTERM, handler)
    torch.set_num_threads(threads)
    return folder


def report_of(folder: Path) -> Any:
    """`results.json`, read as others read it: without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads((folder / "results.json").read_text(), parse_constant=refuse)


def runs_of(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    """A network of six updates of LaMix, with 2 units before its last layer."""
    data = split(load_dataset("digits", None)).draw(60, data_seed=1)
    config = TrainConfig(model="search_bottleneck", updates=6, batch_size=20, device="cpu", precision="fp32")
    made = Trainer(config, data, seed=1)
    made.train(LAMIX, 6)
    return made


def seen(trainer: Trainer, pixels: torch.Tensor) -> torch.Tensor:
    """Both heads' logits `[N, 2 K]` of pixels in [0, 255], the network in evaluation mode."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (trainer.data.mean, trainer.data.std))
    with torch.no_grad():
        return trainer.model.eval()((pixels / 255 - mean) / std)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_and_says_where_it_is_from(name: str, figures: Path) -> None:
    assert sorted(entry.name for entry in (figures / name).iterdir()) == ["figure.png", "results.json", "runs.jsonl"]
    pixels = np.asarray(Image.open(figures / name / "figure.png").convert("L"), dtype=float)
    assert pixels.std() > 15 and pixels[:3].min() == 255  # drawn on, with nothing cut off at the top
    assert pixels[:, :2].min() == pixels[:, -2:].min() == 255  # nor at the sides
    report = report_of(figures / name)
    assert report["kind"] == f"lamix_{name}"
    assert report["command"].startswith(f"python experiments/studies/lamix/figures.py {name} --dataset digits")
    assert report["machine"]["cores"] >= 1
    assert len(runs_of(figures / name)) == len(report["seeds"]) * len(report["arms"])


def test_the_trainings_are_those_of_the_policies_that_the_figures_name(figures: Path) -> None:
    arms = {name: report_of(figures / name)["arms"] for name in FIGURES}
    assert [arm["policy"]["label_beta"] for arm in arms["beta"].values()] == [0.5, 1]
    assert arms["beta"]["beta 0.5"]["policy"] == arms["targets"]["lamix"]["policy"] == LAMIX.to_json()
    factors = {name: arm["policy"]["label_smoothing"] for name, arm in arms["smoothing"].items()}
    assert factors == {"plain": 0, "smoothing 0.2": 0.2, "lamix": 0}
    assert set(arms["curves"]) == {"plain", "mixup", "cutmix", "lamix"}
    assert set(arms["embedding"]) == {"plain", "mixup", "lamix"}


def test_looking_at_a_training_does_not_change_it(figures: Path) -> None:
    accuracies = []
    for seed in (0, 1):
        data = split(load_dataset("digits", None)).draw(60, data_seed=seed)
        whole = Trainer(TrainConfig(updates=6, batch_size=20, device="cpu", precision="fp32"), data, seed=seed)
        whole.train(LAMIX, 6)
        accuracies.append(whole.evaluate("development").accuracy)
    for name in ("labels", "curves", "smoothing"):
        assert report_of(figures / name)["arms"]["lamix"]["points"][-1]["accuracy"]["per_seed"] == accuracies


def test_means_intervals_and_differences_are_the_textbooks(figures: Path) -> None:
    arms = report_of(figures / "smoothing")["arms"]
    ours, plain = (arms[name]["points"][-1]["accuracy"] for name in ("smoothing 0.2", "plain"))
    width = 12.706  # Student's t, one degree of freedom, over sqrt(2) with half the range as deviation: half the range
    first, second = ours["per_seed"]
    assert ours["mean"] == pytest.approx((first + second) / 2)
    assert ours["half_width"] == pytest.approx(width * abs(first - second) / 2, rel=1e-4)
    gaps = [one - other for one, other in zip(ours["per_seed"], plain["per_seed"], strict=True)]
    assert arms["smoothing 0.2"]["less_baseline"]["mean"] == pytest.approx(sum(gaps) / 2)
    assert arms["smoothing 0.2"]["less_baseline"]["half_width"] == pytest.approx(
        width * abs(gaps[0] - gaps[1]) / 2, rel=1e-4
    )
    assert "less_baseline" not in arms["plain"]


def test_pairs_are_mixed_half_and_half_and_labelled_as_the_equations_say(trainer: Trainer) -> None:
    policy = MixPolicy(LAMIX.shares, LAMIX.lam, label_beta=0.3)
    pairs = looks.mixed_pairs(trainer, policy, 30)
    first, mixed, second = pairs.pixels
    torch.testing.assert_close(mixed, (first + second) / 2)
    held_out = trainer.data.development
    known = {image.numpy().tobytes(): int(label) for image, label in zip(held_out.images, held_out.labels, strict=True)}
    logits = seen(trainer, mixed)[:, 10:].double().numpy()
    for number, (one, other) in enumerate(pairs.classes.T.tolist()):
        assert one != other
        assert one == known[first[number].byte().numpy().tobytes()]
        assert other == known[second[number].byte().numpy().tobytes()]
        shares = np.exp(1 / (1 + np.exp(-logits[number])))  # eq. 9
        shares /= shares.sum()
        np.testing.assert_allclose(pairs.global_label[number], shares, rtol=1e-4)
        local = np.zeros(10)
        local[one], local[other] = float(pairs.lam[number]), 1 - float(pairs.lam[number])  # eq. 2
        np.testing.assert_allclose(pairs.soft_label[number], 0.3 * local + 0.7 * shares, rtol=1e-4, atol=1e-6)
    assert len(pairs.lam) == 30 and 0 < pairs.lam.min() < 0.3 and 0.7 < pairs.lam.max() < 1  # one for each pair


def test_top_targets_are_the_largest_in_falling_order(trainer: Trainer) -> None:
    pairs = looks.mixed_pairs(trainer, LAMIX, 4)
    for number, shown in enumerate(looks.look_at_targets(trainer, LAMIX, 4)["pairs"]):
        weights = dict(zip(trainer.data.class_names, pairs.soft_label[number].tolist(), strict=True))
        assert [tuple(entry) for entry in shown["top"]] == sorted(weights.items(), key=lambda entry: -entry[1])[:5]
        assert shown["classes"] == [trainer.data.class_names[index] for index in pairs.classes[:, number].tolist()]
        assert np.array(shown["pixels"]).shape == (3, *trainer.data.train.image_shape)


def test_every_entry_of_the_labels_is_counted_once(trainer: Trainer) -> None:
    found = looks.look_at_labels(trainer, LAMIX, 40)
    for kind, highest in (("soft", 1.0), ("global", np.e / (np.e + 9))):
        true, other = found["histograms"][f"{kind}_true"], found["histograms"][f"{kind}_other"]
        assert (sum(true), sum(other)) == (2 * 40, 8 * 40)
        means = found["means"][f"{kind}_true"], found["means"][f"{kind}_other"]
        assert 2 * means[0] + 8 * means[1] == pytest.approx(1)  # labels sum to 1
        middles = (np.arange(20) + 0.5) * highest / 20
        assert np.average(middles, weights=true) == pytest.approx(means[0], abs=highest / 40)
    # β is one half, so that λ and 1 - λ, half each on average, give a true class a quarter of the local label's share.
    assert found["means"]["soft_true"] == pytest.approx(0.25 + 0.5 * found["means"]["global_true"], abs=1e-6)


def test_embeddings_are_what_the_last_layer_reads(trainer: Trainer) -> None:
    found = looks.look_at_embedding(trainer, LAMIX, 60)
    assert found["labels"] == trainer.data.development.labels[:30].tolist()
    embeddings = torch.tensor(found["embeddings"])
    assert embeddings.shape == (30, 2)
    logits = seen(trainer, trainer.data.development.images[:30].float())[:, :10]
    weights = trainer.network_state()
    by_hand = embeddings @ weights["head.weight"].T + weights["head.bias"]
    torch.testing.assert_close(by_hand, logits, atol=0.02, rtol=0.01)  # embeddings have three decimals
    assert 0 < found["spread"]


def test_the_network_goes_on_training_after_it_was_looked_at(trainer: Trainer) -> None:
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    for measure in looks.LOOKS.values():
        measure(trainer, LAMIX, 10)
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())


def test_a_figure_goes_on_where_it_was_stopped(figures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = run_inline(monkeypatch)
    log = tmp_path / "runs.jsonl"
    log.write_text((figures / "beta" / "runs.jsonl").read_text()[:-40])  # the last line is torn
    command = ("beta", *SETTING, *FIGURES["beta"], "--out", str(tmp_path))
    lamix.main(command)
    assert asked == [("beta 1", 1)]
    assert report_of(tmp_path)["arms"]["beta 1"]["points"] == report_of(figures / "beta")["arms"]["beta 1"]["points"]
    lamix.main(command)
    assert len(asked) == 1


def test_trainings_run_in_processes_of_their_own(figures: Path, tmp_path: Path) -> None:
    lamix.main(["targets", *SETTING, *FIGURES["targets"], "--out", str(tmp_path)])
    (own,), (other,) = runs_of(figures / "targets"), runs_of(tmp_path)
    assert own["points"] == other["points"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("beta", *SETTING, "--seeds", "1"), "seeds must be at least 2"),
        (("beta", *SETTING, "--betas", "0.5"), "--betas must be at least two"),
        (("beta", *SETTING, "--betas", "0.5", "1.5"), "label_beta"),
        (("smoothing", *SETTING, "--factors", "0"), "--factors must be"),
        (("curves", *SETTING, "--points", "3"), "--points must be in [2, 2]"),
        (("labels", *SETTING, "--at", "2", "1"), "--at must be ascending epochs in [1, 2]"),
        (("labels", *SETTING, "--at", "3"), "--at must be ascending epochs in [1, 2]"),
        (("embedding", *SETTING, "--at", "1", "--images", "0"), "images must be at least 1"),
        (("targets", *SETTING, "--batch-size", "25"), "--train-size must be a multiple of --batch-size 25"),
        (("targets", *SETTING, "--processes", "0"), "processes must be at least 1"),
        (("targets", *SETTING, "--model", "nope"), "unknown model 'nope'"),
        (("targets", "--dataset", "nope"), "data set 'nope'"),
    ],
)
def test_the_figures_refuse(arguments: Sequence[str], named: str, refused: Refused) -> None:
    assert named in refused(lamix.main, arguments)


def test_a_network_without_a_bottleneck_cannot_be_drawn_in_a_plane(trainer: Trainer) -> None:
    wide = Trainer(TrainConfig(updates=1, batch_size=20, device="cpu", precision="fp32"), trainer.data)
    with pytest.raises(lamix.RunError, match=r"--model must have an embedding of 2 units.*64"):
        looks.look_at_embedding(wide, LAMIX, 10)


def test_a_training_that_diverges_counts_as_chance_and_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    class Diverging(lamix.Trainer):
        def train(self, *arguments: Any, **keywords: Any) -> Any:
            with torch.no_grad():
                next(self.model.parameters()).fill_(torch.nan)
            return super().train(*arguments, **keywords)

    monkeypatch.setattr(lamix, "Trainer", Diverging)
    training = lamix.FigureTrainConfig(updates=6, batch_size=20, device="cpu", precision="fp32")

    def setting(figure: str) -> lamix.FigureSetting:
        data = lamix.DataConfig("digits", train_size=60)
        return lamix.FigureSetting(data, training, torch.__version__, figure=figure, epochs=[2], looked_at=5)

    run = lamix.train("lamix", LAMIX, 0, setting("beta"))
    assert run["diverged"] and run["points"][-1]["accuracy"] == 0.1
    with pytest.raises(lamix.RunError, match="lamix, seed 0: the training diverged"):
        lamix.train("lamix", LAMIX, 0, setting("labels"))
