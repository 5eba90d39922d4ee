"""The process in which Vosk listens, apart from the one that asks (``valle.data.recognise.VoskRecogniser``).

NOTE libvosk and kaldifst, the hybrid recogniser's, hold two different OpenFST, and the dynamic linker makes one of what
their registries keep ("unique" symbols, whatever the flags). With kaldifst first, ``import vosk`` waits for ever for a
lock that is none; the other way round it writes into memory that is not its own. So they never meet in one process.

``python -m valle.data.vosk_process FOLDER`` reads recordings from standard input, each as its number of bytes (eight of
them, little-endian) and 16-bit samples at 16 kHz, until there are no more, which is also when who asks has died. It
answers on standard output, a line of JSON each; a first line tells how loading went.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any, BinaryIO

SAMPLE_RATE = 16000
PIECE = 20 * SAMPLE_RATE
"""Samples given to Vosk at once. It looks for a pause to end a sentence at only after each, which keeps a usual
recording whole and a chapter's memory bounded."""


class Listener:
    """A model of Vosk, in this process."""

    def __init__(self, folder: str) -> None:
        import vosk

        vosk.SetLogLevel(-1)
        self._vosk, self._model = vosk, vosk.Model(folder)

    def hear(self, samples: bytes) -> list[dict[str, Any]]:
        """16-bit samples at 16 kHz -> words with ``start``, ``end`` and ``conf``."""
        recogniser = self._vosk.KaldiRecognizer(self._model, float(SAMPLE_RATE))
        recogniser.SetWords(True)
        heard: list[dict[str, Any]] = []
        for start in range(0, len(samples), 2 * PIECE):
            if recogniser.AcceptWaveform(samples[start : start + 2 * PIECE]):  # a pause: it has begun anew
                heard += json.loads(recogniser.Result()).get("result", [])
        heard += json.loads(recogniser.FinalResult()).get("result", [])
        return heard


def serve(folder: str, questions: BinaryIO, answers: BinaryIO) -> None:
    """Listen to all recordings that are asked for."""

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values).encode() + b"\n")
        answers.flush()

    try:
        listener = Listener(folder)
    except Exception as error:  # Vosk raises nothing narrower
        return answer(error=str(error))
    answer(error=None)
    while len(header := questions.read(8)) == 8:
        samples = questions.read(int.from_bytes(header, "little"))
        begun = time.process_time()
        heard = listener.hear(samples)
        answer(heard=heard, cpu_s=time.process_time() - begun)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks ends it
    lines = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    serve(sys.argv[1], sys.stdin.buffer, lines)
