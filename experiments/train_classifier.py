"""Train a classifier under one fixed mixing policy.

python experiments/train_classifier.py --method cutmix --clean-share 0.5
python experiments/train_classifier.py --method rmix --model preact_resnet18 --updates 20000
python experiments/train_classifier.py --method average --lam uniform --label-beta 0.5
python experiments/train_classifier.py --recipes
python experiments/train_classifier.py --recipe rmix-cifar100-preact_resnet18 --dry-run
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from rlmix.experiments.runs.command import Call, command
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.training.config import CLASSIFIER, ClassifierConfig
from rlmix.experiments.training.recipes import RECIPES, recipe_table


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("train_classifier", arguments) as call:
        config = parse(call)
        if config.recipes:
            print(recipe_table())
            return

        from rlmix.agent.decisions import from_schedule
        from rlmix.classifier.mixing import PolicySchedule
        from rlmix.experiments.runs.config import stored_config
        from rlmix.experiments.runs.data_record import at_its_place, keep_to_data
        from rlmix.experiments.runs.folder import RunFolder
        from rlmix.experiments.training.dry_run import what_it_takes
        from rlmix.experiments.training.final_training import train_to_the_end
        from rlmix.experiments.training.resolve import load_data, resolve

        if config.dry_run:
            print(what_it_takes(config))
            return
        if config.run.resume is not None:
            run, stored = RunFolder.open(config.run.resume, CLASSIFIER, trust=config.run.trust)
            call.warn_of_ignored()
            config = at_its_place(stored_config(ClassifierConfig, stored), call)
            policy, data = config.policy(), load_data(config)
        else:
            policy, data = config.policy(), load_data(config)
            config = resolve(config, data, [policy])
            run = RunFolder.create(config.run.out, CLASSIFIER)
            run.write_config(CLASSIFIER, asdict(config))
        call.resume = f"{call.command} {run.resume_options}"
        keep_to_data(run, data, config)
        print(f"run folder: {run.path}")
        train_to_the_end(config, run, data, from_schedule(PolicySchedule.fixed(policy)), [1.0], str(policy))


def parse(call: Call) -> ClassifierConfig:
    """Return the options of the command line, on top of the recipe that it names.

    Raises:
        RunError: the recipe is not known.
    """
    name = call.value("--recipe")
    if name is not None and name not in RECIPES:
        raise RunError(f"--recipe must be one of those that --recipes lists, got {name!r}")
    default = ClassifierConfig() if name is None else replace(RECIPES[name].config, recipe=name)
    return call.parse(ClassifierConfig, __doc__, default=default)


if __name__ == "__main__":
    main()
