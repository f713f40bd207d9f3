"""What accuracy costs in time: the points that no other one beats in both."""

from collections.abc import Sequence


def frontier(accuracy: Sequence[float], seconds: Sequence[float]) -> list[bool]:
    """Whether no other point is at least as accurate in at most the time, and better in one of the two."""
    points = list(zip(accuracy, seconds, strict=True))
    beats = lambda one, other: one[0] >= other[0] and one[1] <= other[1] and one != other
    return [not any(beats(other, point) for other in points) for point in points]
