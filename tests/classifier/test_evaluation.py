"""Evaluation against hand-worked cases, closed formulas and other libraries."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rlmix.classifier.data import load_dataset, normalise, split
from rlmix.classifier.evaluation import (
    ATTACKS,
    CORRUPTIONS,
    PixelNetwork,
    accuracy,
    adversarial,
    attacked_accuracy,
    calibration,
    class_distances,
    corrupt,
    corrupted_accuracy,
    load_weights,
    predict,
    trained_network,
)
from rlmix.classifier.files import DamagedFileError
from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.models import build_model, find_last_layer
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.trainer import Trainer

EPSILON = 8 / 255


@pytest.fixture(autouse=True)
def libraries_and_one_thread() -> Iterator[None]:
    for name in ("torchmetrics", "torchattack"):
        pytest.importorskip(name)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def linear_network(weight: Tensor, mean: float = 0.3, std: float = 0.2) -> PixelNetwork:
    """Logits of normalised grey images by one matrix `[K, pixels]`."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data.copy_(weight)
    return PixelNetwork(nn.Sequential(nn.Flatten(), layer), last_layer="1", mean=(mean,), std=(std,))


class Brighter(nn.Module):
    """Says class 1 of images whose mean is above one half."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2)
        self.head.weight.data.copy_(torch.tensor([[-1.0], [1.0]]))
        self.head.bias.data.copy_(torch.tensor([0.5, -0.5]))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.mean(dim=(1, 2, 3))[:, None])


# Accuracy and calibration


def logits_of(confidences: list[float], answers: list[int], classes: int = 3) -> Tensor:
    """Logits that give each answer its confidence and share the rest equally."""
    probabilities = torch.stack(
        [torch.full((classes,), (1 - confidence) / (classes - 1)) for confidence in confidences]
    ).double()
    probabilities[torch.arange(len(answers)), torch.tensor(answers)] = torch.tensor(confidences, dtype=torch.double)
    return probabilities.log()


def test_calibration_worked_by_hand() -> None:
    # Of five answers at 0.9 four are right (a gap of 0.1), of five at 0.6 two (a gap of 0.2): half of each.
    logits = logits_of([0.9] * 5 + [0.6] * 5, [0] * 10)
    labels = torch.tensor([0, 0, 0, 0, 1, 0, 0, 1, 1, 2])
    found = calibration(logits, labels)
    assert found.error == pytest.approx(0.15, abs=1e-6)
    assert found.confidence == pytest.approx(0.75, abs=1e-6)
    filled = {place: row for place, row in enumerate(found.bins) if row[0]}
    assert filled == {
        9: (5, pytest.approx(0.6, abs=1e-6), pytest.approx(0.4)),
        13: (5, pytest.approx(0.9, abs=1e-6), pytest.approx(0.8)),
    }
    assert len(found.bins) == 15 and found.bins[0] == (0, None, None)


def test_full_confidence_is_in_the_last_bin() -> None:
    # One bin: mean confidence 0.975, half right. Apart from each other they would make an error of 0.525.
    found = calibration(logits_of([1.0, 0.95], [0, 0]), torch.tensor([1, 0]))
    assert found.error == pytest.approx(0.475, abs=1e-6)
    assert [row[0] for row in found.bins] == [0] * 14 + [2]


def test_calibration_is_that_of_the_trainer() -> None:
    data = split(load_dataset("digits")).draw(100, data_seed=0)
    trainer = Trainer(TrainConfig(updates=12, batch_size=50, device="cpu", precision="fp32"), data)
    trainer.train(MixPolicy({"clean": 1.0}), 12)
    expected = trainer.evaluate("development")
    images = normalise(data.development.images, torch.tensor(data.mean), torch.tensor(data.std))
    with torch.no_grad():
        logits = trainer.model.eval()(images)[:, :10]
    found = calibration(logits, data.development.labels)
    assert found.error == pytest.approx(expected.calibration_error, abs=1e-5)
    assert found.confidence == pytest.approx(expected.confidence, abs=1e-5)
    assert accuracy(logits, data.development.labels).top1 == pytest.approx(expected.accuracy)


def test_accuracy_by_sorting() -> None:
    logits = torch.randn(200, 12, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(12, (200,), generator=torch.Generator().manual_seed(2))
    ranked = [sorted(range(12), key=lambda k: -row[k]) for row in logits.tolist()]
    found = accuracy(logits, labels)
    for top, share in ((1, found.top1), (5, found.top5)):
        hits = [label in order[:top] for label, order in zip(labels.tolist(), ranked, strict=True)]
        assert share == pytest.approx(np.mean(hits))
    assert found.images == 200
    assert accuracy(logits[:, :5], labels % 5).top5 is None


# The network


@pytest.mark.parametrize("name", ["search", "lenet", "torchvision/resnet18"])
def test_embeddings_are_what_the_last_layer_reads(name: str) -> None:
    model = build_model(name, num_classes=7, in_channels=3)
    layer = find_last_layer(model, num_classes=7, image_shape=(3, 32, 32))
    network = PixelNetwork(model, last_layer=layer, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())
    pixels = (random_pixels(4, 3, 32, 32) * 255).byte()
    logits, embeddings = network.embed(pixels / 255)
    head = model.get_submodule(layer)
    assert torch.allclose(logits, embeddings @ head.weight.T + head.bias, atol=1e-5)
    normalised = normalise(pixels, torch.tensor((0.1, 0.2, 0.3)), torch.tensor((0.5, 0.6, 0.7)))
    assert torch.allclose(logits, model(normalised), atol=1e-4)


def test_embeddings_under_a_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = PixelNetwork(model, last_layer="1", mean=(0.0,), std=(1.0,))
    logits, embeddings = network.embed(random_pixels(5, 1, 8, 8))
    assert embeddings.shape == (5, 6)
    assert torch.allclose(logits, embeddings @ model[1].weight.flatten(1).T + model[1].bias, atol=1e-6)


def test_predictions_of_chunks_are_those_of_all() -> None:
    network = linear_network(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)))
    images, labels = (random_pixels(10, 1, 4, 4) * 255).byte(), torch.arange(10) % 3
    whole = predict(network, [(images, labels)])
    parts = predict(network, zip(images.split(4), labels.split(4), strict=True))
    assert torch.allclose(whole.logits, parts.logits) and torch.equal(whole.labels, parts.labels)
    assert torch.allclose(whole.embeddings, parts.embeddings) and not whole.logits.requires_grad


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    setting = {"num_classes": 5, "image_shape": (1, 8, 8), "mean": (0.5,), "std": (0.5,)}
    path = tmp_path / "model.safetensors"
    model = build_model("search", num_classes=5, in_channels=1)
    save_file(model.state_dict(), path)
    network = trained_network(load_weights(path), "search", **setting)
    assert network.last_layer == "head"
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in network.model.state_dict().items())
    with pytest.raises(ValueError, match="expected weights of search with 6 classes"):
        trained_network(load_weights(path), "search", **{**setting, "num_classes": 6})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DamagedFileError, match="expected a trained network's weights"):
        load_weights(path)


# Attacks


def test_fgsm_on_a_linear_network_is_the_closed_form() -> None:
    weight = torch.randn(3, 25, generator=torch.Generator().manual_seed(0))
    network = linear_network(weight, mean=0.3, std=0.2)
    pixels, labels = random_pixels(6, 1, 5, 5), torch.tensor([0, 1, 2, 0, 1, 2])
    changed = adversarial(network, pixels, labels, attack="fgsm")
    for image, label, result in zip(pixels, labels, changed, strict=True):
        # d loss / d x = sum_k (p_k - [k = y]) W_k / std, and a step of epsilon along its sign, within the image.
        logits = weight.double() @ ((image.flatten().double() - 0.3) / 0.2) + network.model[1].bias.double()
        share = logits.softmax(0) - nn.functional.one_hot(label, 3)
        expected = (image.flatten() + EPSILON * (share @ weight.double() / 0.2).sign()).clamp(0, 1)
        assert torch.allclose(result.flatten().double(), expected, atol=1e-6)


def test_pgd_on_a_linear_network_goes_straight_to_the_corner() -> None:
    weight = 0.75 * torch.randn(2, 25, generator=torch.Generator().manual_seed(0))
    network = linear_network(weight)
    pixels, labels = random_pixels(50, 1, 5, 5), torch.arange(50) % 2
    # Leads of up to 30 nats, for which a loss in float32 has no gradient left.
    assert 25 < float((network(pixels)[:, 0] - network(pixels)[:, 1]).abs().max()) < 35
    # With two classes the gradient's sign is that of W_other - W_y, wherever one is.
    direction = (weight[1 - labels] - weight[labels]).sign().view_as(pixels)
    step = (adversarial(network, pixels, labels, attack="pgd") - pixels) * direction
    room = torch.where(direction > 0, 1 - pixels, pixels).clamp(max=EPSILON)
    # Seven steps of 2 / 255 from anywhere in a ball of 8 / 255 lead at least 6 / 255 along it.
    assert (step <= room + 1e-6).all()
    assert (step >= torch.minimum(room, torch.tensor(6 / 255)) - 1e-6).all()
    assert ((step - room).abs() < 1e-6).float().mean() > 0.8


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_never_leave_the_ball_or_the_image(attack: str) -> None:
    torch.manual_seed(0)
    model = build_model("search", num_classes=4, in_channels=3)
    network = PixelNetwork(model, last_layer="head", mean=(0.2, 0.4, 0.6), std=(0.1, 0.2, 0.3))
    pixels = random_pixels(8, 3, 8, 8)
    pixels[:4] = pixels[:4].round()  # at the border of what pixels can be
    labels = torch.arange(8) % 4
    before = pixels.clone()
    for epsilon in (EPSILON, 0.003):
        changed = adversarial(network, pixels, labels, attack=attack, epsilon=epsilon)
        assert (changed - pixels).abs().max() <= epsilon + 1e-6
        assert (changed - pixels).abs().max() > 0.9 * epsilon
        assert changed.min() >= 0 and changed.max() <= 1
        loss = [nn.functional.cross_entropy(network(images), labels) for images in (pixels, changed)]
        assert loss[1] > loss[0]
    assert torch.equal(pixels, before) and all(parameter.grad is None for parameter in network.parameters())


def test_pgd_starts_by_its_seed_and_leaves_other_draws_alone() -> None:
    network = linear_network(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)))
    pixels, labels = random_pixels(5, 1, 4, 4), torch.arange(5) % 3
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (adversarial(network, pixels, labels, attack="pgd", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_accuracy_under_attack_is_that_of_the_margin() -> None:
    # One pixel, two classes, a border at 0.5: an image is lost once epsilon reaches over it.
    network = PixelNetwork(Brighter(), last_layer="head", mean=(0.0,), std=(1.0,))
    values = torch.tensor([100, 118, 122, 126, 130, 134, 138, 160], dtype=torch.uint8)
    labels = (values > 127).long()
    images = values.view(-1, 1, 1, 1)
    found = attacked_accuracy(network, zip(images.split(3), labels.split(3), strict=True))
    # Within 8 of 127.5 are 122, 126, 130 and 134; PGD's steps lead to the ball's border, or at least 6 far.
    assert found["fgsm"] == pytest.approx(4 / 8)
    assert found["pgd"] in (pytest.approx(4 / 8), pytest.approx(5 / 8), pytest.approx(6 / 8))


# Corruptions


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_corruptions_grow_and_stay_images(corruption: str) -> None:
    # A smooth image, so that blur finds something at every size.
    ramp = torch.linspace(0.1, 0.7, 28)
    pixels = (ramp[:, None] * ramp).sqrt().expand(6, 3, 28, 28) + 0.2 * random_pixels(6, 3, 28, 28)
    before = pixels.clone()
    distances = []
    for level in range(1, 6):
        changed = corrupt(pixels, corruption=corruption, level=level, generator=torch.Generator().manual_seed(0))
        assert changed.shape == pixels.shape and changed.min() >= 0 and changed.max() <= 1
        distances.append(float((changed - pixels).abs().mean()))
    assert distances == sorted(distances) and distances[0] > 0.001 and len(set(distances)) == 5
    assert torch.equal(pixels, before)


def test_noise_has_its_deviation(generator: torch.Generator) -> None:
    grey = torch.full((20, 1, 32, 32), 0.5)
    noise = corrupt(grey, corruption="noise", level=1, generator=generator) - grey
    assert float(noise.std()) == pytest.approx(0.08, rel=0.02)
    assert abs(float(noise.mean())) < 0.002


def test_blur_is_scipys(generator: torch.Generator) -> None:
    pixels = random_pixels(1, 1, 40, 40)
    changed = corrupt(pixels, corruption="blur", level=3, generator=generator)
    sigma = 0.035 * 40
    expected = gaussian_filter(pixels[0, 0].double().numpy(), sigma, mode="mirror", radius=round(3 * sigma))
    assert np.allclose(changed[0, 0], expected, atol=1e-5)


def test_brightness_and_contrast_by_hand(generator: torch.Generator) -> None:
    pixels = torch.tensor([0.0, 0.2, 0.4, 1.0]).view(1, 1, 2, 2)
    brighter = corrupt(pixels, corruption="brightness", level=2, generator=generator)
    assert torch.allclose(brighter.flatten(), torch.tensor([0.2, 0.4, 0.6, 1.0]))
    flatter = corrupt(pixels, corruption="contrast", level=3, generator=generator)  # a fifth, about 0.4
    assert torch.allclose(flatter.flatten(), torch.tensor([0.32, 0.36, 0.40, 0.52]))


def test_occlusion_covers_one_square(generator: torch.Generator) -> None:
    places = set()
    changed = corrupt(torch.zeros(40, 2, 20, 30), corruption="occlusion", level=3, generator=generator)
    for image in changed:
        rows, columns = torch.nonzero(image[0], as_tuple=True)
        assert len(rows) == 8 * 8 and set(image[:, rows, columns].flatten().tolist()) == {0.5}
        assert int(rows.max() - rows.min()) == int(columns.max() - columns.min()) == 7
        places.add((int(rows.min()), int(columns.min())))
    assert len(places) > 20


def test_accuracy_under_corruptions_of_a_network_that_sees_brightness() -> None:
    network = PixelNetwork(Brighter(), last_layer="head", mean=(0.0,), std=(1.0,))
    images, labels = torch.full((4, 1, 10, 10), 38, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)  # 0.149
    found = corrupted_accuracy(network, zip(images.split(3), labels.split(3), strict=True))
    assert found == {
        "noise": [1] * 5,
        "blur": [1] * 5,
        "brightness": [1, 1, 1, 0, 0],  # 0.149 + 0.4 is above one half
        "contrast": [1] * 5,
        "occlusion": [1] * 5,
    }


def test_on_a_gpu_everything_stays_there() -> None:
    with FakeTensorMode():  # tensors without content that know their device and refuse to mix two
        with torch.device("cuda"):
            model = build_model("search", num_classes=4, in_channels=3)
            network = PixelNetwork(model, last_layer="head", mean=(0.5,) * 3, std=(0.5,) * 3)
        pixels = torch.empty(4, 3, 16, 16, device="cuda")
        for corruption in CORRUPTIONS:
            changed = corrupt(pixels, corruption=corruption, level=3, generator=torch.Generator().manual_seed(0))
            assert changed.device.type == "cuda" and changed.shape == pixels.shape
        assert {tensor.device.type for tensor in network.embed(pixels)} == {"cuda"}


# Embeddings


def test_distances_worked_by_hand() -> None:
    embeddings = torch.tensor([[0.0, 0], [4, 0], [10, 0], [12, 0], [1, 5], [1, 7]])
    labels = torch.tensor([4, 4, 1, 1, 7, 7])
    found = class_distances(embeddings, labels)
    # Means (2, 0), (11, 0) and (1, 6), two images at a distance of 2 and four at a distance of 1.
    between = (9 + (1 + 6**2) ** 0.5 + (10**2 + 6**2) ** 0.5) / 3
    assert found.within == pytest.approx(8 / 6)
    assert found.between == pytest.approx(between)
    assert found.ratio == pytest.approx(8 / 6 / between)
    assert class_distances(7 * embeddings, labels).ratio == pytest.approx(found.ratio)
    assert class_distances(torch.ones(4, 3), torch.tensor([0, 0, 1, 1])).ratio is None
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        class_distances(embeddings, torch.zeros(6, dtype=torch.long))


# Libraries


@pytest.fixture(params=["torchmetrics", "torchattack"])
def missing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in [name for name in sys.modules if name.partition(".")[0] == request.param]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, request.param, None)
    yield request.param


def test_a_missing_library_is_named(missing: str) -> None:
    network, pixels, labels = linear_network(torch.eye(4)), random_pixels(2, 1, 2, 2), torch.tensor([0, 1])
    with pytest.raises(ImportError, match=f"needs the library {missing}.*pip install 'rl-mix\\[evaluation\\]'"):
        if missing == "torchattack":
            adversarial(network, pixels, labels, attack="pgd")
        else:
            accuracy(network(pixels), labels)
