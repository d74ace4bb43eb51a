"""Who chooses: PPO, what it is compared with, its workers, and the schedules that its choices become."""
