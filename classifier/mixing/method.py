"""Declaration of a mixing method: its input, its options, and what it needs from a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from rlmix.classifier.mixing.draw import MixDraw

Mixed = tuple[Tensor, Tensor]  # mixed images and targets


@dataclass(frozen=True)
class MixInput:
    """A batch, and further inputs of methods.

    Attributes:
        images: `[B, C, H, W]`, normalised as the network sees them.
        targets: `[B, K]`, rows summing to 1.
        gradient: `[B, C, H, W]`, gradient of the loss at the images, for methods that need it.
        mean: `[C]`, mean of the colours in [0, 1] that the images were normalised by; for methods that read colours.
        std: `[C]`, standard deviation of these colours.
    """

    images: Tensor
    targets: Tensor
    gradient: Tensor | None = None
    mean: Tensor | None = None
    std: Tensor | None = None

    def input_gradient(self, method: str) -> Tensor:
        """Return the gradient, or raise a ValueError that names the method which needs it."""
        if self.gradient is None:
            raise ValueError(f"{method} needs the input gradient of the batch it mixes, got none; pass `gradient`")
        return self.gradient

    def colours(self, method: str) -> Tensor:
        """Return the images' colours in [0, 1], or raise a ValueError that names the method which needs them."""
        if self.mean is None or self.std is None:
            raise ValueError(f"{method} needs the mean and std of the images, got none; pass `mean` and `std`")
        return self.images * self.std[:, None, None] + self.mean[:, None, None]


@dataclass(frozen=True)
class MixSettings:
    """Settings of a policy for one method and one batch.

    Attributes:
        lam: mixing ratio λ of this batch, in [0, 1].
        threshold: R-Mix's saliency quantile in [0, 1), or None to take the drawn one of each image.
        options: value of every option that the method declares.
    """

    lam: float
    threshold: float | None
    options: Mapping[str, float]


@dataclass(frozen=True)
class Option:
    """A number that one method reads and policies may set.

    Attributes:
        default: value where a policy does not set it, in [low, high].
        low: lowest value.
        high: highest value.
        whole: whether only whole numbers are allowed.
    """

    default: float
    low: float
    high: float
    whole: bool = False

    def allows(self, value: float) -> bool:
        """Return whether a policy may set this option to `value`."""
        return self.low <= value <= self.high and (not self.whole or value == int(value))

    def __str__(self) -> str:
        return f"a {'whole ' if self.whole else ''}number in [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class Method:
    """A mixing method as policies name it.

    Attributes:
        mix: `(batch, settings, draw) -> (mixed_images, mixed_targets)`, changing nothing it is given.
        options: settings of the method's own, by name.
        needs_gradient: whether `mix` reads the input gradient of the batch.
        gradient_in_eval: whether that gradient, where it needs a pass of its own, is taken in evaluation mode, as in
            Puzzle Mix; R-Mix uses batch statistics.
        needs_threshold: whether `mix` reads R-Mix's threshold.
        needs_colours: whether `mix` reads the mean and standard deviation that the images were normalised by.
        stage: for methods that mix hidden states: a uniform draw to the stage, 0 the images themselves (which `mix`
            then has mixed), i the output of the network's stage i (which is left to the caller).
        library: imports what `mix` needs beyond this project's dependencies; raises ImportError where it is absent.
        fits: takes an image's height and width; raises ValueError where `mix` has no grid for such images.
    """

    mix: Callable[[MixInput, MixSettings, MixDraw], Mixed]
    options: Mapping[str, Option] = field(default_factory=dict)
    needs_gradient: bool = False
    gradient_in_eval: bool = False
    needs_threshold: bool = False
    needs_colours: bool = False
    stage: Callable[[float], int] | None = None
    library: Callable[[], object] | None = None
    fits: Callable[[int, int], object] | None = None
