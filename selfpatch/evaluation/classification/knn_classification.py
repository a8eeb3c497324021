"""k-nearest-neighbor classification of images by frozen image-level vectors; nothing is trained."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Real, UInt8
from torch import Tensor

from selfpatch.data.shown_colors import shown_colors
from selfpatch.errors import UserError
from selfpatch.evaluation.classification.classification_pictures import Answer, Neighbor, draw_answers, draw_confusion
from selfpatch.evaluation.classification.classification_scores import accuracies, class_confusion, labels_of, ranks
from selfpatch.evaluation.classification.image_vectors import (
    choose_vector,
    encode_images,
    has_class_token,
    image_vector,
    resize_and_center_crop,
)
from selfpatch.evaluation.datasets.class_folder import ClassFolder, ClassImage
from selfpatch.evaluation.datasets.labeled_images import spread
from selfpatch.evaluation.features import Backbone, RowBuffer, eval_mode, floor_to_patch_multiple
from selfpatch.evaluation.protocols.knn_classification import KnnClassification
from selfpatch.evaluation.task import EvalContext, EvalOutput

MAX_CHUNK = 2**26  # similarities held at once: 256 MiB
NUM_SHOWN, NEIGHBORS_SHOWN = 8, 6


def run(backbone: Backbone, root: Path, protocol: KnnClassification, context: EvalContext) -> EvalOutput:
    """Weighted vote of the k nearest training images for the class of every validation image.

    "top-1" (and "top-5", where there are more than five classes) is that of the best k, which `details` names; each k
    has its own numbers too, as "top-1/k=20".

    Raises:
        UserError: every k is larger than the training set; the class token is wanted of a model without one; or the
            data are not complete.

    Source: facebookresearch/dino eval_knn.py: exact search over unit vectors, votes weighted by exp(cosine / 0.07).
    Differs: neighbors are searched once, for the largest k; see `KnnClassification.differs`.
    """
    size = floor_to_patch_multiple(protocol.image_size, backbone.patch_size)
    data = ClassFolder(root, max_images=protocol.max_images, report=context.report, pixels=backbone.pixels)
    ks = [k for k in protocol.num_neighbors if k <= len(data.train)]
    if not ks:
        raise UserError(
            f"num-neighbors is {protocol.num_neighbors}, all more than the {len(data.train)} training images; give "
            "a smaller one, or more images"
        )

    def read(item: ClassImage) -> Real[np.ndarray, "H W C"]:
        return resize_and_center_crop(data.read_image(item), protocol.resize_size, size)

    # 1. Unit vectors.
    with eval_mode(backbone):
        vector = choose_vector(protocol.vector, has_class_token=has_class_token(backbone, size, context.device))
        vectors = RowBuffer(len(data.train) + len(data.val))
        for tokens in encode_images(
            backbone, data.train + data.val, read, batch_size=protocol.batch_size, device=context.device
        ):
            vectors.add(F.normalize(image_vector(tokens, vector), dim=-1))
            context.report(len(vectors), len(data.train) + len(data.val))
    train, val = vectors.rows.tensor_split([len(data.train)])
    train_labels, val_labels = (labels_of(items, context.device) for items in (data.train, data.val))

    # 2. Votes.
    nearest = nearest_images(val, train, max(ks))
    ranks_of, metrics = {}, {}
    for k in ks:
        votes = class_votes(nearest, train_labels, k, data.num_classes, temperature=protocol.temperature)
        ranks_of[k] = voted_ranks(votes, val_labels)
        metrics |= accuracies(ranks_of[k], data.num_classes, f"/k={k}")
    best = max(ks, key=lambda k: metrics[f"top-1/k={k}"])  # the first of equal ones
    metrics = accuracies(ranks_of[best], data.num_classes) | metrics

    # 3. Pictures of the best k.
    votes = class_votes(nearest, train_labels, best, data.num_classes, temperature=protocol.temperature)
    predicted = votes.argmax(dim=1)
    confusion = class_confusion(predicted, val_labels, data.num_classes)
    draw_confusion(confusion, data.class_names, context.pictures / "confusion_matrix.png")
    draw_answers(answers(data, nearest, predicted.tolist(), read), context.pictures / "nearest_images.png")
    left_out = ", ".join(str(k) for k in protocol.num_neighbors if k not in ks)
    notes = [f"k = {left_out} left out: there are {len(data.train)} training images"] if left_out else []
    facts = data.describe() | {"notes": [*data.notes, *notes]}
    return EvalOutput(metrics, facts, {"vector_scored": vector, "best_num_neighbours": best})


class Nearest(NamedTuple):
    """Most similar training images of each validation image, in descending order of similarity."""

    cosine: Float[Tensor, "B M"]
    index: Int64[Tensor, "B M"]


def nearest_images(val: Float[Tensor, "B D"], train: Float[Tensor, "T D"], count: int) -> Nearest:
    """Exact search over unit vectors."""
    chunks = val.split(max(1, MAX_CHUNK // len(train)))
    cosines, indices = zip(*((chunk @ train.T).topk(count, dim=-1) for chunk in chunks), strict=True)
    return Nearest(torch.cat(cosines), torch.cat(indices))


def class_votes(
    nearest: Nearest, train_labels: Int64[Tensor, " T"], k: int, num_classes: int, *, temperature: float
) -> Float[Tensor, "B C"]:
    """Sum of exp((cosine - largest) / temperature) over the k nearest images, per class; -inf for a class without any.

    Subtracting the largest cosine changes no order and keeps votes from overflowing at low temperatures.
    """
    label = train_labels[nearest.index[:, :k]]
    weight = ((nearest.cosine[:, :k] - nearest.cosine[:, :1]) / temperature).exp()
    votes = weight.new_zeros(len(weight), num_classes).scatter_add_(1, label, weight)
    has_vote = torch.zeros_like(votes, dtype=torch.bool).scatter_(1, label, True)  # votes of far images underflow to 0
    return votes.masked_fill_(~has_vote, -torch.inf)


def voted_ranks(votes: Float[Tensor, "B C"], labels: Int64[Tensor, " B"]) -> Int64[Tensor, " B"]:
    """Ranks of the true classes (see `ranks`); a class without a vote ranks last."""
    has_vote = votes.gather(1, labels[:, None])[:, 0] > -torch.inf
    return torch.where(has_vote, ranks(votes, labels), votes.shape[1])


def answers(
    data: ClassFolder,
    nearest: Nearest,
    predicted: list[int],
    read: Callable[[ClassImage], Real[np.ndarray, "H W C"]],
) -> list[Answer]:
    """Nearest training images of NUM_SHOWN validation images, spread evenly over the split."""

    def show(item: ClassImage) -> UInt8[np.ndarray, "H W 3"]:
        return shown_colors(read(item), data.pixels.shown_channels)

    shown = []
    for i in spread(range(len(data.val)), NUM_SHOWN):
        item = data.val[i]
        cosines, indices = (of_all[i, :NEIGHBORS_SHOWN].tolist() for of_all in nearest)
        neighbors = [
            Neighbor(show(data.train[j]), data.class_names[data.train[j].label], cosine)
            for cosine, j in zip(cosines, indices, strict=True)
        ]
        shown.append(Answer(show(item), data.class_names[item.label], data.class_names[predicted[i]], neighbors))
    return shown
