"""Train a classifier under one fixed mixing policy.

python experiments/train_classifier.py --method cutmix --clean-share 0.5
python experiments/train_classifier.py --method rmix --model preact_resnet18 --updates 20000
python experiments/train_classifier.py --method average --lam uniform --label-beta 0.5
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import tyro

from agent.replay import follow
from classifier.mixing import METHODS, LamDistribution, MixPolicy, PolicyError, PolicySchedule
from experiments.final_training import FinalConfig, load_data, resolve, train_to_the_end
from experiments.run_folder import RunFolder, interrupt_on_sigterm, stored_config, user_errors

KIND = "classifier"


@dataclass(frozen=True)
class ClassifierConfig(FinalConfig):
    """Train a classifier under one fixed mixing policy."""

    method: str = "cutmix"
    """Mixing method: clean, mixup, cutmix, average (LaMix) or rmix."""
    clean_share: float = 0.5
    """Share of the updates that is not mixed, in [0, 1]."""
    lam: str = "beta(1)"
    """Distribution of the mixing ratio: beta(A), uniform or fixed(V)."""
    threshold: float | None = None
    """R-Mix's saliency quantile in [0, 1); none draws one for each image."""
    label_beta: float = 1.0
    """LaMix's weight of the local label in [0, 1]; 1 is no global label."""
    label_smoothing: float = 0.0
    """Share of each target that is spread over all classes, in [0, 1]."""

    def policy(self) -> MixPolicy:
        """The policy that the options describe.

        Raises:
            PolicyError: an option is out of range.
        """
        if self.method not in METHODS:
            raise PolicyError(f"--method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if not 0 <= self.clean_share <= 1:
            raise PolicyError(f"--clean-share must be in [0, 1], got {self.clean_share:g}")
        shares = {"clean": 1.0}
        if self.method != "clean":
            shares = {"clean": self.clean_share, self.method: 1 - self.clean_share}
        return MixPolicy(
            shares,
            lam=LamDistribution.parse(self.lam),
            threshold=self.threshold,
            label_beta=self.label_beta,
            label_smoothing=self.label_smoothing,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    interrupt_on_sigterm()
    with user_errors():
        config = tyro.cli(ClassifierConfig, args=sys.argv[1:] if arguments is None else arguments, description=__doc__)
        if config.resume is not None:
            run, stored = RunFolder.open(config.resume, KIND)
            config = stored_config(ClassifierConfig, stored)
            policy, data = config.policy(), load_data(config)
        else:
            policy, data = config.policy(), load_data(config)
            config = resolve(config, data)
            run = RunFolder.create(config.out, KIND)
            run.write_config(KIND, asdict(config))
    with user_errors(f"python experiments/train_classifier.py --resume {run.path}"):
        print(f"run folder: {run.path}")
        train_to_the_end(config, run, data, follow(PolicySchedule.fixed(policy)), [1.0], str(policy))


if __name__ == "__main__":
    main()
