"""Schedules told to timm and torchvision: the libraries themselves mix as the policy says."""

import numpy as np
import pytest
import torch

from rlmix.classifier.errors import InputError
from rlmix.classifier.mixing import LamDistribution, MixPolicy, PolicySchedule
from rlmix.classifier.mixing.export import timm_arguments, torchvision_transforms

BOTH = MixPolicy({"clean": 0.5, "mixup": 0.1, "cutmix": 0.4}, lam=LamDistribution.parse("beta(0.3)"))
SMOOTHED = MixPolicy({"cutmix": 1.0}, label_smoothing=0.1)


def test_timms_mixup_takes_the_arguments_and_mixes_by_the_shares() -> None:
    timm = pytest.importorskip("timm.data")
    arguments = timm_arguments(PolicySchedule.fixed(BOTH), num_classes=4, epochs=9)
    assert arguments.pop("mixup_off_epoch") == 0
    mixup = timm.Mixup(**arguments)
    np.random.seed(0)  # noqa: NPY002, timm draws from it
    images, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
    kinds = {"clean": 0, "mixup": 0, "cutmix": 0}
    for _ in range(1000):
        shown, _ = mixup(images.clone(), labels)
        kept = (shown == images).float().mean().item()
        kinds["clean" if kept == 1 else "mixup" if kept == 0 else "cutmix"] += 1
    assert kinds["mixup"] == pytest.approx(100, abs=60) and kinds["cutmix"] == pytest.approx(400, abs=120)


def test_clean_training_at_the_end_is_timms_off_epoch() -> None:
    schedule = PolicySchedule(((0.9, SMOOTHED), (1.0, MixPolicy({"clean": 1.0}, label_smoothing=0.1))))
    found = timm_arguments(schedule, num_classes=10, epochs=300)
    assert (found["mixup_off_epoch"], found["cutmix_alpha"], found["mixup_alpha"]) == (270, 1.0, 0.0)
    assert (found["prob"], found["switch_prob"], found["label_smoothing"]) == (1.0, 1.0, 0.1)


def test_segments_of_one_policy_are_one() -> None:
    split = PolicySchedule(((0.15, BOTH), (0.9, BOTH), (1.0, BOTH)))
    whole = PolicySchedule.fixed(BOTH)
    assert timm_arguments(split, num_classes=4, epochs=9) == timm_arguments(whole, num_classes=4, epochs=9)
    assert [until for until, _ in torchvision_transforms(split, num_classes=4)] == [1.0]


def test_torchvisions_transforms_mix_by_the_shares() -> None:
    schedule = PolicySchedule(((0.5, BOTH), (1.0, MixPolicy({"clean": 1.0}))))
    (half, mixing), (end, clean) = torchvision_transforms(schedule, num_classes=4)
    assert (half, end) == (0.5, 1.0)
    images, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
    torch.manual_seed(0)
    shapes = [mixing(images, labels)[1].shape for _ in range(400)]
    assert shapes.count(labels.shape) == pytest.approx(200, abs=50), "a clean batch keeps its labels"
    assert torch.equal(clean(images, labels)[0], images)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (MixPolicy({"rmix": 1.0}), "got rmix"),
        (MixPolicy({"mixup": 1.0}, label_beta=0.5), "second head"),
        (MixPolicy({"mixup": 1.0}, lam=LamDistribution.parse("fixed(0.5)")), r"Beta\(α, α\)"),
    ],
)
def test_what_the_libraries_cannot_say_is_refused(policy: MixPolicy, message: str) -> None:
    with pytest.raises(InputError, match=message):
        timm_arguments(PolicySchedule.fixed(policy), num_classes=10, epochs=5)
    with pytest.raises(InputError, match=message):
        torchvision_transforms(PolicySchedule.fixed(policy), num_classes=10)


def test_a_policy_that_changes_is_refused_by_timm_and_smoothing_by_torchvision() -> None:
    changing = PolicySchedule(((0.5, BOTH), (1.0, SMOOTHED)))
    with pytest.raises(InputError, match="2 segments"):
        timm_arguments(changing, num_classes=10, epochs=5)
    with pytest.raises(InputError, match="keeps its label smoothing"):
        timm_arguments(PolicySchedule(((0.5, SMOOTHED), (1.0, MixPolicy({"clean": 1.0})))), num_classes=10, epochs=5)
    with pytest.raises(InputError, match="do not smooth"):
        torchvision_transforms(changing, num_classes=10)
