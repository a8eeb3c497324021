"""Linear classification of images on frozen vectors: a grid of vectors and learning rates, all trained at once."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Real
from torch import Tensor, nn

from selfpatch.backbones.backbone import Tokens
from selfpatch.data.augmentation.geometry import resized_crop, sample_crop_box
from selfpatch.data.loading.sampler import sample_rng
from selfpatch.evaluation.classification.classification_pictures import draw_confusion
from selfpatch.evaluation.classification.classification_scores import accuracies, class_confusion, labels_of, ranks
from selfpatch.evaluation.classification.image_vectors import (
    ENCODED_AT_ONCE,
    choose_vector,
    encode,
    encode_images,
    image_vector,
    resize_and_center_crop,
)
from selfpatch.evaluation.datasets.class_folder import ClassFolder, ClassImage
from selfpatch.evaluation.feature_cache import unwrap_cache
from selfpatch.evaluation.features import Backbone, ReadCache, eval_mode, floor_to_patch_multiple
from selfpatch.evaluation.head_training import resume_key, seeded, train_head
from selfpatch.evaluation.protocols.knn_classification import ImageVector
from selfpatch.evaluation.protocols.linear_classification import LinearClassification
from selfpatch.evaluation.task import EvalContext, EvalOutput
from selfpatch.optim.schedules import warmup_cosine

LR_BATCH = 256  # reference batch size of the learning rates
INIT_STD = 0.01  # of the layers' weights


def run(backbone: Backbone, root: Path, protocol: LinearClassification, context: EvalContext) -> EvalOutput:
    """Train a layer per vector and learning rate; "top-1" is that of the best on the validation images.

    `details` names the best one; each has its own numbers too, as "top-1/class_token/lr=0.01".

    Raises:
        UserError: the class token is wanted of a model without one; the data are not complete; or OUT holds the
            training of something else.
        StoppedError: a signal came; the training so far is saved.

    Source: facebookresearch/dinov2 dinov2/eval/linear.py.
    Differs: see `LinearClassification.differs`.
    """
    size = floor_to_patch_multiple(protocol.image_size, backbone.patch_size)
    data = ClassFolder(root, max_images=protocol.max_images, report=context.report, pixels=backbone.pixels)
    with eval_mode(backbone):
        # 1. Training.
        with torch.no_grad():
            sample_tokens = encode(
                backbone, torch.zeros(1, *size, backbone.num_channels, dtype=torch.uint8, device=context.device)
            )
        vectors = choose_vectors(protocol.vectors, has_class_token=sample_tokens.cls_token is not None)
        with seeded(protocol.seed, context.device):
            layers = LinearLayers(sample_tokens, vectors, protocol.lrs, data.num_classes).to(context.device)
        train_layers(layers, backbone, data, protocol, context, size=size)

        # 2. Predictions of all layers.
        labels = labels_of(data.val, context.device)
        predictions = predict(layers, backbone, data, labels, protocol, context, size=size)

    # 3. Scores, and the best of them.
    metrics_of = [
        accuracies(rank, data.num_classes, f"/{vector}/lr={lr:g}")
        for rank, (vector, lr) in zip(predictions.rank, layers.grid, strict=True)
    ]
    best = int(np.argmax([next(iter(metrics.values())) for metrics in metrics_of]))  # the first of equal ones
    metrics = accuracies(predictions.rank[best], data.num_classes)
    for of_layer in metrics_of:
        metrics |= of_layer
    confusion = class_confusion(predictions.predicted[best], labels, data.num_classes)
    draw_confusion(confusion, data.class_names, context.pictures / "confusion_matrix.png")
    vector, lr = layers.grid[best]
    details = {
        "num_layers": len(layers.grid), "vectors_scored": list(vectors), "best_vector": vector, "best_lr": lr,
    }  # fmt: skip
    return EvalOutput(metrics, data.describe(), details)


class LinearLayers(nn.Module):
    """One linear layer per vector and learning rate; they share nothing but their input.

    Args:
        sample_tokens: tokens of any image, for the widths of the vectors.
    """

    def __init__(
        self, sample_tokens: Tokens, vectors: tuple[ImageVector, ...], lrs: tuple[float, ...], num_classes: int
    ):
        super().__init__()
        self.grid = [(vector, lr) for vector in vectors for lr in lrs]
        widths = {vector: image_vector(sample_tokens, vector).shape[1] for vector in vectors}
        self.layers = nn.ModuleList([linear_layer(widths[vector], num_classes) for vector, _ in self.grid])

    def forward(self, tokens: Tokens) -> list[Float[Tensor, "B C"]]:
        """Logits of every layer, in the order of the grid."""
        vectors = {vector: image_vector(tokens, vector) for vector, _ in self.grid}
        return [layer(vectors[vector]) for (vector, _), layer in zip(self.grid, self.layers, strict=True)]


def linear_layer(width: int, num_classes: int) -> nn.Linear:
    layer = nn.Linear(width, num_classes)
    nn.init.normal_(layer.weight, std=INIT_STD)
    nn.init.zeros_(layer.bias)
    return layer


class Predictions(NamedTuple):
    """One row per layer, in the order of the grid; one column per image."""

    predicted: Int64[Tensor, "L B"]
    rank: Int64[Tensor, "L B"]  # of the true class, from 0


@torch.no_grad()
def predict(
    layers: LinearLayers,
    backbone: Backbone,
    data: ClassFolder,
    labels: Int64[Tensor, " B"],
    protocol: LinearClassification,
    context: EvalContext,
    *,
    size: tuple[int, int],
) -> Predictions:
    """Predictions for all validation images; call it within `eval_mode`."""

    def read(item: ClassImage) -> Real[np.ndarray, "H W C"]:
        return resize_and_center_crop(data.read_image(item), protocol.resize_size, size)

    predictions = Predictions(*(labels.new_empty(len(layers.grid), len(labels)) for _ in range(2)))
    done = 0
    for tokens in encode_images(backbone, data.val, read, batch_size=ENCODED_AT_ONCE, device=context.device):
        batch = slice(done, done + len(tokens.patch_tokens))
        for i, logits in enumerate(layers(tokens)):
            predictions.predicted[i, batch] = logits.argmax(dim=1)
            predictions.rank[i, batch] = ranks(logits, labels[batch])
        done = batch.stop
        context.report(done, len(data.val))
    return predictions


def choose_vectors(wanted: tuple[ImageVector, ...], *, has_class_token: bool) -> tuple[ImageVector, ...]:
    """Resolves "auto": the two vectors of DINOv2's grid, or the mean for a model without a class token."""
    chosen: list[ImageVector] = []
    for vector in wanted:
        if vector == "auto" and has_class_token:
            chosen += ("class_token", "class_token_and_mean")
        else:
            chosen.append(choose_vector(vector, has_class_token=has_class_token))
    return tuple(dict.fromkeys(chosen))


def train_layers(
    layers: LinearLayers,
    backbone: Backbone,
    data: ClassFolder,
    protocol: LinearClassification,
    context: EvalContext,
    *,
    size: tuple[int, int],
) -> None:
    """In place, on crops; call it within `eval_mode`. What `train_head` writes goes to context.out."""
    read = ReadCache(lambda item: (data.read_image(item),))

    def sample(epoch: int, index: int) -> tuple[Real[np.ndarray, "H W C"], int]:
        rng = sample_rng(protocol.seed, epoch, index)
        item = data.train[index]
        (image,) = read(item)
        rows, columns, _ = image.shape
        box = sample_crop_box(rng, rows, columns, protocol.crop_scale, size[1] / size[0])
        return resized_crop(image, box, bool(rng.random() < protocol.hflip_prob), size), item.label

    def losses(samples: list[Any]) -> dict[str, Tensor]:
        images, labels = zip(*samples, strict=True)
        tokens = encode(unwrap_cache(backbone), torch.from_numpy(np.stack(images)).to(context.device))
        truth = torch.tensor(labels, device=context.device)
        # A sum: the gradient of each layer is that of its own term.
        return {"cross_entropy": torch.stack([F.cross_entropy(logits, truth) for logits in layers(tokens)]).sum()}

    groups = [
        {"params": list(layer.parameters()), "lr_scale": lr * protocol.batch_size / LR_BATCH}
        for (_, lr), layer in zip(layers.grid, layers.layers, strict=True)
    ]
    identity = resume_key("linear-classification", protocol, data.training_fingerprint(), backbone)
    del identity["protocol"]["resize_size"]  # of the test alone: layers that are done may be scored by another one
    train_head(
        layers,
        torch.optim.SGD(groups, lr=1.0, momentum=protocol.momentum, weight_decay=protocol.weight_decay),
        losses,
        sample,
        num_samples=len(data.train),
        batch_size=protocol.batch_size,
        steps=protocol.steps,
        lr=warmup_cosine(1.0, 0.0, protocol.steps),
        seed=protocol.seed,
        identity=identity,
        context=context,
        precision="float32",
    )
