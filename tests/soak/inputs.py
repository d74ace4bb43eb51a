"""Bad input: files of every kind that the program reads, made wrong by chance, and read as the program reads them.

The contract: a file is read, or refused by one of the project's own errors, within 10 seconds and without asking for
more than 1 GiB of memory. Input number n of a seed is always the same one.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import random
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.utils.tensorboard.writer import SummaryWriter
from tqdm import tqdm

from rlmix.agent.agent import Agent
from rlmix.agent.ppo import new_policy as new_agent_policy
from rlmix.agent.ppo import restore_search, search_state, start_search, to_agent
from rlmix.agent.rl_mix.agent import RLMixAgent
from rlmix.agent.rl_mix.networks import new_policy as new_threshold_policy
from rlmix.classifier.data import Splits, load_dataset, split
from rlmix.classifier.data.idx import FILES as IDX_FILES
from rlmix.classifier.data.idx import load_fashion_mnist
from rlmix.classifier.data.image_folder import load_image_folder
from rlmix.classifier.errors import InputError
from rlmix.classifier.evaluation import load_weights
from rlmix.classifier.files import STATE_VERSION, LineLog, load_state, save_state
from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.envs import Menu, MixPolicyEnv
from rlmix.experiments import replay_policy, report, train_agent, train_classifier, train_rl_mix
from rlmix.experiments.comparison import trainings
from rlmix.experiments.runs.config import stored_config
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.runs.folder import RunFolder, read_config
from rlmix.experiments.runs.options import TUNE, with_options
from rlmix.experiments.search import plan, selection, tuning
from rlmix.experiments.search.config import AGENT, SearchConfig, TuneConfig
from rlmix.experiments.training import rl_mix
from rlmix.experiments.training.config import CLASSIFIER, RL_MIX, ClassifierConfig, ReplayConfig, RLMixConfig
from rlmix.experiments.training.config import REPLAY as REPLAY_KIND
from rlmix.experiments.training.resolve import resolve
from tests.soak.images import make_npz, make_table, make_zip, mutate_npz, mutate_table, mutate_zip
from tests.soak.mutations import (
    Mutation,
    dump,
    mutate_bytes,
    mutate_json,
    mutate_lines,
    mutate_numbers,
    mutate_tensors,
    mutate_value,
)

Result = TypeVar("Result")

SECONDS = 10.0
MEMORY = 2**30  # bytes beyond what the process holds when it begins
CHUNK = 500  # inputs that a process is given at once
PART = 5000  # inputs whose counts are kept together
RESULTS = Path(__file__).parents[2] / "experiments" / "results"
MAIN: dict[str, Callable[[Sequence[str]], object]] = {
    "train_agent": train_agent.main,
    "train_rl_mix": train_rl_mix.main,
    "replay_policy": replay_policy.main,
    "train_classifier": train_classifier.main,
    "report": report.main,
}


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        make: writes whole files into an empty folder.
        mutations: of each file that is made wrong, by its path in the folder.
        read: reads the folder as the program does.
        weight: how often it is tried, against the others.
    """

    make: Callable[[Path], None]
    mutations: Mapping[str, Mutation]
    read: Callable[[Path], object]
    weight: int


class OutOfTime(BaseException):
    """An input took longer than it may; no `except` of the program's own takes it for something else."""


# What is read


def _schedule() -> PolicySchedule:
    half = MixPolicy({"clean": 0.5, "rmix": 0.25, "cutmix": 0.25}, threshold=0.3, label_smoothing=0.1)
    return PolicySchedule(((0.5, MixPolicy({"clean": 1.0})), (1.0, half)), {"learned_by": "ppo", "seeds": [1, 2]})


def _make_policy(folder: Path) -> None:
    _schedule().save(folder / "policy.json")


def _read_policy(folder: Path) -> None:
    schedule = PolicySchedule.load(folder / "policy.json")
    schedule.ends(100)
    _ = [str(policy) for _, policy in schedule.segments]
    schedule.save(folder / "again.json")
    assert PolicySchedule.load(folder / "again.json") == schedule


def _make_agent(folder: Path) -> None:
    to_agent(new_agent_policy(Menu(), [16]), Menu(), (0.5, 1.0), {"learned_by": "ppo"}).save(folder)


def _make_threshold_agent(folder: Path) -> None:
    RLMixAgent(new_threshold_policy("image", 4, 4, 3), "image", 4, 4, 3, "published", {"seed": 0}).save(folder)


SEARCH = with_options(
    SearchConfig(),
    dataset="digits",
    train_size=(100, 120),
    updates=(8, 10),
    validation_size=100,
    workers=2,
    device="cpu",
    precision="fp32",
    compile="off",
)
FINAL: dict[str, Any] = {
    "dataset": "digits",
    "train_size": 100,
    "updates": 40,
    "batch_size": 20,
    "threads": 1,
    "device": "cpu",
    "precision": "fp32",
    "compile": "off",
}


def _config(kind: str, config: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        value = {"kind": kind, "version": 1, "config": asdict(config), "machine": {"cores": 2}, "command": ["x.py"]}
        (folder / "config.json").write_text(json.dumps(value))

    return make


def _read_search_config(folder: Path) -> None:
    _, stored = read_config(str(folder), (AGENT,), trust=True)
    _ = plan.Search.from_config(stored_config(SearchConfig, stored)).share


def _read_tune_config(folder: Path) -> None:
    _, stored = read_config(str(folder), (TUNE,), trust=True)
    config = stored_config(TuneConfig, stored)
    tuning.check(config)
    plan.Search.from_config(config.agent)


@cache
def _digits() -> Splits:
    return split(load_dataset("digits"), validation_size=100)


def _read_classifier_config(folder: Path) -> None:
    _, stored = read_config(str(folder), (CLASSIFIER,), trust=True)
    config = stored_config(ClassifierConfig, stored)
    resolve(with_options(config, compile="off"), _digits(), [config.policy()])


def _read_replay_config(folder: Path) -> None:
    _, stored = read_config(str(folder), (REPLAY_KIND,), trust=True)
    resolve(with_options(stored_config(ReplayConfig, stored), compile="off"), _digits())


def _read_per_batch_config(folder: Path) -> None:
    _, stored = read_config(str(folder), (RL_MIX,), trust=True)
    rl_mix.resolve(with_options(stored_config(RLMixConfig, stored), compile="off"), _digits())


@cache
def _search() -> tuple[plan.Search, DummyVecEnv]:
    search = plan.Search.from_config(SEARCH)
    return search, DummyVecEnv([lambda: MixPolicyEnv(**search.environment(None))] * SEARCH.workers)


def _make_checkpoints(folder: Path) -> None:
    learner = plan.new_agent(*_search())
    start_search(learner, np.zeros((SEARCH.workers, *learner.observation_space.shape), dtype=np.float32))
    for parameter in learner.policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    learner.policy.optimizer.step()
    positions = [{"episode": 1, "actions": [[0, 1, 2, 0]]}, {"episode": 0, "actions": []}]
    state = {"search": search_state(learner), "positions": positions, "episodes_done": 2}
    save_state(folder / "checkpoint.safetensors", state)


def _reseal(content: bytes, draw: random.Random) -> bytes:
    """A checkpoint whose structure is changed and whose checksum is made to fit, as somebody would who means harm."""
    if draw.random() < 0.5:
        return mutate_tensors(content, draw)
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    structure = dump(mutate_value(json.loads(metadata["state"]), draw)).decode("utf-8", "replace")
    tensors = deserialise(content)
    digest = hashlib.sha256(structure.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    metadata = {"version": str(STATE_VERSION), "state": structure, "sha256": digest.hexdigest()}
    return serialise(tensors, metadata=metadata)


def _read_checkpoints(folder: Path) -> None:
    checkpoint = load_state(folder / "checkpoint.safetensors")
    search, workers = _search()
    with reject_incompatible(folder):
        search.positions_of(SEARCH, checkpoint)
        seen = np.zeros((SEARCH.workers, *(workers.observation_space.shape or ())), np.float32)
        restore_search(plan.new_agent(search, workers), checkpoint["search"], seen)


def _make_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(serialise({"a.weight": torch.zeros(4, 3), "a.bias": torch.zeros(4)}))


@dataclass(frozen=True)
class _FolderOnly:
    path: Path


def _make_log(folder: Path) -> None:
    log = LineLog(folder / "trainings.jsonl")
    for number in range(4):
        accuracy = {"validation": 0.5 + number / 10, "development": 0.5}
        log.append({"stage": "candidates", "number": number, "name": "greedy 1", "accuracy": accuracy})


def _read_log(folder: Path) -> None:
    log = LineLog(folder / "trainings.jsonl")
    entries = log.read()
    log.keep(len(entries))
    log.append({"stage": "candidates", "number": 4})
    assert len(LineLog(log.path).read()) == len(entries) + 1
    log.keep(len(entries))
    selection.Trainings(_FolderOnly(folder), None)  # type: ignore[arg-type]


def _make_comparison_log(folder: Path) -> None:
    lines = (RESULTS / "methods" / "runs.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "runs.jsonl").write_bytes(b"".join(lines[:8]))


@cache
def _comparison_setting() -> trainings.Setting:
    first = json.loads((RESULTS / "methods" / "runs.jsonl").read_text().splitlines()[0])
    return stored_config(trainings.Setting, first["setting"])


def _read_comparison_log(folder: Path) -> None:
    trainings.open_log(folder, _comparison_setting(), {"plain": trainings.CONTESTANTS["plain"]}, ["accuracy"], 10)


def _make_comparison(folder: Path) -> None:
    shutil.copy(RESULTS / "methods" / "results.json", folder)


def _read_report(folder: Path) -> None:
    _run_command(report.main, ["--run", str(folder)])


def _make_search_run(folder: Path) -> None:
    _make_agent(folder)
    _config(AGENT, SEARCH)(folder)
    log = LineLog(folder / "episodes.jsonl")
    for number in range(12):
        entry = {"worker": number % 2, "number": number, "seed": number, "task": {"updates": 8}}
        played = {"actions": [[number % 7, 1, 0, 2], [0, 0, 3, 1]], "rewards": [0.1, 0.2], "diverged": False}
        log.append({**entry, **played, "validation_accuracy": [0.3, 0.5]})
    row = {"accuracies": [0.5, 0.6], "mean": 0.55, "interval": 0.1}
    contest = {
        "learned": {**row, "learned_minus_this": 0.0, "difference_interval": None},
        "plain": {**row, "learned_minus_this": 0.01, "difference_interval": 0.02},
    }
    policy = PolicySchedule(_schedule().segments, {"candidate": "majority"}).to_json()
    candidates = {"majority": {**row, "policies": ["clean 100 %", "rmix 100 %"]}}
    timing = {"seconds_this_time": 1.0}
    summary = {"policy": policy, "candidates": candidates, "contest": contest, "timing": timing}
    (folder / "summary.json").write_text(json.dumps(summary))
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        writer.add_scalar("learning_curve/return_mean", 0.5, 1)
        writer.add_image("mixed_images", np.zeros((8, 8, 3), np.uint8), 1, dataformats="HWC")
    (events,) = (folder / "tensorboard").iterdir()
    events.rename(folder / "tensorboard" / "events.out.tfevents.0")


def _make_idx(folder: Path) -> None:
    pixels, labels = np.arange(40 * 16, dtype=np.uint32).astype(np.uint8), np.arange(40, dtype=np.uint8) % 10
    for part in ("train", "t10k"):
        header = np.array([0x0803, 40, 4, 4], dtype=">u4").tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = np.array([0x0801, 40], dtype=">u4").tobytes()
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + labels.tobytes(), mtime=0))


@cache
def _bomb() -> bytes:
    """Some MiB that unpack to 2 GiB of zeros."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    block = bytes(2**24)
    return b"".join(packer.compress(block) for _ in range(128)) + packer.flush()


def _mutate_packed(content: bytes, draw: random.Random) -> bytes:
    """A gzip file that is damaged, or whose content is, or that unpacks to 2 GiB."""
    kind = draw.random()
    if kind < 0.01:
        return _bomb()
    if kind < 0.5:
        return mutate_bytes(content, draw)
    return gzip.compress(mutate_numbers(gzip.decompress(content), draw), mtime=0)


def _make_images(folder: Path) -> None:
    for number, (name, ending) in enumerate((name, end) for name in ("cat", "dog") for end in ("png", "jpg", "bmp")):
        (folder / name).mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (12, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name / f"{number}.{ending}")
    Image.new("P", (12, 12)).save(folder / "cat" / "palette.png")
    Image.new("I;16", (12, 12)).save(folder / "dog" / "deep.png")


def _mutate_image(content: bytes, draw: random.Random) -> bytes:
    """An image file with damaged bytes, or a PNG file that claims another size (with a checksum that fits)."""
    if draw.random() < 0.7 or content[12:16] != b"IHDR":
        return mutate_bytes(content, draw)
    sizes = (0, 1, 13, 10_000, 16_000, 2**20, 2**31 - 1, 2**31, 2**32 - 1)
    size = b"".join(draw.choice(sizes).to_bytes(4, "big") for _ in range(2))
    header = b"IHDR" + size + content[24:29]
    return content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[33:]


# Files in the places of published data sets'; their content is not the published one, which their MD5 tells.


def _make_cifar(folder: Path) -> None:
    place = folder / "cifar-10-batches-py"
    place.mkdir()
    batch = pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]})
    for file in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (place / file).write_bytes(batch)
    (place / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b"]}))


def _make_svhn(folder: Path) -> None:
    from scipy.io import savemat

    for part in ("train", "test"):
        savemat(folder / f"{part}_32x32.mat", {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.ones((2, 1))})


# Command lines


class _Accepted(BaseException):
    """The command would begin: everything that it was asked is in order."""


def _accept(*_: object, **__: object) -> NoReturn:
    raise _Accepted


def _run_command(main: Callable[[Sequence[str]], object], arguments: Sequence[str]) -> None:
    """Run a command until it would make its folder.

    Raises:
        RunError: it refused, as a command does: status 2, and its own refusals in one line.
        AssertionError: it refused in another way.
    """
    err = io.StringIO()
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            main(arguments)
    except _Accepted:
        return
    except SystemExit as stopped:
        said = err.getvalue()
        if stopped.code in (0, None):  # --help
            return
        assert stopped.code == 2, f"exit status {stopped.code!r}, and on standard error: {said}"
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in said and (lines == said.splitlines()[-1:] or "--help" in said), said
        raise RunError(said) from stopped


TINY = "--dataset digits --batch-size 20 --device cpu --precision fp32 --compile off"
COMMANDS = {
    "train_agent": (
        f"{TINY} --updates 8 8 --train-size 100 100 --validation-size 100 --workers 2 --episodes 4 --seed 1 --tasks 2 "
        "--lr 0.1 --label-noise 0 0.1 --segments 0.5 1 --reward final --reference-seeds 1 --ppo.episodes-per-update 2 "
        "--ppo.minibatches 1 --ppo.hidden 8 --candidate-seeds 1 --contest-seeds 1 --out run"
    ),
    "train_rl_mix": (f"{TINY} --updates 8 --train-size 100 --ppo.extractor image --ppo.n-steps 10 --ppo.batch-size 5"),
    "replay_policy": (
        f"--policy policy.json {TINY} --updates 8 --train-size 100 --evaluations 2 --seed 1 --threads 1 --lr 0.1"
    ),
    "train_classifier": (
        f"{TINY} --updates 8 --method cutmix --clean-share 0.5 --lam beta(1) --label-beta 0.5 --label-smoothing 0.1 "
        "--threads 1 --epochs 1 --lr-schedule multistep --crop-padding 1 --image-size 8 --label-noise 0.1 "
        "--train-size 100 --seed 1"
    ),
    "report": "--run . --data-root .",
}
WORDS = (
    *("", "-1", "0", "1", "3", "0.5", "-0.5", "1e9", "1e308", "nan", "inf", "-inf", "9" * 30, "9" * 5000, "None"),
    *("True", "../../etc/passwd", "/dev/zero", "λ", "\ud800", "a" * 10_000, "<script>", "--", "-", "os:abort", ":"),
    *("digits", "cutmix", "--seed", "--unknown", "beta(nan)", "beta(1e400)", "uniform", "cuda", "cuda:99", "meta"),
    *("200", "1000", "100000", "1000000", "100000000000"),
)


def _make_command(folder: Path) -> None:
    _make_policy(folder)
    for name, line in COMMANDS.items():
        (folder / f"{name}.args").write_text(json.dumps(line.split()))


def _mutate_command(content: bytes, draw: random.Random) -> bytes:
    words = json.loads(content)
    for _ in range(draw.choice((1, 1, 2))):
        place = draw.randrange(len(words))
        match draw.randrange(8):
            case 0:
                del words[place]
            case 1:
                words.insert(place, draw.choice(WORDS))
            case 2:
                other = draw.randrange(len(words))
                words[place], words[other] = words[other], words[place]
            case _:
                values = [number for number, word in enumerate(words) if not word.startswith("--")]
                words[draw.choice(values) if values else place] = draw.choice(WORDS)
    return json.dumps(words).encode()


def _read_command(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        before = os.getcwd()
        os.chdir(folder)
        try:
            _run_command(MAIN[name], json.loads((folder / f"{name}.args").read_bytes()))
        finally:
            os.chdir(before)

    return read


AGENT_FILES: dict[str, Mutation] = {"agent.json": mutate_json, "agent.safetensors": mutate_tensors}
CONFIG: dict[str, Mutation] = {"config.json": mutate_json}
IMAGES = ("cat/0.png", "cat/1.jpg", "cat/2.bmp", "cat/palette.png", "dog/3.png", "dog/deep.png")
MANY = TuneConfig(agent=replace(SEARCH, backend="ray"))
REPLAY = with_options(ReplayConfig(), **FINAL, policy="policy.json")
KINDS: dict[str, Kind] = {
    "policy": Kind(_make_policy, {"policy.json": mutate_json}, _read_policy, 300),
    "agent": Kind(_make_agent, AGENT_FILES, lambda at: Agent.load(at), 100),
    "per-batch agent": Kind(_make_threshold_agent, AGENT_FILES, lambda at: RLMixAgent.load(at), 60),
    "checkpoint": Kind(_make_checkpoints, {"checkpoint.safetensors": _reseal}, _read_checkpoints, 120),
    "weights": Kind(
        _make_weights, {"model.safetensors": mutate_tensors}, lambda at: load_weights(at / "model.safetensors"), 40
    ),
    "config of a search": Kind(_config(AGENT, SEARCH), CONFIG, _read_search_config, 100),
    "config of many searches": Kind(_config(TUNE, MANY), CONFIG, _read_tune_config, 30),
    "config of a training": Kind(
        _config(CLASSIFIER, with_options(ClassifierConfig(), **FINAL)), CONFIG, _read_classifier_config, 15
    ),
    "config of a replay": Kind(_config(REPLAY_KIND, REPLAY), CONFIG, _read_replay_config, 15),
    "config of a per-batch agent": Kind(
        _config(RL_MIX, with_options(RLMixConfig(), **FINAL)), CONFIG, _read_per_batch_config, 5
    ),
    "log of trainings": Kind(_make_log, {"trainings.jsonl": mutate_lines}, _read_log, 80),
    "log of a comparison": Kind(_make_comparison_log, {"runs.jsonl": mutate_lines}, _read_comparison_log, 60),
    "results of a comparison": Kind(_make_comparison, {"results.json": mutate_json}, _read_report, 20),
    "run folder of a search": Kind(
        _make_search_run,
        {
            "config.json": mutate_json,
            "summary.json": mutate_json,
            "agent.json": mutate_json,
            "episodes.jsonl": mutate_lines,
            "tensorboard/events.out.tfevents.0": mutate_bytes,
        },
        _read_report,
        30,
    ),
    "IDX files": Kind(
        _make_idx,
        {
            **{file: mutate_numbers for file in IDX_FILES if "images" in file},
            **{f"{file}.gz": _mutate_packed for file in IDX_FILES if "labels" in file},
        },
        lambda at: load_fashion_mnist(at),
        60,
    ),
    "folder of images": Kind(
        _make_images, dict.fromkeys(IMAGES, _mutate_image), lambda at: load_image_folder(at, image_size=8), 40
    ),
    "zip file of images": Kind(
        make_zip, {"set.zip": mutate_zip}, lambda at: load_dataset(f"{at}/set.zip", image_size=8), 40
    ),
    "NumPy file of images": Kind(make_npz, {"set.npz": mutate_npz}, lambda at: load_dataset(f"{at}/set.npz"), 40),
    "table of images": Kind(
        make_table, {"set.csv": mutate_table}, lambda at: load_dataset(f"{at}/set.csv", image_size=8), 40
    ),
    "CIFAR-10 files": Kind(
        _make_cifar,
        {f"cifar-10-batches-py/{file}": mutate_bytes for file in ("data_batch_1", "test_batch", "batches.meta")},
        lambda at: load_dataset("cifar10", at),
        15,
    ),
    "SVHN files": Kind(
        _make_svhn,
        {"train_32x32.mat": mutate_bytes, "test_32x32.mat": mutate_bytes},
        lambda at: load_dataset("svhn", at),
        15,
    ),
    **{
        f"command line of {name}": Kind(_make_command, {f"{name}.args": _mutate_command}, _read_command(name), 2)
        for name in COMMANDS
    },
}


# Trying them


@dataclass(frozen=True)
class Outcome:
    """What became of one input.

    Attributes:
        kind: a key of `KINDS`.
        result: `read`, `refused`, or what went wrong.
        told: the error, where something went wrong.
    """

    kind: str
    result: str
    told: str = ""

    @property
    def kept(self) -> bool:
        """Whether the contract was kept."""
        return self.result in ("read", "refused")


class Workshop:
    """Makes whole files of every kind once, and wrong ones of them by number.

    Args:
        folder: an empty one of its own.
        seed: of all inputs.
        kinds: keys of `KINDS`; none = all.
    """

    def __init__(self, folder: Path, seed: int, kinds: Sequence[str] = ()) -> None:
        self._folder, self._seed = folder, seed
        self._kinds = tuple(kinds or KINDS)
        self._whole: dict[str, dict[str, bytes]] = {}

    def make(self, number: int, place: Path) -> str:
        """Write input `number` into an empty folder; gives its kind."""
        draw = random.Random(f"{self._seed} {number}")
        kind = draw.choices(self._kinds, [KINDS[name].weight for name in self._kinds])[0]
        if kind not in self._whole:
            own = Path(tempfile.mkdtemp(dir=self._folder))
            KINDS[kind].make(own)
            paths = [path for path in own.rglob("*") if path.is_file()]
            self._whole[kind] = {str(path.relative_to(own)): path.read_bytes() for path in paths}
        files = dict(self._whole[kind])
        wrong = draw.choice(list(KINDS[kind].mutations))
        files[wrong] = KINDS[kind].mutations[wrong](files[wrong], draw)
        for name, content in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        return kind

    def attempt(self, number: int) -> Outcome:
        """Make input `number` and read it."""
        place = Path(tempfile.mkdtemp(dir=self._folder))
        kind = self.make(number, place)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            KINDS[kind].read(place)
        except InputError as error:
            return Outcome(kind, "too much memory", _account()) if _wanted_memory(error) else Outcome(kind, "refused")
        except OutOfTime:
            return Outcome(kind, "too long", _account())
        except MemoryError:
            return Outcome(kind, "too much memory", _account())
        except Exception:
            return Outcome(kind, "another error", _account())
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            shutil.rmtree(place, ignore_errors=True)
        return Outcome(kind, "read")


def _account() -> str:
    told = traceback.format_exc(limit=-6)
    return told if len(told) < 3000 else f"{told[:1500]}\n...\n{told[-1500:]}"


def _wanted_memory(error: BaseException | None) -> bool:
    """Whether an allocation that failed is behind an error."""
    while error is not None:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _out_of_time(_number: int, _frame: FrameType | None) -> NoReturn:
    raise OutOfTime


def _prepare(folder: str) -> None:
    """Make this process one that cannot allocate much, downloads nothing, and ends where it hangs outside of Python."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["RLMIX_DATA"] = str(Path(folder) / "nothing")
    sys.argv[1:] = []
    RunFolder.create = _accept  # type: ignore[method-assign,assignment]
    _digits()
    _bomb()
    for kind in KINDS:  # what is imported when it is first needed is no allocation of an input's
        with contextlib.suppress(InputError), tempfile.TemporaryDirectory(dir=folder) as place:
            KINDS[kind].make(Path(place))
            KINDS[kind].read(Path(place))
    signal.signal(signal.SIGALRM, _out_of_time)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _attempt_all(folder: str, seed: int, numbers: Sequence[int], kinds: tuple[str, ...]) -> list[Outcome]:
    workshop, outcomes = _workshop(folder, seed, kinds), []
    for number in numbers:
        (Path(folder) / "number").write_text(str(number))
        faulthandler.dump_traceback_later(2 * SECONDS, exit=True)
        outcomes.append(workshop.attempt(number))
    faulthandler.cancel_dump_traceback_later()
    return outcomes


@cache
def _workshop(folder: str, seed: int, kinds: tuple[str, ...]) -> Workshop:
    return Workshop(Path(tempfile.mkdtemp(dir=folder)), seed, kinds)


def survey(count: int, seed: int = 0, kinds: Sequence[str] = (), *, first: int = 0) -> Iterator[tuple[int, Outcome]]:
    """Try inputs `first` to `first + count - 1` in a process of their own, and give each number with its outcome.

    Args:
        count: how many.
        seed: of all.
        kinds: keys of `KINDS`; none = all, by their weights.
        first: number of the first one.
    """
    context = multiprocessing.get_context("spawn")
    end = first + count
    with tempfile.TemporaryDirectory() as folder:

        def attempt(pool: ProcessPoolExecutor, numbers: range) -> Iterator[tuple[int, Outcome]]:
            outcomes = pool.submit(_attempt_all, folder, seed, numbers, tuple(kinds)).result()
            yield from zip(numbers, outcomes, strict=True)

        while first < end:
            try:
                with ProcessPoolExecutor(1, context, _prepare, (folder,)) as pool:
                    while first < end:
                        numbers = range(first, min(first + CHUNK, end))
                        yield from attempt(pool, numbers)
                        first = numbers.stop
            except BrokenProcessPool:
                # The one that ended the process is told; those of its chunk before it are tried again.
                ended = int((Path(folder) / "number").read_text())
                with ProcessPoolExecutor(1, context, _prepare, (folder,)) as again:
                    yield from attempt(again, range(first, ended))
                yield ended, Outcome("unknown", "the process ended")
                first = ended + 1


def tally(outcomes: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    """How many inputs of each kind were tried, and what became of them."""
    counts: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        counts.setdefault(outcome.kind, Counter(tried=0, read=0, refused=0)).update(("tried", outcome.result))
    return {kind: dict(counts[kind]) for kind in sorted(counts)}


def cut_policies() -> list[Outcome]:
    """Every cut of a policy file, from nothing to all but its last brace, none of which is a policy."""
    kind, outcomes = "policy, cut", []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        KINDS["policy"].make(place)
        whole = (place / "policy.json").read_bytes()
        for length in range(len(whole.rstrip())):
            (place / "policy.json").write_bytes(whole[:length])
            try:
                KINDS["policy"].read(place)
            except InputError:
                outcomes.append(Outcome(kind, "refused"))
            except Exception:
                outcomes.append(Outcome(kind, "another error", _account()))
            else:
                outcomes.append(Outcome(kind, "taken for a whole one", f"{length} of {len(whole)} bytes"))
    return outcomes


@dataclass(frozen=True)
class InputsSoak:
    """Read files and command lines that were made wrong."""

    count: int = 100_000
    """Inputs, besides every cut of a policy file."""
    first: int = 0
    """Number of the first one: a number and a seed are always the same input."""
    seed: int = 0
    """Of all inputs."""
    kinds: tuple[str, ...] = ()
    """Kinds of input, by the names in the result; none takes all, some more often."""
    processes: int = 2
    """Inputs at a time."""
    out: str | None = None
    """Folder of the result, and of inputs.jsonl, what was tried so far: the same command goes on."""

    def run(self) -> tuple[dict[str, Any], list[str]]:
        """Try them; gives the result, and what failed with the command that tries it alone.

        Raises:
            RunError: an option is out of range.
        """
        for kind in self.kinds:
            if kind not in KINDS:
                raise RunError(f"--kinds must be among {', '.join(KINDS)}, got {kind!r}")
        for name, least in (("count", 1), ("first", 0), ("processes", 1)):
            if getattr(self, name) < least:
                raise RunError(f"--{name} must be at least {least}, got {getattr(self, name)}")
        end = self.first + self.count
        parts = {(first, min(first + PART, end), self.seed, self.kinds): None for first in range(self.first, end, PART)}
        done: dict[tuple[Any, ...], dict[str, Any]] = {}
        log = None
        if self.out is not None:
            log = LineLog(Path(self.out) / "inputs.jsonl")
            lines = log.read()
            log.keep(len(lines))
            done = {(line["first"], line["end"], line["seed"], tuple(line["kinds"])): line for line in lines}
        left, stop = [part for part in parts if part not in done], Event()
        with (
            ThreadPoolExecutor(self.processes) as pool,
            tqdm(total=self.count, initial=PART * (len(parts) - len(left)), unit="input", mininterval=20) as bar,
        ):
            for line in _results(pool, [partial(self._part, stop, *part[:2]) for part in left], stop):
                done[line["first"], line["end"], self.seed, self.kinds] = line
                if log is not None:
                    log.append(line)
                bar.update(line["end"] - line["first"])
        lines = [{"counts": tally(cuts := cut_policies()), "failed": _failures(cuts)}, *(done[part] for part in parts)]
        counts: dict[str, Counter[str]] = {}
        for line in lines:
            for kind, row in line["counts"].items():
                counts.setdefault(kind, Counter(tried=0, read=0, refused=0)).update(row)
        total = {name: sum(row[name] for row in counts.values()) for name in ("tried", "read", "refused")}
        by_kind = {kind: dict(counts[kind]) for kind in sorted(counts)}
        return {"total": total, "kinds": by_kind}, [told for line in lines for told in line["failed"]]

    def _part(self, stop: Event, first: int, end: int) -> dict[str, Any]:
        outcomes = []
        for entry in survey(end - first, self.seed, self.kinds, first=first):
            if stop.is_set():
                raise KeyboardInterrupt
            outcomes.append(entry)
        kinds = f" --kinds {shlex.join(self.kinds)}" if self.kinds else ""
        failed = [
            f"{told}\nagain: python -m tests.soak inputs --first {number} --count 1 --seed {self.seed}{kinds}"
            for number, outcome in outcomes
            for told in _failures([outcome])
        ]
        return {
            "first": first,
            "end": end,
            "seed": self.seed,
            "kinds": self.kinds,
            "counts": tally([outcome for _, outcome in outcomes]),
            "failed": failed,
        }


def _results(pool: Executor, jobs: Sequence[Callable[[], Result]], stop: Event) -> Iterator[Result]:
    """Results as they come; what still runs is asked to stop when nobody waits for more."""
    try:
        for future in as_completed([pool.submit(job) for job in jobs]):
            yield future.result()
    except BaseException:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _failures(outcomes: Sequence[Outcome]) -> list[str]:
    return [f"{outcome.kind}: {outcome.result}\n{outcome.told}" for outcome in outcomes if not outcome.kept]
