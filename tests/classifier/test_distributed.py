"""Two processes that train one network: what one process does, up to rounding, where nothing depends on the slice."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing, nn

from rlmix.classifier.data import Splits, load_dataset, split
from rlmix.classifier.files import load_state, save_state
from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.trainer import Trainer

CLEAN = MixPolicy({"clean": 1.0})
MIXED = MixPolicy({"clean": 0.5, "rmix": 0.25, "cutmix": 0.25}, label_beta=0.5)
CONFIG = TrainConfig(
    model="tests.classifier.test_distributed:plain_network",
    updates=12,
    batch_size=20,
    lr=0.05,
    precision="fp32",
    device="cpu",
)
DROPPING = TrainConfig(**{**CONFIG.__dict__, "model": "tests.classifier.test_distributed:dropping_network"})


def plain_network(num_classes: int, in_channels: int) -> nn.Module:
    """Nothing in it depends on who else is in the batch."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, num_classes)
    )


def dropping_network(num_classes: int, in_channels: int) -> nn.Module:
    """Everything that lives on in a training: batch statistics and draws."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(128, num_classes),
    )


def digits() -> Splits:
    return split(load_dataset("digits"), validation_size=701).draw(100, data_seed=0)


def measured(trainer: Trainer, policy: MixPolicy, segments: int) -> dict[str, Any]:
    """Losses of segments of three updates, then what the network does and is."""
    losses = []
    for _ in range(segments):
        stats = trainer.train(policy, 3)
        losses += [part.loss for part in (stats.clean, stats.mixed) if part is not None]
    evaluation = trainer.evaluate("validation")
    return {
        "losses": losses,
        "evaluation": [evaluation.accuracy, evaluation.loss, evaluation.confidence, evaluation.calibration_error],
        "network": trainer.network_state(),
        "images": stats.images,
    }


def one_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    data = digits()
    save_state(folder / f"clean{rank}", measured(Trainer(CONFIG, data, seed=5, distributed=True), CLEAN, 4))
    trainer = Trainer(DROPPING, data, seed=5, distributed=True)
    trainer.train(MIXED, 1)
    kept = trainer.state_dict()  # at an update whose saliency waits to be used
    save_state(folder / f"kept{rank}", kept)
    straight = measured(trainer, MIXED, 3)
    trainer.load_state_dict(load_state(folder / f"kept{rank}"))
    save_state(folder / f"mixed{rank}", {"straight": straight, "resumed": measured(trainer, MIXED, 3)})
    assert trainer.last_mixed is not None
    save_state(folder / f"shape{rank}", {"images": list(trainer.last_mixed[0].shape)})
    with pytest.raises(ValueError, match="compile"):
        Trainer(TrainConfig(compile="on"), data, distributed=True)
    with pytest.raises(ValueError, match="batch_size must be divisible by 2 processes"):
        Trainer(TrainConfig(batch_size=25), data, distributed=True)
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left."""
    path = tmp_path_factory.mktemp("together")
    multiprocessing.spawn(one_of_two, (path,), nprocs=2)
    return path


def test_the_loss_curve_is_that_of_one_process_at_the_same_batch(folder: Path) -> None:
    alone = measured(Trainer(CONFIG, digits(), seed=5), CLEAN, 4)
    for rank in range(2):
        together = load_state(folder / f"clean{rank}")
        assert together["losses"] == pytest.approx(alone["losses"], rel=1e-4)
        assert together["evaluation"] == pytest.approx(alone["evaluation"], rel=1e-3, abs=2e-3)
        assert together["images"] == alone["images"]
        for name, tensor in alone["network"].items():
            torch.testing.assert_close(together["network"][name], tensor, rtol=1e-3, atol=1e-5)


def test_processes_agree_to_the_last_bit(folder: Path) -> None:
    one, other = (load_state(folder / f"mixed{rank}")["straight"] for rank in range(2))
    assert one["losses"] == other["losses"] and one["evaluation"] == other["evaluation"]
    assert all(torch.equal(one["network"][name], other["network"][name]) for name in one["network"])


def test_each_mixes_its_own_slice(folder: Path) -> None:
    assert [load_state(folder / f"shape{rank}")["images"][0] for rank in range(2)] == [10, 10]
    resting = [load_state(folder / "kept0")["processes"][rank]["resting"] for rank in range(2)]
    (one_update, one), (other_update, other) = (batches[0] for batches in resting)
    assert one_update == other_update and not torch.equal(one["index"], other["index"])


def test_a_resumed_training_is_one_never_stopped(folder: Path) -> None:
    for rank in range(2):
        kept = load_state(folder / f"mixed{rank}")
        assert kept["straight"]["losses"] == kept["resumed"]["losses"]
        for name, tensor in kept["straight"]["network"].items():
            assert torch.equal(kept["resumed"]["network"][name], tensor)


def test_a_state_of_another_number_of_processes_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="of 1 processes, got one of 2"):
        Trainer(DROPPING, digits()).load_state_dict(load_state(folder / "kept0"))
