"""Final training under a learned policy: its source, a schedule or an agent, and distributed processes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rlmix.agent.any_agent import AnyAgent, load_agent
from rlmix.agent.budget import FIRST, counts_within
from rlmix.agent.decisions import PolicyFn, choose_by, segments_of
from rlmix.agent.experience import Experience, Scale
from rlmix.agent.files import NAMED, RULE, SHIPPED
from rlmix.agent.loop_policy import policies_of
from rlmix.agent.ray_env import WorkerResources
from rlmix.agent.rule import Rule, is_rule
from rlmix.agent.values import Forecaster
from rlmix.classifier.data import Splits
from rlmix.classifier.files import DamagedFileError
from rlmix.classifier.limits import usable_cores
from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.envs.observation import checks_labels
from rlmix.envs.segments import require_updates
from rlmix.experiments.runs.command import Call
from rlmix.experiments.runs.config import stored_config
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.folder import RunFolder, stop_file
from rlmix.experiments.search.cluster import ray_session, run_distributed
from rlmix.experiments.training.config import ReplayConfig
from rlmix.experiments.training.final_training import train_to_the_end
from rlmix.experiments.training.resolve import load_data

# Options that a resumed budget may be given anew, and their fields.
OF_WORKERS = {"--workers": "workers", "--backend": "backend", "--gpus-per-worker": "gpus_per_worker"}


def split_threads(config: ReplayConfig, candidates: int = 1) -> ReplayConfig:
    """Return the configuration with the threads divided among processes; distributed ones compile nothing.

    Args:
        config: options of the training.
        candidates: number of a budget's candidates that can train at the same time; more workers have nothing to do.

    Raises:
        RunError: the batch cannot be divided evenly, or an option is for one process alone.
    """
    config = replace(config, workers=min(config.workers, candidates))
    processes = max(config.workers, config.num_workers)
    if processes > 1 and not config.threads:
        config = replace(config, threads=max(usable_cores() // processes, 1))
    if config.num_workers == 1:
        if config.address is not None and config.backend != "ray":
            raise RunError("--address is for a Ray cluster: add --num-workers, or --backend ray with --budget")
        return config
    if config.train.batch_size % config.num_workers or config.train.batch_size < 2 * config.num_workers:
        raise RunError(
            f"--batch-size must be divisible by --num-workers {config.num_workers}, with at least 2 images each, "
            f"got {config.train.batch_size}"
        )
    if config.train.compile == "on":
        raise RunError("--compile on is for one process; leave it out with --num-workers")
    return replace(config, train=replace(config.train, compile="off"))


def with_workers_of(asked: ReplayConfig, stored: ReplayConfig, call: Call) -> ReplayConfig:
    """Return a stored configuration with what the command line says of workers: their number, place and GPUs.

    Results do not depend on them: each worker has as many threads as before.

    Raises:
        InputError: the run has no candidates that workers could train.
    """
    given = {field: getattr(asked, field) for option, field in OF_WORKERS.items() if call.value(option) is not None}
    if given.get("backend") == "local":
        given.setdefault("gpus_per_worker", 1.0)  # shares are Ray's
    return replace(stored, **given)


def resources_of(config: ReplayConfig) -> WorkerResources:
    """Return the resources of each process: a GPU, or of a budget's workers the share that is asked for."""
    return WorkerResources(config.threads, config.gpus_per_worker if config.train.device.startswith("cuda") else 0.0)


def ddp_worker(parameters: dict[str, str]) -> None:
    """Train in one of several distributed processes; the first one owns the run folder and reports.

    Args:
        parameters: `run`, the path of the run folder.
    """
    first = torch.distributed.get_rank() == 0
    path = Path(parameters["run"])
    run = RunFolder(path) if first else None
    config = stored_config(ReplayConfig, json.loads((path / "config.json").read_bytes())["config"])
    source = PolicySource.load(config, path)
    try:
        train_to_the_end(
            config,
            run,
            load_data(config),
            source.choose,
            source.segments,
            source.name,
            labels_checked=source.labels_checked,
            distributed=True,
        )
    except KeyboardInterrupt:  # saved; Ray would take the exception for a failure and restart
        return
    if first:
        stop_file(path).unlink(missing_ok=True)  # the request to stop came too late


def train_distributed(config: ReplayConfig, run: RunFolder, address: str | None) -> None:
    """Train in distributed processes through Ray Train.

    Args:
        config: with nothing left to `auto`.
        run: the run folder; the first process owns it from here on.
        address: address of the Ray cluster; optional, defaults to Ray started on this machine.
    """
    with ray_session(address):
        run.release()
        run_distributed(ddp_worker, run.path, config.num_workers, resources_of(config))


@dataclass(frozen=True)
class PolicySource:
    """Policy of a final training, loaded once.

    Attributes:
        policy: the schedule, or the agent or rule that chooses at every segment.
        name: its name in reports.
        forecaster: the agent's, or for a rule the shipped one, where there is a budget of several trainings; else None.
        experience: what the agent learned from; None of a schedule, of a resumed training, and where it is not known.
    """

    policy: PolicySchedule | AnyAgent
    name: str
    forecaster: Forecaster | None = None
    experience: Experience | None = None

    @classmethod
    def load(cls, config: ReplayConfig, run: Path | None) -> PolicySource:
        """Load the policy that the options name, or for a resumed training the copy in its run folder.

        Args:
            config: options of the training.
            run: run folder of the training to resume; None for a new one.

        Raises:
            RunError: neither or both of a schedule and an agent are given.
            PolicyError: the schedule or the rule cannot be used.
            DamagedFileError: the agent cannot be used.
        """
        if config.trainings > 1 and config.agent is None:
            raise RunError("--budget is for an agent: add --agent shipped")
        if config.policy is not None and config.agent is None:
            file = config.policy if run is None else run / "policy.json"
            if config.policy in NAMED or is_rule(file):
                raise RunError(f"--policy is for a schedule, got the agent or rule {config.policy}: give it by --agent")
            return cls(PolicySchedule.load(file), config.policy)
        if config.agent is not None and config.policy is None:
            place = config.agent if run is None else run
            agent, forecaster = load_agent(place), None
            kind = "rule" if isinstance(agent, Rule) else "agent"
            name = f"the shipped {kind}" if config.agent in (SHIPPED, RULE) else f"the {kind} of {config.agent}"
            if config.trainings > 1:
                # The agent's own, or for a rule the shipped one.
                beside = SHIPPED if run is None and isinstance(agent, Rule) else place
                try:
                    forecaster = Forecaster.load(beside)
                except DamagedFileError as error:
                    raise RunError(
                        f"--budget needs an agent with a forecaster, as --agent shipped is, or a rule: {error}"
                    ) from None
                if not forecaster.fits(agent):
                    rule = isinstance(agent, Rule)
                    advice = "with --budget a rule has those of --agent rule" if rule else "fit them together"
                    raise RunError(f"{place}: {kind} and forecaster have other menus or segments; {advice}")
            return cls(agent, name, forecaster, None if run is not None else Experience.load(config.agent))
        raise RunError("give either --policy FILE (a schedule) or --agent shipped (or rule, or a search's run folder)")

    @property
    def choose(self) -> PolicyFn:
        """Function that chooses the policy of each segment."""
        return choose_by(self.policy)

    @property
    def segments(self) -> Sequence[float]:
        """Progress at which each segment ends."""
        return segments_of(self.policy)

    @property
    def labels_checked(self) -> bool:
        """Return whether it sees signs of wrong training labels."""
        return isinstance(self.policy, AnyAgent) and checks_labels(self.policy.features)

    def require_updates(self, updates: int) -> None:
        """Check that a training is long enough for candidates to be compared after each segment.

        Raises:
            ValueError: it is too short.
        """
        if self.forecaster is not None:
            require_updates(self.forecaster.segments, updates, updates)

    def candidates(self, config: ReplayConfig) -> int:
        """Return the number of candidates of a budget that can train at the same time."""
        if self.forecaster is None:
            return 1
        if config.budget == "auto":
            return FIRST
        return counts_within(config.budget, self.forecaster.segments)[0]

    def remark(self, config: ReplayConfig, data: Splits) -> str | None:
        """Return a note where a training is far from all that the agent learned from; else None."""
        if self.experience is None:
            return None
        return self.experience.remark(Scale.of(data, config.train))

    def policies(self) -> list[MixPolicy]:
        """Return the policies of the schedule, or all that the agent or rule may choose."""
        return policies_of(self.policy)

    def save(self, run: Path) -> None:
        """Copy the policy into a run folder, so that the training can be resumed without the original."""
        self.policy.save(run if isinstance(self.policy, AnyAgent) else run / "policy.json")
        if self.forecaster is not None:
            self.forecaster.save(run)
