"""What `soak.py` does to the program on purpose: bad input, kills, writes that fail, and hundreds of episodes."""
