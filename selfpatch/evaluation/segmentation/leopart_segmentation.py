"""Linear segmentation by Leopart's protocol: square images, trained on maps of 100 x 100, scored at 448 x 448."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Real, UInt8
from torch import Tensor, nn

from selfpatch.data.augmentation.geometry import sample_crop_box
from selfpatch.data.loading.sampler import sample_rng
from selfpatch.evaluation.datasets.segmentation import SegmentationData
from selfpatch.evaluation.feature_cache import unwrap_cache
from selfpatch.evaluation.features import (
    Backbone,
    ReadCache,
    eval_mode,
    floor_to_patch_multiple,
    normalized,
    patch_features,
    prefetch,
    resize_image,
    resize_mask,
)
from selfpatch.evaluation.head_training import resume_key, seeded, train_head
from selfpatch.evaluation.metrics import mean_cross_entropy
from selfpatch.evaluation.protocols.linear_segmentation import LeopartSegmentation
from selfpatch.evaluation.segmentation.segmentation_scores import ConfusionMeter, SegmentationScores, upsampled_argmax
from selfpatch.evaluation.task import EvalContext

Sample = tuple[Real[np.ndarray, "_ _ _c"], UInt8[np.ndarray, "_ _"]]  # image and mask


def evaluate_leopart(
    backbone: Backbone, data: SegmentationData, protocol: LeopartSegmentation, context: EvalContext
) -> SegmentationScores:
    """Train the layer, and score it on all validation images.

    Numbers are not comparable with those of other protocols.

    Source: MkuuWaUjinga/leopart experiments/linear_probing, linear_finetune.py and eval_linear.py.
    Differs: see `LeopartSegmentation.differs`.
    """
    size = floor_to_patch_multiple(protocol.image_size, backbone.patch_size)

    def to_batch(samples: list[Sample], mask_side: int) -> tuple[Float[Tensor, "B _c h w"], Int64[Tensor, "B m m"]]:
        images, masks = (torch.from_numpy(np.stack(arrays)).to(context.device) for arrays in zip(*samples, strict=True))
        resized = F.interpolate(masks[:, None].float(), size=(mask_side, mask_side), mode="nearest")[:, 0].long()
        return normalized(images, backbone.mean, backbone.std), resized

    with eval_mode(backbone):
        # 1. Train on crops.
        read = ReadCache(lambda item: (data.read_image(item), data.read_mask(item)))

        def sample(epoch: int, index: int) -> Sample:
            rng = sample_rng(protocol.seed, epoch, index)
            image, mask = read(data.train[index])
            top, left, height, width = sample_crop_box(rng, mask.shape[0], mask.shape[1], protocol.crop_area, 1.0)
            part = (slice(top, top + height), slice(left, left + width))
            image, mask = resize_image(image[part], size), resize_mask(mask[part], size)
            if rng.random() < protocol.hflip_prob:
                image, mask = np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(mask[:, ::-1])
            return image, mask

        def losses(samples: list[Sample]) -> dict[str, Float[Tensor, ""]]:
            images, masks = to_batch(samples, protocol.mask_size)
            features = patch_features(unwrap_cache(backbone), images)
            logits = layer(F.interpolate(features, size=masks.shape[1:], mode="bilinear"))
            return {"segmentation": mean_cross_entropy(logits, masks)}

        with seeded(protocol.seed, context.device):
            layer = nn.Conv2d(backbone.embed_dim, data.num_classes, kernel_size=1).to(context.device)
        identity = resume_key("linear-segmentation", protocol, data.training_fingerprint(), backbone)
        del identity["protocol"]["eval_mask_size"]  # of the test alone
        steps_per_epoch = num_steps_per_epoch(len(data.train), protocol)
        train_head(
            layer,
            torch.optim.SGD(layer.parameters(), lr=protocol.lr, momentum=0.9, weight_decay=protocol.weight_decay),
            losses,
            sample,
            num_samples=len(data.train),
            batch_size=min(protocol.batch_size, len(data.train)),
            steps=protocol.epochs * steps_per_epoch,
            lr=lambda step: protocol.lr * 0.1 ** (step // steps_per_epoch // protocol.drop_at),
            seed=protocol.seed,
            identity=identity,
            context=context,
            precision="float32",
        )

        # 2. Score whole images, squeezed to a square.
        def read_square(item) -> Sample:
            return resize_image(data.read_image(item), size), resize_mask(data.read_mask(item), size)

        scorer = ConfusionMeter(data, context.device)
        samples = prefetch(read_square, ([item] for item in data.val))
        for done, (item, read_samples) in enumerate(zip(data.val, samples, strict=True), start=1):
            images, masks = to_batch(read_samples, protocol.eval_mask_size)
            with torch.no_grad():
                # The program resizes tokens, whose logits are the same: both steps are linear, weights of the first sum
                # to 1.
                logits = layer(patch_features(backbone, images))[0]
            prediction = upsampled_argmax(logits, (protocol.eval_mask_size, protocol.eval_mask_size))
            scorer.add(item, masks[0].cpu().numpy().astype(np.uint8), prediction)
            context.report(done, len(data.val))
    return scorer.scores()


def num_steps_per_epoch(num_images: int, protocol: LeopartSegmentation) -> int:
    """Whole batches of an epoch, without the smaller rest (drop_last); fewer images than a batch are one."""
    return max(num_images // protocol.batch_size, 1)
