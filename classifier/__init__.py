"""Classifiers: data, networks, mixing, training and evaluation; independent of reinforcement learning."""
