"""Search a mixing policy with PPO, then compare it with fixed policies.

The default is a problem on which the agent visibly learns in about ten minutes: 100 small Fashion-MNIST images, four
in ten with a wrong label. Trainings are timed first, and the search makes as many as fit; then the learned policy is
compared with plain training, CutMix on half the updates, the shipped agent and a random policy, over fresh seeds and
images. On a data set of your own no labels are changed (preset clean).

    python experiments/train_agent.py
    python experiments/train_agent.py --dataset path/to/folder --minutes 60 --episodes 0
    python experiments/train_agent.py --preset fashion
    python experiments/train_agent.py --resume runs/agent-20260101-120000
    python experiments/train_agent.py --backend ray --workers 8 --gpus-per-worker 0.25 --address auto

The per-batch agent of RL-Mix as published has a command of its own, train_rl_mix.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from rlmix.experiments.runs.command import Call, command, spelling
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.search.config import AGENT, SearchConfig, preset


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("train_agent", arguments) as call, ExitStack() as ray:
        config = parse(call)

        import torch

        from rlmix.experiments.reports import REPORT_FILE
        from rlmix.experiments.runs.config import stored_config
        from rlmix.experiments.runs.data_record import at_its_place, keep_to_data
        from rlmix.experiments.runs.folder import RunFolder
        from rlmix.experiments.search.cluster import check_capacity, ray_session, run_trial, worker_capacity
        from rlmix.experiments.search.plan import Search, load_splits, print_data, resolve, resolve_with_gpus
        from rlmix.experiments.search.replay_command import replay_command
        from rlmix.experiments.search.search import execute, search_trial
        from rlmix.experiments.search.selection import report

        torch.set_num_threads(1)  # the cores are the workers'
        if config.run.resume is not None:
            run, stored = RunFolder.open(config.run.resume, AGENT, trust=config.run.trust)
            call.warn_of_ignored()
            search = Search.from_config(at_its_place(stored_config(SearchConfig, stored), call))
            data = load_splits(search.config)
            if search.config.backend == "ray":
                ray.enter_context(ray_session(config.address or search.config.address))
                check_capacity(search.config.workers, search.share)
        else:
            if config.backend == "ray":
                share = Search.from_config(config).share
                ray.enter_context(ray_session(config.address))
                if not config.workers:
                    config = replace(config, workers=config.most_workers(max(worker_capacity(share), 1)))
                check_capacity(config.workers, share)
            search, data = resolve_with_gpus(config) if config.gpus_per_worker else resolve(config)
            run = RunFolder.create(config.run.out, AGENT)
            run.write_config(AGENT, asdict(search.config))
            print_data(data, search)
        call.resume = f"{call.command} {run.resume_options}"
        keep_to_data(run, data, search.config)
        print(f"run folder: {run.path}\nwatch: tensorboard --logdir {run.events}", flush=True)
        if search.config.backend == "ray":
            run.release()  # the trial's process owns it
            run_trial(search_trial, run.path, search.config.workers, search.share)
        else:
            execute(search, run)
        report(search, run)
        print(
            f"\nwritten: {run.path}/policy.json, agent.safetensors, summary.json, episodes.jsonl, {REPORT_FILE}\n"
            "next:\n"
            f"  tensorboard --logdir {run.events}\n"
            f"  {replay_command(run.path / 'policy.json', search.config)}"
        )


def parse(call: Call) -> SearchConfig:
    """Return the options of the command line, on top of the preset that it names.

    Raises:
        RunError: the preset is not known, or the command line is that of another command.
    """
    if call.value("--env") == "rl-mix":
        raise RunError(f"--env rl-mix is a command of its own now: {spelling('train_rl_mix')}")
    name = call.value("--preset") or ("default" if call.value("--dataset") is None else "clean")
    if (start := call.value("--start")) is None:
        return call.parse(SearchConfig, __doc__, default=preset(name))

    from rlmix.agent.files import NAMED
    from rlmix.experiments.search.plan import like_agent

    config = call.parse(SearchConfig, __doc__, default=like_agent(preset(name), start))
    return config if start in NAMED else replace(config, start=str(Path(start).resolve()))


if __name__ == "__main__":
    main()
