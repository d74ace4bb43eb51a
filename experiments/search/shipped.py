"""The agent that comes with the program: trained once, over a family of tasks, to be asked without any search."""

import hashlib
from pathlib import Path

from rlmix.experiments.runs.errors import RunError

SHIPPED = "shipped"
FOLDER = Path(__file__).parents[1] / "policies" / SHIPPED


def agent_folder(name: str) -> Path:
    """Where the agent is that an option names: `shipped`, or the folder of another one."""
    return FOLDER if name == SHIPPED else Path(name)


def agent_checksum(folder: Path) -> str:
    """SHA-256 of an agent's files.

    Raises:
        RunError: there is no agent in the folder.
    """
    digest = hashlib.sha256()
    for name in ("agent.json", "agent.safetensors"):
        if not (folder / name).is_file():
            raise RunError(f"{folder}: no agent there; start from the folder that its name is relative to")
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()
