"""Speech to words with a trained folder: the recogniser ``hybrid:FOLDER`` of ``valle prepare`` and ``valle asr``.

kaldi-decoder finds the words in HCLG; their times come from an alignment of just these words, since a graph that was
determinised tells its words early or late.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from valle.asr.hybrid.confidence import marks, probability, unit_log_posteriors
from valle.asr.hybrid.features import SAMPLE_RATE, STEP_S, fbank
from valle.asr.hybrid.graph import Graph, build_graph
from valle.asr.hybrid.lexicon import Pronunciation
from valle.asr.hybrid.lm import NGrams
from valle.asr.hybrid.model import LM_FILE, HybridModel
from valle.asr.hybrid.tree import units_of_pdfs
from valle.asr.hybrid.words import WordAlignment, align_words
from valle.asr.pairing import pair_words
from valle.config import to_dict
from valle.data.sources import need
from valle.data.transcripts import Transcript, Word
from valle.errors import ValleError

_log = logging.getLogger(__name__)

_PIECE_S = 30.0
"""Longer recordings are cut there, in the softest 0.3 s of the last 10."""


class HybridRecogniser:
    """The network, or the Gaussians that it was bootstrapped from, with a language model."""

    def __init__(
        self,
        model: HybridModel | str | Path,
        *,
        acoustics: Literal["network", "gmm"] = "network",
        graph: Graph | None = None,
    ) -> None:
        """
        Args:
            model: a model, or its folder.
            acoustics: what scores the states.
            graph: another than that of the folder, such as ``build_graph`` makes of another language model.

        Raises:
            ValleError: no such model, it has no network, no language model or no words.
        """
        self.model = model if isinstance(model, HybridModel) else HybridModel.load(model)
        if acoustics == "network" and self.model.network is None:
            raise ValleError(f"{self.model.folder} has no network yet; finish its training with --resume")
        self.acoustics = acoustics
        self.graph = graph or load_graph(self.model)
        label = Path(self.model.folder).resolve().name if self.model.folder else "model"
        # Transcripts are kept under the name, so it follows all that they depend on.
        made_by = [self.model.fingerprint(), self.graph.key, to_dict(self.model.config.decoding)]
        digest = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:12]
        self.name = f"hybrid{'' if acoustics == 'network' else '-gmm'}:{label}@{digest}"
        self._unit_of_pdf = units_of_pdfs(self.model.pdfs)

    def transcribe(self, wav: NDArray[np.float32], sample_rate: int) -> Transcript:
        """wav [N] in [-1, 1], mono -> words, their times and how sure each is."""
        if sample_rate != SAMPLE_RATE:
            import soxr

            wav = soxr.resample(wav, sample_rate, SAMPLE_RATE)
        wav = np.ascontiguousarray(wav, np.float32)
        words: list[Word] = []
        for start, piece in pieces(wav):
            words += [
                w._replace(start_s=round(w.start_s + start, 3), end_s=round(w.end_s + start, 3))
                for w in self._transcribe(piece)
            ]
        confidence = sum(w.confidence for w in words) / len(words) if words else 0.0
        return Transcript(" ".join(w.word for w in words), tuple(words), round(confidence, 4))

    def _transcribe(self, wav: NDArray[np.float32]) -> list[Word]:
        mels = fbank(wav)
        if len(mels) < 5:
            return []
        heard, alignment, sure = self.listen(mels)
        if alignment is None:
            return []
        return [
            Word(heard[w.word], round(w.start * STEP_S, 3), round(w.end * STEP_S, 3), round(sure[i], 4))
            for i, w in enumerate(alignment.words)
        ]

    def listen(self, mels: torch.Tensor) -> tuple[list[str], WordAlignment | None, list[float]]:
        """Log mel energies [T, 80] -> words, when they are (None if there are none), and how sure each is."""
        scores, posteriors = self.score(mels)
        words = self.decode(scores)
        if not words:
            return [], None, []
        said = [self.pronunciations(w) for w in words]
        alignment = align_words(scores, said, self.model.pdfs, noise=self.model.units.has_noise)
        if alignment is None:
            return [], None, []
        of_units = unit_log_posteriors(posteriors, self._unit_of_pdf)
        calibration = self.model.config.decoding.calibration if self.acoustics == "network" else ()
        return words, alignment, [probability(marks(w, of_units), calibration) for w in alignment.words]

    def score(self, mels: torch.Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scaled log-likelihoods and log-probabilities of the tied states, [S, pdfs] each."""
        answers = self.answers(mels)
        scores = self.scaled(answers)
        if self.acoustics == "gmm":
            answers = (answers + self.model.priors).log_softmax(1)
        return scores, answers.numpy()

    def answers(self, mels: torch.Tensor) -> torch.Tensor:
        """The network's log-probabilities, or the Gaussians' log-likelihoods, of the tied states: [S, pdfs]."""
        if self.acoustics == "gmm":
            return self.model.gmm_answers(mels)
        return self.model.log_posteriors(mels)

    def scaled(self, answers: torch.Tensor) -> NDArray[np.float32]:
        """``answers`` as the search takes them: [S, pdfs]."""
        d = self.model.config.decoding
        if self.acoustics == "gmm":
            return (d.gmm_scale * answers).numpy()
        return (d.acoustic_scale * (answers - d.prior_scale * self.model.priors)).numpy()

    def decode(self, scores: NDArray[np.float32]) -> list[str]:
        """Scaled log-likelihoods [S, pdfs] -> the likeliest words."""
        decoder = need("kaldi_decoder", "the hybrid recogniser", "asr")
        kaldifst = need("kaldifst", "the hybrid recogniser", "asr")
        d = self.model.config.decoding
        options = decoder.FasterDecoderOptions(beam=d.beam, max_active=d.max_active)
        search = decoder.FasterDecoder(self.graph.fst, options)
        search.decode(decoder.DecodableCtc(np.ascontiguousarray(scores, np.float32)))
        found, path = search.get_best_path()
        if not found:
            return []
        _, _, labels, _ = kaldifst.get_linear_symbol_sequence(path)
        return [self.graph.words[i - 1] for i in labels]

    def pronunciations(self, word: str) -> list[Pronunciation]:
        """How a word of the graph is said."""
        return [p for p, _ in self.model.lexicon[word]]

    def with_decoding(self, **changes: Any) -> HybridRecogniser:
        """The same with other values of ``DecodingConfig``, but not ``word_cost``, which is in the graph."""
        assert "word_cost" not in changes, "the graph holds it"
        m = self.model
        decoding = replace(m.config.decoding, **changes)
        model = HybridModel(replace(m.config, decoding=decoding), m.pdfs, m.network, m.priors, m.gmm)
        model.lexicon, model.folder = m.lexicon, m.folder
        return HybridRecogniser(model, acoustics=self.acoustics, graph=self.graph)


def pieces(wav: NDArray[np.float32]) -> list[tuple[float, NDArray[np.float32]]]:
    """wav [N] at 16 kHz as pieces of 30 s at most, cut where it is softest, each with its start in seconds."""
    longest, window = int(_PIECE_S * SAMPLE_RATE), int(0.3 * SAMPLE_RATE)
    out: list[tuple[float, NDArray[np.float32]]] = []
    start = 0
    while len(wav) - start > longest:
        search = np.square(wav[start + 2 * longest // 3 : start + longest], dtype=np.float64)
        sums = np.concatenate([[0.0], search.cumsum()])
        level = (sums[window:] - sums[:-window])[:: window // 10]
        cut = start + 2 * longest // 3 + int(level.argmin()) * (window // 10) + window // 2
        out.append((start / SAMPLE_RATE, wav[start:cut]))
        start = cut
    return [*out, (start / SAMPLE_RATE, wav[start:])]


_GRAPHS = threading.Lock()


def load_graph(model: HybridModel) -> Graph:
    """The decoding graph of a model's folder: made at first, which takes seconds to minutes, and kept there.

    Its name tells what it was made of, so that another language model in the folder is another graph.

    Raises:
        ValleError: the model has no words, or its folder no language model.
    """
    folder = model.folder
    if not model.lexicon:
        raise ValleError(f"{folder} has no words, so it can align but not transcribe; train it with a lexicon")
    if folder is None or not (folder / LM_FILE).is_file():
        raise ValleError(f"{folder} has no language model ({LM_FILE}); give one, or train with texts")
    kaldifst = need("kaldifst", "the hybrid recogniser", "asr")
    key = hashlib.sha256((folder / LM_FILE).read_bytes())
    key.update(json.dumps([sorted(model.lexicon.items()), model.config.decoding.word_cost]).encode())
    key.update(model.pdfs.tobytes())
    digest = key.hexdigest()[:12]
    path = folder / f"graph-{digest}.fst"
    with _GRAPHS:
        lm = NGrams.load(folder / LM_FILE)
        kept = kaldifst.StdVectorFst.read(str(path)) if path.is_file() else None
        if kept is not None:  # NOTE a damaged file raises nothing, it is None
            return Graph(kept, [w for w in lm.words if w in model.lexicon], digest)
        cost, noise = model.config.decoding.word_cost, model.units.has_noise
        graph = build_graph(model.lexicon, lm, model.pdfs, cost, noise)._replace(key=digest)
        part = path.with_suffix(f".{os.getpid()}.part")
        if graph.fst.write(str(part)):  # NOTE nor does a folder that cannot be written
            part.replace(path)
        else:
            part.unlink(missing_ok=True)
            _log.warning("the decoding graph cannot be kept in %s, so it is made anew each time", folder)
        return graph


def transcripts_agree(words: Sequence[str], reference: Sequence[str]) -> list[bool]:
    """Of each word, whether it is one of the reference's in the best alignment of the two."""
    right = [False] * len(words)
    for i, j in pair_words(words, reference).pairs:
        right[i] = words[i] == reference[j]
    return right
