"""Judged by ear while it trains: sentences of dev, spoken every so many steps, with word error rate and speaker cosine.

The sentences are chosen once, by the run's seed: the text of one utterance of dev in the voice of another one of the
same speaker, as in the paper's zero-shot protocol (§5.2). An AR says them with the NAR of the same configuration, if
that has a ``best/`` already, or another ``partner``; else its codebook is decoded alone, and the names of all numbers
say so (``spoken_codebook_1/...``). A NAR completes codebook 1 of the recordings, so that its work alone is heard.

A pack has no recordings, so the voice is compared with the codec's round trip of the prompt (the paper's similarity,
SIM-r), and the length with that of the recording of the text. The recordings of the texts, decoded with as many
codebooks, are judged too: ``floor_wer`` and ``floor_sim_r`` are what codec and judges cost by themselves.

The judges and their packages are looked for when a run begins. What is said draws from generators of its own, so that a
run with these evaluations has the same weights, bit for bit, as one without.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from valle.data.pack import Pack, PackSplit
from valle.errors import ValleError
from valle.model.nar import NAR
from valle.model.sampling import SamplingConfig
from valle.pretrained import part_of
from valle.train.config import SpokenConfig, TaskConfig, TrainConfig
from valle.train.pictures import picture, stacked
from valle.train.tasks import SPOKEN_PROMPT_S, Speech, Task, pairs_to_speak
from valle.train.tracking import Tracker
from valle.train.weights import load_weights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from valle.eval.bootstrap import Estimate
    from valle.eval.judges import Judges
    from valle.eval.wer import WordErrors

_AT_ONCE = 16  # sentences in a batch
_MEANS = ("wer", "sim_r", "length", "unfinished")


class Heard(NamedTuple):
    """One sentence, judged."""

    words: WordErrors | None
    """None without a recogniser."""
    sim_r: float | None
    """None without a speaker network, or where there is too little to judge."""
    length: float
    """Of what the recording has."""
    unfinished: bool
    """Whether the AR ran into its limit of frames, twice those of the recording."""


class SpokenEvaluation:
    """Speaks the same sentences at every evaluation, judges them, and tells a tracker."""

    def __init__(
        self,
        config: TrainConfig,
        task: Task[Any],
        pack: Pack,
        dev: PackSplit,
        codec: Any,
        device: torch.device,
        runs: Path,
    ) -> None:
        """
        Args:
            config: of the run.
            task: what is trained; what speaks is given each time.
            pack: the packed dataset.
            dev: the split of it that the sentences are from.
            codec: what made the pack, or None.
            device: where task and codec are.
            runs: the folder with the runs ``ar`` and ``nar``.

        Raises:
            ValleError: no codec, no sentences or no words of them, a judge, its package or the partner is not there or
                does not fit.
        """
        self.config: SpokenConfig = config.spoken
        self.task, self.pack, self.dev, self.codec, self.device = task, pack, dev, codec, device
        task_config: TaskConfig = getattr(config, task.kind)
        self.max_steps = task_config.run.max_steps
        self.sampling = SamplingConfig(
            temperature=self.config.temperature, top_p=self.config.top_p, guidance=self.config.guidance
        )
        if codec is None:
            raise ValleError(
                f"spoken.every is {self.config.every}, but no codec is named; give as codec the folder of the one that "
                "made the pack, or leave spoken.every 0"
            )
        if task.kind == "ar":
            task.model.check_guidance(self.sampling.guidance)
        self.judges = load_spoken_judges(self.config, device)
        self.texts = self._read_texts()
        self.pairs = pairs_to_speak(dev, self.config.n, config.seed, texts=self.texts if self.config.whisper else None)
        if not self.pairs:
            low, high = SPOKEN_PROMPT_S
            raise ValleError(
                f"spoken.every is {self.config.every}, but {config.dev_split} has no two utterances of one speaker "
                f"between {low:g} and {high:g} s{', with known words' if self.config.whisper else ''}; use a larger "
                "dev_split, or leave spoken.every 0"
            )
        self._own_partner = runs / "nar" / "best"
        if self.config.partner and task.kind == "ar":
            self._check_partner(self._load_partner())
        self._voices: list[NDArray[np.float32] | None] = []  # of the prompts, when first needed
        self._floors: dict[int, dict[str, float]] = {}  # by codebooks

    def plan(self) -> str:
        """What is going to be done, in a sentence."""
        n, n_speakers = len(self.pairs), len({int(self.dev.speakers[text]) for _, text in self.pairs})
        what = f"{_count(n, 'sentence')} of {_count(n_speakers, 'speaker')}"
        if n < self.config.n:
            what += f" (dev has no more of the {self.config.n} asked for)"
        if self.judges is not None and self.judges.recogniser is not None:
            what += f", words by {self.judges.names['recogniser']}"
        if self.judges is not None and self.judges.speaker is not None:
            what += f", voices by {self.judges.names['speaker']}"
        if self.task.kind == "ar":
            folder = self._partner_folder()
            what += f", completed by {folder}" if folder else f", codebook 1 alone until {self._own_partner} is there"
        return f"by ear every {self.config.every} steps: {what}"

    def run(self, step: int, tracker: Tracker, task: Task[Any]) -> None:
        """Speak with the weights of ``task``, and judge; a failure is noted and does no harm."""
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices), torch.no_grad():
                self._run(step, tracker, task)
        except Exception as error:  # whatever a judge or a partner may raise: the run is worth more than this
            tracker.note(f"judging by ear broke off at step {step}: {error}")

    def _run(self, step: int, tracker: Tracker, task: Task[Any]) -> None:
        began = time.monotonic()
        task.model.eval()
        folder = self._partner_folder()
        partner = self._load_partner() if folder else None
        said: list[Speech] = []
        for start in range(0, len(self.pairs), _AT_ONCE):
            pairs = self.pairs[start : start + _AT_ONCE]
            said += task.say(self.dev, pairs, self.device, partner, self.sampling)
        del partner
        n_codebooks = said[0].codes.shape[0]
        group = "spoken" if n_codebooks == self.pack.info.n_quantizers else f"spoken_codebook_{n_codebooks}"
        if not self._voices:
            tracker.bands([f"{g}/{name}" for g in ("spoken", "spoken_codebook_1") for name in _MEANS])
            self._voices = [self._voice(self._decode(self.dev.codes(voice))) for voice, _ in self.pairs]
        floor = self._floor(n_codebooks)
        wavs = [self._decode(speech.codes) for speech in said]
        heard = [self._judge(i, wav, speech) for i, (wav, speech) in enumerate(zip(wavs, said, strict=True))]
        estimates = _estimates(heard, with_lengths=self.task.kind == "ar")
        values: dict[str, float] = {}
        for name, estimate in estimates.items():
            values |= {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        values |= {**floor, "seconds": time.monotonic() - began}
        tracker.log(step, {f"{group}/{name}": value for name, value in values.items()}, show=False)
        tracker.note(_sentence(step, estimates, floor, group, str(folder or ""), values["seconds"]))
        self._show(step, tracker, group, said, wavs, heard)

    def _floor(self, n_codebooks: int) -> dict[str, float]:
        """What the recordings of the texts come to, decoded with so many codebooks; found once."""
        if n_codebooks not in self._floors:
            recordings = [self._recording(text, n_codebooks) for _, text in self.pairs]
            heard = [self._judge(i, wav) for i, wav in enumerate(recordings)]
            estimates = _estimates(heard, with_lengths=False)
            self._floors[n_codebooks] = {f"floor_{name}": estimate.mean for name, estimate in estimates.items()}
        return self._floors[n_codebooks]

    def _judge(self, i: int, wav: NDArray[np.float32], speech: Speech | None = None) -> Heard:
        """Judge wav [N] as sentence i."""
        text = self.pairs[i][1]
        length, unfinished = 1.0, False
        if speech is not None:
            length, unfinished = speech.codes.shape[1] / int(self.dev.n_frames[text]), speech.unfinished
        if self.judges is None:
            return Heard(None, None, length, unfinished)
        from valle.eval.speaker import cosine
        from valle.eval.wer import WordErrors

        counted = self.judges.words(wav, self.codec.sample_rate, self.texts.get(self.dev.ids[text]))
        words = None if counted is None else WordErrors(**counted)
        own, voice = self._voice(wav), self._voices[i]
        return Heard(words, None if own is None or voice is None else cosine(own, voice), length, unfinished)

    def _voice(self, wav: NDArray[np.float32]) -> NDArray[np.float32] | None:
        return None if self.judges is None else self.judges.voice(wav, self.codec.sample_rate)

    def _recording(self, i: int, n_codebooks: int) -> NDArray[np.float32]:
        return self._decode(self.dev.codes(i)[:n_codebooks])

    def _decode(self, codes: Tensor) -> NDArray[np.float32]:
        """codes [K, T] -> wav [N]."""
        if not codes.shape[1]:
            return torch.zeros(0).numpy()
        wav: Tensor = self.codec.decode(codes.unsqueeze(0).to(self.device))  # [1, 1, N]
        return wav[0, 0].float().nan_to_num().clamp(-1, 1).cpu().numpy()

    # What is heard and seen

    def _show(
        self,
        step: int,
        tracker: Tracker,
        group: str,
        said: Sequence[Speech],
        wavs: Sequence[NDArray[np.float32]],
        heard: Sequence[Heard],
    ) -> None:
        """Waves, pictures and words, at evaluations that leave them."""
        number = math.ceil(step / self.config.every)
        if not (is_kept(number) or step % self.config.every or step == self.max_steps):
            return
        info = {"synthetic": True, "model": f"{self.task.kind} in training, step {step}"}
        rate, n_codebooks = self.codec.sample_rate, self.pack.info.n_quantizers
        is_first = not any((tracker.folder / "samples").glob("spoken_recordings-*"))
        for i, (speech, wav) in enumerate(zip(said, wavs, strict=True)):
            recording = self._recording(self.pairs[i][1], n_codebooks)
            if is_first:
                tracker.audio(step, f"spoken_recordings/{i + 1:02d}", torch.from_numpy(recording), rate)
            if len(wav):
                tracker.audio(step, f"{group}/{i + 1:02d}", torch.from_numpy(wav), rate, info)
            tracker.image(step, f"{group}/{i + 1:02d}", self._picture(i, recording, wav, speech))
        tracker.text(step, f"{group}/words", self._table(heard))

    def _picture(self, i: int, recording: NDArray[np.float32], wav: NDArray[np.float32], speech: Speech) -> Tensor:
        """Recording and speech, one below the other, uint8 [H, W, 3]; with paths, where there is alignment."""
        text = self.pairs[i][1]
        n_phonemes = int(self.dev.n_phonemes[text])
        path = None
        if self.pack.info.aligned:
            path = torch.arange(n_phonemes).repeat_interleave(self.dev.durations(text))  # [T]
        hop = round(self.codec.sample_rate / self.pack.info.frame_rate)
        waves = ((recording, path), (wav, None if speech.path is None else speech.path.cpu()))
        return stacked([picture(torch.from_numpy(w), self.codec.sample_rate, hop, own, n_phonemes) for w, own in waves])

    def _table(self, heard: Sequence[Heard]) -> str:
        """Each sentence: what was to be said, and what was heard."""
        lines = ["| | voice | text | WER | SIM-r | length | words | heard |", "|" + "---|" * 8]
        for i, ((voice, text), h) in enumerate(zip(self.pairs, heard, strict=True), 1):
            wrong = "" if h.words is None else f"{h.words.errors} of {h.words.words}"
            cells = [i, self.dev.ids[voice], self.dev.ids[text], wrong, "" if h.sim_r is None else f"{h.sim_r:.2f}"]
            cells.append(f"{h.length:.2f}{', unfinished' if h.unfinished else ''}")
            cells += ["", ""] if h.words is None else [h.words.reference, h.words.hypothesis]
            lines.append("| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |")
        return "\n".join(lines)

    # Texts and the partner

    def _read_texts(self) -> dict[str, str]:
        """id -> what it says, of the utterances of dev of which that is known.

        Raises:
            ValleError: of none, though there is a recogniser.
        """
        if not self.config.whisper:
            return {}
        texts = known_texts(self.config.texts, self.pack.folder)
        texts = {name: texts[name] for name in self.dev.ids if name in texts}
        if not texts:
            given = f"{', '.join(self.config.texts)} tells" if self.config.texts else "nothing tells"
            none = " of none of the" if self.config.texts else " what the"
            raise ValleError(
                f"spoken.whisper needs words to count, but {given}{none} utterances of dev say; give as spoken.texts "
                'the sources given to `valle prepare`, or a .jsonl file with lines like {"id": "a1", "text": "Hello."} '
                "and the ids of the pack, or leave spoken.whisper empty"
            )
        return texts

    def _partner_folder(self) -> Path | None:
        """The NAR that completes; None for a NAR, and where there is none yet."""
        if self.task.kind == "nar":
            return None
        if self.config.partner:
            return part_of(self.config.partner, "nar")
        return self._own_partner if (self._own_partner / "config.json").is_file() else None

    def _check_partner(self, nar: NAR) -> None:
        """
        Raises:
            ValleError: it cannot go on from what this AR tells.
        """
        if nar.config.alignment and not self.task.model.config.alignment:
            raise ValleError(
                f"the partner {self.config.partner} needs to know the phoneme of each frame, which an AR without "
                "alignment does not tell; give as spoken.partner a NAR without it, or train the AR with it"
            )

    def _load_partner(self) -> NAR:
        """Read it anew, since a run that goes on writes its ``best/`` anew.

        Raises:
            ValleError: it is not there, damaged, or made for another pack.
        """
        folder, info = self._partner_folder(), self.pack.info
        assert folder is not None
        nar = load_weights("nar", folder)
        assert isinstance(nar, NAR)
        before = _origin(folder)
        for what, has, needs in (
            ("codec", before.get("codec_fingerprint", info.codec_fingerprint), info.codec_fingerprint),
            ("phoneme inventory", before.get("inventory_version", info.inventory_version), info.inventory_version),
            ("number of phonemes", nar.config.n_phonemes, info.n_phonemes),
            ("codebook size", nar.config.codebook_size, info.codebook_size),
            ("number of codebooks", nar.config.n_quantizers, info.n_quantizers),
        ):
            if has != needs:
                raise ValleError(
                    f"the partner {folder} does not fit the pack: its {what} is {has}, but {needs} is needed; give as "
                    "spoken.partner a NAR trained on this pack"
                )
        return nar.to(self.device)


def is_kept(number: int) -> bool:
    """Whether evaluation ``number``, counted from 1, leaves waves and pictures: the first 16, then eight a doubling.

    So the disk that a run takes grows with the logarithm of its length.
    """
    return number % max(1, (1 << (number.bit_length() - 1)) >> 3) == 0


def load_spoken_judges(config: SpokenConfig, device: torch.device) -> Judges | None:
    """The judges that the configuration names; None when it names none.

    Raises:
        ValleError: one of them, or a package that it needs, is not there; with the remedy.
    """
    if not config.whisper and not config.speaker:
        return None
    from valle.data.sources import missing_package, need

    wavlm = config.speaker.startswith("wavlm:")
    for option, is_wanted, packages in (
        ("spoken.whisper", config.whisper, ("faster_whisper", "jiwer", "whisper_normalizer")),
        ("spoken.speaker", config.speaker and wavlm, ("transformers",)),
        ("spoken.speaker", config.speaker and not wavlm, ("onnxruntime", "kaldi_native_fbank")),
    ):
        for package in packages if is_wanted else ():
            need(package, option, "eval")
    logging.getLogger("faster_whisper").setLevel(logging.WARNING)  # it tells of every file that it hears
    try:
        from valle.eval.judges import LEFT_OUT, load_judges

        return load_judges(config.whisper or LEFT_OUT, config.speaker or LEFT_OUT, device=device.type)
    except ModuleNotFoundError as error:
        raise ValleError(missing_package(error.name, "the table [spoken]", "eval")) from error
    except ValleError as error:  # its remedies are options of `valle eval`
        raise ValleError(
            str(error).replace("--whisper", "as spoken.whisper").replace("--speaker", "as spoken.speaker")
        ) from error
    except Exception as error:  # NOTE whatever the judges' libraries raise over a file or a network
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValleError(
            f"the judges spoken.whisper = {config.whisper!r} and spoken.speaker = {config.speaker!r} cannot be loaded: "
            f"{reason}; give others, or leave them empty"
        ) from error


def known_texts(sources: Sequence[str], pack: Path) -> dict[str, str]:
    """id -> text: of the pack's own transcripts and of ``sources``, which are sources as ``valle prepare`` takes them
    or files of ids and texts.

    Raises:
        ValleError: a source is not there or cannot be understood.
    """
    from valle.data.shar import read_texts
    from valle.data.sources import first_json, read_source
    from valle.data.tables import COLUMNS

    own = pack / "transcripts.jsonl"
    texts = read_texts(own) if own.is_file() else {}
    for source in sources:
        path = Path(source).expanduser()
        keys = first_json(path).keys() if path.suffix == ".jsonl" and path.is_file() else set()
        if {"id", "text"} <= keys and not keys & set(COLUMNS["path"]):
            texts |= read_texts(path)
        else:
            found = read_source(path if path.exists() else source)
            texts |= {u.id: u.text for u in found if u.text and u.text.strip()}
    return texts


def _estimates(heard: Sequence[Heard], *, with_lengths: bool) -> dict[str, Estimate]:
    """Means over the sentences with their intervals; those that cannot be had are left out."""
    from valle.eval.bootstrap import mean_interval
    from valle.eval.wer import error_rate

    found = {
        "wer": error_rate([h.words for h in heard if h.words is not None]),
        "sim_r": mean_interval([h.sim_r for h in heard]),
    }
    if with_lengths:
        found["length"] = mean_interval([h.length for h in heard])
        found["unfinished"] = mean_interval([float(h.unfinished) for h in heard])
    return {name: estimate for name, estimate in found.items() if estimate is not None}


def _sentence(
    step: int,
    estimates: dict[str, Estimate],
    floor: dict[str, float],
    group: str,
    partner: str,
    seconds: float,
) -> str:
    """The numbers of an evaluation in words."""
    parts = []
    for name, title, scale, unit in (
        ("wer", "WER", 100, " %"),
        ("sim_r", "SIM-r", 1, ""),
        ("length", "length", 1, ""),
        ("unfinished", "unfinished", 100, " %"),
    ):
        if name in estimates:
            e, digits = estimates[name], 1 if scale == 100 else 2
            mean, low, high = (f"{scale * x:.{digits}f}" for x in (e.mean, e.low, e.high))
            recordings = f", recordings {scale * floor[f'floor_{name}']:.{digits}f}" if f"floor_{name}" in floor else ""
            parts.append(f"{title} {mean}{unit} ({low} to {high}{recordings})")
    how = f", completed by {partner}" if partner and group == "spoken" else ""
    how += "" if group == "spoken" else ", codebook 1 alone"
    return f"by ear at step {step}: {', '.join(parts) or 'spoken'}{how}, {seconds:.0f} s"


def _origin(folder: Path) -> dict[str, Any]:
    """What is told of the pack that a model was trained on; empty where nothing is."""
    for path in (folder / "training.json", folder.parent / "valle.json"):
        if path.is_file():
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return values
    return {}


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
