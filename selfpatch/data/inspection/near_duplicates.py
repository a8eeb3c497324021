"""Groups of images that look alike, by their perceptual hashes."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int64, UInt64

# Bits of 64 in which pHash and dHash of the same picture may differ after resizing, compression or a change of light.
MAX_DISTANCE = 6
# Of MAX_DISTANCE + 1 parts of a hash at least one is equal.
_NUM_PARTS = MAX_DISTANCE + 1
# Images that share a part and would all be compared with each other; larger groups say nothing.
_MAX_SHARING = 20_000


def near_duplicates(hashes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Groups of two and more images whose hashes differ in at most MAX_DISTANCE bits each, by their indices."""
    if len(hashes) < 2:
        return []
    pairs = np.array(hashes, np.uint64)
    leader = np.arange(len(pairs))

    def root(index: int) -> int:
        while leader[index] != index:
            leader[index] = leader[leader[index]]
            index = int(leader[index])
        return index

    for one, other in _close_pairs(pairs):
        one, other = sorted((root(one), root(other)))
        leader[other] = one
    groups: dict[int, list[int]] = {}
    for index in np.flatnonzero(_differs(leader)):
        groups.setdefault(root(int(index)), []).append(int(index))
    return sorted(group for group in groups.values() if len(group) > 1)


def _differs(leader: Int64[np.ndarray, " n"]) -> np.ndarray:
    """True at images that lead a group or are led."""
    is_led = leader != np.arange(len(leader))
    is_led[leader[is_led]] = True
    return is_led


def _close_pairs(pairs: UInt64[np.ndarray, "n 2"]) -> Iterator[tuple[int, int]]:
    """Pairs of images, found by parts of pHash that they share; a pair may come more than once."""
    for shift, bits in _parts():
        keys = (pairs[:, 0] >> np.uint64(shift)) & np.uint64(2**bits - 1)
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.diff(keys[order], prepend=keys[order[0]] + np.uint64(1)))
        for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
            if 2 <= stop - start <= _MAX_SHARING:
                yield from _close_within(pairs, order[start:stop])


def _close_within(pairs: UInt64[np.ndarray, "n 2"], members: Int64[np.ndarray, " m"]) -> Iterator[tuple[int, int]]:
    for place in range(len(members) - 1):
        others = members[place + 1 :]
        distance = np.bitwise_count(pairs[members[place]] ^ pairs[others])  # [others, 2]
        for other in others[(distance <= MAX_DISTANCE).all(axis=1)]:
            yield int(members[place]), int(other)


def _parts() -> Iterator[tuple[int, int]]:
    """Shift and number of bits of each part of a hash of 64 bits."""
    bounds = [round(64 * part / _NUM_PARTS) for part in range(_NUM_PARTS + 1)]
    for start, stop in itertools.pairwise(bounds):
        yield start, stop - start
