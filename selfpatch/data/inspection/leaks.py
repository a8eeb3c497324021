"""Images to train on that are also in a labeled set, by their bytes or by their looks."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from selfpatch.data.inspection.inspect import Inspected
from selfpatch.data.inspection.near_duplicates import near_duplicates


class Leak(NamedTuple):
    """An image to train on that is one of the labeled images, or looks like it."""

    image: Inspected
    labeled: Inspected
    is_exact: bool


def find_leaks(images: Sequence[Inspected], labeled: Sequence[Inspected]) -> Iterator[Leak]:
    """Each of `images` that has the content of a labeled one, then each that looks like one."""
    by_digest = {image.digest: image for image in labeled if image.digest}
    rest = []
    for image in images:
        if image.digest in by_digest:
            yield Leak(image, by_digest[image.digest], is_exact=True)
        elif image.hashes is not None:
            rest.append(image)
    both = [*(image for image in labeled if image.hashes is not None), *rest]
    num_labeled = len(both) - len(rest)
    for group in near_duplicates([image.hashes for image in both if image.hashes is not None]):
        if group[0] < num_labeled:
            yield from (Leak(both[index], both[group[0]], is_exact=False) for index in group if index >= num_labeled)
