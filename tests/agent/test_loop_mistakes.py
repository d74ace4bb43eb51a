"""What RLMix says of a newcomer's mistakes: refused in a line, taken where it is obvious, or warned of once."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlmix import RLMix
from rlmix.agent.ppo import new_policy, to_agent
from rlmix.classifier.errors import InputError
from rlmix.classifier.mixing import METHODS, MixPolicy, one_hot
from rlmix.envs import Menu
from rlmix.envs.observation import OBSERVATION_V2
from tests.agent.loops import KNOWN, agent, batches, network, sgd


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RLMix(num_classes=10, total_updates=5), "train_size"),
        (lambda: RLMix(num_classes=10, train_size=5), "total_updates"),
        (lambda: RLMix("no such", num_classes=10), "policy must be 'shipped'"),
        (lambda: RLMix("manifold", num_classes=10), "hidden states"),
        (lambda: RLMix("saliencymix", num_classes=10), "mean= and std="),
        (lambda: RLMix(MixPolicy({"mixup": 1.0}, label_beta=0.5), num_classes=10), "second head"),
        (lambda: RLMix("mixup", num_classes=10, loss="mse"), "loss must be"),
        (lambda: RLMix("rmix", num_classes=10)(torch.zeros(2, 1, 8, 8), torch.zeros(2).long()), "model"),
        (lambda: RLMix("mixup", num_classes=10)(torch.zeros(2, 1, 8, 8).byte(), torch.zeros(2).long()), "uint8"),
        (lambda: RLMix("mixup", num_classes=10)(torch.zeros(2, 1, 8, 8), torch.tensor([0, 10])), r"in \[0, 9\]"),
        (lambda: RLMix("mixup", num_classes=10)(torch.zeros(2, 1, 8, 8), torch.zeros(2, 3)), r"\[B, 10\]"),
        (lambda: RLMix("mixup", num_classes=10)(torch.zeros(3, 1, 8, 8), torch.zeros(2).long()), "as many labels"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_line(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def mixup(**named: Any) -> RLMix:
    return RLMix("mixup", num_classes=10, **named)


def started() -> RLMix:
    """A mixer that has mixed a batch."""
    mix = mixup()
    mix(IMAGES, LABELS)
    return mix


IMAGES, LABELS, LOGITS = torch.randn(4, 1, 8, 8), torch.tensor([0, 3, 3, 9]), torch.randn(4, 10)
MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "labels None": (lambda: mixup()(IMAGES, None), "labels must be a tensor, or a list or array of numbers, got None"),
    "labels text": (lambda: mixup()(IMAGES, ["cat"] * 4), "labels must be .* got list of 4"),
    "label alone": (lambda: mixup()(IMAGES[0], LABELS[0]), r"as many labels, got images \[1, 8, 8\] and labels \[\]"),
    "labels float": (lambda: mixup()(IMAGES, LABELS.float()), r"labels.long\(\)"),
    "labels column": (lambda: mixup()(IMAGES, LABELS[:, None]), r"labels.squeeze\(1\)"),
    "labels elsewhere": (lambda: mixup()(IMAGES, LABELS.to("meta")), "on one device, got cpu and meta"),
    "labels of a void class": (lambda: mixup()(IMAGES, LABELS - 100), "-100 to -91"),
    "labels a teacher's logits": (lambda: mixup()(IMAGES, 9 * LOGITS), r"softmax\(dim=1\)"),
    "images array": (
        lambda: mixup()(IMAGES.numpy(), LABELS),
        r"got ndarray \[4, 1, 8, 8\] of float32; torch.from_numpy",
    ),
    "images dict": (lambda: mixup()({"image": IMAGES}, LABELS), "tensor .* got dict"),
    "images none": (lambda: mixup()(IMAGES[:0], LABELS[:0]), "at least one image"),
    "model name": (lambda: mixup()(IMAGES, LABELS, "resnet18"), "torch.nn.Module, got 'resnet18'"),
    "model of other outputs": (
        lambda: RLMix("rmix", num_classes=10, share=1.0)(IMAGES, LABELS, nn.Flatten()),
        r"logits \[B, 10\], got Tensor \[4, 64\]",
    ),
    "model output": (
        lambda: RLMix("rmix", num_classes=10, share=1.0)(IMAGES, LABELS, Outputs()),
        "got tuple of 1; .* holds the logits",
    ),
    "optimizer": (lambda: mixup(optimizer=0.1), "optimizer must be .* got 0.1"),
    "optimizer network": (lambda: mixup(optimizer=network()), "got Sequential; not the network"),
    "optimizer class": (lambda: mixup(optimizer=torch.optim.SGD), "got the class SGD"),
    "share of an agent": (lambda: RLMix(**KNOWN, share=0.3), "share is for a method given by its name"),
    "share text": (lambda: mixup(share="half"), r"share must be in \(0, 1\], got 'half'"),
    "share list": (lambda: mixup(share=[0.5]), r"share must be in \(0, 1\], got list of 1"),
    "share percent": (lambda: mixup(share=50), r"in \(0, 1\], got 50"),
    "policy misspelt": (lambda: RLMix("CutMix", num_classes=10), "did you mean 'cutmix'"),
    "policies": (lambda: RLMix(["mixup", "cutmix"], num_classes=10), "several methods are MixPolicy"),
    "classes named": (lambda: RLMix("mixup", num_classes=["cat", "dog"]), "num_classes must be a whole number"),
    "length with a fraction": (lambda: mixup(total_updates=15.625), r"15.625; batches .* epochs \* len\(loader\)"),
    "imbalance as share": (lambda: mixup(imbalance=0.1), "imbalance must be a number of at least 1, .* got 0.1"),
    "size as data set": (lambda: mixup(train_size=[1, 2]), r"got list of 2; .* len\(dataset\)"),
    "seed": (lambda: mixup(seed=None), "seed must be a whole number of at least 0, got None"),
    "weights too few": (lambda: mixup(class_weights=torch.ones(3)), "10 numbers, one for each class, got Tensor"),
    "weights negative": (lambda: mixup(class_weights=[-1.0] * 10), "at least 0"),
    "mean alone": (lambda: mixup(mean=(0.5,)), "pass both"),
    "mean of 255": (lambda: mixup(mean=(123.0,), std=(50.0,)), "divide values of 0 to 255"),
    "std zero": (lambda: mixup(mean=(0.5,), std=(0,)), r"std must be in \(0, 1\]"),
    "colours of another kind": (
        lambda: mixup(mean=(0.5,) * 3, std=(0.2,) * 3)(IMAGES, LABELS),
        "3 colours, .* of 1 chan",
    ),
    "loss before a batch": (lambda: mixup().loss(LOGITS, LABELS), "nothing has been mixed yet"),
    "note before a batch": (lambda: mixup().note(LOGITS, LABELS), "nothing has been mixed yet"),
    "note without labels": (lambda: mixup().note(LOGITS, None), "targets must be .* got None"),
    "loss in the wrong order": (lambda: mixup().loss(LABELS, LOGITS), "logits come before targets"),
    "logits of other classes": (lambda: mixup().loss(LOGITS[:, :5], LABELS), "network's number of outputs"),
    "note a number": (lambda: started().note(LOGITS, LABELS, 2.3), r"before .item\(\) or .backward\(\), got 2.3"),
    "note losses": (lambda: started().note(LOGITS, LABELS, torch.zeros(4)), r"mean loss .* got Tensor \[4\]"),
    "loss the wrong way round": (
        lambda: mixup().loss(torch.full((4, 10), 0.1), torch.zeros(4, 10, requires_grad=True)),
        r"pass the network's output first",
    ),
    "logits of a part": (lambda: mixup().loss(LOGITS[:3], LABELS), r"as many logits as targets, got \[3, 10\]"),
    "logits inside": (lambda: mixup().loss((LOGITS,), LABELS), "got tuple of 1"),
    "observe nothing": (lambda: mixup().observe(), "needs val_accuracy, or logits and labels"),
    "observe logits": (lambda: mixup().observe(logits=LOGITS), "no labels; pass both"),
    "observe both": (lambda: mixup().observe(val_accuracy=0.5, logits=LOGITS, labels=LABELS), "got both"),
    "observe answers": (lambda: mixup().observe(logits=LOGITS.argmax(1), labels=LABELS), r"\[4\] of torch.int64"),
    "observe percent": (
        lambda: mixup().observe(val_accuracy=0.5, val_confidence=93.0),
        "val_confidence .* divide percent",
    ),
    "observe text": (lambda: mixup().observe(val_accuracy="0.5"), "val_accuracy .* got '0.5'"),
    "observe loss": (lambda: mixup().observe(val_accuracy=0.5, val_loss=-3), "val_loss of at least 0, got -3"),
    "state": (lambda: mixup().load_state_dict(None), "what state_dict returned"),
    "state of the network": (lambda: mixup().load_state_dict(network().state_dict()), "what state_dict returned"),
}


class Outputs(nn.Module):
    """A network whose logits are inside of something, as Hugging Face's are."""

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (images.flatten(1)[:, :10],)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_newcomers_mistake_is_told_in_a_line(mistake: str) -> None:
    make, message = MISTAKES[mistake]
    with pytest.raises(InputError, match=message) as told:
        make()
    assert "\n" not in str(told.value) and len(str(told.value)) < 300


def test_an_agent_that_sees_what_a_loop_does_not_give_is_refused() -> None:
    torch.manual_seed(0)
    chooser = to_agent(new_policy(Menu(), [8], OBSERVATION_V2), Menu(), (0.5, 1.0), {}, OBSERVATION_V2)
    with pytest.raises(InputError, match="looks for wrong labels"):
        RLMix(chooser, **KNOWN)


@pytest.mark.parametrize("kind", ["list", "tuple", "array", "array of int32", "list of tensors", "array one-hot"])
def test_labels_that_are_no_tensor_are_taken(kind: str) -> None:
    images, labels = batches(1)[0]
    forms: dict[str, Any] = {
        "list": labels.tolist(),
        "tuple": tuple(labels.tolist()),
        "array": labels.numpy(),
        "array of int32": labels.numpy().astype("int32"),
        "list of tensors": list(labels),
        "array one-hot": one_hot(labels, 10).double().numpy(),
    }
    expected = mixup(share=1.0)(images, labels)
    mix = mixup(share=1.0, class_weights=[1] * 10)
    found = mix(images, forms[kind])
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1]) and found[1].dtype == torch.float32
    logits = torch.randn(16, 10)
    assert mix.loss(logits, forms[kind]).item() == pytest.approx(nn.functional.cross_entropy(logits, labels).item())
    mix.observe(logits=logits.numpy(), labels=forms[kind])
    assert mix.state_dict()["observed"]["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())


def test_a_loop_that_is_used_otherwise_is_warned_once() -> None:
    model, data = network(), batches(20)
    mix = RLMix(agent(), num_classes=10, total_updates=4, train_size=5, optimizer=sgd(model))
    mix.observe(val_accuracy=0.4, val_loss=1.5, val_confidence=0.4, val_calibration_error=0.0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for images, labels in data:
            model.eval()  # and never back
            mix(images, labels, model)
            images, targets = mix(images, labels, model)
            with torch.no_grad():
                mix.loss(model(images), targets)
    texts = [str(warning.message) for warning in said]
    for part in (r"len(dataset), not len(loader)", "evaluation mode", "without gradients", "epochs * len(loader)"):
        assert sum(part in text for text in texts) == 1, part
    mix = RLMix(agent(), **KNOWN, optimizer=sgd(model.train()))
    mix.observe(val_accuracy=0.4, val_loss=1.5, val_confidence=0.4, val_calibration_error=0.0)
    with pytest.warns(UserWarning, match="once a batch"):
        for images, labels in data[:10]:
            mix(images, labels, model)
            images, targets = mix(images, labels, model)
            mix.loss(model(images), targets)


def test_colours_last_are_warned_of_and_validation_of_a_method_is_not() -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        mix = mixup()
        for _ in range(2):
            mix(torch.randn(4, 8, 8, 3), LABELS)
            mix.observe(val_accuracy=0.5)
    assert [str(warning.message) for warning in said] == [
        "RLMix: images [4, 8, 8, 3] seem to have colours last; permute(0, 3, 1, 2)"
    ]


def test_a_mixer_shows_what_it_does() -> None:
    mix = RLMix(MixPolicy({"clean": 0.5, "cutmix": 0.5}), num_classes=10, total_updates=2000)
    assert repr(mix) == "RLMix(MixPolicy, 10 classes, batch 0 of 2,000: clean 50 % + cutmix 50 %, λ beta(1))"
    mix(IMAGES, LABELS)
    assert repr(mix.eval()) == (
        "RLMix(MixPolicy, 10 classes, batch 1 of 2,000: clean 50 % + cutmix 50 %, λ beta(1), in evaluation mode)"
    )
    mix.train().mixup_enabled = False
    assert repr(mix).endswith("λ beta(1), switched off)")
    agents = RLMix(num_classes=10, total_updates=20, train_size=100)
    assert repr(agents) == "RLMix('shipped', 10 classes, batch 0 of 20: nothing chosen yet)"
    assert repr(mixup()) == "RLMix('mixup', 10 classes, batch 0: clean 50 % + mixup 50 %, λ beta(1))"


@pytest.mark.parametrize("share", [np.float32(0.25), np.float64(0.25), torch.tensor(0.25), 0.25])
def test_a_share_may_be_a_number_of_any_type(share: Any) -> None:
    mix = mixup(share=share)
    mix(IMAGES, LABELS)
    assert mix.policy == MixPolicy({"clean": 0.75, "mixup": 0.25})


@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if not one.stage and not one.library])
def test_a_batch_of_one_image_is_mixed_with_itself(method: str) -> None:
    mix = RLMix(method, num_classes=10, share=1.0, mean=(0.5,), std=(0.3,))
    mixed, targets = mix(IMAGES[:1], LABELS[:1], network())
    assert mixed.isfinite().all() and torch.allclose(targets, one_hot(LABELS[:1], 10))
