"""Text and a voice in, speech out (paper §4.3): the two language models, the codec and the text in one place.

A text is split into sentences, and each is spoken from the same prompt: phonemes of the prompt's transcript followed by
those of the sentence, and the codes of the recording as the beginning of the codes. The AR model writes codebook 1, the
NAR model the rest, the codec the wave; the waves are joined with pauses.

With ``continual`` the prompt is the first three seconds of the recording and the phonemes those of its whole transcript
(and of the text after it): the model goes on speaking where the recording was cut (VALL-E-continual).

Every row of a batch draws from a generator of its own, seeded by the caller's seed, the piece and the candidate. A text
therefore sounds the same alone, in a batch and as a stream.

Models with alignment (``valle.model.alignment``) are told where in the recording its phonemes are: the model's aligner
finds that out.
"""

from __future__ import annotations

import itertools
import math
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from valle.asr.aligner import WORST_FIT, Alignment
from valle.audio import Audio, Source, load_reference, loudness_gain
from valle.errors import ValleError
from valle.model.alignment import frame_index
from valle.options import SpeakOptions, parse_options
from valle.pieces import MAX_PHONEMES_PER_S, Piece, Prompt, Spoken, candidate_seeds, join, make_piece, score
from valle.pretrained import Pretrained, load_pretrained
from valle.text import PHONE, WORD_BOUNDARY, Phonemizer, normalise, split_sentences
from valle.voices import find_voice

BATCH_ROWS = 8
"""Most utterances that are spoken at once; memory follows it."""

_MOST_KNOWN = 32
"""Prompts of which is kept what the NAR thinks of them; a few kB each."""
_NAR_SEED = 0x9E3779B97F4A
_CHUNK_FRAMES = 75  # that a stream decodes at once
_FIRST_FRAMES = 40
"""After so many frames, 0.5 s, a stream chooses among the candidates of a sentence, which begins to sound."""
_COMPARED_FRAMES = 150
"""After so many frames, 2 s, the best candidate of a sentence goes on alone: most of the time would go into the others,
and what is heard is as good (docs/performance.md)."""
_HELD_FRAMES = 8
"""The last frames so far are not sounded yet: their later codebooks also hang on those to come."""
_GROWTH = 2.0
"""Each part of a sentence is so many times as long as the one before it: completing takes time, too."""


class VALLE:
    """A model that speaks. ``VALLE.from_pretrained()`` is the embedded one.

    >>> tts = VALLE.from_pretrained()
    >>> tts.generate("Hello.", ref_audio="me.wav", ref_text="What I say in it.", seed=0).save("out.wav")
    """

    def __init__(self, model: Pretrained) -> None:
        self.model = model
        self._known: dict[int, tuple[Prompt, Tensor]] = {}  # what the NAR thinks of prompts; kept, ids stay theirs

    @classmethod
    def from_pretrained(cls, model: str | Path | None = None, device: str = "auto", weights: str = "auto") -> VALLE:
        """Read the embedded model (None), one in a folder, or one from the Hugging Face hub (``name/model``).

        Args:
            model: which.
            device: "auto", "cpu", "cuda" or "cuda:1".
            weights: "auto", "fp32", "fp16", "int8" or "int4", how a CPU reads them: the fewer bits the faster
                (docs/performance.md).

        Raises:
            ValleError: there is no such model or device, or the model is damaged.
        """
        return cls(load_pretrained(model, device, weights))

    @property
    def sample_rate(self) -> int:
        """Samples a second of what it speaks."""
        return self.model.codec.sample_rate

    def prompt(
        self,
        ref_audio: Source | Audio | None = None,
        ref_text: str | None = None,
        *,
        voice: str | None = None,
        lang: str = "en-us",
    ) -> Prompt:
        """Encode a voice once, to speak many texts with it. Without arguments it is the default voice.

        Args:
            ref_audio: a recording of the voice, 1 to 15 s; 3 to 10 s are best.
            ref_text: what is said in it.
            voice: a voice by name, in place of a recording.
            lang: language of ``ref_text``.

        Raises:
            ValleError: the recording cannot be used (see ``valle.audio.load_reference``), its transcript is missing,
                cannot be its own or cannot be aligned, both a recording and a voice are given, or an unknown voice.
        """
        if voice is not None and ref_audio is not None:
            raise ValleError(f"both the voice {voice!r} and a reference are given; give one of them")
        if ref_audio is None and voice is None and ref_text is not None:
            raise ValleError("a transcript (ref_text) is given but no reference; give the recording that it belongs to")
        if ref_audio is None:
            named = find_voice(voice)
            name, ref_text = named.name, ref_text or named.text
            source: Source | Audio = named.path
        else:
            name = Path(ref_audio).name if isinstance(ref_audio, str | os.PathLike) else "reference"
            source = ref_audio
        reference = load_reference(source)
        if ref_text is None or not ref_text.strip():
            raise ValleError(
                f"the transcript of {name} is missing: say with ref_text (-s) which words are spoken in the recording"
            )
        phonemes = self._phonemes(ref_text, lang)
        if not phonemes:
            raise ValleError(f"the transcript {ref_text!r} holds nothing that can be spoken; give the words of {name}")
        if len(phonemes) > MAX_PHONEMES_PER_S * reference.seconds:
            raise ValleError(
                f"the transcript has {len(phonemes)} phonemes, more than the {reference.seconds:.1f} s of {name} can "
                "hold; give the words of this recording and no others"
            )
        with torch.inference_mode():
            codes = self.model.codec.encode(reference.waveform.unsqueeze(0).to(self.model.device))[0]  # [8, T']
        gain = loudness_gain(reference.waveform, reference.sample_rate)
        aligned = self._align(name, reference.waveform, phonemes, codes.shape[1])
        if aligned is None:
            return Prompt(name, codes, phonemes, gain)
        return Prompt(name, codes, phonemes, gain, aligned.durations.tolist(), aligned.fit)

    def generate(
        self,
        text: str = "",
        ref_audio: Source | Audio | None = None,
        ref_text: str | None = None,
        *,
        voice: str | None = None,
        prompt: Prompt | None = None,
        continual: bool = False,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Audio:
        """Speak a text.

        Args:
            text: of any length; may be empty in continual mode.
            ref_audio, ref_text, voice: as for ``prompt``.
            prompt: what ``prompt`` returned, in their place.
            continual: go on from the first 3 s of the recording with the rest of its transcript, then the text. The
                wave begins with those 3 s, as the codec renders them.
            progress: is told how many pieces are done, and how many there are.
            **options: fields of ``SpeakOptions``: seed, temperature, nar_temperature, guidance, voice_guidance,
                nar_guidance, top_p, top_k, repetition_aware, num_candidates, max_seconds, lang.

        Returns:
            Audio with ``codes`` [8, T] and, in ``info``: model, voice, seed, pieces with their stop reasons, warnings.

        Raises:
            ValleError: a text without words, a prompt that is none, or an option out of range.
        """
        parsed = self._parse(options)
        prompt = self._prompt(prompt, ref_audio, ref_text, voice, parsed)
        return self._generate([text], [prompt], parsed, continual, progress)[0]

    def generate_batch(
        self,
        texts: Sequence[str],
        ref_audio: Source | Audio | None = None,
        ref_text: str | None = None,
        *,
        voice: str | None = None,
        prompt: Prompt | Sequence[Prompt] | None = None,
        continual: bool = False,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> list[Audio]:
        """Speak many texts together, which is faster; each sounds as ``generate`` with the same options would have it.

        Args:
            texts: one Audio each.
            prompt: one for all, or one for each.
            ref_audio, ref_text, voice, continual, progress, **options: as for ``generate``.
        """
        parsed = self._parse(options)
        if isinstance(prompt, Prompt) or prompt is None:
            prompts = [self._prompt(prompt, ref_audio, ref_text, voice, parsed)] * len(texts) if texts else []
        else:
            prompts = [self._fit(p) for p in prompt]
            if len(prompts) != len(texts):
                raise ValleError(
                    f"{len(texts)} texts and {len(prompts)} prompts are given; give one prompt for each or one for all"
                )
        return self._generate(list(texts), prompts, parsed, continual, progress)

    def stream(
        self,
        text: str,
        ref_audio: Source | Audio | None = None,
        ref_text: str | None = None,
        *,
        voice: str | None = None,
        prompt: Prompt | None = None,
        continual: bool = False,
        early: bool = True,
        **options: Any,
    ) -> Iterator[Audio]:
        """Speak a long text, sentence by sentence, in chunks of up to a second; arguments as for ``generate``.

        What is not asked for yet is not spoken yet. Everything wrong with the arguments is raised before the first
        chunk; ``info["warnings"]`` of the last one has all there are.

        Args:
            early: let a sentence sound before it is spoken to its end. Its candidates are then compared by their first
                half second, and its later codebooks completed in parts, so that it differs from what ``generate``
                returns; without it all chunks end to end are just that.
        """
        parsed = self._parse(options)
        prompt = self._prompt(prompt, ref_audio, ref_text, voice, parsed)
        pieces = self._pieces(text, prompt, parsed, continual)
        return self._stream(pieces, prompt, parsed, early)

    def _parse(self, options: dict[str, Any]) -> SpeakOptions:
        """The options, with what this model cannot do refused before anything is spoken."""
        parsed = parse_options(options)
        info = self.model.info
        self.model.ar.check_guidance(parsed.sampling(info.sampling).guidance)
        self.model.nar.check_guidance(info.nar_guidance if parsed.nar_guidance is None else parsed.nar_guidance)
        if parsed.num_candidates is None:
            parsed = replace(parsed, num_candidates=info.num_candidates)
        return parsed

    # From here on everything is checked

    def _prompt(
        self,
        prompt: Prompt | None,
        ref_audio: Source | Audio | None,
        ref_text: str | None,
        voice: str | None,
        options: SpeakOptions,
    ) -> Prompt:
        if prompt is None:
            return self.prompt(ref_audio, ref_text, voice=voice, lang=options.lang)
        if ref_audio is not None or ref_text is not None or voice is not None:
            raise ValleError("a prompt is given and so is a reference or a voice; give one of them")
        return self._fit(prompt)

    def _fit(self, prompt: Prompt) -> Prompt:
        """The prompt, when this model can speak with it."""
        if self.model.needs_aligner and prompt.durations is None:
            raise ValleError(
                f"the prompt {prompt.name} is not aligned, which this model needs; make it with this model's prompt()"
            )
        return prompt

    def _align(self, name: str, wav: Tensor, phonemes: list[int], n_frames: int) -> Alignment | None:
        """The phonemes of a recording [1, N] of ``n_frames`` frames; None when the model does not ask."""
        if not self.model.needs_aligner:
            return None
        aligner = self.model.aligner
        assert aligner is not None, "a checked model has the aligner that it needs"
        try:
            aligned = aligner.align(wav, phonemes)
        except ValleError as error:
            raise ValleError(f"{name} cannot be aligned with its transcript: {error}") from error
        counted = int(aligned.durations.sum())
        assert counted == n_frames, f"the aligner counts {counted} frames, the codec {n_frames}"
        return aligned

    def _is_said(self, head: Prompt) -> bool:
        """Whether no phone of an aligned transcript is left after its head."""
        if head.durations is None:
            return False
        return not any(self.model.inventory.kinds[i] == PHONE for i in head.phonemes[head.n_said :])

    def _phonemes(self, text: str, lang: str) -> list[int]:
        """Ids of a text's phonemes; none where there is nothing to say."""
        if not any(c.isalnum() for c in normalise(text, lang)):
            return []
        return self.model.inventory.encode(Phonemizer(lang)(text))

    def _pieces(self, text: str, prompt: Prompt, options: SpeakOptions, continual: bool) -> list[Piece]:
        """Cut a text into what the model can speak at once."""
        rate, per_phoneme = self.model.codec.frame_rate, prompt.frames_per_phoneme
        sentences = self._sentences(text, prompt, options.lang)
        if not sentences and (text.strip() or not continual):
            said = text.strip()
            what = f"the text {said[:40]!r} holds nothing that can be spoken" if said else "the text is empty"
            raise ValleError(f"{what}; give at least one word")
        separator = self.model.inventory.encode([WORD_BOUNDARY])
        limit = math.inf if options.max_seconds is None else math.ceil(options.max_seconds * rate)
        pieces = []
        if continual:
            head = prompt.head(round(self.model.info.continual_s * rate))
            sentence, ids = sentences.pop(0) if sentences else ("", [])
            rest = prompt.n_frames - head.n_frames
            if not ids and rest < rate:
                raise ValleError(
                    f"{prompt.name} has {prompt.n_frames / rate:.1f} s of speech; to continue it without a text, at "
                    f"least {self.model.info.continual_s + 1:g} s are needed: give a longer recording or a text"
                )
            if not ids and self._is_said(head):
                raise ValleError(
                    f"the transcript of {prompt.name} is at its end after {self.model.info.continual_s:g} s; give all "
                    "the words of the recording, or a text to go on with"
                )
            first = make_piece(
                sentence,
                prompt.phonemes + (separator + ids if ids else []),
                head,
                expected_frames=rest + per_phoneme * len(ids),
                limit=limit - head.n_frames,
                frame_rate=rate,
                keep_prompt=True,
            )
            pieces.append(first)
        for sentence, ids in sentences:
            phonemes, expected = prompt.phonemes + separator + ids, per_phoneme * len(ids)
            pieces.append(
                make_piece(sentence, phonemes, prompt, expected_frames=expected, limit=limit, frame_rate=rate)
            )
        return pieces

    def _sentences(self, text: str, prompt: Prompt, lang: str) -> list[tuple[str, list[int]]]:
        """Sentences as they are said, and their phonemes; prompt and sentence together stay in the model's reach."""
        rate = self.model.codec.frame_rate
        room_s = max(self.model.info.max_seconds - prompt.n_frames / rate, 4.0)
        # A letter is about a phoneme symbol, and half of the room is left for slow speech.
        max_chars = int(min(max(0.5 * room_s * rate / prompt.frames_per_phoneme, 40), 300))
        written = split_sentences(text, max_chars)
        # Cut again: numbers are longer when said than when written.
        said = [s for w in written for s in split_sentences(normalise(w, lang), max_chars)]
        return [(s, ids) for s in said if (ids := self._phonemes(s, lang))]

    @torch.inference_mode()
    def _speak(
        self,
        pieces: list[Piece],
        seeds: list[list[int]],
        options: SpeakOptions,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Spoken]:
        """Run both language models; ``seeds`` [pieces][candidates]."""
        n_candidates = options.num_candidates or 1
        by_gain = self._chooses_by_gain(options)
        codes_1: dict[tuple[int, int], Tensor] = {}
        index: dict[tuple[int, int], Tensor] = {}
        stops: dict[tuple[int, int], str] = {}
        scores: dict[tuple[int, int], float] = {}
        n_done = 0
        for batch, candidates in _batches([p.max_frames for p in pieces], n_candidates):
            rows = [(i, c) for i in batch for c in candidates]
            result = self.model.ar.generate(
                *self._ar_inputs([pieces[i] for i in batch]),
                **self._ar_options([pieces[i] for i in batch], [seeds[i][c] for i, c in rows], options),
                choose_after=_COMPARED_FRAMES if by_gain else 0,
            )
            for n, row in enumerate(rows):
                codes_1[row], stops[row] = result.codes[n], result.stop_reasons[n]
                if result.index is not None:
                    index[row] = result.index[n]
                quality = result.log_probs if result.gains is None else result.gains
                scores[row] = score(pieces[row[0]], len(codes_1[row]), stops[row], float(quality[n]))
            n_done += len(rows)
            if progress is not None:
                progress(n_done // n_candidates, len(pieces))
        codes: dict[tuple[int, int], Tensor] = {}
        if n_candidates > 1 and self.model.needs_aligner and not by_gain:
            codes = self._complete(pieces, list(codes_1), codes_1, index, seeds, options)
            for row in codes_1:
                if (fit := self._fit_of_speech(pieces[row[0]], codes[row])) is not None:
                    scores[row] = score(pieces[row[0]], len(codes_1[row]), stops[row], fit)
        best = [max(range(n_candidates), key=lambda c: scores[i, c]) for i in range(len(pieces))]
        codes = codes or self._complete(pieces, list(enumerate(best)), codes_1, index, seeds, options)
        return [
            Spoken(codes[i, best[i]], stops[i, best[i]], [scores[i, c] for c in range(n_candidates)], best[i])
            for i in range(len(pieces))
        ]

    def _chooses_by_gain(self, options: SpeakOptions) -> bool:
        """Whether candidates are told apart by what the text adds to their probability.

        That does better than what the aligner hears, and needs no sound.
        """
        return (options.num_candidates or 1) > 1 and self.model.ar.config.text_dropout > 0

    def _ar_inputs(self, pieces: list[Piece]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """What the AR reads: phonemes [B, S], prompts [B, T'], their lengths, and with alignment their durations."""
        phonemes, phoneme_lens = self._pad([torch.tensor(p.phonemes) for p in pieces])
        prompt, prompt_lens = self._pad([p.prompt.codes[0] for p in pieces])
        durations = self._durations(pieces) if self.model.ar.config.alignment else None
        return phonemes, phoneme_lens, prompt, prompt_lens, durations

    def _ar_options(self, pieces: list[Piece], seeds: list[int], options: SpeakOptions) -> dict[str, Any]:
        """How it speaks them; ``seeds`` [B * candidates]."""
        return {
            "min_frames": torch.tensor([p.min_frames for p in pieces]),
            "max_frames": torch.tensor([p.max_frames for p in pieces]),
            "sampling": options.sampling(self.model.info.sampling),
            "with_gains": self._chooses_by_gain(options),
            "text_starts": torch.tensor([p.text_start for p in pieces]),
            "candidates": len(seeds) // len(pieces),
            # On the CPU whatever the device, so that a seed means the same there.
            "generators": [torch.Generator().manual_seed(seed) for seed in seeds],
        }

    def _speak_early(self, piece: Piece, seeds: list[int], options: SpeakOptions, ended: list[str]) -> Iterator[Tensor]:
        """Codes [8, t] of a piece, chunk by chunk, before it is at its end; why it ended is added to ``ended``."""
        steps = self.model.ar.steps(
            *self._ar_inputs([piece]), **self._ar_options([piece], seeds, options), choose_after=_FIRST_FRAMES
        )
        codes: list[list[int]] = [[] for _ in seeds]
        index: list[list[int]] = [[] for _ in seeds]
        qualities = [0.0] * len(seeds)
        chosen, n_given, wanted = 0, 0, float(_FIRST_FRAMES)
        stops: list[str | None] = [None] * len(seeds)
        rows = list(range(len(seeds)))  # that still go on

        def completed() -> Tensor:
            device = self.model.device
            rows = [(0, chosen)]
            done = self._complete(
                [piece],
                rows,
                {rows[0]: torch.tensor(codes[chosen], device=device)},
                {rows[0]: torch.tensor(index[chosen], device=device)} if self.model.ar.config.alignment else {},
                [seeds],
                options,
            )
            return done[rows[0]]

        is_chosen = len(seeds) == 1
        while True:
            with torch.inference_mode():
                step = next(steps, None)
                if step is None:
                    break
                for i, (row, code) in enumerate(zip(rows, step.codes, strict=True)):
                    qualities[row] += (step.log_probs if step.gains is None else step.gains)[i]
                    if code is not None:
                        codes[row].append(code)
                        if step.index is not None:
                            index[row].append(step.index[i])
                    stops[row] = step.stop_reasons[i]
                if step.kept is not None:
                    rows = [rows[i] for i in step.kept]
                    chosen, is_chosen = rows[0], not any(stops)
                    stops = ["dropped" if stop is None and i != chosen else stop for i, stop in enumerate(stops)]
                if not is_chosen or len(codes[chosen]) < wanted or stops[chosen] is not None:
                    continue
                some = completed()[:, n_given : len(codes[chosen]) - _HELD_FRAMES]
            n_given += some.shape[1]
            wanted *= _GROWTH
            yield some
        if not is_chosen:  # shorter than what candidates are chosen by
            scores = [
                score(piece, len(own), stop or "eos", quality / max(1, len(own)))
                for own, stop, quality in zip(codes, stops, qualities, strict=True)
            ]
            chosen = max(range(len(scores)), key=scores.__getitem__)
        with torch.inference_mode():
            some = completed()[:, n_given:]
        ended.append(stops[chosen] or "eos")
        yield some

    def _complete(
        self,
        pieces: list[Piece],
        rows: list[tuple[int, int]],
        codes_1: dict[tuple[int, int], Tensor],
        index: dict[tuple[int, int], Tensor],
        seeds: list[list[int]],
        options: SpeakOptions,
    ) -> dict[tuple[int, int], Tensor]:
        """All codebooks [8, t] of some rows, each a piece and a candidate."""
        info = self.model.info
        codes = self._add_codebooks(
            [pieces[i] for i, _ in rows],
            [codes_1[row] for row in rows],
            [index[row] for row in rows] if index else None,
            # Another stream of numbers than the AR model draws from.
            [seeds[i][c] ^ _NAR_SEED for i, c in rows],
            info.nar_temperature if options.nar_temperature is None else options.nar_temperature,
            info.nar_guidance if options.nar_guidance is None else options.nar_guidance,
        )
        return dict(zip(rows, codes, strict=True))

    def _fit_of_speech(self, piece: Piece, codes: Tensor) -> float | None:
        """How well the text fits what was spoken, as the aligner hears it; None where it cannot tell."""
        said = piece.phonemes[piece.prompt.n_said :]  # what has no frame in the prompt
        assert self.model.aligner is not None
        if not said or not codes.shape[1]:
            return None
        wav = self.model.codec.decode(codes.unsqueeze(0), self._voice(piece))[0].float().cpu()  # [1, n]
        try:
            return self.model.aligner.align(wav, said).fit
        except ValleError:  # too short for its text, or a text without a phone
            return None

    def _add_codebooks(
        self,
        pieces: list[Piece],
        codes_1: list[Tensor],
        index: list[Tensor] | None,
        seeds: list[int],
        temperature: float,
        guidance: float,
    ) -> list[Tensor]:
        """Codebook 1 [t_i] of each piece, and with alignment the place of each frame's phoneme -> codes [8, t_i]."""
        order = sorted(range(len(pieces)), key=lambda i: len(codes_1[i]))
        out: dict[int, Tensor] = {}
        for start in range(0, len(order), BATCH_ROWS):
            batch = order[start : start + BATCH_ROWS]
            phonemes, phoneme_lens = self._pad([torch.tensor(pieces[i].phonemes) for i in batch])
            prompt, prompt_lens = self._pad([pieces[i].prompt.codes.t() for i in batch])  # [B, T', 8]
            first, lens = self._pad([codes_1[i] for i in batch])  # [B, T], [B]
            places = prompt_places = None
            if self.model.nar.config.alignment:
                assert index is not None, "a checked model has an AR model with alignment"
                places, _ = self._pad([index[i] for i in batch])  # [B, T]
                durations = self._durations([pieces[i] for i in batch])
                prompt_places = frame_index(durations, phoneme_lens, prompt.shape[1])  # [B, T']
            codes = self.model.nar.generate(
                phonemes,
                phoneme_lens,
                prompt.transpose(1, 2),
                prompt_lens,
                first,
                lens,
                places,
                prompt_places,
                temperature=temperature,
                guidance=guidance,
                generators=[torch.Generator().manual_seed(seeds[i]) for i in batch],
                prompt_foretold=self._foretold([pieces[i].prompt for i in batch]),
            )
            out |= {i: codes[n, :, : len(codes_1[i])] for n, i in enumerate(batch)}
        return [out[i] for i in range(len(pieces))]

    def _foretold(self, prompts: list[Prompt]) -> Tensor | None:
        """What the NAR thinks of the prompts' own frames, [B, T', d], when it asks; once a prompt."""
        if not self.model.nar.completes_by_prompt or not all(prompt.n_frames for prompt in prompts):
            return None
        rows = []
        for prompt in prompts:
            known = self._known.pop(id(prompt), None)  # and back, as the latest
            if known is None:
                phonemes, phoneme_lens = self._pad([torch.tensor(prompt.phonemes)])
                codes = prompt.codes.unsqueeze(0).to(self.model.device)  # [1, 8, T']
                lens = torch.tensor([prompt.n_frames], device=self.model.device)
                index = None
                if prompt.durations is not None and self.model.nar.config.alignment:
                    durations = torch.tensor([prompt.durations], device=self.model.device)
                    index = frame_index(durations, phoneme_lens, prompt.n_frames)  # [1, T']
                foretold = self.model.nar.foretell_prompt(phonemes, phoneme_lens, codes, lens, index)[0]
                known = (prompt, foretold)
            self._known[id(prompt)] = known
            while len(self._known) > _MOST_KNOWN:
                self._known.pop(next(iter(self._known)), None)
            rows.append(known[1])
        return self._pad(rows)[0]

    def _durations(self, pieces: list[Piece]) -> Tensor:
        """Frames of each phoneme in the prompts, [B, S]."""
        return self._pad([torch.tensor(p.durations) for p in pieces])[0]

    def _pad(self, rows: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Rows [n_i, ...] -> [B, max n_i, ...] on the model's device, and [B] their lengths."""
        device = self.model.device
        return pad_sequence(rows, batch_first=True).to(device), torch.tensor([len(r) for r in rows], device=device)

    def _generate(
        self,
        texts: list[str],
        prompts: list[Prompt],
        options: SpeakOptions,
        continual: bool,
        progress: Callable[[int, int], None] | None,
    ) -> list[Audio]:
        start = time.perf_counter()
        seed = _draw_seed(options.seed)
        by_text = [self._pieces(t, p, options, continual) for t, p in zip(texts, prompts, strict=True)]
        seeds = [
            candidate_seeds(seed, i, options.num_candidates or 1) for pieces in by_text for i in range(len(pieces))
        ]
        spoken = iter(self._speak([p for pieces in by_text for p in pieces], seeds, options, progress) if texts else [])
        audios = []
        for pieces, prompt in zip(by_text, prompts, strict=True):
            own = [next(spoken) for _ in pieces]
            # One wave at a time: a long text has many.
            waves = (([self._decode(p, s)], p.pause_s) for p, s in zip(pieces, own, strict=True))
            wav = torch.cat(list(join(waves, self.sample_rate, options.max_seconds)), dim=1)  # [1, N]
            codes = torch.cat([_all_codes(p, s) for p, s in zip(pieces, own, strict=True)], dim=1).cpu()  # [8, T]
            info = self._info(prompt, seed, pieces, own, wav.shape[1] / self.sample_rate, options)
            audios.append(Audio(wav, self.sample_rate, codes, info))
        elapsed = time.perf_counter() - start
        total = sum(audio.seconds for audio in audios)
        for audio in audios:
            audio.info.update({"elapsed_s": round(elapsed, 3), "rtf": round(elapsed / total, 3)})
        return audios

    def _stream(self, pieces: list[Piece], prompt: Prompt, options: SpeakOptions, early: bool) -> Iterator[Audio]:
        seed = _draw_seed(options.seed)
        ended: list[str] = []

        def waves() -> Iterator[tuple[Iterable[Tensor], float]]:
            for i, piece in enumerate(pieces):
                seeds = candidate_seeds(seed, i, options.num_candidates or 1)
                if early:
                    codes = self._speak_early(piece, seeds, options, ended)
                else:
                    spoken = self._speak([piece], [seeds], options)[0]
                    ended.append(spoken.stop)
                    codes = iter([spoken.codes])
                yield self._decode_chunks(piece, codes), piece.pause_s

        n_samples = 0
        for wav in join(waves(), self.sample_rate, options.max_seconds):
            if wav.shape[1]:
                n_samples += wav.shape[1]
                warnings = _warnings(prompt, ended, n_samples / self.sample_rate, options)
                yield Audio(wav, self.sample_rate, info={**self._source(prompt, seed, pieces), "warnings": warnings})

    @torch.inference_mode()
    def _decode(self, piece: Piece, spoken: Spoken) -> Tensor:
        """The wave [1, n] of a piece."""
        codes = _all_codes(piece, spoken).unsqueeze(0)
        return (self.model.codec.decode(codes, self._voice(piece))[0] * piece.prompt.gain).cpu()

    def _voice(self, piece: Piece) -> Tensor | None:
        """What the codec's decoder is told of the prompt's voice, if it is told any."""
        return self.model.codec.voice(piece.prompt.codes.unsqueeze(0))

    def _decode_chunks(self, piece: Piece, spoken: Iterable[Tensor]) -> Iterator[Tensor]:
        """The wave of codes [8, t] that come one after the other, in chunks [1, n]."""
        with torch.inference_mode():
            decoder = self.model.codec.stream_decoder(self._voice(piece))
        before = [piece.prompt.codes] if piece.keep_prompt else []
        for some in itertools.chain(before, spoken):
            for codes in torch.split(some.unsqueeze(0), _CHUNK_FRAMES, dim=2):
                with torch.inference_mode():  # not around the yield: the caller's code is no part of it
                    wav = (decoder.push(codes)[0] * piece.prompt.gain).cpu()
                yield wav
        with torch.inference_mode():
            wav = (decoder.finish()[0] * piece.prompt.gain).cpu()
        yield wav

    def _source(self, prompt: Prompt, seed: int, pieces: list[Piece]) -> dict[str, Any]:
        """The part of ``Audio.info`` that is known before speaking; what ``provenance`` writes is among it."""
        model = self.model.info
        info = {
            "synthetic": True,
            "model": model.name,
            "model_version": model.version,
            "codec": model.codec_fingerprint,
            "voice": prompt.name,
            "seed": seed,
        }
        if pieces[0].keep_prompt:
            info["recorded_s"] = round(pieces[0].prompt.codes.shape[1] / self.model.codec.frame_rate, 3)
        return info

    def _info(
        self,
        prompt: Prompt,
        seed: int,
        pieces: list[Piece],
        spoken: list[Spoken],
        seconds: float,
        options: SpeakOptions,
    ) -> dict[str, Any]:
        told = []
        for piece, speech in zip(pieces, spoken, strict=True):
            entry: dict[str, Any] = {"text": piece.text, "frames": speech.codes.shape[1], "stop": speech.stop}
            if len(speech.scores) > 1:
                entry |= {"scores": [round(score, 4) for score in speech.scores], "candidate": speech.chosen}
            told.append(entry)
        stops = [entry["stop"] for entry in told]
        is_finished = all(stop == "eos" for stop in stops)
        stop = "max_seconds" if _is_cut(seconds, options) else "eos" if is_finished else "max_frames"
        return {
            **self._source(prompt, seed, pieces),
            "stop": stop,
            "seconds": round(seconds, 3),
            "frames": sum(entry["frames"] for entry in told),
            "pieces": told,
            "warnings": _warnings(prompt, stops, seconds, options),
        }


def _batches(max_frames: list[int], n_candidates: int) -> Iterator[tuple[list[int], range]]:
    """Which pieces are spoken together, and which of their candidates: those that last about as long."""
    order = sorted(range(len(max_frames)), key=lambda i: max_frames[i])
    together = min(n_candidates, BATCH_ROWS)
    n_pieces = BATCH_ROWS // together
    for start in range(0, len(order), n_pieces):
        for first in range(0, n_candidates, together):
            yield order[start : start + n_pieces], range(first, min(first + together, n_candidates))


def _is_cut(seconds: float, options: SpeakOptions) -> bool:
    return options.max_seconds is not None and seconds >= options.max_seconds


def _warnings(prompt: Prompt, stops: Sequence[str], seconds: float, options: SpeakOptions) -> list[str]:
    """What users should know of a prompt, and of so many seconds whose pieces ended so."""
    is_cut = _is_cut(seconds, options)
    warnings = [f"the speech was cut at max_seconds, {options.max_seconds:g} s"] if is_cut else []
    if prompt.fit is not None and prompt.fit < WORST_FIT:
        warnings.append(
            f"the transcript hardly fits {prompt.name}: are these the words spoken in it? If not, voice and words "
            "suffer"
        )
    if (n_unfinished := sum(stop != "eos" for stop in stops)) and not is_cut:
        warnings.append(
            f"{n_unfinished} of {len(stops)} pieces reached their longest length without an end: words may be "
            "missing or repeated; try another seed or more candidates"
        )
    return warnings


def _draw_seed(seed: int | None) -> int:
    return secrets.randbelow(2**32) if seed is None else seed


def _all_codes(piece: Piece, spoken: Spoken) -> Tensor:
    """codes [8, T] of a piece's wave, in continual mode with the prompt before them."""
    return torch.cat([piece.prompt.codes, spoken.codes], dim=1) if piece.keep_prompt else spoken.codes
