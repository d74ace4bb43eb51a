"""A training that an agent leads: the same as the environment's, to the last bit."""

from pathlib import Path

import pytest
import torch

from rlmix.agent.led import train_by_agent
from rlmix.classifier.data import load_dataset, split
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs import Task, TaskTrainer
from rlmix.envs.observation import DEFAULT_FEATURES
from rlmix.envs.seeds import training_seed
from tests.agent.loops import TRANSFER, agent, rule

LEADERS = {
    "first features": agent(3, features=DEFAULT_FEATURES),
    "transfer features": agent(3, features=TRANSFER),
    "a rule": rule("clean_excess_loss", 0.5),
    "a rule, answered otherwise": rule("clean_excess_loss", 3.5),
    "a rule about labels": rule("neighbours_differ", 0.01),
}


@pytest.mark.parametrize("name", LEADERS)
def test_an_agent_leads_a_training_as_in_the_environment(name: str) -> None:
    one, splits = LEADERS[name], split(load_dataset("digits"))
    config = TrainConfig(updates=30, batch_size=20, lr=0.1, precision="fp32", compile="off")
    task = Task(60, 30, label_noise=0.3, data_seed=5)
    played = TaskTrainer(splits=splits, training=config)
    actions = one.play(one.environment(played, task), task, seed=7)
    trainer = Trainer(config, splits.draw(60, data_seed=5, label_noise=0.3), seed=training_seed(7))
    stats, chosen = train_by_agent(trainer, one)
    assert [policy for _, policy in chosen.segments] == [one.menu.policy(action) for action in actions]
    assert len(set(actions)) > 1 and not stats.diverged and stats.images == 600
    theirs = played.trainer.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in trainer.model.state_dict().items())


def test_a_training_that_diverges_ends_there(tmp_path: Path) -> None:
    config = TrainConfig(updates=30, batch_size=20, lr=1e30, precision="fp32", compile="off")
    trainer = Trainer(config, split(load_dataset("digits")).draw(60, data_seed=5), seed=1)
    stats, chosen = train_by_agent(trainer, agent(3))
    assert stats.diverged and trainer.updates_done < 30 and len(chosen.segments) < 5
