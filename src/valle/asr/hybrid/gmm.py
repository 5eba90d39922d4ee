"""Mixtures of diagonal Gaussians, one a tied state: what labels the first speech, and what the network is measured by.

Features are cepstra with their slopes for the monophone, and after it nine frames of cepstra in the 40 directions that
tell states apart best (linear discriminant analysis), as in Kaldi's recipes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from valle.asr.hybrid.features import at_steps, cepstra, spliced, with_slopes
from valle.asr.mixture import fit_mixture

_MIN_VARIANCE = 0.01  # share of the variance over all speech
_PRIOR_FRAMES = 20.0  # weight of a state's own variance in that of each of its Gaussians
_BLOCK = 2048  # frames at a time: their likelihoods stay in the processor's cache


class Gmm:
    """Mixtures [R] of M Gaussians over D features, and the projection that makes those."""

    def __init__(self, means: Tensor, variances: Tensor, weights: Tensor, transform: Tensor | None = None) -> None:
        """
        Args:
            means: [R, M, D].
            variances: [R, M, D].
            weights: [R, M].
            transform: [117, D] from nine frames of cepstra; None for cepstra with slopes.
        """
        self.means, self.variances, self.weights, self.transform = means, variances, weights, transform

    @classmethod
    def blank(cls, n_rows: int, n_features: int, transform: Tensor | None = None) -> Gmm:
        """One Gaussian a state, of zero mean and unit variance."""
        zeros = torch.zeros(n_rows, 1, n_features)
        return cls(zeros, torch.ones_like(zeros), torch.ones(n_rows, 1), transform)

    def features(self, mels: Tensor, phase: int = 0) -> Tensor:
        """Log mel energies [T, 80] -> features [S, D] at each step."""
        x = cepstra(mels)
        if self.transform is None:
            return at_steps(with_slopes(x), phase)
        return at_steps(spliced(x), phase) @ self.transform

    def scores(self, x: Tensor) -> Tensor:
        """Log-likelihoods of features [S, D] in each state: [S, R]."""
        n_rows, m, d = self.means.shape
        means, precision = self.means.transpose(0, 1), 1 / self.variances.transpose(0, 1)  # [M, R, D]
        matrix = torch.cat([means * precision, -0.5 * precision], dim=2).reshape(m * n_rows, 2 * d).t()
        bias = self.weights.t().clamp(min=1e-10).log() - 0.5 * (
            d * math.log(2 * math.pi) - precision.log().sum(2) + (means.square() * precision).sum(2)
        )  # [M, R]
        out = []
        for start in range(0, len(x), _BLOCK):
            f = x[start : start + _BLOCK]
            each = torch.addmm(bias.reshape(-1), torch.cat([f, f.square()], dim=1), matrix)
            out.append(each.view(-1, m, n_rows).logsumexp(1))
        return torch.cat(out) if out else torch.zeros(0, n_rows)

    def estimate(self, x: Tensor, rows: Tensor, *, rounds: int = 3, max_frames: int = 20000) -> None:
        """New Gaussians from features x [F, D] and the state ``rows`` [F] of each (-1: leave out)."""
        order = rows.argsort(stable=True)
        counts = torch.bincount(rows.clamp(min=0) + (rows >= 0), minlength=len(self.means) + 1)
        ends = counts.cumsum(0).tolist()
        floor = _MIN_VARIANCE * x[:: max(1, len(x) // 100000)].var(0)  # [D]
        for row in range(len(self.means)):
            frames = order[ends[row] : ends[row + 1]]
            if len(frames) > max_frames:
                frames = frames[:: len(frames) // max_frames + 1]
            if len(frames) >= 4:
                self.means[row], self.variances[row], self.weights[row] = fit_mixture(
                    x[frames],
                    self.means[row],
                    self.variances[row],
                    self.weights[row],
                    least=floor,
                    prior_frames=_PRIOR_FRAMES,
                    rounds=rounds,
                )

    def grow(self) -> None:
        """Split each Gaussian in two."""
        apart = 0.3 * self.variances.sqrt()
        self.means = torch.cat([self.means - apart, self.means + apart], dim=1)
        self.variances, self.weights = self.variances.repeat(1, 2, 1), self.weights.repeat(1, 2) / 2

    def tensors(self) -> dict[str, Tensor]:
        """For a file."""
        named = {"means": self.means, "variances": self.variances, "weights": self.weights}
        return named if self.transform is None else {**named, "transform": self.transform}


def discriminant(x: Tensor, rows: Tensor, n_out: int) -> Tensor:
    """Linear discriminant analysis: x [F, D] of classes ``rows`` [F] -> [D, n_out], within-class variance one."""
    wide = x.double()
    n_classes = int(rows.max()) + 1
    n = torch.bincount(rows, minlength=n_classes).double()
    sums = torch.zeros(n_classes, x.shape[1], dtype=torch.float64).index_add_(0, rows, wide)
    means = sums / n.clamp(min=1).unsqueeze(1)
    total = wide.t() @ wide / len(x) - torch.outer(wide.mean(0), wide.mean(0))
    centred = (means - wide.mean(0)) * (n / len(x)).sqrt().unsqueeze(1)
    between = centred.t() @ centred
    within = total - between + 1e-4 * total.diagonal().mean() * torch.eye(len(total), dtype=torch.float64)
    root = torch.linalg.inv(torch.linalg.cholesky(within))  # whitens: root @ within @ root.T = 1
    _, vectors = torch.linalg.eigh(root @ between @ root.t())
    directions: Tensor = root.t() @ vectors[:, -n_out:].flip(1)
    return directions.float()
