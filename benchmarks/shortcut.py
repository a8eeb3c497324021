"""How much do patches tell about their place, and how much of the patch loss does the place alone solve?

    python -m benchmarks.shortcut IMAGES MODEL [MODEL ...] --out benchmarks/results/shortcut.json

Student and teacher see the same view, so patch i of the one predicts patch i of the other, and both know i from the
position embedding: a target that depends on the place alone can be predicted without looking at the image. For every
model, on square centre crops of the size it was built for, and with its position embedding as it is, shuffled (anew
for every image) and zeroed:

1. the shares of the tokens' variance that place and image explain (`variance_shares`), and the R2 of a linear
   regression of row and column on the tokens, fitted to every other image and held to the rest (`position_r2`);
2. what a patch's prototype tells about its place, as a share of the assignment's entropy (`PlaceInformation`);
3. the share of what can be won in the patch loss that a predictor wins which knows the place and nothing else.

Prototypes: where MODEL is a run folder whose loss has a selfpatch term, those of the term, out of its newest
checkpoint; targets are made as in training (teacher, positives, aggregator, head, centre or Sinkhorn), and number 3 is
theirs. For every model besides: k-means over the directions of its patch tokens, fitted anew for each embedding. A run
without the term, and a backbone alone, have only these.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from selfpatch.backbones.backbone import Tokens
from selfpatch.backbones.build import build_backbone
from selfpatch.backbones.position_removal import PositionMoments, position_r2
from selfpatch.backbones.pretrained import load_vit
from selfpatch.backbones.vit import ViT
from selfpatch.commands.run_setup.hardware import find_device
from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD, rows_columns
from selfpatch.config.io import read_yaml
from selfpatch.data.image_folder import ImageFolder, read_evenly_spaced
from selfpatch.evaluation.features import normalized
from selfpatch.evaluation.segmentation.k_means import k_means, nearest_center
from selfpatch.objectives.selfpatch import SelfPatch, find_positives
from selfpatch.output import checkpoint
from selfpatch.pretraining.student_teacher import StudentTeacher, build_student_teacher

Positions = Literal["kept", "shuffled", "zeroed"]
POSITIONS: tuple[Positions, ...] = ("kept", "shuffled", "zeroed")
NUM_SHUFFLES = 5
MAX_FITTED_TOKENS = 50_000  # that k-means looks at
# Patches to a probability for each prototype.
Assign = Callable[[Tokens], Float[Tensor, "B N K"]]


class VarianceShares(NamedTuple):
    """They sum to 1. By chance: what the shares of place and image would be if all tokens were shuffled."""

    place: float
    image: float
    rest: float
    place_by_chance: float
    image_by_chance: float


def variance_shares(tokens: Float[Tensor, "B N D"]) -> VarianceShares:
    """The tokens' squared distance from their mean, split by a two-way layout without interaction.

    With m the mean of all tokens, m_n that of place n over images, m_b that of image b over places,

        x[b, n] = m + (m_n - m) + (m_b - m) + rest[b, n]
        sum |x[b, n] - m|^2 = B sum |m_n - m|^2 + N sum |m_b - m|^2 + sum |rest[b, n]|^2

    as the four parts are orthogonal. Each share is a term of the right side over the left side. Under a shuffle of all
    tokens they are (N - 1) / (BN - 1) and (B - 1) / (BN - 1) in the mean. Tokens that are all alike have no variance:
    shares of 0.
    """
    num_images, num_places, _ = tokens.shape
    centered = tokens.double() - tokens.double().mean(dim=(0, 1))
    total = centered.square().sum().item() or 1.0
    place = num_images * centered.mean(dim=0).square().sum().item() / total
    image = num_places * centered.mean(dim=1).square().sum().item() / total
    rest = centered.square().sum().item() / total - place - image
    degrees = max(num_images * num_places - 1, 1)
    return VarianceShares(place, image, rest, (num_places - 1) / degrees, (num_images - 1) / degrees)


class PlaceShares(NamedTuple):
    """What an assignment of patches to prototypes tells about their place; information in nats."""

    entropy: float  # of the mean assignment: at most ln K
    information: float  # I(place; prototype)
    information_shuffled: float  # the same, places of every image shuffled: what the estimate gives by chance
    share_of_entropy: float  # information / entropy
    share_of_entropy_shuffled: float
    share_of_entropy_adjusted: float  # 0 by chance, 1 if the place settles the prototype
    share_of_loss: float  # information / all that a target tells: what the place wins of what can be won
    share_of_loss_shuffled: float
    share_of_loss_adjusted: float


class PlaceInformation:
    """Collects assignments, batch by batch, and says what they tell about places.

    For targets t[b, n] over prototypes (one-hot where the assignment is hard), the mean target p, that of a place p_n,
    and the entropy H:

        I(place; prototype) = H(p) - mean over n of H(p_n)                      (plug-in estimate)
        I(patch; prototype) = H(p) - mean over b, n of H(t[b, n])

    The best predictor without any knowledge has the cross-entropy H(p), the best that knows the place has the mean of
    H(p_n), and the best of all the mean of H(t[b, n]): so the first over the second is the place's share of the loss.

    The plug-in estimate is too high by about (K - 1)(N - 1) / 2BN nats in small samples. The control is the same
    estimate after the targets of every image are shuffled over its places, which keeps what images are about; the mean
    of several. Adjusted: (I - control) / (H - control), as the adjusted mutual information of Vinh et al. (2010).
    """

    def __init__(self, num_shuffles: int = NUM_SHUFFLES, seed: int = 0):
        self._generator = torch.Generator().manual_seed(seed)
        self._sums: list[Tensor] = [torch.zeros(())] * (1 + num_shuffles)  # [N, K], the first as it is
        self._entropy = 0.0  # of single targets, summed
        self._num_images = 0

    def add(self, targets: Float[Tensor, "B N K"]) -> None:
        num_images, num_places, _ = targets.shape
        self._num_images += num_images
        self._entropy += torch.special.entr(targets).sum().item()
        for index in range(len(self._sums)):
            if index:
                order = torch.rand(num_images, num_places, generator=self._generator).argsort(dim=1)
                shown = targets.gather(1, order.to(targets.device)[:, :, None].expand_as(targets))
            else:
                shown = targets
            self._sums[index] = self._sums[index] + shown.sum(dim=0).double().cpu()

    def shares(self) -> PlaceShares:
        information, *shuffled = (self._information(sums) for sums in self._sums)
        by_chance = float(np.mean(shuffled))
        means = self._sums[0] / self._num_images  # [N, K]
        entropy = torch.special.entr(means.mean(dim=0)).sum().item()
        winnable = entropy - self._entropy / (self._num_images * len(means))
        return PlaceShares(
            entropy, information, by_chance, *shares_of(entropy, information, by_chance),
            *shares_of(winnable, information, by_chance),
        )  # fmt: skip

    def _information(self, sums: Float[Tensor, "N K"]) -> float:
        means = sums / self._num_images
        return (torch.special.entr(means.mean(dim=0)).sum() - torch.special.entr(means).sum(dim=-1).mean()).item()


def shares_of(whole: float, part: float, by_chance: float) -> tuple[float, float, float]:
    """The part, what it is by chance, and the part beyond chance, each as a share; 0 where there is nothing to share.

    Whatever is below a millionth of a nat is rounding.
    """
    share, chance = (value / whole if whole > 1e-6 else 0.0 for value in (part, by_chance))
    adjusted = (part - by_chance) / (whole - by_chance) if whole - by_chance > 1e-6 else 0.0
    return share, chance, adjusted


@contextmanager
def positions(backbone: ViT, mode: Positions, num_images: int, generator: torch.Generator) -> Iterator[None]:
    """Inside, the embeddings of patches (not of a class token) are as they are, shuffled for each image, or zero.

    Images must then be square, of the size the backbone was built for, and `num_images` a batch.
    """
    original = backbone.model.pos_embed
    num_patches = backbone.model.patch_embed.num_patches
    prefix, patches = original.detach().split([original.shape[1] - num_patches, num_patches], dim=1)
    if mode == "shuffled":
        order = torch.rand(num_images, num_patches, generator=generator).argsort(dim=1)
        patches = patches[0][order.to(patches.device)]  # [B, N, D]
    elif mode == "zeroed":
        patches = torch.zeros_like(patches)
    changed = torch.cat([prefix.expand(len(patches), -1, -1), patches], dim=1)
    try:
        if mode != "kept":
            backbone.model.pos_embed = nn.Parameter(changed, requires_grad=False)
        yield
    finally:
        backbone.model.pos_embed = original


class Model(NamedTuple):
    """A backbone as it is shipped, and, of a run with a selfpatch term, its teacher and the step it has reached."""

    name: str
    backbone: ViT
    student_teacher: StudentTeacher | None
    step: int | None


def load_model(model: Path, device: torch.device) -> Model:
    """A run folder, with what its newest checkpoint holds, or whatever `load_vit` takes.

    Raises:
        ValueError: nothing that can be read there; or a backbone that this cannot be asked of.
    """
    student_teacher = step = None
    if (model / "config.yaml").is_file() and (config := read_yaml(model / "config.yaml")).objectives.selfpatch:
        found, _ = checkpoint.load_latest(model / "checkpoints")
        if found is None:
            raise ValueError(f"{model} has no whole checkpoint, which holds the prototypes; give its backbone instead")
        student_teacher = build_student_teacher(
            build_backbone(
                config.backbone, rows_columns(config.crops.global_size), mean=IMAGENET_MEAN, std=IMAGENET_STD
            ),
            config,
            steps_per_epoch=1,
        ).to(device)
        student_teacher.load_state_dict(found.tensors["model"])
        student_teacher.eval()
        step = found.state["step"]
    backbone = load_vit(model, device=device) if student_teacher is None else student_teacher.teacher.export_backbone()
    rows, columns = backbone.model.patch_embed.img_size
    if backbone.model.pos_embed is None or rows != columns:
        raise ValueError(
            f"{model} has no learned position embedding of a square image to shuffle; give a plain vision transformer"
        )
    return Model(str(model), backbone, student_teacher, step)


def center_crops(folder: Path, size: int, count: int) -> np.ndarray:
    """[B, size, size, 3] levels: the largest square in the middle of at most `count` images spread over the folder."""
    images = (pixels for _, pixels in read_evenly_spaced(ImageFolder(folder), count))
    fitted = [ImageOps.fit(Image.fromarray(pixels), (size, size), Image.Resampling.BICUBIC) for pixels in images]
    return np.stack([np.asarray(image) for image in fitted])


@torch.no_grad()
def encode(backbone: ViT, pixels: np.ndarray, mode: Positions, batch_size: int, *, seed: int = 0) -> Iterator[Tokens]:
    """Tokens of the crops, batch by batch; equal modes and seeds give equal shuffles."""
    device = next(backbone.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, len(pixels), batch_size):
        images = torch.from_numpy(pixels[start : start + batch_size]).to(device)
        with positions(backbone, mode, len(images), generator):
            yield backbone(normalized(images, backbone.mean, backbone.std))


def targets_of(student_teacher: StudentTeacher, tokens: Tokens, step: int) -> Float[Tensor, "B N K"]:
    """What the patch term asks of the student for these tokens of the teacher, as in training."""
    objective = student_teacher.named_objectives["selfpatch"]
    assert isinstance(objective, SelfPatch)
    positives, _ = find_positives(tokens, objective.config)
    aggregates = student_teacher.teacher.aggregate(tokens.patch_tokens, positives)
    return objective.branch.targets(objective.branch.project_teacher(aggregates).flatten(0, 1), step).unflatten(
        0, tokens.patch_tokens.shape[:2]
    )


def cluster(tokens: Float[Tensor, "B N D"], num_clusters: int, *, seed: int) -> Int64[Tensor, "B N"]:
    """The nearest k-means centre of every patch, by the direction of its token."""
    rows = F.normalize(tokens, dim=-1).flatten(0, 1)
    centers = k_means(rows, num_clusters, num_restarts=3, num_iterations=100, max_points=MAX_FITTED_TOKENS, seed=seed)
    return nearest_center(rows, centers)[0].unflatten(0, tokens.shape[:2])


def measure(model: Model, pixels: np.ndarray, *, batch_size: int, num_clusters: int, seed: int = 0) -> dict[str, Any]:
    """All figures of one model, for each of POSITIONS, as plain values."""
    figures: dict[str, Any] = {"model": model.name, "step": model.step, "num_images": len(pixels)}
    figures |= {"size": pixels.shape[1], "num_clusters": num_clusters}
    for mode in POSITIONS:
        batches = list(encode(model.backbone, pixels, mode, batch_size, seed=seed))
        tokens = torch.cat([batch.patch_tokens.float() for batch in batches])
        halves = PositionMoments(tokens.shape[-1]), PositionMoments(tokens.shape[-1])
        for half, moments in enumerate(halves):
            moments.add(batches[0]._replace(patch_tokens=tokens[half::2]))
        clusters = PlaceInformation(seed=seed)
        for part in cluster(tokens, num_clusters, seed=seed).split(batch_size):
            clusters.add(F.one_hot(part, num_clusters).float())
        figures[mode] = {
            "variance": variance_shares(tokens.cpu())._asdict(),
            "clusters": clusters.shares()._asdict(),
            "position_r2": position_r2(*halves),
        }
        if model.student_teacher is not None and model.step is not None:
            soft, hard = PlaceInformation(seed=seed), PlaceInformation(seed=seed)
            for batch in encode(model.student_teacher.teacher.backbone, pixels, mode, batch_size, seed=seed):
                with torch.no_grad():
                    targets = targets_of(model.student_teacher, batch, model.step)
                soft.add(targets)
                hard.add(F.one_hot(targets.argmax(dim=-1), targets.shape[-1]).float())
            figures[mode] |= {"targets": soft.shares()._asdict(), "prototypes": hard.shares()._asdict()}
    return figures


def table(results: list[dict[str, Any]]) -> Table:
    shown = Table(
        "model", "positions", "variance: place", "image", "R2 of position", "clusters: place (by chance)",
        "prototypes: place (by chance)", "loss solved by place (by chance)",
        title="shares in %; of information, adjusted for chance",
    )  # fmt: skip
    for result in results:
        for mode in POSITIONS:
            figures = result[mode]
            row = [f"{100 * figures['variance'][name]:.1f}" for name in ("place", "image")]
            row.append(f"{100 * figures['position_r2']:.1f}")
            for source, share in (
                ("clusters", "share_of_entropy"),
                ("prototypes", "share_of_entropy"),
                ("targets", "share_of_loss"),
            ):
                found = figures.get(source)
                row.append(
                    f"{100 * found[f'{share}_adjusted']:.1f} ({100 * found[f'{share}_shuffled']:.1f})" if found else "-"
                )
            shown.add_row(Path(result["model"]).name if mode == "kept" else "", mode, *row)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="a folder of images, best not those of the training")
    parser.add_argument("models", type=Path, nargs="+", help="run folders, exported files, checkpoints")
    parser.add_argument("--out", type=Path, help="a JSON file for all figures")
    parser.add_argument("--count", type=int, default=1000, help="images, spread evenly over the folder")
    parser.add_argument("--num-clusters", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=128, help="images encoded, and spread by Sinkhorn, at once")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()

    device = find_device(arguments.device)
    results = []
    for path in arguments.models:
        model = load_model(path, device)
        pixels = center_crops(arguments.images, model.backbone.model.patch_embed.img_size[0], arguments.count)
        results.append(measure(model, pixels, batch_size=arguments.batch_size, num_clusters=arguments.num_clusters))
    Console().print(table(results))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
