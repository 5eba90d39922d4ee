"""Recordings too long to be one utterance become several: cut in their pauses, each piece transcribed (paper §5.1).

Which recordings: those longer than ``PrepareConfig.max_seconds`` that have no text, if there is a recogniser. Nobody
knows which words of a text belong to which piece, so a recording that has one is left out, or, with ``segment="all"``,
cut as if it had none. A piece is called ``ID#START-END``, both in milliseconds with eight digits: a name that tells all
of it, stays the same whatever else is cut, and is another one when the cut is.

Where a recording was cut is kept beside the transcripts, as what one more recogniser has heard, whose words are the
pieces: a run that was stopped detects nothing twice. A recording is never divided between shards, and of a long one no
more is in memory than a block, two numbers for every 32 ms, and the codes of its pieces.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence

from valle.config import to_dict
from valle.data.corpus import Utterance
from valle.data.probe import BadAudio, probe
from valle.data.quality import LITTLE_SPEECH
from valle.data.reading import PrepareConfig, Rejected
from valle.data.segment import Segment, SegmentConfig, SpeechDetector, detect
from valle.data.segment import cut as cut_activity
from valle.data.transcripts import Recogniser, Transcript, TranscriptCache, Word, fill_texts
from valle.errors import ValleError

NO_SPEECH = "no speech"
"""Why a recording is left out in which no piece was found."""

_LONGEST_S = SegmentConfig.max_s
_NAME = re.compile(r"(.*)#(\d{8,})-(\d{8,})", re.DOTALL)


def is_too_long(utterance: Utterance, config: PrepareConfig) -> bool:
    """Whether it is to be cut, where there is somebody to transcribe the pieces."""
    if config.segment == "none" or utterance.seconds <= config.max_seconds:
        return False
    return config.segment == "all" or not (utterance.text or "").strip()


def check_names(utterances: Iterable[Utterance]) -> None:
    """
    Raises:
        ValleError: an id that a piece of another recording could have.
    """
    for utterance in utterances:
        if _NAME.fullmatch(utterance.id):
            raise ValleError(
                f"the id {utterance.id!r} ends as those of pieces of long recordings do; rename it, or give "
                "--segment none"
            )


def piece_of(utterance: Utterance, start_s: float, end_s: float) -> Utterance:
    """A part of a recording as an utterance of its own, without text. Times are rounded to a millisecond."""
    start_ms, end_ms = round(1000 * start_s), round(1000 * end_s)
    return dataclasses.replace(
        utterance,
        id=f"{utterance.id}#{start_ms:08d}-{end_ms:08d}",
        text=None,
        seconds=(end_ms - start_ms) / 1000,
        start_s=start_ms / 1000,
        end_s=end_ms / 1000,
    )


def pieces_in(ids: Iterable[str]) -> dict[str, list[tuple[float, float]]]:
    """The pieces among ``ids``: id of the recording -> start and end of each in seconds, in their order."""
    found: dict[str, list[tuple[float, float]]] = {}
    for id in ids:
        if match := _NAME.fullmatch(id):
            found.setdefault(match[1], []).append((int(match[2]) / 1000, int(match[3]) / 1000))
    return {id: sorted(spans) for id, spans in found.items()}


class Cutter:
    """Cuts recordings, and remembers where."""

    def __init__(self, detector: SpeechDetector, config: PrepareConfig) -> None:
        """
        Args:
            detector: tells speech from pauses.
            config: pieces are 10 to 20 s long, or half as long as ``max_seconds`` to as long where that is less.
        """
        longest_s = min(_LONGEST_S, config.max_seconds)
        self._cuts = SegmentConfig(min_s=longest_s / 2, target_s=0.75 * longest_s, max_s=longest_s)
        self._detector, self._config = detector, config
        made_by = hashlib.sha256(json.dumps(to_dict(self._cuts)).encode()).hexdigest()[:8]
        self.name = f"pauses:{detector.name}-{made_by}"
        """Under which the cuts are kept."""

    def cut(self, utterance: Utterance, cache: TranscriptCache) -> list[Segment]:
        """The pieces of a recording, in order and at least one.

        Raises:
            Rejected: it cannot be read, or there is no speech in it.
            ValleError: the cache cannot be written.
        """
        kept = cache.get(self.name, utterance)
        if kept is None:
            kept = Transcript("", tuple(self._detect(utterance)))
            cache.put(self.name, utterance, kept)
        if not kept.words:
            raise Rejected(NO_SPEECH)
        return [Segment(w.start_s, w.end_s, w.confidence, w.word == "whole") for w in kept.words]

    def _detect(self, utterance: Utterance) -> Iterator[Word]:
        try:
            if self._config.probe:
                probe(utterance.path)
            activity = detect(utterance.path, self._detector)
        except BadAudio as error:
            raise Rejected(error.reason) from error
        except ValleError as error:
            raise Rejected("unreadable audio") from error
        for piece in cut_activity(activity, self._cuts):
            yield Word("whole" if piece.whole else "cut", piece.start_s, piece.end_s, piece.speech_share)


def recall_pieces(
    utterances: Sequence[Utterance], known: dict[str, list[tuple[float, float]]], config: PrepareConfig
) -> list[Utterance]:
    """The utterances, the long ones among them cut as in another pack (``pieces_in``) that holds pieces of them."""
    found: list[Utterance] = []
    for utterance in utterances:
        spans = known.get(utterance.id, []) if is_too_long(utterance, config) else []
        found += [piece_of(utterance, *span) for span in spans] or [utterance]
    return found


def transcribed(
    utterances: Sequence[Utterance],
    cutter: Cutter | None,
    recogniser: Recogniser,
    cache: TranscriptCache,
    config: PrepareConfig,
    *,
    min_confidence: float = 0.0,
) -> tuple[list[Utterance], dict[str, Rejected]]:
    """The utterances in their order, those too long cut, those without text transcribed.

    Args:
        utterances: of one shard.
        cutter: cuts; None where nothing is too long.
        recogniser: transcribes.
        cache: keeps what both have found.
        config: what is too long.
        min_confidence: what is understood with less stays without text.

    Returns:
        The utterances, and by their ids why some of them must be left out.

    Raises:
        ValleError: the cache cannot be read or written.
    """
    refused: dict[str, Rejected] = {}
    cut: list[Utterance] = []
    for utterance in utterances:
        if cutter is None or not is_too_long(utterance, config):
            cut.append(utterance)
            continue
        try:
            pieces = cutter.cut(utterance, cache)
        except Rejected as reason:
            refused[utterance.id] = reason
            cut.append(utterance)
            continue
        for piece in pieces:
            cut.append(piece_of(utterance, piece.start_s, piece.end_s))
            least = None if config.quality is None else config.quality.min_speech_share
            if least is not None and piece.speech_share < least:
                refused[cut[-1].id] = Rejected(LITTLE_SPEECH)
    wanted = (u for u in cut if u.id not in refused)
    heard = {u.id: u for u in fill_texts(wanted, recogniser, cache, min_confidence=min_confidence)}
    ready = [heard.get(u.id, u) for u in cut]
    for utterance in ready if config.probe else ():
        if utterance.id not in refused and utterance.end_s is None and not (utterance.text or "").strip():
            try:
                probe(utterance.path)  # why nothing was understood
            except BadAudio as error:
                refused[utterance.id] = _from(error)
    return ready, refused


def _from(error: BadAudio) -> Rejected:
    rejected = Rejected(error.reason)
    rejected.__cause__ = error
    return rejected
