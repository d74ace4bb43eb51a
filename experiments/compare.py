"""Compare ways to train over paired seeds: mean accuracy with intervals, and the difference to a baseline.

python experiments/compare.py --updates 10000 --seeds 5 --out experiments/results/methods
python experiments/compare.py --contestants rmix rmix-exact --baseline rmix-exact --updates 1000 --out runs/saliency
python experiments/compare.py --contestants plain cutmix --schedules learned=runs/agent-20260101-120000/policy.json
python experiments/compare.py --contestants plain cutmix --measures accuracy attacks corruptions localisation

All contestants (`experiments/comparison/contestants.py`, and schedules from files) train the same network for the same
number of updates. A seed draws training images, weights, data order and mixing draws for all of them, and a difference
is the mean of the paired differences. Accuracy is that of the development images, which neither training nor a search
has seen; the test set needs --test-set, and that it was read is written down. Trainings that have finished are not run
again: the same command goes on, and with more seeds, contestants or schedules it adds to what is there.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rlmix.classifier.files import LineLog, write_atomic
from rlmix.experiments.comparison.results import as_csv, compare, markdown, picture
from rlmix.experiments.comparison.runner import run_all
from rlmix.experiments.comparison.trainings import (
    TEST_READS,
    ComparisonConfig,
    asked_for,
    collected,
    open_log,
    resolve,
    train,
)
from rlmix.experiments.reports.charts import png
from rlmix.experiments.reports.pages import NAME, write_comparison_report
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import reject_incompatible
from rlmix.experiments.runs.machine import machine


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("compare", arguments) as call:
        call.resume = call.line
        config = call.parse(ComparisonConfig, __doc__)
        contestants = asked_for(config)
        setting, images = resolve(config, contestants.values())
        out = Path(config.out)
        count = min(config.measured_images or images, images)
        others = [collected(Path(folder), setting, contestants, config.measures, count) for folder in config.collect]
        log, finished = open_log(out, setting, contestants, config.measures, count)
        for job, run in (entry for other in others for entry in other.items()):
            if job not in finished and job[0] in contestants and job[1] < config.seeds:
                log.append(run)
                finished[job] = run
        # Seed by seed: whenever it is stopped, what is there is nearly paired.
        wanted = [(name, seed) for seed in range(config.seeds) for name in contestants]
        missing = [job for job in wanted if job not in finished]
        print(f"{len(wanted)} trainings, {len(wanted) - len(missing)} of them finished before", flush=True)
        if config.test_set and missing:
            LineLog(out / TEST_READS).append(
                {"at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "command": call.line, "images": images}
            )
        jobs = [functools.partial(train, name, contestants[name], seed, setting, config) for name, seed in missing]
        for done, run in enumerate(run_all(jobs, config.processes), start=len(wanted) - len(missing) + 1):
            log.append(run)
            finished[run["method"], run["seed"]] = run
            print(
                f"{done:>4} of {len(wanted)}  {run['method']:<16}  seed {run['seed']:<3}  "
                f"{100 * run['accuracy']:.2f} %  {run['seconds']:.1f} s",
                flush=True,
            )
        runs = {name: [finished[name, seed] for seed in range(config.seeds)] for name in contestants}
        with reject_incompatible(log.path):
            compared = compare(contestants, runs, config.baseline, images)
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
            ("results.png", png(picture(report))),
        ):
            write_atomic(out / name, content)
        write_comparison_report(out, report)
    print(f"\n{text}\nwritten: {out}/results.json, results.md, results.csv, results.png, {NAME}")


if __name__ == "__main__":
    main()
