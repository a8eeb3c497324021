"""What patch tokens tell about their position by linear regression, and its removal from a backbone in closed form.

Every least-squares regression is settled by first and second moments, those of projected tokens too. So one pass over
images is enough for all rounds of removal, and nothing is trained.

Source: RASA, in Franca (arXiv 2507.14137), sec. 2.3. Differs: each round's regression is solved in closed form.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfpatch.backbones.backbone import Tokens
from selfpatch.backbones.vit import ViT
from selfpatch.errors import UserError

# Rounds after which the paper sees nothing more to remove.
MAX_ROUNDS = 9
# R2 at which a round finds nothing that is worth removing.
MIN_R2 = 0.01
# Variances below this fraction of the largest one are rounding, or removed already.
MIN_VARIANCE = 1e-9


def patch_positions(grid_size: tuple[int, int]) -> Float[Tensor, "N 2"]:
    """(row, column) of every patch's center, row-major, from -1 to 1 over the image."""
    axes = [(2 * torch.arange(length, dtype=torch.float64) + 1) / length - 1 for length in grid_size]
    return torch.cartesian_prod(*axes)


class PositionMoments:
    """Moments of patch tokens and their positions over many images, in float64 on the CPU."""

    def __init__(self, dim: int):
        self.dim = dim
        self.count = 0
        self._sums = torch.zeros(dim + 2, dtype=torch.float64)
        self._products = torch.zeros(dim + 2, dim + 2, dtype=torch.float64)

    def add(self, tokens: Tokens) -> None:
        positions = patch_positions(tokens.grid_size).expand(len(tokens.patch_tokens), -1, -1)
        rows = torch.cat([tokens.patch_tokens.detach().cpu().double(), positions], dim=-1).flatten(0, 1)
        self.count += len(rows)
        self._sums += rows.sum(dim=0)
        self._products += rows.T @ rows

    def through(self, linear: Float[Tensor, "D D"]) -> "PositionMoments":
        """The moments of the same tokens after a linear map."""
        whole = torch.block_diag(linear, torch.eye(2, dtype=torch.float64))
        mapped = PositionMoments(self.dim)
        mapped.count = self.count
        mapped._sums, mapped._products = whole @ self._sums, whole @ self._products @ whole.T
        return mapped

    @property
    def means(self) -> Float[Tensor, " E"]:
        return self._sums / self.count

    def covariance(self, around: Float[Tensor, " E"]) -> Float[Tensor, "E E"]:
        """Mean product of the distances from `around`, of tokens and then positions."""
        means = self.means
        return self._products / self.count - means.outer(means) + (means - around).outer(means - around)

    def weights(self) -> Float[Tensor, "D 2"]:
        """Least-squares regression of both coordinates on tokens, the shortest weights where tokens leave a choice."""
        covariance = self.covariance(self.means)
        variances, directions = torch.linalg.eigh(covariance[:-2, :-2])
        kept = variances > MIN_VARIANCE * variances.max()
        inverse = torch.where(kept, 1 / torch.where(kept, variances, 1.0), 0.0)
        return directions @ (inverse[:, None] * (directions.T @ covariance[:-2, -2:]))


class PositionRemoval(NamedTuple):
    """The projection that removes position, and R2 before the first round and after each one."""

    projection: Float[Tensor, "D D"]  # symmetric; each round takes two from its rank
    r2: list[float]

    @property
    def num_rounds(self) -> int:
        return len(self.r2) - 1


def remove_position(moments: PositionMoments, *, max_rounds: int = MAX_ROUNDS) -> PositionRemoval:
    """Regress position on tokens, project the plane of the two solutions out, and again, until nothing is found.

    The plane of a round is orthogonal to those before it, so all of them together are one orthogonal projection.
    """
    projection = torch.eye(moments.dim, dtype=torch.float64)
    r2 = [position_r2(moments, moments)]
    while len(r2) <= min(max_rounds, (moments.dim - 1) // 2) and r2[-1] > MIN_R2:
        directions, strengths, _ = torch.linalg.svd(moments.through(projection).weights(), full_matrices=False)
        plane = directions[:, strengths > MIN_VARIANCE * strengths[0]]  # [D, 2], or 1 on a grid of one row
        projection = projection - plane @ plane.T
        projected = moments.through(projection)
        r2.append(position_r2(projected, projected))
    return PositionRemoval(projection, r2)


def position_r2(fitted: PositionMoments, held_out: PositionMoments) -> float:
    """R2 on `held_out` of the linear regression of position on tokens that `fitted` settles; mean of rows and columns.

    0: tokens do not tell their place, 1: they tell it exactly. Below 0 where too few patches were fitted.
    """
    # Predictions go through the means of the fit; a grid of one row or column counts by the other axis alone.
    weights, products = fitted.weights(), held_out.covariance(fitted.means)
    tokens, both, positions = products[:-2, :-2], products[:-2, -2:], products[-2:, -2:]
    errors = positions.diagonal() - 2 * (weights * both).sum(dim=0) + (weights * (tokens @ weights)).sum(dim=0)
    variances = held_out.covariance(held_out.means).diagonal()[-2:]
    varies = variances > 1e-12
    return float((1 - errors[varies] / variances[varies]).mean()) if varies.any() else 0.0


def append_projection(backbone: ViT, projection: Float[Tensor, "D D"]) -> None:
    """Put a linear map behind the final norm, as timm's `head`: plain timm's `model(images)` then gives mapped tokens.

    No other place of a vision transformer takes it exactly. The final norm scales single channels. Before it stands the
    residual stream, to which the last layers only add, and the norm's mean and scale are those of the whole token.

    Raises:
        UserError: a backbone whose head is not directly behind its final norm.
    """
    model = backbone.model
    if not isinstance(getattr(model, "fc_norm", nn.Identity()), nn.Identity) or not isinstance(model.head, nn.Identity):
        raise UserError(
            f"{backbone.architecture.name} has a layer behind its final norm already, and position is removed there; "
            "export it as it is"
        )
    parameter = next(model.parameters())
    head = nn.Linear(backbone.embed_dim, backbone.embed_dim, device=parameter.device, dtype=parameter.dtype)
    with torch.no_grad():
        head.weight.copy_(projection)
        head.bias.zero_()
    model.head = head.eval()
    name, arguments = backbone.architecture
    backbone.architecture = backbone.architecture._replace(
        name=name, arguments=arguments | {"num_classes": backbone.embed_dim}
    )
