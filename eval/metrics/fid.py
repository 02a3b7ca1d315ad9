"""Fréchet distance of two sets of features, FID when they are Inception's (Heusel et al., arXiv:1706.08500, equation 6)."""

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from erasure.errors import UserError


class _PassThrough(nn.Module):
    """Takes the place of torchmetrics' network: the features are already computed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features.double()


class FID(FrechetInceptionDistance):
    """|mu - mu'|^2 + tr(S + S' - 2 (S S')^(1/2)) over the features of any extractor; give its name with the number.

    Sums and formula are in float64. With finite samples the value is too high by about a constant over n, so it means something only next
    to the distance between two halves of one model's images at the same n (eval.metrics.distances).

    Args:
        width: length d of a feature.
    """

    def __init__(self, width: int) -> None:
        super().__init__(feature=_PassThrough(width))

    def update(self, features: Tensor, real: bool) -> None:
        """Add features (N, d) of one side."""
        super().update(features, real)

    def compute(self) -> Tensor:
        """Return the distance, a float64 scalar.

        Raises:
            UserError: a side has fewer than two features.
        """
        mu_a, cov_a = _moments(self.real_features_sum, self.real_features_cov_sum, int(self.real_features_num_samples))
        mu_b, cov_b = _moments(self.fake_features_sum, self.fake_features_cov_sum, int(self.fake_features_num_samples))
        distance = (mu_a - mu_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * _trace_of_root(cov_a, cov_b)
        return distance.clamp(min=0)  # below zero only from rounding


def _moments(total: Tensor, outer: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return mean (d,) and unbiased covariance (d, d) from sums."""
    if n < 2:
        raise UserError(f"FID needs two images per side, got {n}.")
    mu = total / n
    return mu, (outer - n * mu.outer(mu)) / (n - 1)


def _trace_of_root(a: Tensor, b: Tensor) -> Tensor:
    """Return tr (A B)^(1/2) = tr (R^T B R)^(1/2) with A = R R^T: a symmetric problem, so its eigenvalues are real.

    torchmetrics solves the non-symmetric problem and drops imaginary parts, which is slower and loses digits if n is below d.
    """
    values, vectors = torch.linalg.eigh(a)
    root = vectors * values.clamp(min=0).sqrt()
    eigenvalues = torch.linalg.eigvalsh(root.T @ b @ root).clamp(min=0)
    # the square root would amplify eigenvalues that are nonzero only from rounding
    rounding = eigenvalues[-1] * len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps
    trace: Tensor = eigenvalues[eigenvalues > rounding].sqrt().sum()
    return trace
