"""Findings of `selfpatch check`: counts over all images, likeness, outliers; as a table, as advice and as JSON."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from selfpatch.config import CropsConfig, RunConfig, rows_columns
from selfpatch.data.image_folder import plural
from selfpatch.data.inspection.inspect import ONE_COLOR, Inspected
from selfpatch.data.inspection.leaks import Leak, find_leaks
from selfpatch.data.inspection.near_duplicates import near_duplicates
from selfpatch.output.terminal import TextTable
from selfpatch.recipes import recommended_recipe

CROP = min(rows_columns(CropsConfig().global_size))  # of the recipes for real images
# Beyond the quartiles by so many times their distance: "far out" of Tukey's fences.
FAR_OUT = 3.0
# Fewer images have no outliers.
MIN_IMAGES = 20


@dataclass(frozen=True)
class Report:
    """Counts and findings of all images of a folder."""

    good: list[Inspected]
    bad: list[Inspected]
    copies: list[tuple[Inspected, Inspected]]  # a file, and an earlier one with the same content
    num_links: int  # links to folders, not followed
    left_out: Counter[str]  # files that are no images by their endings, by these
    notes: list[str]  # on both of them
    labeled: dict[str, list[Inspected]] = field(default_factory=dict)  # images of the labeled set, by split
    settings: list[str] = field(default_factory=list)  # what pretraining will derive from the images, or why it refuses

    @property
    def short_sides(self) -> np.ndarray:
        return np.array([min(image.size) for image in self.good] or [0])

    @property
    def small_fraction(self) -> float:
        return float((self.short_sides < CROP).mean())

    @property
    def formats(self) -> Counter[str]:
        return Counter(image.format for image in self.good)

    @property
    def kinds(self) -> Counter[str]:
        return Counter(image.kind for image in self.good)

    @property
    def channels(self) -> Counter[int]:
        return Counter(image.num_channels for image in self.good)

    @property
    def bit_depths(self) -> Counter[str]:
        return Counter(
            f"{image.num_bits} bits" + ("" if image.number == "unsigned" else f" ({image.number})")
            for image in self.good
        )

    @property
    def damage(self) -> Counter[str]:
        return Counter(image.damage for image in self.bad)

    @property
    def warned(self) -> list[Inspected]:
        return [image for image in self.good if image.warning]

    @cached_property
    def near(self) -> list[list[Inspected]]:
        """Groups of images that look alike; of exact copies only the first is in them."""
        copied = {id(copy) for copy, _ in self.copies}
        unlike = [image for image in self.good if image.hashes is not None and id(image) not in copied]
        groups = near_duplicates([image.hashes for image in unlike if image.hashes is not None])
        return [[unlike[index] for index in group] for group in groups]

    @cached_property
    def leaks(self) -> dict[str, list[Leak]]:
        """Images that are also in the labeled set, by split."""
        return {split: list(find_leaks(self.good, labeled)) for split, labeled in self.labeled.items()}

    @cached_property
    def normalization(self) -> tuple[list[float], list[float]] | None:
        """Mean and std per channel over the pixels of all images that have as many channels as most."""
        if not self.good:
            return None
        count, _ = Counter(len(image.mean) for image in self.good).most_common(1)[0]
        chosen = [image for image in self.good if len(image.mean) == count]
        weights = np.array([image.size[0] * image.size[1] for image in chosen], float)[:, None] / 1.0
        weights /= weights.sum()
        means, stds = (np.array([getattr(image, name) for image in chosen]) for name in ("mean", "std"))
        mean = (weights * means).sum(axis=0)
        variance = (weights * (stds**2 + (means - mean) ** 2)).sum(axis=0)
        return mean.round(5).tolist(), np.sqrt(variance).round(5).tolist()

    @cached_property
    def outliers(self) -> dict[str, list[Inspected]]:
        """Images far darker, brighter or more blurred than others, and those of one color."""
        one_color = [image for image in self.good if image.contrast < ONE_COLOR]
        others = [image for image in self.good if image.contrast >= ONE_COLOR]
        dark, bright = _far_out(others, [image.brightness for image in others])
        blurred, _ = _far_out(others, [image.sharpness for image in others])
        return {"dark": dark, "bright": bright, "blurred": blurred, "one color": one_color}

    def table(self, title: str) -> TextTable:
        table = TextTable("images", str(len(self.good)), title=title, title_justify="left")
        low, median, high = (f"{side:.0f}" for side in np.percentile(self.short_sides, (0, 50, 100)))
        table.add_row("formats", counted(self.formats))
        table.add_row("short side, px", f"{low} to {high}, median {median}")
        table.add_row("channels", counted(self.kinds))
        table.add_row("bit depth", counted(self.bit_depths))
        if self.normalization is not None:
            for name, numbers in zip(("mean", "std"), self.normalization, strict=True):
                table.add_row(f"{name} per channel", " ".join(f"{number:.4g}" for number in numbers))
        table.add_row(f"smaller than {CROP} px", f"{self.small_fraction:.0%}")
        table.add_row("unreadable", f"{len(self.bad)}" + (f" ({counted(self.damage)})" if self.bad else ""))
        table.add_row("read with a warning", str(len(self.warned)))
        table.add_row("exact copies", str(len(self.copies)))
        table.add_row("look alike", f"{sum(map(len, self.near))} in {plural(len(self.near), 'group', 'groups')}")
        for kind, images in self.outliers.items():
            table.add_row({"dark": "far darker", "bright": "far brighter"}.get(kind, kind), str(len(images)))
        for split, leaks in self.leaks.items():
            exact = sum(leak.is_exact for leak in leaks)
            table.add_row(f"in the labeled set, {split}", f"{exact} the same, {len(leaks) - exact} alike")
        table.add_row("other files, left out", str(self.left_out.total()))
        return table

    def advice(self, images: str) -> Iterator[str]:
        """Advice for a training run on `images`, most urgent first."""
        num_images = len(self.good) + len(self.bad)
        # 1. What cannot be read, counts twice, or leaks.
        if self.bad:
            shown = "; ".join(f"{image.name}: {image.problem}" for image in self.bad[:3])
            yield (
                f"{len(self.bad)} of {num_images} files cannot be read ({shown}): fix or remove them. Training "
                f"puts other images in their places, and stops above {RunConfig().max_bad_fraction:.0%}; "
                "--out FILE lists all"
            )
        for split, leaks in self.leaks.items():
            if leaks:
                image, labeled, is_exact = leaks[0]
                copies = plural(len(leaks), "image is", "images are")
                relation = "is" if is_exact else "looks like"
                yield (
                    f"{copies} in the {split} split of the labeled set, or look like one of it ({image.name} "
                    f"{relation} {labeled.name}, say): scores on it would be of images that were "
                    "seen; remove them from training"
                )
        if self.copies:
            copy, original = (image.name for image in self.copies[0])
            copies = plural(len(self.copies), "file is a copy", "files are copies")
            yield f"{copies} ({copy} of {original}, say), which count more than once: remove them"
        if self.near:
            first, second = (image.name for image in self.near[0][:2])
            yield (
                f"{sum(map(len, self.near))} images in {plural(len(self.near), 'group', 'groups')} look alike ({first} "
                f"and {second}, say): frames of a video or edited copies; keep one or few of each, --json lists all"
            )
        # 2. What the images are like.
        if self.small_fraction > 0:
            # As much as nine of ten images have, in whole patches of 16 pixels.
            size = max(int(np.percentile(self.short_sides, 10)) // 16 * 16, 32)
            hint = f"; --crops.global-size {size} fits nine of ten" if size < CROP and self.small_fraction > 0.1 else ""
            yield f"{self.small_fraction:.0%} are smaller than a global crop of {CROP} px and would be enlarged{hint}"
        found = {kind: outliers for kind, outliers in self.outliers.items() if outliers}
        if found:
            words = {"dark": "far darker than the others", "bright": "far brighter", "one color": "of one color"}
            parts = (f"{len(of_kind)} {words.get(kind, kind)} ({of_kind[0].name})" for kind, of_kind in found.items())
            yield f"worth a look: {', '.join(parts)}; --json lists all"
        yield from self.settings
        if self.warned:
            first = self.warned[0]
            files = plural(len(self.warned), "file is", "files are")
            yield f"{files} read although the decoder warns ({first.name}: {first.warning}): no pixel is missing"
        yield from self.notes
        if self.good:
            recipe = recommended_recipe(len(self.good))
            yield f"{len(self.good)} images: selfpatch pretrain {images} RUN --recipe {recipe}"

    def as_json(self, images: str) -> dict[str, Any]:
        """All findings, with the names of all images that are concerned."""
        mean, std = self.normalization or ([], [])
        sizes = np.array([image.size for image in self.good] or [(0, 0)])
        return {
            "images": images,
            "num_images": len(self.good),
            "formats": dict(self.formats),
            "kinds": dict(self.kinds),
            "channels": {str(count): number for count, number in self.channels.items()},
            "bit_depths": dict(self.bit_depths),
            "rows": _spread(sizes[:, 0]),
            "columns": _spread(sizes[:, 1]),
            "short_side": _spread(self.short_sides),
            "smaller_than_crop": self.small_fraction,
            "mean": mean,
            "std": std,
            "unreadable": [
                {"name": image.name, "damage": image.damage, "problem": image.problem} for image in self.bad
            ],
            "damage": dict(self.damage),
            "warnings": [{"name": image.name, "warning": image.warning} for image in self.warned],
            "copies": [{"name": copy.name, "of": original.name} for copy, original in self.copies],
            "near_duplicates": [_names(group) for group in self.near],
            "leaks": {
                split: [
                    {"name": leak.image.name, "labeled": leak.labeled.name, "exact": leak.is_exact} for leak in leaks
                ]
                for split, leaks in self.leaks.items()
            },
            "outliers": {kind: _names(found) for kind, found in self.outliers.items()},
            "left_out": dict(self.left_out),
            "links_not_followed": self.num_links,
            "advice": list(self.advice(images)),
        }


def counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def find_copies(images: Iterable[Inspected]) -> list[tuple[Inspected, Inspected]]:
    """Files with the content of an earlier one, and that one."""
    first_of: dict[str, Inspected] = {}
    pairs = ((image, first_of.setdefault(image.digest, image)) for image in images if image.digest)
    return [(image, first) for image, first in pairs if first is not image]


def _far_out(images: list[Inspected], numbers: Sequence[float]) -> tuple[list[Inspected], list[Inspected]]:
    """Images with far lower numbers than others, and with far higher ones, the farthest first."""
    if len(images) < MIN_IMAGES:
        return [], []
    values = np.array(numbers)
    low, high = np.percentile(values, (25, 75))
    reach = FAR_OUT * max(high - low, 1e-3)
    order = np.argsort(values)
    return (
        [images[index] for index in order if values[index] < low - reach],
        [images[index] for index in order[::-1] if values[index] > high + reach],
    )


def _spread(numbers: np.ndarray) -> dict[str, float]:
    low, median, high = np.percentile(numbers, (0, 50, 100))
    return {"min": float(low), "median": float(median), "max": float(high)}


def _names(images: Iterable[Inspected]) -> list[str]:
    return [image.name for image in images]
