"""Networks: the published sizes, the second head and back, and anybody's own network by name."""

import copy
import sys
import types
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from classifier.models import MODELS, attach_label_head, build_model, without_label_head


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


class OwnNetwork(nn.Module):
    """A network as a user may write it, with more than one linear layer of K outputs."""

    def __init__(self, classes: int = 10, end: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, classes, bias=False), nn.ReLU())
        self.auxiliary = nn.Linear(classes, classes)
        self.out = nn.ModuleDict({"classify": nn.Linear(classes, classes, bias=False)})
        self.dropout = nn.Dropout(0.5)
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        embedding = self.features(x)
        if self.training:
            self.auxiliary(embedding)
        logits = self.out["classify"](self.dropout(embedding))
        return logits if self.end is None else self.end(logits)


@pytest.mark.parametrize(("name", "low", "high"), [("preact_resnet18", 11.215e6, 11.225e6), ("search", 50e3, 300e3)])
def test_networks_have_their_published_size(name: str, low: float, high: float) -> None:
    assert low <= parameter_count(build_model(name, num_classes=100, in_channels=3)) < high


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize(("channels", "side", "classes"), [(1, 28, 10), (3, 32, 100), (1, 8, 10)])
def test_networks_give_one_logit_a_class(name: str, channels: int, side: int, classes: int) -> None:
    model = build_model(name, num_classes=classes, in_channels=channels)
    logits = model(torch.randn(2, channels, side, side))
    assert logits.shape == (2, classes)
    logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_preact_resnet_starts_each_block_with_its_norm_and_adds_the_unactivated_image() -> None:
    # With the last convolution of a block at zero, what is left is the shortcut: identity where the shape is kept.
    block = build_model("preact_resnet18", num_classes=10, in_channels=3).stages[0][0].eval()
    nn.init.zeros_(block.conv2.weight)
    images = torch.randn(2, 64, 8, 8)
    torch.testing.assert_close(block(images), images)


# The second head

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("factory", "layer"),
    [
        (lambda: build_model("search", num_classes=10, in_channels=3), "head"),
        (lambda: torchvision.models.resnet18(num_classes=10), "fc"),
        (OwnNetwork, "out.classify"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 10, bias=False), nn.ReLU(), nn.Linear(10, 10)), "3"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 10, bias=False), nn.Linear(10, 10, bias=False)), "2"),
    ],
    ids=["search", "torchvision", "own", "sequential", "no biases"],
)
def test_the_second_head_goes_beside_the_last_layer_and_comes_off_again(
    factory: Callable[[], nn.Module], layer: str
) -> None:
    model = factory()
    author = copy.deepcopy(model)
    torch.manual_seed(5)
    assert attach_label_head(model, num_classes=10, image_shape=(3, 8, 8)) == layer
    assert model.training  # as it was
    with torch.no_grad():
        both, plain = model.eval()(IMAGES), author.eval()(IMAGES)
    assert both.shape == (4, 20)
    torch.testing.assert_close(both[:, :10], plain)
    assert not torch.allclose(both[:, 10:], plain)

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    fresh = factory()
    fresh.load_state_dict(without_label_head(model.state_dict(), layer))
    with torch.no_grad():
        torch.testing.assert_close(fresh.eval()(IMAGES), model(IMAGES)[:, :10])


def test_attaching_leaves_running_statistics_and_mode_alone() -> None:
    model = build_model("search", num_classes=10, in_channels=3).eval()
    before = copy.deepcopy(dict(model.named_buffers()))
    attach_label_head(model, num_classes=10, image_shape=(3, 8, 8))
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert not model.head.local._forward_hooks


def test_a_network_whose_logits_are_not_a_layers_output_is_named_by_hand() -> None:
    model = OwnNetwork(end=lambda logits: logits.log_softmax(dim=1))
    with pytest.raises(ValueError, match=r"--embedding \(.*out\.classify"):
        attach_label_head(model, num_classes=10, image_shape=(3, 8, 8))
    author = copy.deepcopy(model)
    assert attach_label_head(model, num_classes=10, image_shape=(3, 8, 8), embedding="out.classify") == "out.classify"
    with torch.no_grad():
        both, plain = model.eval()(IMAGES), author.eval()(IMAGES)
    torch.testing.assert_close(both[:, :10].softmax(dim=1), plain.softmax(dim=1))


@pytest.mark.parametrize("embedding", ["out", "features.1x", "", "dropout"])
def test_an_embedding_that_is_no_such_layer_is_refused_with_those_that_are(embedding: str) -> None:
    with pytest.raises(ValueError, match=r"--embedding must name a linear layer with 10 outputs.*out\.classify"):
        attach_label_head(OwnNetwork(), num_classes=10, image_shape=(3, 8, 8), embedding=embedding)


def test_a_network_without_a_linear_layer_of_the_right_size_is_refused() -> None:
    with pytest.raises(ValueError, match="right size: none"):
        attach_label_head(OwnNetwork(classes=10), num_classes=7, image_shape=(3, 8, 8))
    convolutional = nn.Sequential(nn.Conv2d(3, 10, 8), nn.Flatten())
    with pytest.raises(ValueError, match="right size: none"):
        attach_label_head(convolutional, num_classes=10, image_shape=(3, 8, 8))


# Somebody's own network by name


@pytest.fixture
def own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("somebodys_networks")
    module.small = lambda classes, channels: nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, classes))  # type: ignore[attr-defined]
    module.wrong = lambda classes, channels: "a network"  # type: ignore[attr-defined]
    module.constant = 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somebodys_networks", module)


def test_a_module_and_function_build_ones_own_network(own_module: None) -> None:
    model = build_model("somebodys_networks:small", num_classes=5, in_channels=3)
    assert model(IMAGES).shape == (4, 5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet1000", "unknown model 'resnet1000': expected one of search, .*package.module:function"),
        ("", "unknown model ''"),
        ("no_such_package:small", "cannot be imported .*PYTHONPATH"),
        ("somebodys_networks:large", "cannot be imported"),
        ("somebodys_networks:", "cannot be imported"),
        (":small", "cannot be imported"),
        (".networks:small", "cannot be imported"),
        ("somebodys_networks:wrong", "must return a torch.nn.Module, got str"),
        ("somebodys_networks:constant", r"must be a function\(num_classes, in_channels\), got int"),
    ],
)
def test_a_name_that_builds_no_network_is_refused(own_module: None, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(name, num_classes=5, in_channels=3)
