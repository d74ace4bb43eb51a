"""Image files and their classes in a table, as Kaggle's competitions give them: a `.csv` of file and label."""

import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from rlmix.classifier.data.archives import ZIP_ERRORS, is_file, list_folder, open_file, printable, same_name
from rlmix.classifier.data.dataset import Dataset
from rlmix.classifier.data.decoding import readable_endings
from rlmix.classifier.data.image_folder import part_called
from rlmix.classifier.data.image_set import DataError
from rlmix.classifier.data.listing import Labelled, Listing, load_listing

# Names of columns, in any case, where a table has more than two or names them at all
FILE_COLUMNS = (
    *("file", "filename", "file_name", "filepath", "filepaths", "path", "image", "image_path", "image_name"),
    *("image_id", "img", "id", "id_code", "name"),
)
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "category_id", "target", "diagnosis", "breed")
PART_COLUMNS = ("split", "part", "subset", "set", "data set", "dataset")

JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")  # one kind of file: tables and files may spell its ending differently

MAX_ROWS = 5_000_000
MAX_LINE = 10_000  # characters
DELIMITERS = ",;\t"

EXPECTED = "a file and its class in every line, such as cats/1.png,cat"
NUMBER = re.compile(r"\d{1,18}(\.0+)?")

Cells = list[str]


def load_csv(path: str | Path, *, image_size: int | None = None) -> Dataset:
    """Load the images that a table of file and class names.

    The first line may name the columns; with two columns it need not. Files are looked for beside the table, or in a
    folder beside it that is called like the table (`train` for `train.csv`), with `_images` behind it, or `images`; an
    ending may be left out, and a name may differ in case, Unicode form or as `.jpg` from `.jpeg`. Classes are names or
    numbers. A third column, `split`, may say train, val or test; without test images a fixed stratified fifth is the
    test set.

    Args:
        path: path of the table: UTF-8 text, separated by commas, semicolons or tabs.
        image_size: side of the images in pixels; see `load_image_folder`.

    Raises:
        DataError: a line that cannot be used, named by its number, a file that is not there or outside of the folder,
            or a file that is no whole image.
    """
    return load_listing(list_csv(path), image_size=image_size)


def list_csv(path: str | Path) -> Listing:
    """List the images of a table; see `load_csv`.

    Raises:
        DataError: a line cannot be used.
    """
    name = printable(path)
    rows = _rows(path)
    first = next(rows, None)
    second = next(rows, None)
    if first is None or second is None:
        raise DataError(f"{name}: expected {EXPECTED}, got {'no line' if first is None else 'one line'}")
    files = _Files(os.path.dirname(path), Path(path).stem)
    columns = _columns(name, first, second, files)
    paths: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    labels: dict[str, list[tuple[str, int]]] = {part: [] for part in paths}
    lines: dict[str, int] = {}
    for line, cells in chain([second] if columns.header else [first, second], rows):
        place = f"{name}, line {line}"
        if len(cells) != len(first[1]):
            raise DataError(f"{place}: expected {len(first[1])} columns, got {len(cells)}; quote cells with commas")
        label = cells[columns.label].strip()
        part = "train" if columns.part is None else part_called(cells[columns.part].strip())
        if not label or part is None:
            told = f"part {cells[columns.part or 0]!r:.80}" if label else "no class"
            raise DataError(f"{place}: expected a class, and a part that is train, val or test, got {told}")
        file = files.find(place, cells[columns.file].strip())
        if file in lines:
            raise DataError(
                f"{place}: expected every file once, got {printable(file)} again, after line {lines[file]}; "
                "remove one of the two"
            )
        if len(lines) == MAX_ROWS:
            raise DataError(f"{place}: expected at most {MAX_ROWS:,} images, got more; divide the table")
        lines[file] = line
        paths[part].append(file)
        labels[part].append((label, line))
    return _listing(name, paths, labels)


def _listing(name: str, paths: dict[str, list[str]], labels: dict[str, list[tuple[str, int]]]) -> Listing:
    """Number the classes, which are those of the training images: numbers by their value, names by the alphabet."""
    if all(NUMBER.fullmatch(label) for own in labels.values() for label, _ in own):
        labels = {part: [(str(int(float(label))), line) for label, line in own] for part, own in labels.items()}
        classes = sorted({label for label, _ in labels["train"]}, key=int)
    else:
        classes = sorted({label for label, _ in labels["train"]})
    if not 2 <= len(classes) < max(len(labels["train"]), 3):
        raise DataError(
            f"{name}: expected 2 or more classes that several images share, got {len(classes)} for "
            f"{len(labels['train'])} training images; check which column is the class"
        )
    numbers = {label: number for number, label in enumerate(classes)}
    parts = {}
    for part, own in labels.items():
        unknown = next(((label, line) for label, line in own if label not in numbers), None)
        if unknown is not None:
            raise DataError(
                f"{name}, line {unknown[1]}: expected a class of the training images, got {unknown[0]!r:.80}; "
                "correct the line or remove it"
            )
        if own:
            parts[part] = Labelled(tuple(paths[part]), torch.tensor([numbers[label] for label, _ in own]))
    return Listing(
        name,
        tuple(map(printable, classes)),
        parts["train"],
        parts.get("test", parts.get("validation")),
        parts.get("validation") if "test" in parts else None,
    )


@dataclass(frozen=True)
class _Columns:
    """Positions of the columns, and whether the first line names them."""

    header: bool
    file: int
    label: int
    part: int | None


class _Files:
    """Finds the files of a table; all of them lie in the place where the first one is found.

    Args:
        folder: the table's folder.
        stem: its name without the ending.
    """

    def __init__(self, folder: str, stem: str) -> None:
        self._folder = folder
        names = dict.fromkeys((stem, f"{stem}_images", re.split("[_.-]", stem)[0], "images", "train", "train_images"))
        self._places = ("", *names)
        self._endings = ("", *readable_endings())
        self._listed: dict[str, dict[str, list[str]]] = {}  # by folder and `same_name`: the names of its files

    def found(self, file: str) -> bool:
        """Return whether a cell names a file."""
        return self._inside(file) and self._candidate(file) is not None

    def find(self, place: str, file: str) -> str:
        """Return the path of a file; `place` says where in the table it is named.

        Raises:
            DataError: there is none, or it is outside of the table's folder.
        """
        if not self._inside(file):
            raise DataError(
                f"{place}: expected a path below {printable(self._folder or '.')}, got {printable(file)!r:.200}; write "
                "it from there, without a / in front and without .."
            )
        found = self._candidate(file)
        if found is None:
            raise DataError(
                f"{place}: expected an image file, got {printable(file)!r:.200}, which is not in "
                f"{printable(os.path.join(self._folder, self._places[0]) or '.')}; correct the line or remove it"
            )
        return found

    def _inside(self, file: str) -> bool:
        parts = file.replace("\\", "/").split("/")
        return bool(file) and parts[0] != "" and ".." not in parts and not parts[0].endswith(":") and "\0" not in file

    def _candidate(self, file: str) -> str | None:
        for place in self._places:
            for ending in self._endings:
                path = os.path.join(self._folder, place, file.replace("\\", "/") + ending)
                if is_file(path):
                    self._places = (place,)
                    self._endings = tuple(dict.fromkeys((ending, *self._endings)))  # likely that of the next one too
                    return path
        for place in self._places:
            alike = self._alike(os.path.join(self._folder, place, file.replace("\\", "/")))
            if alike is not None:
                self._places = (place,)
                return alike
        return None

    def _alike(self, path: str) -> str | None:
        """Return the one file whose name differs in case, Unicode form or the spelling of JPEG's ending."""
        folder, name = os.path.split(path)
        if folder not in self._listed:
            listed = self._listed[folder] = defaultdict(list)
            with suppress(OSError):
                for there in list_folder(folder).files:
                    listed[same_name(there)].append(there)
        stem, own = os.path.splitext(same_name(name))
        wanted = [stem + own + ending for ending in self._endings] + [stem + jpeg for jpeg in JPEG if own in JPEG]
        found = {there for key in wanted for there in self._listed[folder].get(key, ())}
        return os.path.join(folder, found.pop()) if len(found) == 1 else None


def _columns(name: str, first: tuple[int, Cells], second: tuple[int, Cells], files: _Files) -> _Columns:
    """Find the columns by their names or, of two, by which of them names a file."""
    names = [cell.strip().casefold() for cell in first[1]]
    file, label, part = (
        next((names.index(known) for known in columns if known in names), None)
        for columns in (FILE_COLUMNS, LABEL_COLUMNS, PART_COLUMNS)
    )
    if file is not None and label is not None:
        return _Columns(True, file, label, part)
    if len(names) != 2:
        raise DataError(
            f"{name}, line {first[0]}: expected two columns, file and class, or names of columns such as file, label "
            f"and split, got {first[1]!s:.200}; name the columns in the first line"
        )
    for column in (0, 1):
        if files.found(first[1][column]):
            return _Columns(False, column, 1 - column, None)
    turned = len(second[1]) == 2 and not files.found(second[1][0]) and files.found(second[1][1])
    return _Columns(True, int(turned), 1 - int(turned), None)


def _rows(path: str | Path) -> Iterator[tuple[int, Cells]]:
    """Yield the number and the cells of each line that is not empty."""
    name, line = printable(path), 0
    try:
        with open_file(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            start = text.readline(MAX_LINE)
            text.seek(0)
            reader = csv.reader(text, delimiter=max(DELIMITERS, key=start.count), strict=True)
            for cells in reader:
                line = reader.line_num
                if any(cell.strip() for cell in cells):
                    yield line, cells
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{name}, line {line + 1}: expected {EXPECTED}, as UTF-8 text, got {error!s:.200}") from error
    except (OSError, *ZIP_ERRORS) as error:
        raise DataError(f"{name}: expected a table of {EXPECTED}, got {error!s:.200}; check the path") from error
