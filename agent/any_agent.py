"""Agents of both kinds, a network and a rule, by name or place."""

from __future__ import annotations

from pathlib import Path

from rlmix.agent.agent import Agent
from rlmix.agent.files import RULE_FILE, place_of
from rlmix.agent.rule import Rule

AnyAgent = Agent | Rule  # what is asked at segments


def load_agent(place: str | Path) -> AnyAgent:
    """Read an agent; no code is run.

    Args:
        place: name of an agent that comes with the program, folder of an agent or a rule, or a rule's file.

    Raises:
        DamagedFileError: there is no agent, or it cannot be used.
        PolicyError: a rule cannot be used.
    """
    named = place_of(place)
    if named.is_file() or (named / RULE_FILE).is_file():
        return Rule.load(named)
    return Agent.load(place)
