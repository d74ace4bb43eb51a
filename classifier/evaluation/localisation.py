"""Weakly supervised localisation: does the evidence for a class lie where the object is?

A class activation map (Grad-CAM, https://arxiv.org/abs/1610.02391, by the library grad-cam) becomes a box: around the
largest connected part that reaches a share of the map's highest value, a fifth in Zhou et al. 2016
(https://arxiv.org/abs/1512.04150). The box is right where it overlaps the object's by one half or more.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlmix.classifier.data import ImageFiles, ImageSet
from rlmix.classifier.evaluation.boxes import BoxedImages, load_boxed_folder, on_canvas
from rlmix.classifier.evaluation.libraries import library
from rlmix.classifier.evaluation.measure import Column, Measure, NotMeasurable, Result, Subject, percent
from rlmix.classifier.evaluation.network import PixelNetwork

LIBRARY = "pytorch_grad_cam"
THRESHOLD = 0.2
THRESHOLDS = tuple(step / 20 for step in range(1, 20))
POOL = 500  # images that are put on canvases together, the first of which fragments are cut from
OVERLAP = 0.5  # intersection over union from which a box is right


@dataclass(frozen=True)
class Localisation:
    """Localisation of objects by class activation maps; shares of images in [0, 1].

    Attributes:
        known_class: boxes that are right, from the map of the true class, at a threshold of a fifth.
        top1: as `known_class`, and the predicted class is right.
        best_known_class: as `known_class` at the best of all thresholds, MaxBoxAcc of Choe et al. 2020
            (https://arxiv.org/abs/2001.07437): an upper bound, since the boxes choose the threshold.
        best_threshold: threshold of `best_known_class`.
        overlap: mean intersection over union of the boxes of `known_class`.
        accuracy: images whose predicted class is right.
        chance: boxes that are right if each has its object's size and lies anywhere in the image, equally likely.
        whole_image: boxes that are right if each is the whole image.
        images: number of images.
    """

    known_class: float
    top1: float
    best_known_class: float
    best_threshold: float
    overlap: float
    accuracy: float
    chance: float
    whole_image: float
    images: int


def localise(network: PixelNetwork, batches: Iterable[BoxedImages]) -> Localisation:
    """Localise objects by class activation maps.

    Args:
        network: network whose last feature map is an image.
        batches: images of one size, classes and boxes; at least one batch.

    Raises:
        ImportError: grad-cam is not installed.
        ValueError: the network does not take images of this size, or has no feature map.
    """
    parts, boxes, right_class = [], [], []
    size = (0, 0)
    for batch in batches:
        maps, answers = class_activation_maps(network, batch.images, batch.labels)
        parts.append(torch.stack([overlap(boxes_of_maps(maps, level), batch.boxes) for level in THRESHOLDS]))
        boxes.append(batch.boxes)
        right_class.append(answers == batch.labels)
        size = (batch.images.shape[2], batch.images.shape[3])
    overlaps = torch.cat(parts, dim=1)  # [thresholds, N]
    true_boxes, named = torch.cat(boxes), torch.cat(right_class)
    shares = (overlaps >= OVERLAP).double().mean(dim=1)
    usual, best = THRESHOLDS.index(THRESHOLD), int(shares.argmax())
    whole = torch.tensor((0, 0, *size)).expand_as(true_boxes)
    return Localisation(
        known_class=float(shares[usual]),
        top1=float(((overlaps[usual] >= OVERLAP) & named).double().mean()),
        best_known_class=float(shares[best]),
        best_threshold=THRESHOLDS[best],
        overlap=float(overlaps[usual].mean()),
        accuracy=float(named.double().mean()),
        chance=chance(true_boxes, size),
        whole_image=float((overlap(whole, true_boxes) >= OVERLAP).double().mean()),
        images=len(named),
    )


def class_activation_maps(network: PixelNetwork, images: Tensor, labels: Tensor) -> tuple[np.ndarray, Tensor]:
    """Return the Grad-CAM of each image's class in the network's last feature map, and the predicted classes.

    Args:
        network: network whose last feature map is an image.
        images: `[B, C, H, W]`, uint8.
        labels: `[B]`.

    Returns:
        Maps `[B, H, W]` from 0 to 1, and the classes of the largest logits `[B]`, both on the CPU.

    Raises:
        ImportError: grad-cam is not installed.
        ValueError: the network does not take images of this size, or has no feature map.
    """
    gradcam = library(LIBRARY, "localisation")
    device = network.mean.device
    # Parameters are constants, so that the image must require a gradient.
    pixels = (images.to(device) / 255).requires_grad_()
    cam = gradcam.GradCAM(network, [last_feature_map(network, pixels[:1])])
    targets = [gradcam.utils.model_targets.ClassifierOutputTarget(category) for category in labels.tolist()]
    try:
        maps = cam(pixels, targets)
    finally:
        cam.activations_and_grads.release()
    return maps, cam.outputs.detach().argmax(dim=1).cpu()


@torch.no_grad()
def last_feature_map(network: PixelNetwork, pixels: Tensor) -> nn.Module:
    """Return the network's last module whose output is `[B, C, H, W]` with more than one pixel per side.

    Args:
        network: the network.
        pixels: `[B, C, H, W]` in [0, 1].

    Raises:
        ValueError: it does not take images of this size, or has no such module: it is a transformer, for example.
    """
    seen: list[tuple[nn.Module, torch.Size]] = []

    def note(module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            seen.append((module, output.shape))

    hooks = [module.register_forward_hook(note) for module in network.model.modules()]
    name, size = type(network.model).__name__, " x ".join(map(str, pixels.shape[2:]))
    try:
        network(pixels)
    except Exception as error:  # whatever any network may raise at a size that it was not made for
        raise ValueError(
            f"localisation: expected a network that takes images of {size} pixels, got an error from {name} "
            f"({type(error).__name__}: {error}); use a network that averages over the image, or images of the size "
            "that it was trained on"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    maps = [place for place, (_, shape) in enumerate(seen) if len(shape) == 4 and min(shape[2:]) > 1]
    # A list of tokens after it: what the class is read from is no image.
    if not maps or any(len(shape) == 3 for _, shape in seen[maps[-1] :]):
        raise ValueError(
            f"localisation: expected a feature map before the last layer, got none in {name}; "
            "use a convolutional network"
        )
    return seen[maps[-1]][0]


def boxes_of_maps(maps: np.ndarray, threshold: float) -> Tensor:
    """Return the box around each map's largest 4-connected part of at least `threshold` of its highest value.

    Args:
        maps: `[N, H, W]`, from 0.
        threshold: in (0, 1].

    Returns:
        `[N, 4]`, float64: top, left, bottom and right; the whole image of a map that is 0 everywhere.
    """
    from scipy.ndimage import find_objects, label  # takes half a second, and most evaluations do without

    boxes = []
    for values in maps:
        parts, _ = label(values >= threshold * values.max())
        largest = int(np.bincount(parts.ravel())[1:].argmax())
        rows, columns = find_objects(parts)[largest]
        boxes.append((rows.start, columns.start, rows.stop, columns.stop))
    return torch.tensor(boxes, dtype=torch.float64)


def overlap(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the intersection over union of pairs of boxes.

    Args:
        boxes: `[N, 4]`: top, left, bottom and right.
        others: `[N, 4]`.

    Returns:
        `[N]` in [0, 1].
    """
    near, far = torch.maximum(boxes[:, :2], others[:, :2]), torch.minimum(boxes[:, 2:], others[:, 2:])
    common = (far - near).clamp(min=0).prod(dim=1)
    areas = [(sides[:, 2:] - sides[:, :2]).prod(dim=1) for sides in (boxes, others)]
    return common / (areas[0] + areas[1] - common)


def chance(boxes: Tensor, size: tuple[int, int]) -> float:
    """Return the share of right boxes, if each has its object's size and any whole-pixel place in the image.

    Args:
        boxes: `[N, 4]`: top, left, bottom and right.
        size: (H, W) of the images.
    """
    common = []
    for axis, length in enumerate(size):
        start, side = boxes[:, axis, None], (boxes[:, axis + 2] - boxes[:, axis])[:, None]
        place = torch.arange(length, dtype=torch.float64)
        shared = (side - (place - start).abs()).clamp(min=0)
        common.append(torch.where(place <= length - side, shared, torch.nan))  # NaN: it would leave the image
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    shares = []
    for down, across, whole in zip(*common, area, strict=True):
        both = down[~down.isnan(), None] * across[~across.isnan()]
        shares.append(float((both / (2 * whole - both) >= OVERLAP).double().mean()))
    return sum(shares) / len(shares)


def measure_localisation(subject: Subject) -> dict[str, Any]:
    """Measure localisation by class activation maps, on canvases or on a folder with boxes.

    Raises:
        NotMeasurable: the network does not take these images, or has no feature map.
    """
    channels, height, width = subject.part.image_shape
    if subject.boxes is not None:
        if channels != 3 or height != width:
            raise NotMeasurable(
                f"--boxes: expected a network for square colour images, got one for {channels} x {height} x {width}"
            )
        # Held-out images that are streamed are cut out of a somewhat larger square; so are these.
        shorter = round(height * 256 / 224) if isinstance(subject.part, ImageFiles) else height
        boxed = load_boxed_folder(subject.boxes, subject.class_names, size=height, shorter=shorter)
        batches = iter(boxed.split(subject.batch_size))
    else:
        batches = _canvases(subject)
    try:
        localised = localise(subject.network, batches)
    except ValueError as error:
        raise NotMeasurable(str(error)) from error
    return {**asdict(localised), "on": subject.boxes or "items on canvases with fragments of others"}


def _canvases(subject: Subject) -> Iterator[BoxedImages]:
    """Yield images on canvases, among fragments of the first of them; the same whatever the batch size."""
    pool: ImageSet | None = None
    generator = torch.Generator().manual_seed(subject.seed)
    for images, labels in replace(subject, batch_size=POOL).chunks():
        items = ImageSet(images.cpu(), labels.cpu())
        pool = items if pool is None else pool
        yield from on_canvas(items, pool, generator=generator).split(subject.batch_size)


def _rows(result: Result) -> list[tuple[str, str]]:
    best = f"localised, best threshold {result['best_threshold']:.2f}"
    return [
        ("localised, class known", percent(result["known_class"])),
        ("class right on these images", percent(result["accuracy"])),
        ("localised and class right", percent(result["top1"])),
        (best, percent(result["best_known_class"])),
        ("localised by chance / by the whole image", percent(result["chance"], result["whole_image"])),
    ]


LOCALISATION = Measure(
    summary="objects localised by class activation maps",
    run=measure_localisation,
    rows=_rows,
    columns={"localised": Column(lambda result: result["known_class"])},
    modules=(LIBRARY,),
)
