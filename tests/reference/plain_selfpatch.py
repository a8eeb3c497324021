"""SelfPatch and DINO's losses written out patch by patch and pair by pair, from the papers, in the slowest way."""

import math

import torch


def positives_of(tokens, rows, columns, window, padding_mode, k):
    """For one image's [N, D] tokens: per patch the indices of its k most similar neighbours, best first."""
    reach = window // 2
    chosen = []
    for row in range(rows):
        for column in range(columns):
            me = tokens[row * columns + column]
            scored = []
            for dr in range(-reach, reach + 1):
                for dc in range(-reach, reach + 1):
                    r, c = row + dr, column + dc
                    if dr == dc == 0 or (padding_mode == "none" and not (0 <= r < rows and 0 <= c < columns)):
                        continue
                    index = (r % rows) * columns + c % columns
                    other = tokens[index]
                    scored.append((float(me @ other / (me.norm() * other.norm())), index))
            scored.sort(key=lambda pair: -pair[0])
            chosen.append([index for _, index in scored[:k]])
    return chosen


def attend(block, query, others):
    """One class-attention block on one query [D] and a list of tokens [T, D]."""
    attention = block.attn
    everything = block.norm1(torch.cat([query[None], others]))
    q, k, v = attention.q(everything[:1]), attention.k(everything), attention.v(everything)
    dim = q.shape[1] // attention.num_heads
    heads = []
    for h in range(attention.num_heads):
        part = slice(h * dim, (h + 1) * dim)
        weights = torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(dim), dim=-1)
        heads.append(weights @ v[:, part])
    query = query + attention.proj(torch.cat(heads, dim=-1))[0]
    return query + block.mlp(block.norm2(query[None]))[0]


def aggregate(aggregator, tokens):
    """One token for a list of tokens [T, D]."""
    query = aggregator.query[0, 0]
    for block in aggregator.blocks:
        query = attend(block, query, tokens)
    return aggregator.norm(query)


def cross_entropy(target, logits, temperature):
    return -(target * torch.log_softmax(logits / temperature, dim=-1)).sum()


def selfpatch_loss(student_crops, teacher_crops, grids, *, student, teacher, center, config):
    """Crops are lists of [B, N, D] tokens; student and teacher are (aggregator, head). -> loss, mean teacher logit."""
    (student_aggregator, student_head), (teacher_aggregator, teacher_head) = student, teacher
    distillation = config.distillation
    losses, logits = [], []
    for student_tokens, teacher_tokens, (rows, columns) in zip(student_crops, teacher_crops, grids, strict=True):
        image_losses = []
        for s, t in zip(student_tokens, teacher_tokens, strict=True):
            chosen = positives_of(t, rows, columns, config.window_size, config.padding_mode, config.num_positives)
            patch_losses = []
            for i, members in enumerate(chosen):
                logit = teacher_head(aggregate(teacher_aggregator, t[members])[None])[0]
                logits.append(logit)
                target = torch.softmax((logit - center) / distillation.teacher_temperature, dim=-1)
                prediction = student_head(student_aggregator.norm(s[i])[None])[0]
                patch_losses.append(cross_entropy(target, prediction, distillation.student_temperature))
            image_losses.append(sum(patch_losses) / len(patch_losses))
        losses.append(sum(image_losses) / len(image_losses))
    return sum(losses) / len(losses), torch.stack(logits).mean(dim=0)


def dino_loss(student_logits, teacher_logits, *, center, student_temperature, teacher_temperature):
    """Lists of [B, K] logits a crop; the teacher's are of the first crops."""
    pairs = []
    for g, teacher in enumerate(teacher_logits):
        for v, student in enumerate(student_logits):
            if g != v:
                targets = torch.softmax((teacher - center) / teacher_temperature, dim=-1)
                pairs.append(
                    sum(cross_entropy(t, s, student_temperature) for t, s in zip(targets, student, strict=True))
                    / len(student)
                )
    return sum(pairs) / len(pairs)
