"""The agent that comes with the program: trained once, over a family of tasks, to be asked without any search."""

from pathlib import Path

SHIPPED = "shipped"
FOLDER = Path(__file__).parent / "policies" / SHIPPED


def agent_folder(name: str) -> Path:
    """Where the agent is that an option names: `shipped`, or the folder of another one."""
    return FOLDER if name == SHIPPED else Path(name)
