"""Tries for hours what the tests try for minutes: bad input, kills, writes that fail, and hundreds of episodes."""
