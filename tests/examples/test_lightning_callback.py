"""What Lightning's callback says of a module or a batch that it cannot use."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from rlmix import RLMix
from rlmix.classifier.errors import InputError

pl = pytest.importorskip("lightning.pytorch")


def fit(
    step: str = "itself",
    collate: Any = None,
    accumulate: int = 1,
    mix: RLMix | None = None,
    epochs: int = 1,
    **named: Any,
) -> Any:
    """Train two batches an epoch of a module whose `training_step` calls itself, or its network; return the trainer."""
    from rlmix.lightning import RLMixCallback

    class Module(pl.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

        def forward(self, images: Tensor) -> Tensor:
            return self.net(images)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return cross_entropy((self if step == "itself" else self.net)(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    torch.manual_seed(0)
    data = TensorDataset(torch.randn(8, 1, 4, 4), torch.arange(8) % 3)
    callback = RLMixCallback(mix or RLMix("mixup", num_classes=3), **named)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, callbacks=[callback], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accumulate_grad_batches=accumulate,
    )  # fmt: skip
    trainer.fit(Module(), DataLoader(data, batch_size=4, collate_fn=collate), DataLoader(data, batch_size=4))
    return trainer


def test_a_name_that_is_not_logged_is_told_with_those_that_are() -> None:
    with pytest.raises(InputError, match=r"val_acc.* not valid_accuracy"):
        fit(accuracy="valid_accuracy")
    fit(accuracy="val_acc")


def shipped(total_updates: int) -> RLMix:
    return RLMix(num_classes=3, total_updates=total_updates, train_size=8)


def test_a_step_that_goes_around_the_module_is_told_where_an_agent_looks() -> None:
    with pytest.warns(UserWarning, match="network='net'"):
        fit("its network", mix=shipped(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module="lightning|torch")
        fit("its network")


def test_a_network_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(InputError, match=r"'backbone' is no submodule of Module, which has: net$"):
        fit(network="backbone")


def test_another_length_than_the_trainers_is_told() -> None:
    for told in (5, 60):
        with pytest.warns(UserWarning, match=rf"makes 6 batches .* total_updates={told}; pass total_updates=6"):
            fit(mix=shipped(told), epochs=3, accuracy="val_acc")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(mix=shipped(6), epochs=3, accuracy="val_acc")
    assert not [entry for entry in said if "total_updates" in str(entry.message)]


def test_a_batch_that_is_no_pair_is_refused() -> None:
    with pytest.raises(InputError, match="got dict"):
        fit(collate=lambda items: {"images": torch.stack([image for image, _ in items])})


def test_its_checkpoint_is_read_without_unpickling(tmp_path: Path) -> None:
    """As torch 2.6 and Lightning 2.6 do: Lightning-AI/pytorch-lightning#20643."""
    trainer = fit(accuracy="val_acc")
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    (kept,) = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"].values()
    again = RLMix("mixup", num_classes=3)
    again.load_state_dict(kept)
    assert again.state_dict()["done"] == kept["done"] == 2


def test_accumulated_batches_are_each_mixed_and_counted() -> None:
    """Steps of the optimiser are fewer than batches (Lightning-AI/pytorch-lightning#21808); batches count."""
    trainer = fit(accumulate=2, accuracy="val_acc")
    (callback,) = (entry for entry in trainer.callbacks if hasattr(entry, "mix"))
    assert trainer.global_step == 1 and callback.mix.state_dict()["done"] == 2


def test_something_else_than_a_mixer_is_refused() -> None:
    from rlmix.lightning import RLMixCallback

    with pytest.raises(InputError, match="mix must be an RLMix, got 'mixup'"):
        RLMixCallback("mixup")  # type: ignore[arg-type]
