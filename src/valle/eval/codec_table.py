"""The codec's table: what is left of recordings after its round trip, by number of codebooks (paper §3).

Every row but the first is measured against the recording; the first is the recording itself, with the recogniser's own
errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from valle.audio import Audio
from valle.codec.base import Codec
from valle.data.corpus import Utterance
from valle.errors import ValleError
from valle.eval import progress
from valle.eval.bootstrap import mean_interval
from valle.eval.journal import Journal
from valle.eval.judges import Judges, error_counts, read
from valle.eval.quality import MelDistance, pesq, stoi
from valle.eval.results import Column, missing, rows_by_corpus, table
from valle.eval.speaker import cosine
from valle.eval.trials import spread
from valle.eval.wer import error_rate

COLUMNS = (
    Column("bitrate_kbps", "kbit/s"),
    Column("mel", "mel distance ↓", 3),
    Column("stoi", "STOI ↑", 3),
    Column("pesq", "PESQ ↑"),
    Column("speaker", "speaker cosine ↑", 3),
    Column("wer", "WER % ↓", 1, percent=True),
)
ORIGINAL = "original"


def measure_codec(
    codec: Codec,
    utterances: Sequence[Utterance],
    judges: Judges,
    journal: Journal,
    *,
    n_quantizers: Sequence[int] = (1, 2, 4, 8),
    max_utterances: int | None = None,
    n_listen: int = 0,
    wavs: Path | None = None,
) -> tuple[dict[str, Any], str]:
    """Measure a codec on recordings: results ready for JSON, and markdown.

    Args:
        codec: in evaluation mode.
        utterances: of one split; the use of the codebooks is counted over all of them.
        judges: for words and voices.
        journal: keeps single measurements, and has those of an earlier call.
        n_quantizers: codebooks, one row each.
        max_utterances: how many go through the judges, spread over the speakers; None for all.
        n_listen: of how many the waves are written.
        wavs: where to.

    Raises:
        ValleError: more codebooks asked for than the codec has.
    """
    for k in n_quantizers:
        if not 1 <= k <= codec.n_quantizers:
            raise ValleError(f"{k} codebooks were asked for; this codec has {codec.n_quantizers}")
    chosen = spread(utterances, max_utterances)
    meter = _Meter(codec, judges, journal, {str(k): k for k in n_quantizers})
    for utterance in progress(chosen, "round trips", "utterance"):
        meter.measure(utterance)
    if wavs is not None:
        for utterance in spread(chosen, n_listen):
            meter.write(utterance, wavs)
    records = {name: [journal[(u.id, name)] for u in chosen] for name in (ORIGINAL, *meter.rows)}
    rows = {name: _row(own) for name, own in records.items()}
    for name, k in meter.rows.items():
        rows[name]["bitrate_kbps"] = k * codec.frame_rate * np.log2(codec.codebook_size).item() / 1000
    ends = {name: records[name] for name in (ORIGINAL, str(max(n_quantizers)))}
    corpora = rows_by_corpus(ends, [u.dataset for u in chosen], _row)
    use = codebook_use(codec, utterances)
    results = {"rows": rows, "by_corpus": corpora, "codebooks": use, "n_utterances": len(chosen)}
    results |= {"n_speakers": len({u.speaker for u in chosen}), "seconds": sum(u.seconds for u in chosen)}
    results |= {"n_counted": len(utterances)}
    return results, describe_codec(results)


def describe_codec(results: Mapping[str, Any]) -> str:
    """The results of ``measure_codec`` as markdown."""
    rows, corpora, n = results["rows"], results["by_corpus"], results["n_utterances"]
    whose = counted = ""
    if "n_speakers" in results:  # results of earlier versions do not tell
        whose = f" of {results['n_speakers']} speakers, {results['seconds'] / 60:.0f} minutes"
        counted = f" {results['n_counted']}"
    by_codebook = results["codebooks"]["by_codebook"]
    return (
        f"Round trip of {n} recordings{whose}; mean and 95 % interval.\n\n"
        + table("codebooks", rows, COLUMNS)
        + missing({name: row for name, row in rows.items() if name != ORIGINAL}, COLUMNS, n)
        + (f"\n{table('corpus: codebooks', corpora, COLUMNS[1:])}" if corpora else "")
        + f"\nUse of the codebooks over all{counted} recordings ({results['codebooks']['n_frames']} frames).\n\n"
        + table(
            "codebook",
            {str(k): row for k, row in enumerate(by_codebook, start=1)},
            (Column("used", "entries in use %", 1, percent=True), Column("perplexity", "perplexity", 0)),
        )
    )


def codebook_use(codec: Codec, utterances: Sequence[Utterance]) -> dict[str, Any]:
    """The share of each codebook's entries that occur, and the perplexity of their distribution.

    A perplexity is the number of entries that, all used alike, would hold as much.
    """
    counts = torch.zeros(codec.n_quantizers, codec.codebook_size, dtype=torch.int64)  # [K, C]
    for utterance in progress(utterances, "codebooks", "utterance"):
        codes = codec.encode(_tensor(read(utterance, codec.sample_rate)))[0]  # [K, T]
        counts.scatter_add_(1, codes, torch.ones_like(codes))
    shares = counts.double() / counts.sum(1, keepdim=True)
    perplexity = torch.special.entr(shares).sum(1).exp()  # [K]
    by_codebook = [
        {"used": used, "perplexity": p}
        for used, p in zip((counts > 0).double().mean(1).tolist(), perplexity.tolist(), strict=True)
    ]
    return {"n_frames": int(counts[0].sum()), "by_codebook": by_codebook}


def main(argv: Sequence[str]) -> int:
    """``valle codec eval`` is ``valle eval codec``."""
    from valle.eval import report

    return report.main(["codec", *argv])


class _Meter:
    """Measures one recording after the other."""

    def __init__(self, codec: Codec, judges: Judges, journal: Journal, rows: Mapping[str, int]) -> None:
        self.codec, self.judges, self.journal, self.rows = codec, judges, journal, rows
        self.mel = MelDistance(codec.sample_rate)

    def measure(self, utterance: Utterance) -> None:
        """Put what is not there yet into the journal."""
        todo = [name for name in (ORIGINAL, *self.rows) if (utterance.id, name) not in self.journal]
        if not todo:
            return
        rate = self.codec.sample_rate
        original = read(utterance, rate)  # [N]
        voice = self.judges.voice(original, rate)
        codes = self.codec.encode(_tensor(original))  # [1, K, T]
        for name in todo:
            if name == ORIGINAL:
                self.journal.add((utterance.id, name), {"wer": self.judges.words(original, rate, utterance.text)})
                continue
            wav = self.decode(codes, self.rows[name], len(original))
            judged = self.judges.voice(wav, rate)
            self.journal.add(
                (utterance.id, name),
                {
                    "mel": self.mel(wav, original),
                    "stoi": stoi(wav, original, rate),
                    "pesq": pesq(wav, original, rate),
                    "speaker": None if voice is None or judged is None else cosine(voice, judged),
                    "wer": self.judges.words(wav, rate, utterance.text),
                },
            )

    def write(self, utterance: Utterance, folder: Path) -> None:
        """The recording and its round trips, to be listened to."""
        folder.mkdir(parents=True, exist_ok=True)
        rate = self.codec.sample_rate
        original = read(utterance, rate)  # [N]
        codes = self.codec.encode(_tensor(original))  # [1, K, T]
        waves = {"0-original": original}
        waves |= {f"{k}-codebooks": self.decode(codes, k, len(original)) for k in self.rows.values()}
        for name, wav in waves.items():
            Audio(torch.from_numpy(wav)[None], rate).save(folder / f"{utterance.id.replace('/', '-')}-{name}.flac")

    def decode(self, codes: Tensor, k: int, n_samples: int) -> NDArray[np.float32]:
        """codes [1, K, T] -> wav [n_samples] from the first k codebooks."""
        return self.codec.decode(codes[:, :k])[0, 0, :n_samples].float().cpu().numpy()


def _row(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over one row's records."""
    means = {key: mean_interval([r.get(key) for r in records]) for key in ("mel", "stoi", "pesq", "speaker")}
    return {**means, "wer": error_rate(error_counts(records))}


def _tensor(wav: NDArray[np.float32]) -> Tensor:
    """wav [N] -> [1, 1, N]."""
    return torch.from_numpy(wav)[None, None]
