"""Agents: PPO over mixing policies, its workers, its baselines, and the schedules made from its choices."""
