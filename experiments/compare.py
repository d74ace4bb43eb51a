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

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rlmix.agent.plots import png
from rlmix.classifier.files import write_atomic
from rlmix.experiments.comparison.held_out import record_test_read
from rlmix.experiments.comparison.results import (
    as_csv,
    markdown,
    plot_comparison,
    summarise_comparison,
)
from rlmix.experiments.comparison.trainings import (
    ComparisonConfig,
    collect_trainings,
    open_log,
    resolve,
    select_contestants,
    train,
)
from rlmix.experiments.reports import REPORT_FILE
from rlmix.experiments.reports.comparison_page import write_comparison_report
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import reject_incompatible
from rlmix.experiments.runs.machine import machine


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("compare", arguments) as call:
        call.resume = call.line
        config = call.parse(ComparisonConfig, __doc__)
        contestants = select_contestants(config)
        setting, images = resolve(config, contestants.values())
        out = Path(config.out)
        count = min(config.measured_images or images, images)
        others = [
            collect_trainings(Path(folder), setting, contestants, config.measures, count) for folder in config.collect
        ]
        log = open_log(out, setting, contestants, config.measures, count)
        for key, run in (entry for other in others for entry in other.items()):
            if key not in log.finished and key[0] in contestants and key[1] < config.seeds:
                log.add(key, run)
        # Seed by seed, so that the trainings of an interrupted comparison are nearly paired.
        jobs = {
            (name, seed): functools.partial(train, name, contestant, seed, setting, config)
            for seed in range(config.seeds)
            for name, contestant in contestants.items()
        }
        if config.test_set and log.missing(jobs):
            record_test_read(out, call.line, images=images)
        log.run(
            jobs,
            processes=config.processes,
            describe=lambda run: (
                f"{run['method']:<16}  seed {run['seed']:<3}  {100 * run['accuracy']:.2f} %  {run['seconds']:.1f} s"
            ),
        )
        runs = {name: [log.finished[name, seed] for seed in range(config.seeds)] for name in contestants}
        with reject_incompatible(log.path):
            compared = summarise_comparison(contestants, runs, config.baseline, images)
        report = {
            "kind": "comparison",
            "command": call.line,
            "config": asdict(config),
            "setting": asdict(setting),
            "machine": machine(),
            "seeds": list(range(config.seeds)),
            "measured_images": count,
            **compared,
        }
        text = markdown(report)
        for name, content in (
            ("results.json", (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode()),
            ("results.md", text.encode()),
            ("results.csv", as_csv(report).encode()),
            ("results.png", png(plot_comparison(report))),
        ):
            write_atomic(out / name, content)
        write_comparison_report(out, report)
    print(f"\n{text}\nwritten: {out}/results.json, results.md, results.csv, results.png, {REPORT_FILE}")


if __name__ == "__main__":
    main()
