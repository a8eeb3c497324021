"""Removal of position from a backbone, with what it was and what is left of it in words."""

from selfpatch.backbones.backbone import Backbone
from selfpatch.backbones.position_removal import append_projection, position_r2, remove_position
from selfpatch.backbones.vit import ViT
from selfpatch.commands.callbacks.position_leak import position_moments
from selfpatch.data.image_folder import read_evenly_spaced
from selfpatch.data.source import ImageSource
from selfpatch.errors import UserError

NUM_IMAGES = 1000
# Patches per channel of the regression, below which it would fit noise.
MIN_PATCHES_PER_CHANNEL = 10


def remove_position_from(backbone: Backbone, images: ImageSource) -> str:
    """Fit the removal to half of at most NUM_IMAGES images and change the backbone; returns a message for the user.

    Raises:
        UserError: a backbone without a place for it, or too few images.
    """
    if not isinstance(backbone, ViT):
        raise UserError(
            f"{backbone.architecture.name} is no plain vision transformer, and timm has no place in it where position "
            "could be removed exactly; leave out --remove-position"
        )
    fitted, held_out = position_moments(backbone, read_evenly_spaced(images, NUM_IMAGES))
    needed = MIN_PATCHES_PER_CHANNEL * backbone.embed_dim
    if min(fitted.count, held_out.count) < needed:
        raise UserError(
            f"removing position from tokens of width {backbone.embed_dim} takes {2 * needed:,} patches, and the images "
            f"have {fitted.count + held_out.count:,}; give more images"
        )
    before = position_r2(fitted, held_out)
    removal = remove_position(fitted)
    append_projection(backbone, removal.projection)
    after = position_r2(fitted.through(removal.projection), held_out.through(removal.projection))
    num_channels = round(backbone.embed_dim - float(removal.projection.trace()))
    return (
        f"position removed in {removal.num_rounds} rounds, {num_channels} of {backbone.embed_dim} directions: R2 of "
        f"row and column on other images {before:.2f} before, {max(after, 0.0):.2f} now. The map is timm's head: call "
        "the model itself, as its forward_features and intermediate layers are from before it. A class token goes "
        "through it too"
    )
