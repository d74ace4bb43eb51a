"""What the documents say can be done: links lead to files, code runs, commands and their options exist."""

import importlib
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rlmix import MixPolicy, PolicySchedule

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        ROOT / "experiments/policies/README.md",
    ]
)
SCRIPT = re.compile(r"experiments/[a-z_/]+\.py")


def blocks(page: Path, language: str) -> list[str]:
    """The page's code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The words of the page's `python experiments/...` commands, without comments."""
    joined = "\n".join(blocks(page, "console")).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in joined.splitlines() if line.startswith("python experiments/")]


ALL_COMMANDS = [command for page in PAGES for command in commands(page)]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    # The site's own check does not see the pages outside of docs/ as they stand in the repository.
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert "://" in link or (page.parent / link).is_file(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_programs_exist(page: Path) -> None:
    text = page.read_text()
    for example in blocks(page, "python"):  # may show a program that a reader would add
        text = text.replace(example, "")
    for script in SCRIPT.findall(text):
        assert (ROOT / script).is_file(), script


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted({command[1] for command in ALL_COMMANDS}))
def test_options_in_commands_exist(script: str) -> None:
    done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    known = set(re.findall(r"--[a-z][a-z.-]+", done.stdout)) | {"--help"}
    used = {word for command in ALL_COMMANDS if command[1] == script for word in command if word.startswith("--")}
    assert used <= known


def test_the_readmes_training_loop_runs() -> None:
    loop = next(block for block in blocks(ROOT / "README.md", "python") if "mix_batch" in block)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
    batches = [(torch.randn(8, 3, 16, 16), torch.randint(10, (8,))) for _ in range(2)]
    names: dict[str, Any] = {"model": model, "loader": batches}
    exec(loop, names)  # the second update is R-Mix's
    assert names["method"] == "rmix"
    assert not torch.equal(names["images"], batches[1][0])
    assert torch.allclose(names["targets"].sum(1), torch.ones(8))


def test_the_readmes_replay_covers_every_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = (ROOT / "experiments/results/one_task/random/policy.json").read_bytes()
    (tmp_path / "policy.json").write_bytes(schedule)
    monkeypatch.chdir(tmp_path)
    loop = next(block for block in blocks(ROOT / "README.md", "python") if "PolicySchedule" in block)
    names: dict[str, Any] = {"seen": []}
    exec(loop.replace("...  #", "seen.append(update)  #"), names)
    assert names["seen"] == list(range(2000))


class Names(dict[str, Any]):
    """What the snippets of docs/own_loop.md take for granted: a network, images of three sizes of labels, options."""

    def __init__(self, folder: Path) -> None:
        generator = torch.Generator().manual_seed(0)
        images, labels = torch.randn(48, 1, 8, 8, generator=generator), torch.arange(48) % 10
        dataset = torch.utils.data.TensorDataset(images, labels)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))

        def predict(model: torch.nn.Module, shown: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return model(shown)

        super().__init__(
            dataset=dataset,
            val_dataset=dataset,
            loader=torch.utils.data.DataLoader(dataset, batch_size=16),
            val_loader=torch.utils.data.DataLoader(dataset, batch_size=48),
            network=network,
            torch=torch,
            optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
            predict=predict,
            val_images=images,
            val_labels=labels,
            epochs=2,
        )


SNIPPETS = {
    "plain": lambda code: "mix.save" in code,
    "timm": lambda code: "SoftTargetCrossEntropy" in code,
    "torchvision": lambda code: '"cutmix"' in code,
    "lightning": lambda code: "RLMixCallback" in code,
    "transformers": lambda code: "RLMixTrainer" in code,
    "accelerate": lambda code: "Accelerator" in code,
    "export": lambda code: "timm_arguments" in code,
}


@pytest.mark.parametrize("name", SNIPPETS)
def test_the_snippets_for_ones_own_loop_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in ("timm", "lightning", "transformers", "accelerate"):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    (code,) = filter(SNIPPETS[name], blocks(ROOT / "docs/own_loop.md", "python"))
    names = Names(tmp_path)
    if name == "lightning":
        names["module"] = importlib.import_module("lightning_loop").Classifier()
    if name == "transformers":
        example, transformers = importlib.import_module("huggingface_loop"), importlib.import_module("transformers")
        names |= {
            "hf_model": example.network(),
            "arguments": transformers.TrainingArguments(
                output_dir=str(tmp_path), num_train_epochs=2, per_device_train_batch_size=16, eval_strategy="epoch",
                report_to="none", use_cpu=True,
            ),
            "collate": example.collate,
            "compute_metrics": example.accuracy,
        }  # fmt: skip
    if name == "export":
        PolicySchedule.fixed(MixPolicy({"clean": 0.5, "cutmix": 0.5})).save(tmp_path / "policy.json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(code, names)
    if name == "export":
        return
    mix = names["mixup_fn" if name == "timm" else "mix"]
    assert sum(mix.state_dict()["sums"]["counts"].values()) > 0 or name == "torchvision", "the losses were noted"
    assert mix.state_dict()["done"] == 6 and mix.choices


@pytest.mark.slow
def test_the_readmes_agent_trains() -> None:
    names: dict[str, Any] = {}
    code = next(block for block in blocks(ROOT / "README.md", "python") if "stable_baselines3" in block)
    exec(code.replace("learn(64)", "learn(16)"), names)  # one update of the agent instead of four
    assert names["env"].unwrapped.spec.id == "MixPolicy-v0"


def test_versions_agree() -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert version is not None
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version[1]
    assert f"## [{version[1]}] - {citation['date-released']}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_workflow_runs_the_projects_own_check() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    job = workflow["jobs"]["check"]
    assert "bash .ci/run" in [step.get("run") for step in job["steps"]]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.13"]
