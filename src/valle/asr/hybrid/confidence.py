"""How sure a word is: from what the network thinks of its phones to the probability that the word is right.

Three marks of a word: the mean log-probability of its phones over its steps, the lowest of any of its phones, and how
many phones there are. A logistic regression over them is fitted on words of which it is known whether they are right.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from valle.asr.hybrid.words import HeardWord

N_MARKS = 3
_ROUNDS = 30
_PULL = 1e-2  # of the weights towards zero: a fit over few words stays finite


def marks(word: HeardWord, unit_log_posteriors: NDArray[np.float32]) -> tuple[float, float, float]:
    """(mean, lowest, log number of phones) from log-probabilities [S, units]."""
    each = [float(unit_log_posteriors[p.start : p.end, p.unit].mean()) for p in word.phones]
    lengths = [p.end - p.start for p in word.phones]
    mean = float(np.average(each, weights=lengths))
    return max(mean, -20.0), max(min(each), -20.0), float(np.log(len(each)))


def unit_log_posteriors(log_posteriors: NDArray[np.float32], units: NDArray[np.int32]) -> NDArray[np.float32]:
    """Log-probabilities of tied states [S, pdfs], and the unit of each [pdfs] -> of units [S, n_units]."""
    sums = np.zeros((len(log_posteriors), int(units.max()) + 1), np.float32)
    np.add.at(sums.T, units, np.exp(log_posteriors).T)
    out: NDArray[np.float32] = np.log(np.maximum(sums, 1e-9))
    return out


def probability(word_marks: Sequence[float], calibration: Sequence[float]) -> float:
    """That the word is right; without a calibration the mean probability of its phones."""
    if len(calibration) != N_MARKS + 1:
        return float(np.exp(word_marks[0]))
    z = calibration[0] + float(np.dot(calibration[1:], word_marks))
    return float(1 / (1 + np.exp(-np.clip(z, -30, 30))))


def calibrate(words: Sequence[Sequence[float]], right: Sequence[bool]) -> tuple[float, ...]:
    """Fit the logistic regression by Newton's method: offset, then a weight for each mark; () without both kinds."""
    if len(set(right)) < 2:
        return ()
    x = np.column_stack([np.ones(len(words)), np.asarray(words, np.float64)])  # [n, 4]
    y = np.asarray(right, np.float64)
    w = np.zeros(x.shape[1])
    for _ in range(_ROUNDS):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        gradient = x.T @ (y - p) - _PULL * w
        curvature = (x * (p * (1 - p))[:, None]).T @ x + _PULL * np.eye(len(w))
        w += np.linalg.solve(curvature, gradient)
    return tuple(round(float(v), 5) for v in w)
