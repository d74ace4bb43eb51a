"""What is trained: data, networks, mixing, trainer and measurements. Knows nothing of reinforcement learning."""
