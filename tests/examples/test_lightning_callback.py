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
from rlmix.agent.ppo import new_policy, to_agent
from rlmix.classifier.errors import InputError
from rlmix.envs import Menu

pl = pytest.importorskip("lightning.pytorch")
MixedPrecision = pytest.importorskip("lightning.pytorch.plugins").MixedPrecision


def fit(
    step: str = "itself",
    collate: Any = None,
    accumulate: int = 1,
    mix: RLMix | None = None,
    epochs: int = 1,
    hooks: str = "",
    plugins: Any = None,
    **named: Any,
) -> Any:
    """Train two batches an epoch of a module whose `training_step` calls itself, or its network; return the trainer.

    Args:
        step: what `training_step` calls, `itself` or `its network`.
        collate: the loaders' `collate_fn`.
        accumulate: batches for each step of the optimiser.
        mix: the mixer; optional, defaults to mixup.
        epochs: number of epochs.
        hooks: whose `on_after_batch_transfer` doubles the images, e.g. `the module's`; `goes around` is a module that
            calls no hook. Images are in a data module where its name is among them.
        plugins: Lightning's.
        named: of the callback.
    """
    from rlmix.lightning import RLMixCallback

    def doubled(self: Any, batch: Any, dataloader_idx: int) -> Any:
        return [2 * batch[0], batch[1]]

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

    class Data(pl.LightningDataModule):  # type: ignore[name-defined,misc]
        def train_dataloader(self) -> Any:
            return loader

        def val_dataloader(self) -> Any:
            return val_loader

    for part, name in (Module, "the module's"), (Data, "the data's"):
        if name in hooks:
            part.on_after_batch_transfer = doubled
    if hooks == "goes around":
        Module._apply_batch_transfer_handler = lambda self, batch, device=None, dataloader_idx=0: batch
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(8, 1, 4, 4), torch.arange(8) % 3)
    loader, val_loader = DataLoader(data, batch_size=4, collate_fn=collate), DataLoader(data, batch_size=4)
    callback = RLMixCallback(mix or RLMix("mixup", num_classes=3), **named)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, callbacks=[callback], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accumulate_grad_batches=accumulate, plugins=plugins,
    )  # fmt: skip
    if "data" in hooks:
        trainer.fit(Module(), datamodule=Data())
    else:
        trainer.fit(Module(), loader, val_loader)
    return trainer


class Seen(RLMix):
    """A mixer that keeps the images that it is given."""

    def __init__(self) -> None:
        super().__init__("mixup", num_classes=3, share=1.0)
        self.seen: list[Tensor] = []

    def __call__(self, images: Tensor, labels: Tensor, model: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        self.seen.append(images)
        return super().__call__(images, labels, model)


@pytest.mark.parametrize("hooks", ["the module's", "the data's", "the module's and the data's", "none, but data"])
def test_batches_are_mixed_after_whichever_hook_lightning_calls(hooks: str) -> None:
    """And the hook is given back."""
    plain, mix = Seen(), Seen()
    fit(mix=plain)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer = fit(mix=mix, hooks=hooks)
    factor = 1 if "none" in hooks else 2
    assert len(mix.seen) == len(plain.seen) == 2
    assert all(torch.equal(one, factor * other) for one, other in zip(mix.seen, plain.seen, strict=True))
    assert mix.state_dict()["sums"]["counts"] == {"mixup": 2}
    for part in trainer.lightning_module, getattr(trainer, "datamodule", None):
        assert "on_after_batch_transfer" not in vars(part or trainer)
    told = [str(entry.message) for entry in said if "on_after_batch_transfer" in str(entry.message)]
    assert not told or hooks == "the module's and the data's", told


def test_a_trainer_that_calls_no_hook_is_told() -> None:
    with pytest.raises(InputError, match=r"no batch was mixed.* call the mixer in training_step"):
        fit(hooks="goes around")


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_agent_sees_the_gradient_of_the_steps_own_loss(accumulate: int, scaled: bool) -> None:
    """Not that of the loss which a scaler and the accumulated batches have multiplied."""
    menu = Menu((("clean", {"clean": 1.0}),), (None,), ((1.0, 0.0),), ("beta(1)",))
    torch.manual_seed(0)
    chooser = to_agent(new_policy(menu, [8]), menu, (0.5, 1.0), {})
    norms = []
    scaling = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**12))
    for together, plugins in (1, None), (accumulate, [scaling] if scaled else None):
        mix = RLMix(chooser, num_classes=3, total_updates=2, train_size=8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit(mix=mix, accumulate=together, plugins=plugins, accuracy="val_acc")
        # Of the first batch, after which the second segment begins: later weights are others.
        norms.append(mix.state_dict()["scheduler"]["state"]["stretch"]["gradient_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=0.02)


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
