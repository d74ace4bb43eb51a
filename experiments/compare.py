"""Compare ways to train over paired seeds: mean accuracy with intervals, and the difference to a baseline.

    python experiments/compare.py --updates 10000 --seeds 5 --out experiments/results/methods
    python experiments/compare.py --contestants rmix rmix-exact --baseline rmix-exact --updates 1000 --out runs/saliency
    python experiments/compare.py --contestants plain cutmix --schedules learned=runs/agent-20260101-120000/policy.json
    python experiments/compare.py --contestants plain cutmix --measures accuracy attacks corruptions localisation

All contestants (`experiments/comparison/contestants.py`, and schedules from files) train the same network for the same
number of updates. A seed draws training images, weights, data order and mixing draws for all of them, and a difference
is the mean of the paired differences. Accuracy is that of the development images, which neither training nor a search
has seen; the test set needs --test-set, and every reading is recorded. Finished trainings do not run again: the same
command resumes, and with more seeds, contestants or schedules it adds to what is there.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlmix.experiments.comparison.config import ComparisonConfig
from rlmix.experiments.runs.command import command


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("compare", arguments) as call:
        call.resume = call.line
        config = call.parse(ComparisonConfig, __doc__)

        from pathlib import Path

        from rlmix.experiments.comparison.comparison import compare, write_results
        from rlmix.experiments.comparison.results import markdown
        from rlmix.experiments.comparison.trainings import all_where_there_are_fewer
        from rlmix.experiments.reports import REPORT_FILE
        from rlmix.experiments.reports.comparison_page import write_comparison_report

        out = Path(config.out)
        if call.value("--train-size") is None:
            config = all_where_there_are_fewer(config)
        report = compare(config, call.line)
        written = write_results(out, report)
        write_comparison_report(out, report)
    print(f"\n{markdown(report)}\nwritten: {out}/{', '.join((*written, REPORT_FILE))}")


if __name__ == "__main__":
    main()
