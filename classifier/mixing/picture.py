"""Pictures of mixed images with their targets."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

SIDE = 112  # pixels of one image in the picture
CAPTION = 30  # pixels of the two lines below it
COLUMNS = 8
MIN_SHARE = 0.005  # of a target; smaller ones would read 0 %


def shown_channels(images: Tensor) -> Tensor:
    """Return the channels of images `[..., C, H, W]` that a picture shows: the first three, or the first of fewer."""
    return images[..., : 3 if images.shape[-3] >= 3 else 1, :, :]


def blank_picture() -> NDArray[np.uint8]:
    """Return a white picture of the size of `mixed_picture`, for when there are no images yet."""
    return np.full((SIDE + CAPTION, COLUMNS * SIDE, 3), 255, dtype=np.uint8)


def mixed_picture(
    images: Tensor, targets: Tensor, *, class_names: Sequence[str], mean: Sequence[float], std: Sequence[float]
) -> NDArray[np.uint8]:
    """Draw the first images of a batch in a row, each with its two largest targets underneath.

    Args:
        images: `[B, C, H, W]`, normalised; of three channels or more the first three are shown, of two the first.
        targets: `[B, K]`, rows summing to 1.
        class_names: name of each class.
        mean: mean of each channel that the images were normalised by.
        std: standard deviation of each channel that the images were normalised by.

    Returns:
        `[142, 896, 3]` uint8; unused places are white.
    """
    canvas = Image.new("RGB", (COLUMNS * SIDE, SIDE + CAPTION), "white")
    draw = ImageDraw.Draw(canvas)
    pixels = images[:COLUMNS].float().cpu() * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    shown = shown_channels(pixels.clamp(0, 1)).expand(-1, 3, -1, -1)
    pixels = (shown * 255).round().byte().permute(0, 2, 3, 1)
    shares, classes = targets[:COLUMNS].float().cpu().topk(2, dim=1)
    for column, image in enumerate(pixels.numpy()):
        picture = Image.fromarray(np.ascontiguousarray(image)).resize((SIDE - 4, SIDE - 4), Image.Resampling.NEAREST)
        canvas.paste(picture, (column * SIDE + 2, 2))
        for line in range(2):
            share = float(shares[column, line])
            if share > MIN_SHARE:
                text = f"{100 * share:3.0f} % {class_names[int(classes[column, line])]}"
                draw.text((column * SIDE + 3, SIDE + 1 + 13 * line), text[:18], fill="black")
    return np.asarray(canvas)
