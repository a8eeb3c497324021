"""Before the first cell: what is asked for, which images are left out, the runs, the labels, and the plan."""

import contextlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import torch

from selfpatch.backbones.backbone import Backbone
from selfpatch.backbones.build import build_backbone
from selfpatch.backbones.pretrained import load_start
from selfpatch.backbones.without_values import without_values
from selfpatch.commands.pretrain import build_parts
from selfpatch.commands.study import held_out
from selfpatch.commands.study.budget import Runs, plan_runs, read_settings
from selfpatch.commands.study.folder import StudyFolder
from selfpatch.commands.study.plan import Timing, time_steps
from selfpatch.commands.study.scoring import Protocols, Scoring, num_encoded, share_name
from selfpatch.config import PixelFormat, pixel_format, rows_columns
from selfpatch.config.io import override, to_dict
from selfpatch.config.pretrain import PretrainConfig
from selfpatch.config.study import StudyConfig
from selfpatch.data.image_files import ImageFiles
from selfpatch.data.image_folder import require_readable
from selfpatch.data.manifest import open_images
from selfpatch.errors import UserError
from selfpatch.evaluation.datasets.identity import files_hash
from selfpatch.evaluation.datasets.labeled_images import Layout
from selfpatch.evaluation.datasets.segmentation import find_layout
from selfpatch.evaluation.fingerprint import fingerprint
from selfpatch.output.terminal import say
from selfpatch.recipes.candidates import AS_IS, find_candidates, trains

# Names of files of weights that are named by their folder.
TELL_NOTHING = ("backbone", "model", "pytorch_model", "open_clip_model", "open_clip_pytorch_model", "checkpoint")
# Of the time that encoding takes: heads, nearest neighbors, reading.
SCORING_OVERHEAD = 1.3


class Request(NamedTuple):
    """What is asked for, with what was found at the places that were named."""

    config: StudyConfig
    names: tuple[str, ...]  # of the candidates
    images: ImageFiles
    labels: Path
    layout: Layout
    init_from: str | None
    weights: Backbone | None
    num_heads: int | None
    device: torch.device

    @property
    def weights_name(self) -> str | None:
        """As sentences have it: the name of the file or folder, without its ending."""
        if self.init_from is None or self.init_from.startswith("timm:"):
            return self.init_from
        path = Path(self.init_from)
        if path.is_dir() or not path.suffix:
            return path.name
        return path.absolute().parent.name if path.stem in TELL_NOTHING else path.stem

    def identity(self) -> dict[str, Any]:
        """All in which a study that goes on must agree."""
        files = (path for pair in (*self.layout.train, *self.layout.val) for path in pair)
        return to_dict(self.config) | {
            "candidates": list(self.names),
            "images": {"num_images": len(self.images), "names": self.images.fingerprint()[:12]},
            "labels": {
                "split": self.layout.name,
                "num_train_images": len(self.layout.train),
                "num_val_images": len(self.layout.val),
                "files": files_hash(self.layout.root, files),
            },
            "init_from": None if self.weights is None else fingerprint(self.weights)[:12],
        }


def read_request(
    images: Path, labels: Path, init_from: str | None, config: StudyConfig, device: torch.device
) -> Request:
    """
    Raises:
        UserError: candidates, settings, images, labels or weights that are not there or cannot be.
    """
    names = find_candidates(config.candidates, has_weights=init_from is not None)
    settings = read_settings(config.set)
    chosen = override(PretrainConfig(), {key: value for key, value in settings.items() if key.startswith("images.")})
    found = open_images(images, chosen.images)
    if not found.are_files:
        raise UserError(
            f"{images} are no files of their own, and a study leaves some of them out; give a folder of images"
        )
    require_readable(found)
    layout = find_layout(labels)
    for split, pairs in {"training": layout.train, "validation": layout.val}.items():
        if not pairs:
            raise UserError(f"{labels} has no {split} image; a study learns from labels and is scored on others")
    num_heads = settings.get("backbone.num_heads")
    weights = None if init_from is None else load_start(init_from, num_heads=num_heads)
    for note in () if weights is None else weights.notes:
        say(note)
    return Request(config, names, found, labels, layout, init_from, weights, num_heads, device)


class Prepared(NamedTuple):
    """All that the cells need, and the validation images among the images, if they were sought."""

    runs: Runs
    source: ImageFiles
    scoring: Scoring
    columns: list[str]


def leave_out_validation(request: Request, folder: StudyFolder | None) -> held_out.LeftOut:
    """Which images never enter pretraining; both lists are written to the folder, if there is one.

    Raises:
        UserError: too few images are left.
    """
    left_out = held_out.find_validation_images(
        request.images,
        [image for image, _ in request.layout.val],
        near_duplicates=request.config.near_duplicates,
        cache=None if folder is None else folder.inspection,
    )
    held_out.require_enough_images(request.images, left_out, request.labels)
    if folder is not None:
        held_out.write_left_out(request.images, left_out, folder.left_out_file)
        held_out.write_manifest(request.images, left_out, folder.manifest)
    return left_out


def prepare(request: Request, source: ImageFiles, nowhere: Path, common: dict[str, Any] | None = None) -> Prepared:
    """The settings of all runs, and the labels, read for every kind of backbone.

    Args:
        source: the images to train on.
        nowhere: a folder that is not there.
        common: what candidates have in common, of a study that goes on.

    Raises:
        UserError: settings or labels that cannot be.
    """
    runs = plan_runs(
        request.names, source, request.config, init_from=request.init_from, weights=request.weights,
        device=request.device, nowhere=nowhere, common=common,
    )  # fmt: skip
    weights = request.weights
    if (
        AS_IS in request.names
        and weights is not None
        and weights.num_channels != source.pixels.num_channels
        and runs.given
    ):
        raise UserError(
            f"candidate {AS_IS}: the weights read images of {weights.num_channels} channels, and these have "
            f"{source.pixels.num_channels}; leave {AS_IS} out (--candidates): continuing adapts the first layer"
        )
    scoring = Scoring(request.labels, request.config, protocols_of(request, runs), request.device)
    columns = scoring.prepare(kinds_of(request, runs))
    names = {share: share_name(share) for share in request.config.label_shares}
    if left_out := [name for name in names.values() if f"in-context {name}" not in columns]:
        say(f"label shares that are left out, as they have too few images or patches: {', '.join(left_out)}")
    return Prepared(runs, source, scoring, columns)


def protocols_of(request: Request, runs: Runs) -> Protocols:
    """Unless a size is given, images are scored at twice the global crop, as scores during training are."""
    crop = min(rows_columns(next(iter(runs.resolved.values())).crops.global_size))
    return Protocols.at_size(request.config.image_size or 2 * crop, request.config)


def kinds_of(request: Request, runs: Runs) -> list[tuple[tuple[int, int], PixelFormat]]:
    """Patch size and format of images of every candidate."""
    kinds = []
    if AS_IS in request.names and request.weights is not None:
        kinds.append((request.weights.patch_size, request.weights.pixels))
    for config in runs.resolved.values():
        mean, std = config.crops.normalization
        with without_values():  # to ask it, without memory
            backbone = build_backbone(config.backbone, rows_columns(config.crops.global_size), mean=mean, std=std)
        kinds.append((backbone.patch_size, pixel_format(config)))
    return kinds


def time_candidates(request: Request, prepared: Prepared) -> dict[str, Timing]:
    """Seconds of every candidate, from a few steps of it and a few images; nothing is written."""
    say("timing a few steps of each candidate")
    config = request.config
    num_train, num_val = (min(len(pairs), config.max_images) for pairs in (request.layout.train, request.layout.val))
    num_images = num_encoded(config, num_train, num_val, prepared.columns)

    def scores(backbone: Backbone) -> float:
        return SCORING_OVERHEAD * num_images * prepared.scoring.time_image(backbone)

    timings = {}
    for name in request.names:
        if name == AS_IS:
            assert request.weights is not None
            timings[name] = Timing(0.0, 0.0, scores(request.weights.to(request.device)))
            request.weights.to("cpu")
            continue
        resolved = prepared.runs.resolved[name]
        with contextlib.redirect_stdout(io.StringIO()):  # remarks on images come again with the run
            step, start = time_steps(resolved, prepared.source, request.device) if trains(name) else (0.0, 0.0)
        parts = build_parts(resolved, len(prepared.source), request.device)
        timings[name] = Timing(step, start, scores(parts.state.student_teacher.teacher.backbone.eval()))
    return timings
