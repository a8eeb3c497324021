"""The contract between images, wherever they lie, and those who read them: a folder is the first of several sources."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Real

from selfpatch.config import PixelFormat


@runtime_checkable
class ImageSource(Protocol):
    """Images in a fixed order, read by index from any thread or process."""

    @property
    def pixels(self) -> PixelFormat:
        """The format of every image that `read` returns."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> Real[np.ndarray, "_h _w _c"]:
        """The pixels, upright; raises UnreadableImage."""
        ...

    def name(self, index: int) -> str:
        """A name that no other image of the source has, safe in logs, tables and pictures; see `printable`."""
        ...

    def fingerprint(self) -> str:
        """Changes when images are added, removed, renamed or reordered."""
        ...

    def content_fingerprint(self) -> str:
        """Changes when the images are replaced by others under the same names; may look at some of them only."""
        ...
