"""Networks: the published sizes, the second head and back, torchvision's, timm's and anybody's own network by name."""

import copy
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from rlmix.classifier.data import ImageSet, Splits
from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.models import (
    MODELS,
    SMALL_NETWORKS,
    attach_label_head,
    build_model,
    hidden_stages,
    without_label_head,
)
from rlmix.classifier.models.channels import set_in_channels
from rlmix.classifier.models.resnext import ResNeXt, ResNeXtBlock
from rlmix.classifier.models.wide_resnet import WideBlock, WideResNet
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.trainer import Trainer


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Batches this small gain nothing from a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def parameters_of(name: str, num_classes: int, in_channels: int) -> int:
    with torch.device("meta"):
        return parameter_count(build_model(name, num_classes=num_classes, in_channels=in_channels))


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


# The published networks


@pytest.mark.parametrize(
    ("name", "millions"),
    [("preact_resnet18", "11.22"), ("wrn_16_8", "11.01"), ("wrn_28_10", "36.55"), ("resnext29_4_24", "4.94")],
)
def test_networks_of_the_mixing_papers_have_their_published_size(name: str, millions: str) -> None:
    assert f"{parameters_of(name, 100, 3) / 1e6:.2f}" == millions


@pytest.mark.parametrize(
    ("name", "classes", "channels", "count"),
    [
        ("lenet", 10, 1, 61_706),
        ("convnet", 10, 1, 43_082),
        ("preact_resnet18_quarter", 100, 3, 712_628),
        ("resnet50", 1000, 3, 25_557_032),
        ("densenet121", 1000, 3, 7_978_856),
        # As the collections of CIFAR networks print them.
        ("resnet50_small", 10, 3, 23_520_842),
        ("densenet121_small", 10, 3, 6_956_298),
    ],
)
def test_classic_networks_have_their_well_known_size(name: str, classes: int, channels: int, count: int) -> None:
    assert parameters_of(name, classes, channels) == count


def test_the_search_network_is_small() -> None:
    assert 50e3 <= parameters_of("search", 100, 3) < 300e3


def test_the_bottleneck_is_two_units_before_the_last_layer_of_the_search_network() -> None:
    # 64 channels to 2 units to 10 classes, with biases, in place of 64 channels to 10 classes.
    more = (64 * 2 + 2) + (2 * 10 + 10) - (64 * 10 + 10)
    assert parameters_of("search_bottleneck", 10, 1) == parameters_of("search", 10, 1) + more
    model = build_model("search_bottleneck", num_classes=10, in_channels=1).eval()
    with torch.no_grad():
        logits = model(torch.randn(40, 1, 28, 28))
    assert torch.linalg.matrix_rank((logits - logits.mean(dim=0)).double(), rtol=1e-4) == 2


@pytest.mark.parametrize("name", ["resnet50", "densenet121"])
def test_networks_for_large_images_take_torchvisions_weights(name: str) -> None:
    author = torchvision.models.get_model(name, num_classes=7)
    model = build_model(name, num_classes=7, in_channels=3)
    model.load_state_dict(author.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), author.eval()(images))


SMALLEST = {"densenet121": 32}  # pixels; four halvings behind a stem that has taken a quarter


@pytest.mark.parametrize(("channels", "side", "classes"), [(1, 28, 10), (3, 32, 100), (1, 8, 10)])
@pytest.mark.parametrize("name", ["search", "preact_resnet18", "lenet", "resnext29_4_24"])
def test_networks_for_small_images_take_any_size(name: str, channels: int, side: int, classes: int) -> None:
    assert_trains(name, channels, side, classes)


@pytest.mark.parametrize("name", list(MODELS))
def test_networks_take_any_number_of_channels_and_use_all_parameters(name: str) -> None:
    assert_trains(name, 2, SMALLEST.get(name, 16), 7)


def assert_trains(name: str, channels: int, side: int, classes: int) -> None:
    model = build_model(name, num_classes=classes, in_channels=channels)
    logits = model(torch.randn(2, channels, side, side))
    assert logits.shape == (2, classes)
    logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("name", list(SMALL_NETWORKS))
def test_small_networks_have_20_thousand_to_a_million_parameters(name: str) -> None:
    model = build_model(name, num_classes=10, in_channels=3)
    assert 15_000 < sum(parameter.numel() for parameter in model.parameters()) < 1_050_000
    norms = {"batch": nn.BatchNorm2d, "group": nn.GroupNorm, "none": nn.Identity}
    assert {kind for kind in norms.values() if any(isinstance(module, kind) for module in model.modules())} == {
        norms[name.split("_")[1]]
    }
    if "_8" in name or "_16" in name:
        assert_trains(name, 1, 12, 7)
        assert len(hidden_stages(model)) == 2


@pytest.mark.parametrize("name", list(MODELS))
def test_weights_are_those_of_the_seed(name: str) -> None:
    states = []
    for seed in (3, 3, 4):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            states.append(build_model(name, num_classes=5, in_channels=1).state_dict())
    same = [torch.equal(states[0][key], states[1][key]) for key in states[0]]
    assert all(same)
    assert not any(torch.equal(states[0][key], states[2][key]) for key in states[0] if states[0][key].dim() == 4)


def image_set(count: int, side: int) -> ImageSet:
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.arange(count) % 5)


@pytest.mark.parametrize("name", list(MODELS))
def test_every_network_trains(name: str) -> None:
    side = SMALLEST.get(name, 8)
    data = Splits(
        train=image_set(8, side),
        validation=image_set(5, side),
        development=image_set(1, side),
        test=image_set(0, side),
        name="synthetic",
        class_names=tuple("abcde"),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        flip=True,
        crop_padding=2,
    )
    config = TrainConfig(model=name, updates=2, batch_size=4, lr=0.01, device="cpu", precision="fp32")
    trainer = Trainer(config, data)
    before = {key: value.clone() for key, value in trainer.network_state().items()}
    stats = trainer.train(MixPolicy({"clean": 0.5, "rmix": 0.5}, label_beta=0.5), 2)
    assert not stats.diverged
    assert stats.methods == {"clean": 1, "rmix": 1}
    network = build_model(name, num_classes=5, in_channels=3)
    network.load_state_dict(trainer.network_state())
    assert all(not torch.equal(value, before[key]) for key, value in network.named_parameters())


def test_preact_resnet_starts_each_block_with_its_norm_and_adds_the_unactivated_image() -> None:
    # With the last convolution of a block at zero, what is left is the shortcut: identity where the shape is kept.
    block = build_model("preact_resnet18", num_classes=10, in_channels=3).stages[0][0].eval()
    nn.init.zeros_(block.conv2.weight)
    images = torch.randn(2, 64, 8, 8)
    torch.testing.assert_close(block(images), images)


def test_a_wide_block_is_norm_relu_convolution_twice_and_a_shortcut_from_its_input() -> None:
    conv = nn.functional.conv2d

    def activated(x: Tensor) -> Tensor:  # a fresh norm in training mode, as its formula has it
        return ((x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), False, True) + 1e-5).sqrt()).clamp(min=0)

    images = torch.randn(3, 4, 8, 8)
    block = WideBlock(4, 6, 2)
    assert isinstance(block.shortcut, nn.Conv2d)
    hidden = conv(activated(images), block.conv1.weight, block.conv1.bias, padding=1)
    hidden = conv(activated(hidden), block.conv2.weight, block.conv2.bias, stride=2, padding=1)
    shortcut = conv(images, block.shortcut.weight, block.shortcut.bias, stride=2)
    torch.testing.assert_close(block(images), hidden + shortcut)

    keeps = WideBlock(4, 4, 1)
    hidden = conv(activated(images), keeps.conv1.weight, keeps.conv1.bias, padding=1)
    hidden = conv(activated(hidden), keeps.conv2.weight, keeps.conv2.bias, padding=1)
    torch.testing.assert_close(keeps(images), hidden + images)


def test_a_resnext_block_is_torchvisions() -> None:
    images = torch.randn(3, 64, 8, 8)
    own = ResNeXtBlock(64, 192, 512, cardinality=4, stride=2)
    shortcut = nn.Sequential(nn.Conv2d(64, 512, 1, stride=2, bias=False), nn.BatchNorm2d(512))
    theirs = Bottleneck(64, 128, stride=2, groups=4, base_width=24, downsample=shortcut)
    names = {"norm": "bn", "shortcut": "downsample"}
    state = {}
    for key, value in own.state_dict().items():
        for mine, their in names.items():
            key = key.replace(mine, their)
        state[key] = value
    theirs.load_state_dict(state)
    torch.testing.assert_close(own(images), theirs(images))


def test_resnext_starts_with_the_papers_codes_weights() -> None:
    model = build_model("resnext29_4_24", num_classes=100, in_channels=3)
    grouped = model.stages[1][0].conv2
    assert grouped.weight.shape == (192, 48, 3, 3)
    assert grouped.weight.std().item() == pytest.approx((2 / (9 * 192)) ** 0.5, rel=0.02)
    assert model.head.weight.std().item() == pytest.approx((2 / 1024) ** 0.5, rel=0.02)
    assert not model.head.bias.any()


@pytest.mark.parametrize("depth", [5, 27, 4, -2])
def test_a_depth_that_does_not_divide_into_stages_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"6 n \+ 4 .*got {depth}"):
        WideResNet(10, 3, depth=depth, widening=1)
    with pytest.raises(ValueError, match=rf"9 n \+ 2 .*got {depth}"):
        ResNeXt(10, 3, depth=depth, cardinality=4, base_width=24)


def test_lenet_sees_small_images_in_a_field_of_32_pixels_and_no_larger_ones() -> None:
    model = build_model("lenet", num_classes=10, in_channels=1)
    digits = torch.randn(2, 1, 28, 28)
    field = torch.zeros(2, 1, 32, 32)
    field[:, :, 2:30, 2:30] = digits
    torch.testing.assert_close(model(digits), model(field))
    with pytest.raises(ValueError, match="at most 32 x 32 pixels, got 32 x 33"):
        model(torch.zeros(2, 1, 32, 33))


@pytest.mark.parametrize(("name", "stage"), [("resnet50_small", "layer1"), ("densenet121_small", "features.norm0")])
def test_small_image_stems_keep_every_pixel(name: str, stage: str) -> None:
    shapes = []
    model = build_model(name, num_classes=5, in_channels=3)
    model.get_submodule(stage).register_forward_hook(lambda _module, _inputs, output: shapes.append(output.shape))
    with torch.no_grad():
        model.eval()(torch.randn(1, 3, 20, 20))
    assert shapes[0][2:] == (20, 20)


# Networks of other libraries


@pytest.mark.parametrize(
    "name",
    ["torchvision/resnet18", "torchvision/googlenet", "torchvision/shufflenet_v2_x0_5", "timm/resnet10t"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_classifiers_of_libraries_by_name(name: str, channels: int) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    model = build_model(name, num_classes=5, in_channels=channels)
    logits = model(torch.randn(2, channels, 32, 32))
    assert model.training
    assert logits.shape == (2, 5)


def test_torchvisions_inception_trains_without_its_auxiliary_head(recwarn: pytest.WarningsRecorder) -> None:
    model = build_model("torchvision/inception_v3", num_classes=5, in_channels=3)
    assert model(torch.randn(2, 3, 75, 75)).shape == (2, 5)
    assert not recwarn.list  # nothing to choose is left to the user


def test_a_librarys_network_has_the_librarys_size() -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        assert parameters_of("torchvision/resnet50", 1000, 3) == 25_557_032
        theirs = timm.create_model("resnet50d", num_classes=100, in_chans=1)
    assert parameters_of("timm/resnet50d", 100, 1) == parameter_count(theirs)


@pytest.mark.parametrize(
    "name", ["torchvision/vit_b_32", "timm/vit_tiny_patch16_224", "timm/resnet10t", "torchvision/resnet18"]
)
def test_vision_transformers_are_built_for_the_images_and_others_need_not_be(name: str) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    model = build_model(name, num_classes=5, in_channels=1, image_size=(64, 64)).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 1, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_a_new_first_convolution_keeps_the_scale_of_its_output(channels: int) -> None:
    colour = nn.Sequential(nn.Conv2d(3, 200, 5), nn.Conv2d(200, 3, 1), nn.Conv2d(3, 1, 1))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        expected = colour[0](torch.randn(8, 3, 12, 12, generator=generator)).std()
        others = copy.deepcopy(colour[1:].state_dict())
        assert set_in_channels(colour, channels) is colour
        output = colour[0](torch.randn(8, channels, 12, 12, generator=generator))
        colour(torch.randn(8, channels, 12, 12))
    torch.testing.assert_close(output.std(), expected, rtol=0.1, atol=0)
    assert all(torch.equal(value, others[key]) for key, value in colour[1:].state_dict().items())


def test_a_network_without_a_convolution_over_colours_takes_no_other_channels() -> None:
    with pytest.raises(ValueError, match="Sequential has no convolution over 3 channels that could read 1"):
        set_in_channels(nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(3, 3, 3, groups=3)), 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision/resnt18", r"no classifier 'resnt18'; did you mean .*resnet18"),
        ("torchvision/zzz", r"no classifier 'zzz'$"),
        ("torchvision/", r"no classifier ''"),
        ("torchvision/deeplabv3_resnet50", "deeplabv3_resnet50 is not an image classifier"),
        ("torchvision/fasterrcnn_resnet50_fpn", "not an image classifier"),
        ("torchvision/r3d_18", "not an image classifier"),
        ("torchvision/raft_small", "not an image classifier"),
        ("torchvision/quantized_resnet18", "not an image classifier"),
        ("resnet18", r"unknown model 'resnet18'.*did you mean torchvision/resnet18\?"),
        ("resnet81", r"did you mean .*torchvision/resnet18"),
        ("preact_resnet", r"unknown model .*did you mean preact_resnet18, preact_resnet18_quarter\?"),
        ("tensorflow/resnet18", "unknown model"),
    ],
)
def test_an_unknown_name_is_refused_with_those_like_it(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(name, num_classes=5, in_channels=3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnt18", r"no network 'resnt18'; did you mean .*resnet18"),
        ("timm/hf-hub:timm/resnet18", "no network"),
    ],
)
def test_a_name_that_timm_does_not_know_is_refused_with_those_like_it(name: str, message: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=message):
        build_model(name, num_classes=5, in_channels=3)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("torchvision/vit_b_32", (40, 40), r"vit_b_32 cannot be built for images of \(40, 40\)"),
        ("torchvision/vit_b_32", (32, 64), "takes square images, got 32 x 64"),
        ("torchvision/maxvit_t", (32, 32), r"maxvit_t cannot be built for images of \(32, 32\)"),
    ],
)
def test_a_network_that_cannot_be_built_for_the_images_says_so(name: str, size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(name, num_classes=5, in_channels=3, image_size=size)


def test_timms_networks_need_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"timm/resnet18 needs timm.*pip install 'timm>=1\.0'"):
        build_model("timm/resnet18", num_classes=5, in_channels=3)


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


# The number of classes is, where that can be, the width of another layer of the network, too.
@pytest.mark.parametrize(
    ("name", "classes", "side", "layer"),
    [
        ("torchvision/resnet18", 64, 32, "fc"),
        ("torchvision/densenet121", 128, 32, "classifier"),
        ("torchvision/vgg11", 512, 32, "classifier.6"),
        ("torchvision/mobilenet_v3_small", 1024, 32, "classifier.3"),
        ("torchvision/efficientnet_b0", 32, 32, "classifier.1"),
        ("torchvision/convnext_tiny", 768, 32, "classifier.2"),
        ("torchvision/swin_t", 96, 32, "head"),
        ("torchvision/vit_b_32", 768, 32, "heads.head"),
        ("timm/test_resnet", 32, 32, "fc"),
        ("timm/test_byobnet", 32, 32, "head.fc"),
        ("timm/test_efficientnet", 64, 32, "classifier"),
        ("timm/test_convnext", 64, 32, "head.fc"),
        ("timm/test_vit", 64, 32, "head"),
        ("timm/mixer_s32_224", 512, 32, "head"),
        ("timm/efficientvit_b0", 128, 32, "head.classifier.4"),
        ("timm/caformer_s18", 64, 32, "head.fc.fc2"),
        ("timm/dla34", 64, 32, "fc"),  # a convolution, flattened
        *((name, 64, 32, "fc" if name.startswith("resnet50") else "head") for name in MODELS if "densenet" not in name),
        *((name, 64, 32, "classifier") for name in MODELS if "densenet" in name),
    ],
)
def test_the_last_layer_is_found_in_known_networks(name: str, classes: int, side: int, layer: str) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(name, num_classes=classes, in_channels=1, image_size=(side, side)).eval()
    author = dict(model.state_dict())
    images = torch.rand(2, 1, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = model(images)
        assert attach_label_head(model, num_classes=classes, image_shape=(1, side, side)) == layer
        both = model(images)
    assert both.shape == (2, 2 * classes)
    torch.testing.assert_close(both[:, :classes], plain)
    restored = without_label_head(model.state_dict(), layer)
    assert restored.keys() == author.keys()
    assert all(torch.equal(restored[key], author[key]) for key in author)


def test_among_layers_of_zero_outputs_the_last_is_found() -> None:
    model = nn.Sequential(nn.Flatten(), *(nn.Linear(192 if i == 0 else 10, 10, bias=False) for i in range(3)))
    for layer in list(model)[1:]:
        nn.init.zeros_(layer.weight)
    assert attach_label_head(model, num_classes=10, image_shape=(3, 8, 8)) == "3"


def test_a_convolution_before_an_activation_is_named_by_hand() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # with others it may be that no output is below 0, and the ReLU changes nothing
        model = build_model("torchvision/squeezenet1_1", num_classes=5, in_channels=3).eval()
        images = torch.rand(2, 3, 32, 32)  # of which one position is left, and a ReLU in place
    with torch.no_grad():
        plain = model(images)
        with pytest.raises(ValueError, match=r"--embedding \(.*classifier\.1\)"):
            attach_label_head(model, num_classes=5, image_shape=(3, 32, 32))
        attach_label_head(model, num_classes=5, image_shape=(3, 32, 32), embedding="classifier.1")
        both = model(images)
    assert both.shape == (2, 10)
    torch.testing.assert_close(both[:, :5], plain)


class TwoHeads(nn.Module):
    """The mean of two heads, as distilled networks answer with."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(192, 10), nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        return (self.first(x.flatten(1)) + self.second(x.flatten(1))) / 2


@pytest.mark.parametrize(
    ("model", "embedding"), [(TwoHeads(), "first"), (OwnNetwork(), "auxiliary")], ids=["two heads", "unused"]
)
def test_a_layer_that_does_not_make_the_logits_alone_is_refused_and_put_back(model: nn.Module, embedding: str) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"one layer whose outputs become the logits.*'{embedding}'"):
        attach_label_head(model, num_classes=10, image_shape=(3, 8, 8), embedding=embedding)
    assert model.state_dict().keys() == before.keys()
    assert model(IMAGES).shape == (4, 10)


def test_the_mean_of_two_heads_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--embedding \(.*: first, second\)"):
        attach_label_head(TwoHeads(), num_classes=10, image_shape=(3, 8, 8))


@pytest.mark.parametrize(
    ("name", "network", "shape"),
    [
        ("densenet121", "DenseNet", (1, 28, 24)),
        ("torchvision/alexnet", "AlexNet", (1, 32, 32)),
        ("torchvision/vit_b_32", "VisionTransformer", (1, 32, 32)),
        ("lenet", "LeNet", (1, 64, 64)),
        ("resnet50", "ResNet", (3, 32, 32)),
    ],
)
def test_images_that_a_network_does_not_take_are_named(name: str, network: str, shape: tuple[int, int, int]) -> None:
    model = build_model(name, num_classes=5, in_channels=1)
    with pytest.raises(
        ValueError, match=f"{network} fails on images of {shape[0]} channels and {shape[1]} x {shape[2]}"
    ):
        attach_label_head(model, num_classes=5, image_shape=shape)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda logits: (logits, logits), "must return logits as one tensor, got tuple"),
        (lambda logits: logits[:, :4], r"logits of shape \[2, 10\], got \[2, 4\]"),
    ],
)
def test_a_network_that_does_not_return_logits_is_refused(end: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach_label_head(OwnNetwork(end=end), num_classes=10, image_shape=(3, 8, 8))


@pytest.mark.parametrize("embedding", ["out", "features.1x", "", "dropout"])
def test_an_embedding_that_is_no_such_layer_is_refused_with_those_that_are(embedding: str) -> None:
    with pytest.raises(ValueError, match=r"--embedding must name a linear layer with 10 outputs.*out\.classify"):
        attach_label_head(OwnNetwork(), num_classes=10, image_shape=(3, 8, 8), embedding=embedding)


def test_a_network_without_a_layer_of_the_right_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"logits of shape \[2, 7\], got \[2, 10\]"):
        attach_label_head(OwnNetwork(classes=10), num_classes=7, image_shape=(3, 8, 8))
    convolutional = nn.Sequential(nn.Conv2d(3, 10, 8), nn.Flatten())
    with pytest.raises(ValueError, match="right size: none"):
        attach_label_head(convolutional, num_classes=10, image_shape=(3, 8, 8))


# Hidden states


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("search", [(16, 16, 16), (32, 8, 8)]),
        ("lenet", [(6, 14, 14), (16, 5, 5)]),
        ("convnet", [(16, 16, 16), (32, 8, 8)]),
        ("preact_resnet18", [(64, 32, 32), (128, 16, 16)]),
        ("wrn_16_8", [(128, 32, 32), (256, 16, 16)]),
        ("resnext29_4_24", [(256, 32, 32), (512, 16, 16)]),
        ("resnet50_small", [(256, 32, 32), (512, 16, 16)]),
        ("resnet50", [(256, 8, 8), (512, 4, 4)]),
        ("torchvision/resnet18", [(64, 8, 8), (128, 4, 4)]),
        ("timm/resnet10t", [(64, 8, 8), (128, 4, 4)]),
    ],
)
def test_hidden_states_after_two_stages_carry_all_that_follows(name: str, shapes: list[tuple[int, ...]]) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    model = build_model(name, num_classes=5, in_channels=3).eval()
    stages = hidden_stages(model)
    attach_label_head(model, num_classes=5, image_shape=(3, 32, 32))
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        plain = model(images)
        seen = []
        for stage in hidden_stages(model):

            def turn(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
                seen.append(tuple(output.shape[1:]))
                return output.roll(1, 0)

            hook = stage.register_forward_hook(turn)
            # Nothing goes round the stage: who is given another image's hidden state is taken for that image.
            torch.testing.assert_close(model(images), plain.roll(1, 0))
            hook.remove()
    assert not torch.allclose(plain, plain.roll(1, 0))
    assert seen == shapes
    assert [id(stage) for stage in stages] == [id(stage) for stage in hidden_stages(model)]


@pytest.mark.parametrize("name", ["densenet121_small", "torchvision/convnext_tiny", "timm/convnext_atto"])
def test_networks_whose_stages_are_not_known_are_refused(name: str) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    with torch.device("meta"):
        model = build_model(name, num_classes=5, in_channels=3)
    with pytest.raises(ValueError, match=rf"PreAct ResNet, Wide ResNet.*not of {type(model).__name__}"):
        hidden_stages(model)


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
