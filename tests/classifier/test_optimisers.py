"""Optimisers and learning-rate schedules beside SGD with OneCycle: AdamW, and a cosine with warm-up."""

import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlmix.classifier.data import Splits, load_dataset, split
from rlmix.classifier.errors import InputError
from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.trainer import Trainer

CONFIG = TrainConfig(
    updates=20,
    batch_size=20,
    lr=0.01,
    optimizer="adamw",
    weight_decay=0.1,
    lr_schedule="cosine",
    warmup=0.25,
    device="cpu",
    precision="fp32",
)
HALF = MixPolicy({"clean": 0.5, "cutmix": 0.5})


@pytest.fixture(scope="module")
def digits() -> Splits:
    return split(load_dataset("digits"), validation_size=100).draw(200, data_seed=0)


def rates(config: TrainConfig, data: Splits) -> list[float]:
    """The learning rate of each update of a training."""
    trainer = Trainer(config, data)
    found = []
    for _ in range(config.updates):
        found.append(trainer.optimizer.param_groups[-1]["lr"])
        trainer.train(HALF, 1)
    return found


def test_cosine_with_warm_up_is_the_closed_formula(digits: Splits) -> None:
    rise = [0.01 * (update + 1) / 6 for update in range(5)]
    fall = [0.01 * (1 + math.cos(math.pi * update / 15)) / 2 for update in range(15)]
    assert rates(CONFIG, digits) == pytest.approx(rise + fall, rel=1e-9)


def test_cosine_with_warm_up_is_timms(digits: Splits) -> None:
    scheduler = pytest.importorskip("timm.scheduler", reason="timm is not installed")
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    timms = scheduler.CosineLRScheduler(
        optimiser, t_initial=15, warmup_t=5, warmup_lr_init=0.01 / 6, warmup_prefix=True, t_in_epochs=False
    )
    expected = []
    for update in range(CONFIG.updates):
        timms.step_update(update)
        expected.append(optimiser.param_groups[0]["lr"])
    assert rates(CONFIG, digits) == pytest.approx(expected, rel=1e-9)


def test_adamw_decays_kernels_and_matrices_alone(digits: Splits) -> None:
    trainer = Trainer(CONFIG, digits)
    decayed = {id(p): group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]}
    names = dict(trainer.model.named_parameters())
    assert len(decayed) == len(names)
    for name, parameter in names.items():
        assert decayed[id(parameter)] == (0.1 if parameter.ndim > 1 else 0.0), name


def test_an_update_of_adamw_is_the_published_formula(digits: Splits) -> None:
    """One step from zero moments (arXiv 1711.05101, algorithm 2): bias correction makes both moments the gradient's."""
    trainer = Trainer(replace(CONFIG, warmup=0.0, lr_schedule="piecewise", lr_points=((0, 1), (1, 1))), digits)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    gradients: dict[str, Tensor] = {}
    for name, parameter in trainer.model.named_parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda p, name=name: gradients.__setitem__(name, p.grad.detach().clone())
        )
    trainer.train(MixPolicy({"clean": 1.0}), 1, probe=False)
    assert gradients
    for name, parameter in trainer.model.named_parameters():
        decay = 1 - 0.01 * (0.1 if parameter.ndim > 1 else 0.0)
        step = 0.01 * gradients[name] / (gradients[name].abs() + 1e-8)
        torch.testing.assert_close(parameter.detach(), before[name] * decay - step, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
def test_a_training_with_adamw_resumes_bit_for_bit(schedule: Any, digits: Splits) -> None:
    config = replace(CONFIG, lr_schedule=schedule)
    whole, first, second = (Trainer(config, digits) for _ in range(3))
    whole.train(HALF, 12)
    whole.train(HALF, 8)
    first.train(HALF, 12)
    second.load_state_dict(first.state_dict())
    second.train(HALF, 8)
    for name, tensor in whole.network_state().items():
        assert torch.equal(tensor, second.network_state()[name]), name


@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
def test_a_second_training_of_a_trainer_is_as_the_first(schedule: Any, digits: Splits) -> None:
    trainer = Trainer(replace(CONFIG, lr_schedule=schedule), digits)
    trainer.train(HALF, 20)
    first = {name: tensor.clone() for name, tensor in trainer.network_state().items()}
    trainer.reset(0)
    trainer.train(HALF, 20)
    for name, tensor in trainer.network_state().items():
        assert torch.equal(tensor, first[name]), name


def test_a_vision_transformer_of_timm_trains(digits: Splits) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    assert "test_vit" in timm.list_models("test_vit*")  # timm's smallest
    large = split(load_dataset("digits", image_size=32), validation_size=100).draw(200, data_seed=0)
    config = replace(CONFIG, model="timm/test_vit", updates=60, lr=0.003, weight_decay=0.05, warmup=0.1)
    trainer = Trainer(config, large)
    before = trainer.evaluate("validation")
    trainer.train(HALF, 60)
    after = trainer.evaluate("validation")
    assert after.loss < 0.8 * before.loss and after.accuracy > 0.3 > before.accuracy


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"optimizer": "adam"}, "optimizer must be one of sgd, adamw, got 'adam'"),
        ({"lr_schedule": "linear"}, "lr_schedule must be one of onecycle, multistep, piecewise, cosine, got 'linear'"),
        ({"warmup": 1.0}, r"warmup must be a share of the updates in \[0, 1\), got 1.0"),
        ({"warmup": -0.1}, "warmup"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        replace(CONFIG, **options)


def test_training_and_its_checkpoints_do_not_import_the_compiler() -> None:
    code = (
        "import sys\n"
        "from rlmix.classifier.data import load_dataset, split\n"
        "from rlmix.classifier.mixing import MixPolicy\n"
        "from rlmix.classifier.training.config import TrainConfig\n"
        "from rlmix.classifier.training.trainer import Trainer\n"
        "for optimizer in ('sgd', 'adamw'):\n"
        "    trainer = Trainer(TrainConfig(updates=2, optimizer=optimizer), split(load_dataset('digits')))\n"
        "    trainer.train(MixPolicy({'clean': 0.5, 'rmix': 0.5}), 2)\n"
        "    trainer.load_state_dict(trainer.state_dict())\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr
