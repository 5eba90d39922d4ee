"""How a recogniser listens best: weights of acoustics against language, and how sure it is, chosen on dev."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from valle.asr.hybrid.confidence import calibrate, marks, unit_log_posteriors
from valle.asr.hybrid.recogniser import HybridRecogniser, transcripts_agree
from valle.asr.hybrid.tree import units_of_pdfs
from valle.asr.hybrid.words import align_words
from valle.asr.pairing import pair_words

SCALES = (0.6, 0.45, 0.8, 0.3, 1.0)
"""Of the network's log-likelihoods; of equally good ones the first is taken."""
GMM_SCALES = (0.12, 0.08, 0.18, 0.05)
"""Of the Gaussians'."""
PRIORS = (0.8, 0.5, 1.0)
"""How much of the states' frequencies is taken off."""


class Known(NamedTuple):
    """A recording and its words."""

    mels: Tensor
    """[T, 80]"""
    words: list[str]
    """What is said."""


class Tuned(NamedTuple):
    """What ``tuned`` found."""

    recogniser: HybridRecogniser
    """With the weights that have fewest errors."""
    error: float
    """Its share of wrong words."""
    told: list[str]
    """What each trial had, in words."""


def error_share(recogniser: HybridRecogniser, answers: Sequence[Tensor], known: Sequence[Known]) -> float:
    """Word error rate, without normalisation, from ``HybridRecogniser.answers`` of each."""
    heard = [recogniser.decode(recogniser.scaled(a)) for a in answers]
    wrong = sum(pair_words(words, k.words).cost for words, k in zip(heard, known, strict=True))
    return wrong / max(1, sum(len(k.words) for k in known))


def tuned(recogniser: HybridRecogniser, known: Sequence[Known]) -> Tuned:
    """The same recogniser with the weights that have fewest errors."""
    told: list[str] = []
    least = 9.0
    answers = [recogniser.answers(k.mels) for k in known]

    def choose(name: str, values: Sequence[float], given: HybridRecogniser) -> HybridRecogniser:
        nonlocal least
        best = given
        for value in values:
            trial = given.with_decoding(**{name: value})
            share = error_share(trial, answers, known)
            told.append(f"{name} {value:g}: WER {100 * share:.1f} %")
            if share < least:
                best, least = trial, share
        return best

    if recogniser.acoustics == "gmm":
        recogniser = choose("gmm_scale", GMM_SCALES, recogniser)
        return Tuned(recogniser, least, told)
    own = recogniser.model.config.decoding  # those that the network was trained with come first
    recogniser = choose("acoustic_scale", tuple(dict.fromkeys((own.acoustic_scale, *SCALES))), recogniser)
    recogniser = choose("prior_scale", tuple(dict.fromkeys((own.prior_scale, *PRIORS))), recogniser)
    return Tuned(recogniser, least, told)


def calibration(recogniser: HybridRecogniser, known: Sequence[Known]) -> tuple[float, ...]:
    """``DecodingConfig.calibration`` from what the recogniser hears on recordings whose words are known."""
    all_marks: list[tuple[float, float, float]] = []
    right: list[bool] = []
    of_pdf = units_of_pdfs(recogniser.model.pdfs)
    for k in known:
        scores, posteriors = recogniser.score(k.mels)
        heard = recogniser.decode(scores)
        if not heard:
            continue
        said = [recogniser.pronunciations(w) for w in heard]
        found = align_words(scores, said, recogniser.model.pdfs, noise=recogniser.model.units.has_noise)
        if found is None:
            continue
        of_units = unit_log_posteriors(posteriors, of_pdf)
        agree = transcripts_agree(heard, k.words)
        for word in found.words:
            all_marks.append(marks(word, of_units))
            right.append(agree[word.word])
    return calibrate(all_marks, right)
