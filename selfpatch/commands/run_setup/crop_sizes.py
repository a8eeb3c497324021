"""Crops that do not fit the backbone or the objectives are refused before a run."""

from selfpatch.config import PretrainConfig, rows_columns
from selfpatch.errors import UserError
from selfpatch.pretraining.student_teacher import StudentTeacher


def check_crops(config: PretrainConfig, student_teacher: StudentTeacher) -> None:
    """Crops must be whole patches, and large enough for every objective that sees them."""
    patch_size = student_teacher.student.backbone.patch_size
    sizes = {"global": config.crops.global_size} | (
        {"local": config.crops.local_size} if config.crops.num_local else {}
    )
    for name, size in sizes.items():
        rows, columns = rows_columns(size)
        if rows % patch_size[0] or columns % patch_size[1]:
            nearest = (
                max(round(rows / patch_size[0]), 1) * patch_size[0],
                max(round(columns / patch_size[1]), 1) * patch_size[1],
            )
            raise UserError(
                f"crops.{name}-size {rows} x {columns} is not a multiple of the patch size {patch_size[0]} x "
                f"{patch_size[1]}; the nearest is {nearest[0]} x {nearest[1]} (crops.{name}-size {nearest[0]})"
            )
        for objective in student_teacher.named_objectives.values():
            if name == "global" or objective.needs.student_local or objective.needs.teacher_local:
                objective.check_grid(rows // patch_size[0], columns // patch_size[1])
