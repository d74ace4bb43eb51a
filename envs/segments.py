"""Segments of a training: the progress at which each ends."""

from collections.abc import Sequence
from itertools import pairwise

from rlmix.classifier.errors import InputError


def segment_ends(segments: int | Sequence[float]) -> tuple[float, ...]:
    """Return the progress at which each segment ends.

    Args:
        segments: a number of equal segments, at least 1, or the ends themselves, rising in (0, 1] to 1.

    Raises:
        ValueError: neither.
    """
    if isinstance(segments, int):
        if segments < 1:
            raise InputError(f"segments must be at least 1, got {segments}")
        return tuple((index + 1) / segments for index in range(segments))
    try:
        ends = tuple(float(end) for end in segments)
    except OverflowError:
        ends = ()
    if not ends or ends[-1] != 1 or any(not low < high for low, high in zip((0.0, *ends), ends, strict=False)):
        raise InputError(f"segments must be a number, or ends that rise in (0, 1] to 1, got {segments!s:.200}")
    return ends


def segment_lengths(segments: Sequence[float]) -> list[float]:
    """Return the length of each segment, as a share of the training, from the progress at which each ends."""
    return [high - low for low, high in zip((0.0, *segments), segments, strict=False)]


def require_updates(segments: Sequence[float], fewest: int, most: int) -> None:
    """Raise if a training of `fewest` to `most` updates would have a segment without an update.

    Raises:
        ValueError: there is such a training.
    """
    shortest = min(segment_lengths(segments))
    for updates in range(fewest, int(min(most, 1 / shortest + 1)) + 1):  # beyond, every segment is above one update
        ends = [0, *(round(end * updates) for end in segments)]
        if any(low == high for low, high in pairwise(ends)):
            raise InputError(
                f"every segment needs an update: got {len(segments)} segments that end at the updates {ends[1:]} of a "
                f"training of {updates}; use fewer or longer segments, or longer trainings"
            )
