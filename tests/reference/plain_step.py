"""The training step of DINO + SelfPatch in its plain form, with the weights of a `StudentTeacher`.

A restatement of what the original program computes: neighbours are gathered as vectors, each patch's positives are gathered
before keys and values are projected, every crop goes through its own softmax, the teacher's logits are made for all crops,
and attention is explicit. Used to test the fast form and to measure it against (benchmarks/pretraining_step.py).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfpatch.pretraining.student_teacher import StudentTeacher


def plain_loss(
    student_teacher: StudentTeacher, global_crops: Tensor, local_crops: Tensor, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Crops [V, B, 3, H, W] -> loss, mean teacher image logit, mean teacher patch logit. Borders wrap, all crops count."""
    dino, selfpatch = student_teacher.objectives["dino"], student_teacher.objectives["selfpatch"]
    sizes = [global_crops, local_crops]
    with torch.no_grad():
        teacher = [_encode(student_teacher.teacher.backbone, crops) for crops in sizes]
        aggregator = student_teacher.teacher.aggregator
        teacher_image = torch.cat([dino.branch.teacher_head(aggregate(aggregator, tokens)) for tokens, _ in teacher])
        teacher_patch = []
        for tokens, grid in teacher:
            members = _positives(tokens, grid, selfpatch.config.num_positives)  # [B, N, k, D]
            aggregates = aggregate(aggregator, members.flatten(0, 1)).unflatten(0, tokens.shape[:2])
            teacher_patch.append(selfpatch.branch.teacher_head(aggregates))
    student = [_encode(student_teacher.student.backbone, crops) for crops in sizes]
    aggregator = student_teacher.student.aggregator
    student_image = torch.cat([dino.branch.head(aggregate(aggregator, tokens)) for tokens, _ in student])
    student_patch = [selfpatch.branch.head(aggregator.norm(tokens)) for tokens, _ in student]

    num_images = global_crops.shape[1]
    image_loss = _image_loss(dino, student_image.split(num_images), teacher_image.split(num_images)[:2], step)
    patch_loss = _patch_loss(selfpatch, student_patch, teacher_patch, num_images, step)
    patch_mean = torch.cat([logits.flatten(0, 1) for logits in teacher_patch]).mean(dim=0)
    return dino.weight * image_loss + selfpatch.weight * patch_loss, teacher_image.mean(dim=0), patch_mean


def _encode(backbone, crops: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Patch tokens with explicit attention: softmax(q k^T) is held."""
    tokens = backbone(crops.flatten(0, 1))
    return tokens.patch_tokens, tokens.grid_size


def _positives(tokens: Tensor, grid: tuple[int, int], num_positives: int) -> Tensor:
    rows, columns = grid
    offsets = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1) if (r, c) != (0, 0)]
    patch = torch.arange(rows * columns)
    row, column = patch // columns, patch % columns
    neighbors = torch.stack([(row + r) % rows * columns + (column + c) % columns for r, c in offsets], dim=-1)
    around = tokens[:, neighbors]  # [B, N, 8, D]
    similarity = F.cosine_similarity(around, tokens[:, :, None], dim=-1)
    best = similarity.topk(num_positives, dim=-1).indices
    return around.gather(2, best[..., None].expand(-1, -1, -1, tokens.shape[-1]))


def aggregate(aggregator, tokens: Tensor) -> Tensor:
    """Sets of tokens [B, T, D] -> one token each."""
    query = aggregator.query.expand(len(tokens), -1, -1)
    for block in aggregator.blocks:
        attention = block.attn
        everything = block.norm1(torch.cat([query, tokens], dim=1))
        heads = [layer.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for layer in (
            attention.q(everything[:, :1]), attention.k(everything), attention.v(everything))]  # fmt: skip
        q, k, v = heads
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
        query = query + attention.proj((weights @ v).transpose(1, 2).flatten(2))
        query = query + block.mlp(block.norm2(query))
    return aggregator.norm(query)[:, 0]


def _image_loss(dino, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], step: int) -> Tensor:
    distillation = dino.branch.distillation
    total, count = torch.zeros(()), 0
    for g, logits in enumerate(teacher):
        targets = ((logits - distillation.center) / distillation.teacher_temperature(step)).softmax(dim=-1)
        for v, prediction in enumerate(student):
            if v != g:
                log_probability = (prediction / distillation.student_temperature).log_softmax(dim=-1)
                total = total - (targets * log_probability).sum(dim=-1).mean()
                count += 1
    return total / count


def _patch_loss(selfpatch, student: list[Tensor], teacher: list[Tensor], num_images: int, step: int) -> Tensor:
    distillation = selfpatch.branch.distillation
    losses = []
    for prediction, logits in zip(student, teacher, strict=True):
        for p, t in zip(prediction.split(num_images), logits.split(num_images), strict=True):
            targets = ((t - distillation.center) / distillation.teacher_temperature(step)).softmax(dim=-1)
            log_probability = (p / distillation.student_temperature).log_softmax(dim=-1)
            losses.append(-(targets * log_probability).sum(dim=-1).mean())
    return torch.stack(losses).mean()
