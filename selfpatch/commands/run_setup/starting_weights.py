"""Weights that a new run starts from: the network that they are of, and what is taken of them."""

from typing import Any

from torch import Tensor, nn

from selfpatch.backbones.backbone import Backbone
from selfpatch.backbones.build import any_size_arguments, create_timm, norm_eps, write_model_kwargs
from selfpatch.backbones.checkpoints.initialization import initialize
from selfpatch.backbones.pretrained import load_start, load_training_state
from selfpatch.backbones.without_values import without_values
from selfpatch.config import PretrainConfig
from selfpatch.objectives.encoder import Encoder
from selfpatch.pretraining.student_teacher import StudentTeacher

# Settings of the backbone that timm's model has as arguments of these names.
OWN_SETTINGS = {"patch_size": int, "embed_dim": int, "depth": int, "num_heads": int, "class_token": bool}


def backbone_settings(source: Backbone, *, patch_size: int | None) -> dict[str, Any]:
    """Settings of a backbone that is built as `source` is; its final norm is another matter.

    Args:
        patch_size: of the backbone, if it should have another one than `source`: its grid of positions stays the same.
    """
    name, arguments = source.architecture
    ignored = {*any_size_arguments(name), "img_size", "final_norm", "in_chans"}
    arguments = {key: value for key, value in arguments.items() if key not in ignored}
    with without_values():
        usual_eps = norm_eps(create_timm(name, **any_size_arguments(name), **arguments))
    settings = {key: value for key, value in arguments.items() if type(value) is OWN_SETTINGS.get(key)}
    image_size = source.image_size
    if patch_size is not None:
        image_size = tuple(
            side // old * patch_size for side, old in zip(image_size, source.model.patch_embed.patch_size, strict=True)
        )
    own_eps = norm_eps(source.model)
    return settings | {
        "name": name,
        "image_size": image_size[0] if image_size[0] == image_size[1] else image_size,
        "norm_eps": own_eps if own_eps != usual_eps else None,
        "model_kwargs": write_model_kwargs({key: arguments[key] for key in arguments if key not in settings}),
    }


def has_own_norm(config: PretrainConfig, source: Backbone) -> bool:
    """Whether the run's backbone should end in a norm, as `source` does; one that was an aggregator's goes to one."""
    if isinstance(source.final_norm, nn.Identity):
        return False
    return config.aggregator is None or not source.final_norm_from_aggregator


def start_from(student_teacher: StudentTeacher, origin: str) -> str:
    """Copy the weights of `origin` into student and teacher; returns what was taken, for the user.

    Heads, aggregator and centers of an original training state are taken where they fit. With all of them student and
    teacher each take their own, an exact continuation; else both start as the network that its authors evaluate.

    Raises:
        UserError: as `load_backbone`; or another width, depth, number of heads or structure: nothing is copied.
    """
    student, teacher = student_teacher.student, student_teacher.teacher
    num_heads = student.backbone.num_heads
    state = load_training_state(origin)
    own = student_teacher.state_dict()
    wanted = {name for name in own if not name.startswith(("student.backbone.", "teacher.backbone."))}
    unfit = [name for name in sorted(wanted) if name not in state or state[name].shape != own[name].shape]
    if state and not unfit:
        notes = [
            copy_backbone(encoder, load_start(origin, num_heads=num_heads, network=network), origin)
            for network, encoder in (("student", student), ("teacher", teacher))
        ]
        load_named(student_teacher, {name: state[name] for name in wanted})
        return (
            f"student and teacher, aggregator, heads and centers, each its own: an exact continuation but for the "
            f"optimizer's state; {notes[1]}"
        )

    source = load_start(origin, num_heads=num_heads)
    notes = [copy_backbone(student, source, origin)]
    prefix = "teacher.aggregator."
    aggregator = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if student.aggregator is not None and aggregator:
        shapes = {name: tensor.shape for name, tensor in student.aggregator.state_dict().items()}
        if {name: tensor.shape for name, tensor in aggregator.items()} == shapes:
            student.aggregator.load_state_dict(aggregator)
            notes.append("its aggregator as well")
        else:
            notes.append("its aggregator has another form and starts anew")
    if state:
        found = [name for name in unfit if name in state] or unfit
        theirs = tuple(state[found[0]].shape) if found[0] in state else "none"
        notes.append(f"heads start anew: {found[0]} is {theirs} there and {tuple(own[found[0]].shape)} here")
    teacher.load_state_dict(student.state_dict())
    return "; ".join(notes)


def copy_backbone(encoder: Encoder, source: Backbone, origin: str) -> str:
    """Initialize the backbone; the aggregator's norm takes the final norm of `source` if the backbone leaves it one."""
    backbone, aggregator = encoder.backbone, encoder.aggregator
    if aggregator is None or not isinstance(backbone.final_norm, nn.Identity):
        return str(initialize(backbone, source, origin=origin))
    backbone.final_norm = aggregator.norm
    try:
        return str(initialize(backbone, source, origin=origin))
    finally:
        backbone.final_norm = nn.Identity()


def load_named(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    found = module.load_state_dict(tensors, strict=False)
    assert not found.unexpected_keys
