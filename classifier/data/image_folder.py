"""A user's own folder of images, on disk or in a zip file: one sub-folder for each class, with or without parts."""

import os
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rlmix.classifier.data.archives import is_zip, list_folder, printable, same_name
from rlmix.classifier.data.dataset import Dataset
from rlmix.classifier.data.decoding import readable_endings
from rlmix.classifier.data.image_set import DataError
from rlmix.classifier.data.listing import Labelled, Listing, load_listing
from rlmix.classifier.errors import DataWarning

# Names of a data set's parts, in any case; also training_set, test-images, ...
PARTS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
PART_SUFFIX = re.compile(r"[ _-]?(set|data|images|split)$")

JUNK = ("thumbs.db", "desktop.ini")  # which Windows writes into folders of images

LAYOUT = "PATH/train/CLASS/*.jpg with PATH/test/CLASS/*.jpg (or val, or both), or PATH/CLASS/*.jpg alone"


def load_image_folder(path: str | Path, *, image_size: int | None = None, streamed: bool | None = None) -> Dataset:
    """Load a folder of images: PATH/train/CLASS/* with PATH/test/CLASS/* or val, or both, or PATH/CLASS/* alone.

    PATH may be a zip file, or a folder inside one; a zip file that holds one folder alone stands for it. Parts may be
    called `train` or `training`, `val`, `valid` or `validation`, `test` or `testing`, in any case, with `_set` or
    `_images` behind it. Beside a test part, the validation part gives the validation images; without one, it is the
    test set. Without either, a fixed stratified fifth is the test set.

    Classes are in alphabetical order and images are searched in sub-folders too, as by torchvision's `ImageFolder`;
    hidden files and folders are ignored, other files that are no images are counted in a warning. Links are followed,
    but no folder is searched twice. Held-out parts may lack classes, which a warning names, and may write their names
    in another case or Unicode form.

    Args:
        path: path of the folder or zip file.
        image_size: side in pixels; optional, defaults to the images' own if all have one size, else to the median
            shorter side but at most 64. With a warning, a median or an odd side is rounded down to a multiple of 4. The
            shorter side is resized to it, and the middle kept.
        streamed: whether images stay in their files; optional, defaults to whether they would take more than a quarter
            of the free memory.

    Raises:
        DataError: another layout, one class only, a class without an image, held-out images of an unknown class, a file
            that is no whole image, or a zip file that is damaged or holds paths that leave it.
    """
    return load_listing(list_images(path), image_size=image_size, streamed=streamed)


def list_images(path: str | Path) -> Listing:
    """List the images of a folder or zip file; see `load_image_folder`.

    Raises:
        DataError: the layout cannot be used.
    """
    name = str(Path(path).expanduser())
    root = _inside_zip(name) if is_zip(name) else name
    parts = _parts(root)
    classes = class_folders(parts["train"])
    if len(classes) < 2:
        raise DataError(
            f"{printable(parts['train'])}: expected a folder for each of 2 or more classes, got {classes or 'none'}; "
            f"{_hint(root)}lay the images out as {LAYOUT}"
        )
    if all(map(part_called, classes)):
        raise DataError(
            f"{printable(parts['train'])}: expected class folders, got {', '.join(map(printable, classes))}, which are "
            f"called like parts of a data set; lay the images out as {LAYOUT}"
        )
    passed_over: Counter[str] = Counter()
    train = Labelled(*image_files(parts["train"], classes, passed_over))
    held_out = {
        part: _held_out(parts[part], parts["train"], classes, passed_over)
        for part in ("validation", "test")
        if part in parts
    }
    if passed_over:
        counts = ", ".join(f"{count} {printable(ending)}" for ending, count in passed_over.most_common())
        warnings.warn(
            f"{printable(name)}: {passed_over.total()} files are no images that can be read here, and are passed over: "
            f"{counts:.300}; convert images to PNG or JPEG",
            DataWarning,
            stacklevel=3,
        )
    return Listing(
        printable(name),
        tuple(map(printable, classes)),
        train,
        held_out.get("test", held_out.get("validation")),
        held_out.get("validation") if "test" in held_out else None,
    )


def class_folders(folder: str | Path) -> list[str]:
    """Return the names of a folder's own folders in alphabetical order, without hidden ones.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        return list(list_folder(folder).folders)
    except OSError as error:
        raise DataError(
            f"{printable(folder)}: expected a folder with one folder for each class, got {error.strerror}; "
            f"check the path, and lay the images out as {LAYOUT}"
        ) from error


def image_files(
    folder: str | Path, classes: Sequence[str], passed_over: Counter[str] | None = None
) -> tuple[tuple[str, ...], Tensor]:
    """Return the image files of each class folder and below, in the order of torchvision's `ImageFolder`.

    Args:
        folder: the folder that holds the class folders.
        classes: names of the class folders.
        passed_over: counts, by ending, to which other files are added; optional.

    Returns:
        N paths and their labels `[N]`, int64.

    Raises:
        DataError: a class without an image, or a folder that cannot be read.
    """
    endings = readable_endings()
    roots = [os.path.join(folder, name) for name in classes]
    top = os.path.realpath(folder)
    # A link below a class may lead to a class, or to a folder that holds them all.
    seen = {top, *map(str, Path(top).parents), *map(os.path.realpath, roots)}
    paths: list[str] = []
    counts = []
    for root in roots:
        others: Counter[str] = Counter()
        found = _images_below(root, endings, seen, others)
        if not found:
            there = ", ".join(f"{count} {printable(ending)}" for ending, count in others.most_common(5))
            raise DataError(
                f"{printable(root)}: expected images of this class ({', '.join(endings)}), got {there or 'none'}; "
                f"{_hint(folder)}add some or remove the folder, and check the layout: {LAYOUT}"
            )
        paths += found
        counts.append(len(found))
        if passed_over is not None:
            passed_over.update(others)
    return tuple(paths), torch.repeat_interleave(torch.arange(len(classes)), torch.tensor(counts))


def part_called(name: str) -> str | None:
    """Return the part of a data set, a key of `PARTS`, that a folder's name stands for; None for other names."""
    base = PART_SUFFIX.sub("", name.casefold())
    return next((part for part, names in PARTS.items() if base in names), None)


def _parts(root: str) -> dict[str, str]:
    """Return the folders of a data set's parts; the training part is the whole folder where it has none."""
    names = class_folders(root)
    found: dict[str, str] = {}
    for name in names:
        part = part_called(name)
        if part is not None and part in found:
            raise DataError(
                f"{printable(root)}: expected one folder of {part} images, got {printable(found[part])} and "
                f"{printable(name)}; move one of them elsewhere, or put their images together"
            )
        if part is not None:
            found[part] = name
    others = [printable(name) for name in names if name not in found.values()]
    if (len(found) > 1 and "train" in found) or names == [found.get("train")]:
        if others:
            warnings.warn(
                f"{printable(root)}: {', '.join(others):.200} beside {', '.join(found.values())}: not used",
                DataWarning,
                stacklevel=4,
            )
        return {part: os.path.join(root, name) for part, name in found.items()}
    if "train" in found and not class_folders(os.path.join(root, found["train"])):
        return {"train": root}  # a class of trains
    if found:
        raise DataError(
            f"{printable(root)}: expected class folders, or a training part with a test or validation part, got "
            f"{', '.join(map(printable, names)):.200}: {', '.join(map(printable, found.values()))} is called like a "
            f"part; rename it if it is a class, or lay the images out as {LAYOUT}"
        )
    return {"train": root}


def _held_out(folder: str, train: str, classes: Sequence[str], passed_over: Counter[str]) -> Labelled:
    """Return the files of a held-out part, which may lack classes of the training part but not have others."""
    own = class_folders(folder)
    numbers = {name: number for number, name in enumerate(classes)}
    if len(read := {same_name(name): number for name, number in numbers.items()}) == len(classes):
        numbers = {**{name: read[same_name(name)] for name in own if same_name(name) in read}, **numbers}
    unknown = [name for name in own if name not in numbers]
    if unknown or not own:
        raise DataError(
            f"{printable(folder)}: expected the class folders of {printable(train)}, got "
            f"{', '.join(map(printable, unknown)) or 'none'}; rename or remove {'them' if unknown else 'the folder'}"
        )
    labels_of_own = torch.tensor([numbers[name] for name in own])
    if absent := [name for number, name in enumerate(classes) if number not in labels_of_own]:
        warnings.warn(
            f"{printable(folder)}: no images of {', '.join(map(printable, absent)):.200}; measures are of the other "
            "classes",
            DataWarning,
            stacklevel=4,
        )
    paths, labels = image_files(folder, own, passed_over)
    return Labelled(paths, labels_of_own[labels])


def _inside_zip(path: str) -> str:
    """Return the folder that a zip file holds alone, as when a folder was packed from outside, or the zip itself."""
    try:
        entries = list_folder(path)
        while len(entries.folders) == 1 and part_called(entries.folders[0]) is None:
            inner = f"{path}/{entries.folders[0]}"
            if not list_folder(inner).folders:
                break
            path, entries = inner, list_folder(inner)
    except OSError:
        pass  # told by `class_folders`
    return path


def _hint(folder: str | Path) -> str:
    """Return a question for the folder that was probably meant: one below, with several folders of its own."""
    for name in class_folders(folder):
        inner = os.path.join(folder, name)
        if len(class_folders(inner)) > 1:
            return f"did you mean {printable(inner)}? or "
    return ""


def _images_below(root: str, endings: tuple[str, ...], seen: set[str], others: Counter[str]) -> list[str]:
    """Return the image files of a class folder and below; add the folders to `seen`, and count other files."""
    found = []
    open_folders = [root]
    while open_folders:
        current = open_folders.pop()
        try:
            entries = list_folder(current)
        except OSError as error:
            raise DataError(
                f"{printable(current)}: expected a readable folder, got {error.strerror}; "
                "let this user read it, or remove it"
            ) from error
        for inner in (os.path.join(current, name) for name in entries.folders):
            real = os.path.realpath(inner)
            if real not in seen:
                seen.add(real)
                open_folders.append(inner)
        images = [name for name in entries.files if name.lower().endswith(endings)]
        rest = (name for name in entries.files if not name.lower().endswith(endings))
        others.update(_ending(name) for name in rest if name.lower() not in JUNK)
        found.append((current, images))
    return [os.path.join(current, name) for current, images in sorted(found) for name in images]


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "without an ending"
