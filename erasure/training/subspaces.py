"""Subspaces of the conditioning: what a set of prompts spans, and which directions of it are frequent."""

import torch
from torch import Tensor


def orthonormal_basis(rows: Tensor, tolerance: float = 1e-6) -> Tensor:
    """Return an orthonormal basis (D, r) of the span of rows (N, D), at their numerical rank."""
    _, s, v = torch.linalg.svd(rows, full_matrices=False)
    basis: Tensor = v[s > tolerance * s[:1]].T
    return basis


def frequent_directions(rows: Tensor, eigenvalue: float) -> Tensor:
    """Return the orthonormal eigenvectors (D, r), with at least this eigenvalue, of the second moment P^T P / N of rows P (N, D)."""
    if not len(rows):
        return rows.new_empty(rows.shape[1], 0)
    eigenvalues, eigenvectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    directions: Tensor = eigenvectors[:, eigenvalues >= eigenvalue]
    return directions
