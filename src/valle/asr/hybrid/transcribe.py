"""``valle asr transcribe AUDIO...``: what is said in recordings, with the times of words and how sure each is."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from valle.data.transcripts import Transcript


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="valle asr transcribe", description="Write down what is said in recordings.")
    parser.add_argument("audio", nargs="+", metavar="AUDIO", help="any sound files")
    parser.add_argument("--model", "-m", required=True, metavar="DIR", help="what `valle asr train` made")
    parser.add_argument("--gmm", action="store_true", help="by the Gaussians in place of the network")
    parser.add_argument("--words", action="store_true", help="a line for each word: start, end, word, confidence")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each recording")
    args = parser.parse_args(argv)
    from valle.asr.hybrid.features import SAMPLE_RATE
    from valle.asr.hybrid.recogniser import HybridRecogniser
    from valle.audio import load

    recogniser = HybridRecogniser(args.model, acoustics="gmm" if args.gmm else "network")
    for path in args.audio:
        wav = load(path, SAMPLE_RATE).waveform[0].numpy()  # [N]
        heard = recogniser.transcribe(wav, SAMPLE_RATE)
        if args.json:
            sys.stdout.write(json.dumps({"audio": path, **_dict(heard)}, ensure_ascii=False) + "\n")
        elif args.words:
            rows = (f"{w.start_s:.2f}\t{w.end_s:.2f}\t{w.word}\t{w.confidence:.2f}\n" for w in heard.words)
            sys.stdout.write("".join(rows))
        else:
            sys.stdout.write(heard.text + "\n" if len(args.audio) == 1 else f"{path}\t{heard.text}\n")
    return 0


def _dict(heard: Transcript) -> dict[str, Any]:
    return {"text": heard.text, "confidence": heard.confidence, "words": [w._asdict() for w in heard.words]}


def print_alignment(audio: str, text: str, folder: str, *, as_json: bool = False) -> int:
    """What ``valle asr align`` prints with a hybrid recogniser: words and their phones, then what does not fit.

    Raises:
        ValleError: no sound file, no such recogniser, or a text without words.
    """
    from valle.asr.hybrid.aligner import HybridAligner
    from valle.asr.hybrid.features import SAMPLE_RATE
    from valle.audio import load

    aligner = HybridAligner(folder)
    wav = load(audio, SAMPLE_RATE).waveform[0].numpy()  # [N]
    found = aligner.align_text(wav, text)
    if as_json:
        body = {
            "words": [{**w._asdict(), "phones": [p._asdict() for p in w.phones]} for w in found.words],
            "missing": [{"position": i, "word": w} for i, w in found.missing],
            "extra": [{"start_s": a, "end_s": b} for a, b in found.extra],
        }
        sys.stdout.write(json.dumps(body, ensure_ascii=False) + "\n")
        return 0
    for word in found.words:
        phones = " ".join(f"{p.phone}:{p.start_s:.2f}" for p in word.phones)
        sys.stdout.write(f"{word.start_s:.2f}\t{word.end_s:.2f}\t{word.word}\t{phones}\n")
    for i, missing in found.missing:
        sys.stdout.write(f"not said\tword {i + 1}\t{missing}\n")
    for start, end in found.extra:
        sys.stdout.write(f"{start:.2f}\t{end:.2f}\tnot in the text\n")
    return 0
