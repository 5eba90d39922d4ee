"""The paper's ablations (§5.3) with this project's models: what the NAR and the AR do without their prompts.

NAR: codebook 1 is the recording's own, and a NAR completes codebooks 2 to 8 of it. Every NAR that is given stands in
the row of what it was trained to read (``NARConfig.prompts``). One that reads both prompts may also be run with one of
them withheld; it was never trained so, and its row says that it is the same model. Every NAR is given the phonemes of
the prompt and of the text, as when it speaks.

AR: the text is spoken with the acoustic prompt and without, where the AR is given the phonemes of the text alone; the
NAR reads both prompts in both rows.

The paper's numbers stand beside: its judges, data and sizes are others, so that rows compare with each other and not
with them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from valle.errors import ValleError
from valle.eval import progress
from valle.eval.bootstrap import Estimate, mean_interval
from valle.eval.journal import Journal, digest
from valle.eval.judges import Judges, error_counts
from valle.eval.results import Column, missing, table
from valle.eval.speaker import cosine
from valle.eval.synthesis import RECORDING, round_trip
from valle.eval.systems import file_label
from valle.eval.trials import Trial
from valle.eval.wer import error_rate
from valle.model.alignment import frame_index
from valle.model.ar import AR, ARResult
from valle.model.nar import NAR
from valle.pieces import Prompt
from valle.pretrained import Pretrained
from valle.text import WORD_BOUNDARY
from valle.tts import VALLE

logger = logging.getLogger(__name__)

Withheld = Literal["", "prompt", "phonemes"]
Reads = Literal["none", "phonemes", "both"]

PAPER_NAR: Mapping[Reads, tuple[str, float, float]] = {
    "none": ("NAR, no prompt", 0.196, 0.518),
    "phonemes": ("NAR, phonemes alone", 0.030, 0.541),
    "both": ("NAR, both prompts", 0.028, 0.732),
}
"""The paper's Table 4: its row, WER and SPK."""
PAPER_AR = {
    True: ("AR, with the acoustic prompt", 0.059, 0.585),
    False: ("AR, without the acoustic prompt", 0.059, 0.236),
}
"""Its Table 5, by whether the AR has its acoustic prompt."""
COLUMNS = (
    Column("paper_wer", "paper: WER %", 1, percent=True),
    Column("paper_spk", "paper: SPK", 3),
    Column("wer", "WER % ↓", 1, percent=True),
    Column("sim_r", "SIM-r ↑", 3),
    Column("sim_o", "SIM-o ↑", 3),
)
ALL_CODES, FIRST_CODES = "all codebooks, recorded", "codebook 1 alone, recorded"
REFUSED = "refused"


class Row(NamedTuple):
    """One way to get codes for a trial."""

    name: str
    key: str
    """In the journal: what its measurements belong to."""
    codes: Callable[[Trial, Prompt, Prompt], Tensor]
    """Of trial, prompt and recording of the text -> codes [K, T]."""
    paper: tuple[float, float] | None
    """Its WER and SPK there."""
    has_prompt: bool = False
    """Whether the acoustic prompt is read, so that a decoder may be told its voice, too."""


@dataclass(frozen=True)
class NamedNAR:
    """A NAR to be compared."""

    name: str
    nar: NAR
    digest: str
    """Of its folder."""


def measure_ablations(
    tts: VALLE,
    nars: Sequence[NamedNAR],
    trials: Sequence[Trial],
    folder: Path,
    judges: Judges,
    journal: Journal,
    *,
    options: Mapping[str, Any] | None = None,
    n_listen: int = 0,
    wavs: Path | None = None,
) -> tuple[dict[str, Any], str]:
    """Measure both tables: results ready for JSON, and markdown.

    Args:
        tts: whose AR speaks, whose codec decodes, and whose NAR is the first of those compared.
        nars: others, of the same codec and inventory.
        trials: what to say.
        folder: the manifest's, to which the trials' paths are relative.
        judges: for words and voices.
        journal: keeps single measurements, and has those of an earlier call.
        options: of ``VALLE.generate``.
        n_listen: of how many trials the waves are written.
        wavs: where to.
    """
    options = dict(options or {})
    model = tts.model
    own = NamedNAR(model.info.name, model.nar, digest(model.path / "nar"))
    by_reads = _nar_rows(model, [own, *nars], options)
    nar_rows = [*_bounds(), *(row for rows in by_reads.values() for row in rows)]
    ar_rows = _ar_rows(tts, options)
    meter = _Meter(tts, folder, judges, journal)
    for number, trial in enumerate(progress(trials, "trials", "trial")):
        meter.measure(trial, [*nar_rows, *ar_rows], wavs if number < n_listen else None)

    def measured(rows: Sequence[Row]) -> dict[str, dict[str, Estimate | float | None]]:
        return {row.name: _means([journal[_key(t, row)] for t in trials], row.paper) for row in rows}

    tables = {"nar": {RECORDING: _means([journal[(t.id, str(t.seed), RECORDING)] for t in trials], None)}}
    tables["nar"] |= measured(_bounds())
    for reads, (title, wer, spk) in PAPER_NAR.items():
        if not any(row.paper for row in by_reads[reads]):
            tables["nar"][f"{title} (none was given)"] = {"paper_wer": wer, "paper_spk": spk}
        tables["nar"] |= measured(by_reads[reads])
    tables["ar"] = measured(ar_rows)
    refused = {
        row.name: n
        for row in (*nar_rows, *ar_rows)
        if (n := sum(journal[_key(t, row)]["stop"] == REFUSED for t in trials))
    }
    text = (
        f"{len(trials)} sentences of {len({t.speaker for t in trials})} speakers, each in the voice of another "
        "utterance of the same speaker; mean and 95 % interval. **The paper's numbers are its judges' on LibriSpeech "
        "test-clean, of models of another size: compare rows with each other, not with them.** Its SPK is a SIM-r.\n\n"
        "Codebook 1 of the recording, completed by a NAR (the paper's Table 4):\n\n"
        + table("", tables["nar"], COLUMNS)
        + missing(tables["nar"], COLUMNS[3:], len(trials))
        + "\nAll of it spoken, the NAR reading both prompts (Table 5):\n\n"
        + table("", tables["ar"], COLUMNS)
        + missing(tables["ar"], COLUMNS[3:], len(trials))
        + "".join(f"\nRefused, and counted as silence: {name} {n} of {len(trials)}.\n" for name, n in refused.items())
    )
    told = {n.name: {"digest": n.digest, "prompts": n.nar.config.prompts} for n in (own, *nars)}
    return {"tables": tables, "nars": told, "n_trials": len(trials), "refused": refused}, text


def load_nars(options: Sequence[str], model: Pretrained) -> list[NamedNAR]:
    """The NARs of ``--nar``: ``name=folder``, a run (``runs/NAME/nar``), its ``best/``, or a model.

    Args:
        options: as they were given.
        model: with which they must fit together.

    Raises:
        ValleError: not of that form, no such NAR, or one of another codec or inventory.
    """
    from valle.train.export import find_trained
    from valle.train.weights import load_weights

    nars: list[NamedNAR] = []
    for option in options:
        name, equals, where = option.partition("=")
        if not (equals and name.strip() and where):
            raise ValleError(
                f"--nar {option} is not known; give name=folder, such as no-prompt=runs/nar-no-prompts/nar"
            )
        if name in [model.info.name, *(n.name for n in nars)]:
            raise ValleError(f"--nar {name}: another NAR has that name; give another")
        trained = find_trained(where, "nar")
        for what, wanted in (
            ("codec_fingerprint", model.info.codec_fingerprint),
            ("inventory_version", model.info.inventory_version),
        ):
            if trained.notes.get(what) != wanted:
                raise ValleError(
                    f"--nar {name} was trained with the {what.replace('_', ' ')} {trained.notes.get(what)}, but the "
                    f"model has {wanted}; give one of the same pack"
                )
        nar = load_weights("nar", trained.folder)
        assert isinstance(nar, NAR)
        if nar.config.alignment and model.aligner is None:
            raise ValleError(f"--nar {name} needs the phonemes of frames, and the model has no aligner to find them")
        nars.append(NamedNAR(name, nar.to(model.device), digest(trained.folder)))
    return nars


def complete(
    model: Pretrained,
    nar: NAR,
    prompt: Prompt,
    target: Prompt,
    *,
    withheld: Withheld = "",
    seed: int = 0,
    temperature: float = 0.0,
    guidance: float = 1.0,
) -> Tensor:
    """Codebooks 2 to 8 by a NAR for codebook 1 of a recording: codes [K, T].

    Args:
        model: whose inventory the phonemes are of.
        nar: any of the same codec and inventory.
        prompt: the voice.
        target: the recording as ``VALLE.prompt`` reads it, with its own phonemes; of its codes the first are read.
        withheld: what the NAR is not told, whatever it was trained with.
        seed: for a temperature above 0.
        temperature, guidance: as for ``NAR.generate``.
    """
    device = model.device
    separator = model.inventory.encode([WORD_BOUNDARY])
    phonemes = prompt.phonemes + separator + target.phonemes
    codes_1 = target.codes[:1]  # [1, T]
    voice = prompt.codes[:, :0] if withheld == "prompt" else prompt.codes  # [K, T']
    index = prompt_index = None
    if nar.config.alignment:
        assert withheld != "phonemes", "a NAR with alignment reads phonemes"
        assert prompt.durations is not None, "the prompt is aligned where there is an aligner"
        assert target.durations is not None, "the recording is aligned where there is an aligner"
        n_before = len(prompt.phonemes) + len(separator)
        lens = torch.tensor([len(phonemes)])
        index = frame_index(torch.tensor([[0] * n_before + target.durations]), lens, codes_1.shape[1]).to(device)
        durations = torch.tensor([prompt.durations + [0] * (len(phonemes) - len(prompt.durations))])
        prompt_index = frame_index(durations, lens, voice.shape[1]).to(device)  # [1, T']
    told = [] if withheld == "phonemes" else phonemes
    completed = nar.generate(
        torch.tensor([told], dtype=torch.int64, device=device),
        torch.tensor([len(told)], device=device),
        voice.unsqueeze(0),
        torch.tensor([voice.shape[1]], device=device),
        codes_1,
        torch.tensor([codes_1.shape[1]], device=device),
        index,
        prompt_index,
        temperature=temperature,
        guidance=1.0 if withheld == "prompt" else guidance,
        generators=[torch.Generator().manual_seed(seed)],
    )
    return completed[0]


class PromptlessAR(AR):
    """An AR that is told the text alone: neither the codes of the prompt nor its transcript."""

    def __init__(self, ar: AR) -> None:
        """``ar`` shares its weights with this one."""
        nn.Module.__init__(self)
        self.__dict__.update(ar.__dict__)

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        phonemes: Tensor,
        phoneme_lens: Tensor,
        prompt: Tensor,
        prompt_lens: Tensor,
        prompt_durations: Tensor | None = None,
        *,
        text_starts: Tensor,
        **options: Any,
    ) -> ARResult:
        """As ``AR.generate``; what stands before ``text_starts`` [B] and the prompt are left out."""
        starts, lens = text_starts.tolist(), phoneme_lens.tolist()
        rows = [row[a:n] for row, a, n in zip(phonemes, starts, lens, strict=True)]
        text = pad_sequence(rows, batch_first=True)  # [B, S']
        result = super().generate(
            text,
            phoneme_lens - text_starts.to(phoneme_lens.device),
            prompt[:, :0],
            torch.zeros_like(prompt_lens),
            None if prompt_durations is None else torch.zeros_like(text),
            text_starts=torch.zeros_like(text_starts),
            **options,
        )
        if result.index is None:
            return result
        candidates = len(result.index) // len(starts)
        return result._replace(index=[own + starts[i // candidates] for i, own in enumerate(result.index)])


def _bounds() -> list[Row]:
    """What the codec alone leaves: all of its codebooks, and the first."""
    return [
        Row(ALL_CODES, ALL_CODES, lambda trial, prompt, target: target.codes, None),
        Row(FIRST_CODES, FIRST_CODES, lambda trial, prompt, target: target.codes[:1], None),
    ]


def _nar_rows(model: Pretrained, nars: Sequence[NamedNAR], options: Mapping[str, Any]) -> dict[Reads, list[Row]]:
    """Those of the NARs in the paper's order, each kind followed by models that were not trained so."""
    info = model.info
    temperature = options.get("nar_temperature", info.nar_temperature)
    guidance = options.get("nar_guidance", info.nar_guidance)

    def row(named: NamedNAR, reads: Reads, withheld: Withheld) -> Row:
        def codes(trial: Trial, prompt: Prompt, target: Prompt) -> Tensor:
            return complete(
                model,
                named.nar,
                prompt,
                target,
                withheld=withheld,
                seed=trial.seed,
                temperature=temperature,
                guidance=guidance if named.nar is model.nar else 1.0,
            )

        title, wer, spk = PAPER_NAR[reads]
        how = f"same model, {'acoustic prompt' if withheld == 'prompt' else withheld} withheld" if withheld else title
        key = f"nar {named.digest}{f' without {withheld}' if withheld else ''}"
        has_prompt = reads == "both" and withheld != "prompt"
        return Row(f"{how} ({named.name})", key, codes, None if withheld else (wer, spk), has_prompt)

    rows = {reads: [row(n, reads, "") for n in nars if n.nar.config.prompts == reads] for reads in PAPER_NAR}
    both = [n for n in nars if n.nar.config.prompts == "both"]
    rows["none"] += [row(n, "none", "phonemes") for n in both if not n.nar.config.alignment]
    rows["phonemes"] += [row(n, "phonemes", "prompt") for n in both]
    return rows


def _ar_rows(tts: VALLE, options: Mapping[str, Any]) -> list[Row]:
    """With and without the acoustic prompt."""
    speakers = {True: tts, False: VALLE(replace(tts.model, ar=PromptlessAR(tts.model.ar)))}
    alone = {**options, "voice_guidance": 1.0}  # there is no voice to be guided by

    def row(with_prompt: bool) -> Row:
        def codes(trial: Trial, prompt: Prompt, target: Prompt) -> Tensor:
            said = speakers[with_prompt].generate(
                trial.text, prompt=prompt, seed=trial.seed, **(options if with_prompt else alone)
            )
            assert said.codes is not None, "what is generated has its codes"
            return said.codes

        title, wer, spk = PAPER_AR[with_prompt]
        return Row(f"{title} ({tts.model.info.name})", title, codes, (wer, spk), has_prompt=True)

    return [row(True), row(False)]


class _Meter:
    """Measures one trial after the other."""

    def __init__(self, tts: VALLE, folder: Path, judges: Judges, journal: Journal) -> None:
        self.tts, self.folder, self.judges, self.journal = tts, folder, judges, journal
        self.codec, self.rate = tts.model.codec, tts.sample_rate

    def measure(self, trial: Trial, rows: Sequence[Row], wavs: Path | None) -> None:
        """Put what is not there yet into the journal."""
        todo = [row for row in rows if _key(trial, row) not in self.journal]
        recording_key = (trial.id, str(trial.seed), RECORDING)
        if not todo and recording_key in self.journal:
            return
        recording, wav = self._load(trial.target), self._load(trial.prompt)  # [N], [N']
        voices = self.judges.voice(wav, self.rate), self.judges.voice(round_trip(self.codec, wav), self.rate)
        if recording_key not in self.journal:
            self.journal.add(recording_key, {**self._judge(trial, recording, voices), "stop": "recording"})
        failure = ""
        try:
            prompt = self.tts.prompt(self.folder / trial.prompt, trial.prompt_text)
            target = self.tts.prompt(self.folder / trial.target, trial.text)
        except ValleError as error:
            logger.warning("%s: %s", trial.id, error)
            failure = REFUSED
        for row in todo:
            said = np.zeros(0, np.float32)
            if not failure:
                try:
                    said = self._decode(row.codes(trial, prompt, target), prompt if row.has_prompt else None)
                except ValleError as error:
                    logger.warning("%s, %s: %s", trial.id, row.name, error)
            stop = REFUSED if not len(said) else "told"
            self.journal.add(_key(trial, row), {**self._judge(trial, said, voices), "stop": stop})
            if wavs is not None and len(said):
                self._write(wavs / f"{file_label(trial.id)}-{file_label(row.name)}.flac", said)

    @torch.inference_mode()
    def _decode(self, codes: Tensor, prompt: Prompt | None) -> NDArray[np.float32]:
        """codes [K, T] -> wav [N], by a decoder that is told the prompt's voice if it is told any."""
        voice = None if prompt is None else self.codec.voice(prompt.codes.unsqueeze(0))
        wav = self.codec.decode(codes.unsqueeze(0).to(self.tts.model.device), voice)
        return wav[0, 0].float().cpu().numpy()

    def _judge(
        self, trial: Trial, wav: NDArray[np.float32], voices: Sequence[NDArray[np.float32] | None]
    ) -> dict[str, Any]:
        own = self.judges.voice(wav, self.rate)
        sims = [None if own is None or voice is None else cosine(own, voice) for voice in voices]
        return {"wer": self.judges.words(wav, self.rate, trial.text), "sim_o": sims[0], "sim_r": sims[1]}

    def _load(self, path: str) -> NDArray[np.float32]:
        from valle.audio import load

        return load(self.folder / path, self.rate).waveform[0].numpy()

    def _write(self, path: Path, wav: NDArray[np.float32]) -> None:
        from valle.audio import Audio

        path.parent.mkdir(parents=True, exist_ok=True)
        info = {"synthetic": True, "model": self.tts.model.info.name}
        Audio(torch.from_numpy(wav)[None], self.rate, info=info).save(path)


def _key(trial: Trial, row: Row) -> tuple[str, ...]:
    return trial.id, str(trial.seed), row.key


def _means(
    records: Sequence[Mapping[str, Any]], paper: tuple[float, float] | None
) -> dict[str, Estimate | float | None]:
    return {
        "paper_wer": paper[0] if paper else None,
        "paper_spk": paper[1] if paper else None,
        "wer": error_rate(error_counts(records)),
        **{key: mean_interval([r[key] for r in records]) for key in ("sim_r", "sim_o")},
    }
