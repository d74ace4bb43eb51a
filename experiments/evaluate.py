"""Measure what accuracy alone does not say of a trained network: calibration, robustness, embeddings, localisation.

    python experiments/evaluate.py --run runs/classifier-20260101-120000
    python experiments/evaluate.py --run runs/classifier-20260101-120000 --measures accuracy attacks --images 1000
    python experiments/evaluate.py --run runs/classifier-20260101-120000 --measures localisation --boxes CUB_200_2011
    python experiments/evaluate.py --run runs/classifier-20260101-120000 --test-set

On development images, which neither training nor a search has seen, in float32. The test set needs --test-set, and
every reading is recorded in the run folder. Attacks, calibration and class activation maps need
`pip install 'rl-mix[evaluation]'`.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlmix.experiments.runs.command import command
from rlmix.experiments.training.config import EvaluateConfig


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("evaluate", arguments) as call:
        call.resume = call.line
        config = call.parse(EvaluateConfig, __doc__)

        from rlmix.experiments.training.evaluation import evaluate, open_run, table, write_evaluation

        run = open_run(config)
        report = {"command": call.line, **evaluate(config, run, call.line)}
        path = write_evaluation(run, report)
    print(f"{table(report)}\nwritten: {path}")


if __name__ == "__main__":
    main()
