"""Agent of RL-Mix (arXiv 2212.04875): PPO that chooses R-Mix's thresholds while the classifier trains."""
