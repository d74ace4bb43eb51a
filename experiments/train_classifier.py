"""Train a classifier under one fixed mixing policy.

python experiments/train_classifier.py --method cutmix --clean-share 0.5
python experiments/train_classifier.py --method rmix --model preact_resnet18 --updates 20000
python experiments/train_classifier.py --method average --lam uniform --label-beta 0.5
python experiments/train_classifier.py --recipes
python experiments/train_classifier.py --recipe rmix-cifar100-preact_resnet18 --dry-run
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

import tyro

from agent.replay import follow
from classifier.data import DataError
from classifier.mixing import PolicySchedule
from experiments.dry_run import dry_run, stand_in
from experiments.final_training import draw_data, load_data, resolve, train_to_the_end
from experiments.presets import named
from experiments.recipes import RECIPES, ClassifierConfig, recipe_table
from experiments.run_folder import RunError, RunFolder, interrupt_on_sigterm, stored_config, user_errors

KIND = "classifier"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    interrupt_on_sigterm()
    with user_errors():
        config = parse(sys.argv[1:] if arguments is None else arguments)
        if config.recipes:
            print(recipe_table())
            return
        if config.dry_run:
            print(what_it_takes(config))
            return
        if config.resume is not None:
            run, stored = RunFolder.open(config.resume, KIND, trust=config.trust)
            config = stored_config(ClassifierConfig, stored)
            policy, data = config.policy(), load_data(config)
        else:
            policy, data = config.policy(), load_data(config)
            config = resolve(config, data, [policy])
            run = RunFolder.create(config.out, KIND)
            run.write_config(KIND, asdict(config))
    with user_errors(f"python experiments/train_classifier.py {run.go_on}"):
        print(f"run folder: {run.path}")
        train_to_the_end(config, run, data, follow(PolicySchedule.fixed(policy)), [1.0], str(policy))


def parse(arguments: Sequence[str]) -> ClassifierConfig:
    """The command line, on top of the recipe that it names.

    Raises:
        RunError: the recipe is not known.
    """
    name = named(arguments, "--recipe")
    if name is not None and name not in RECIPES:
        raise RunError(f"--recipe must be one of those that --recipes lists, got {name!r}")
    default = ClassifierConfig() if name is None else replace(RECIPES[name].config, recipe=name)
    return tyro.cli(ClassifierConfig, default=default, args=arguments, description=__doc__)


def what_it_takes(config: ClassifierConfig) -> str:
    """A dry run's report; where the data set cannot be had, random images of its published shape stand in.

    Raises:
        DataError: the data set cannot be had, and its shape is not known.
    """
    try:
        data = load_data(config)
    except DataError:
        dataset = stand_in(config.dataset, config.image_size)
        if dataset is None:
            raise
        data = draw_data(config, dataset)
    policy = config.policy()
    # Whether compiling pays takes minutes to find out: that is left to the training.
    resolved = resolve(replace(config, compile="off" if config.compile == "auto" else config.compile), data, [policy])
    report = dry_run(replace(resolved, compile=config.compile), data, policy)
    if config.recipe is None:
        return report
    recipe = RECIPES[config.recipe]
    return f"{report}\naims for    {recipe.aim}\nchecked     {recipe.verified}"


if __name__ == "__main__":
    main()
