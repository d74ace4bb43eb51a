"""Double DQN: the online network chooses the next action, the target network says what it is worth."""

import numpy as np
import torch
from stable_baselines3 import DQN
from torch.nn.functional import smooth_l1_loss


class DoubleDQN(DQN):
    """Stable-Baselines3's DQN with the targets of van Hasselt et al. (https://arxiv.org/abs/1509.06461)."""

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Make gradient steps on batches of the replay buffer."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        assert self.replay_buffer is not None
        losses = []
        for _ in range(gradient_steps):
            batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            with torch.no_grad():
                best = self.q_net(batch.next_observations).argmax(dim=1, keepdim=True)
                worth = self.q_net_target(batch.next_observations).gather(1, best)
                target = batch.rewards + (1 - batch.dones) * self.gamma * worth
            told = self.q_net(batch.observations).gather(1, batch.actions.long())
            loss = smooth_l1_loss(told, target)
            self.policy.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
            losses.append(loss.item())
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/loss", float(np.mean(losses)))
