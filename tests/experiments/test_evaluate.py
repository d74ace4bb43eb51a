"""Evaluation of a finished training: the same figures as the training's own, the test set only when asked, refusals."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlmix.classifier.evaluation import localisation, measures
from rlmix.classifier.evaluation.measure import Chart, Measure
from rlmix.experiments import evaluate, report, train_classifier
from rlmix.experiments.comparison.held_out import TEST_READS
from rlmix.experiments.training import evaluation

Refused = Callable[[Callable[[Sequence[str]], Any], Sequence[object]], str]

DEVELOPMENT, TEST = 287, 359  # images of the digits
OPTIONS = (
    "--dataset digits --train-size 200 --updates 40 --batch-size 50 --lr 0.1 --evaluations 2 --threads 1 "
    "--precision fp32 --device cpu --method cutmix"
).split()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small training that has ended."""
    for name in ("torchmetrics", "torchattack", "pytorch_grad_cam"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("training") / "run"
    train_classifier.main([*OPTIONS, "--out", str(folder)])
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may write into."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def report_of(path: Path) -> Any:
    """JSON as others read it: without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_its_figures_are_those_of_the_training(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main(["--run", str(run), "--device", "cpu"])
    report, summary = report_of(run / "evaluation.json"), report_of(run / "summary.json")
    assert report["split"] == "development" and report["images"] == DEVELOPMENT == summary["development"]["images"]
    seen = report["accuracy"]
    assert seen["top1"] == pytest.approx(summary["development"]["accuracy"], abs=1e-6)
    assert seen["calibration"]["error"] == pytest.approx(summary["development"]["calibration_error"], abs=1e-5)
    assert sum(images for images, _, _ in seen["calibration"]["bins"]) == DEVELOPMENT
    assert seen["top1"] < seen["top5"] <= 1
    attacked = report["attacks"]["accuracy"]
    assert attacked["pgd"] <= attacked["fgsm"] < seen["top1"]
    corrupted = report["corruptions"]["accuracy"]
    assert all(len(row) == 5 and all(0 <= value <= 1 for value in row) for row in corrupted.values())
    assert report["corruptions"]["mean_accuracy"] == pytest.approx(sum(map(sum, corrupted.values())) / 25)
    assert 0 < report["embeddings"]["ratio"] < 1.5
    found = report["localisation"]
    assert found["images"] == DEVELOPMENT and report["left_out"] == {}
    assert found["top1"] <= found["known_class"] <= found["best_known_class"] and 0 < found["chance"] < 1
    out = capsys.readouterr().out
    for value in (seen["top1"], attacked["pgd"], report["corruptions"]["mean_accuracy"]):
        assert f" {100 * value:.2f}" in out
    assert not (run / TEST_READS).exists() and not (run / "evaluation_test.json").exists()


def test_the_test_set_is_read_when_asked_and_written_down(run: Path) -> None:
    before = {path.name for path in run.iterdir()}
    for _ in range(2):
        evaluate.main(["--run", str(run), "--measures", "accuracy", "--test-set", "--device", "cpu"])
    report, summary = report_of(run / "evaluation_test.json"), report_of(run / "summary.json")
    assert report["split"] == "test" and report["images"] == TEST
    assert report["accuracy"]["top1"] == pytest.approx(summary["test"]["accuracy"], abs=1e-6)
    reads = [json.loads(line) for line in (run / TEST_READS).read_text().splitlines()]
    assert len(reads) == 2 and all(read["images"] == TEST and "--test-set" in read["command"] for read in reads)
    assert {path.name for path in run.iterdir()} - before == {"evaluation_test.json", TEST_READS}


def test_the_first_images_and_chosen_measures(run: Path) -> None:
    for batch_size in (7, 500):
        options = f"--measures accuracy embeddings --images 60 --device cpu --batch-size {batch_size}"
        evaluate.main(["--run", str(run), *options.split()])
        report = report_of(run / "evaluation.json")
        assert report["images"] == report["accuracy"]["images"] == 60
        assert set(report["seconds"]) == {"accuracy", "embeddings"}
        assert not {"attacks", "corruptions"} & set(report)


def test_a_measure_that_is_added_to_the_registry_is_in_the_table_and_on_the_page(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    added = Measure(
        summary="number of parameters",
        run=lambda subject: {"parameters": sum(tensor.numel() for tensor in subject.network.parameters())},
        rows=lambda result: [("parameters, thousands", f"{result['parameters'] / 1000:.3f}")],
        charts=lambda result: [Chart("A chart of its own", {"a line": [(0.0, 1.0), (1.0, 2.0)]}, "x", "y")],
    )
    monkeypatch.setitem(measures.MEASURES, "size", added)
    evaluate.main(["--run", str(run), "--measures", "size", "--device", "cpu"])
    weights = load_file(run / "model.safetensors")
    names = [name for name in weights if "running" not in name and "num_batches" not in name]
    count = sum(weights[name].numel() for name in names)
    assert report_of(run / "evaluation.json")["size"] == {"parameters": count}
    assert f"parameters, thousands {count / 1000:.3f}" in " ".join(capsys.readouterr().out.split())
    report.main(["--run", str(run)])
    page = (run / "report.html").read_text()
    assert f"<td>{count / 1000:.3f}</td>" in page and "A chart of its own" in page


def test_boxes_of_a_folder_need_colour_squares_and_lenet_no_canvas(
    run: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--run", run, "--measures", "localisation", "--boxes", "CUB"]
    assert "square colour images, got one for 1 x 8 x 8" in refused(evaluate.main, arguments)
    assert "--boxes is for localisation" in refused(
        evaluate.main, ["--run", run, "--measures", "accuracy", *arguments[4:]]
    )

    def fail(*_: object, **__: object) -> None:
        raise ValueError("LeNet fails on such images")

    monkeypatch.setattr(localisation, "localise", fail)
    assert "LeNet fails" in refused(evaluate.main, arguments[:4])
    evaluate.main(["--run", str(run), "--images", "50", "--device", "cpu"])
    assert report_of(run / "evaluation.json")["left_out"] == {"localisation": "LeNet fails on such images"}
    assert "without localisation: LeNet fails" in capsys.readouterr().err


def test_the_training_is_left_as_it_was(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    state = torch.get_rng_state()
    evaluate.main(["--run", str(run), "--measures", "accuracy", "--device", "cpu"])
    assert all(path.read_bytes() == content for path, content in before.items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--measures", "taste"), "--measures must be among accuracy, attacks"),
        (("--images", "1"), "images must be at least 2"),
        (("--batch-size", "0"), "batch_size must be at least 1"),
        (("--device", "abacus"), "device must be auto"),
        (("--seed", str(2**32)), "seed must be below 2**32"),
    ],
)
def test_options_out_of_range(arguments: Sequence[str], named: str, run: Path, refused: Refused) -> None:
    assert named in refused(evaluate.main, ["--run", run, *arguments])


def test_a_folder_that_holds_no_finished_training(run: Path, tmp_path: Path, refused: Refused) -> None:
    assert "expected a run folder, got none" in refused(evaluate.main, ["--run", tmp_path / "nowhere"])
    weights = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(weights[:-100])
    assert "expected a trained network's weights" in refused(evaluate.main, ["--run", run])
    (run / "model.safetensors").unlink()
    assert "this training has not finished" in refused(evaluate.main, ["--run", run])
    value = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**value, "kind": "agent"}))
    assert "expected a run of train_classifier.py or replay_policy.py, got one of train_agent.py" in refused(
        evaluate.main, ["--run", run]
    )


def test_a_training_without_development_images(run: Path, refused: Refused) -> None:
    value = json.loads((run / "config.json").read_text())
    value["config"]["development_size"] = 0
    (run / "config.json").write_text(json.dumps(value))
    (run / "data.json").unlink()
    assert "kept no development images" in refused(evaluate.main, ["--run", run])


def test_a_missing_library_is_named(run: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattack", None)
    for named in ([], ["--measures", "accuracy", "attacks"]):
        with monkeypatch.context() as before:
            before.setattr(evaluation, "evaluate", None)  # said before anything is measured
            assert "pip install 'rl-mix[evaluation]'" in refused(evaluate.main, ["--run", run, *named])


def test_what_is_measured_does_not_depend_on_how_many_images_at_a_time(run: Path) -> None:
    found = []
    for size in ("1", "7", "500"):
        evaluate.main(
            ["--run", str(run), "--measures", "accuracy", "localisation", "--images", "20", "--batch-size", size]
        )
        found.append(report_of(run / "evaluation.json"))
    for told in found:
        assert told["accuracy"]["top1"] == found[-1]["accuracy"]["top1"]
        assert told["localisation"] == found[-1]["localisation"]
