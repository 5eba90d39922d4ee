"""When each phoneme is spoken: forced alignment by a monophone hidden Markov model.

The paper takes its phonemes with their alignment from a hybrid recogniser made with Kaldi (§5.1); this is that
recogniser's first stage alone, which needs no lexicon and no language model, because the phonemes are known. A phone is
two states from left to right, the second of which may be skipped, so that the shortest is one frame; between words, and
at both ends, there may be a silence of three states. Each state emits normalised cepstra by a mixture of diagonal
Gaussians. ``valle.asr.train_aligner`` trains it from nothing but recordings and their texts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from valle.codec.frames import LogMel, mel_filterbank
from valle.config import from_dict, to_dict
from valle.errors import ValleError
from valle.files import fingerprint, write_atomic
from valle.text.inventory import PAUSE, PHONE

SAMPLE_RATE, HOP_LENGTH = 24000, 320
N_FEATURES = 39
"""13 cepstra, their slopes, and the slopes of those."""

WINDOW = 800  # samples, 33 ms: boundaries are sharp
BAND_HZ = (80.0, 7000.0)  # what recordings of 16 kHz hold too
N_MELS, N_CEPSTRA = 40, 13

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"

# What a position of a chain is.
FIRST, SECOND, SILENCE = 0, 1, 2  # SILENCE, SILENCE + 1, SILENCE + 2: the three states of a silence
N_SILENCE = 3
NOTHING = -1  # padding

_STEPS = (0, 1, 2, N_SILENCE + 1, N_SILENCE + 2)
"""How far back a state's predecessor lies: itself, the one before, over a second state, over a silence, over both."""
_NEVER = -1e30
_BLOCK = 1024  # frames whose likelihoods under all Gaussians stay in the processor's cache
_SILENT_ENDS = 0.9  # probability of a silence before the first phone, and after the last one without a mark


WORST_FIT = -4.0
"""Below this ``Alignment.fit`` the text is hardly what is said: on 60 recordings of `dev` it was -3.8 to -1.4 with
their own texts, and with another text of their length below -4.0 in 19 of 20 cases."""


class Alignment(NamedTuple):
    """When the phonemes of an utterance are spoken."""

    durations: Tensor
    """[S] int64, frames of each symbol: they sum to ceil(N / 320); marks have none and phones at least one."""
    fit: float
    """Mean log-likelihood of a frame, less that of the state that fits it best whatever the text: 0 at most."""


@dataclass(frozen=True)
class AlignerConfig:
    """What an aligner's weights belong to."""

    inventory_version: str
    """``PhonemeInventory.version`` of the phonemes."""
    kinds: tuple[int, ...]
    """``PhonemeInventory.kinds``."""
    n_units: int
    """Pairs of states that phones share; phones hardly seen in training share those of their class."""
    n_mixtures: int = 1
    """Gaussians of each state."""


class Chain(NamedTuple):
    """The states of an utterance in order: silence, phone, phone, silence, phone ... silence; each [J]."""

    rows: Tensor
    """Which Gaussians a state emits by."""
    roles: Tensor
    """FIRST, SECOND, SILENCE, SILENCE + 1 or SILENCE + 2; NOTHING in padding."""
    pauses: Tensor
    """Probability of a silence, at its three states; 0 elsewhere."""
    owners: Tensor
    """The position in the utterance's phonemes to which a state's frames are counted."""


class Features(nn.Module):
    """wav [1, N] -> [ceil(N / 320), 39], each of the 39 of zero mean and unit variance over the utterance."""

    basis: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.mel = LogMel(SAMPLE_RATE, HOP_LENGTH, WINDOW, N_MELS)
        self.mel.filters = mel_filterbank(SAMPLE_RATE, WINDOW, N_MELS, *BAND_HZ)
        k, n = torch.arange(N_CEPSTRA), torch.arange(N_MELS).unsqueeze(1)
        basis = torch.cos(math.pi / N_MELS * (n + 0.5) * k) * (2 / N_MELS) ** 0.5  # [n_mels, 13], a cosine transform
        self.register_buffer("basis", basis, persistent=False)

    def forward(self, wav: Tensor) -> Tensor:
        wav = F.pad(wav, (0, -wav.shape[1] % HOP_LENGTH)).unsqueeze(0)  # [1, 1, T * 320]
        cepstra = self.mel(wav)[0] @ self.basis  # [T, 13]
        slopes = _slopes(cepstra)
        x = torch.cat([cepstra, slopes, _slopes(slopes)], dim=1)  # [T, 39]
        x = x - x.mean(0)
        return x / x.square().mean(0).sqrt().clamp(min=1e-3)


class Aligner(nn.Module):
    """A trained hidden Markov model; ``rows`` are its states, two of each unit, then the three of silence."""

    means: Tensor  # [rows, M, 39]
    variances: Tensor  # [rows, M, 39]
    weights: Tensor  # [rows, M]
    stays: Tensor  # [rows] probability of one more frame in the state
    skips: Tensor  # [units] probability of leaving out the second state
    units: Tensor  # [symbols] int16, the unit of each phone, -1 for other symbols
    pauses: Tensor  # [symbols] probability of a silence at a pause symbol

    def __init__(self, config: AlignerConfig) -> None:
        super().__init__()
        self.config = config
        n_rows, n_symbols, m = 2 * config.n_units + N_SILENCE, len(config.kinds), config.n_mixtures
        self.features = Features()
        self.register_buffer("means", torch.zeros(n_rows, m, N_FEATURES))
        self.register_buffer("variances", torch.ones(n_rows, m, N_FEATURES))
        self.register_buffer("weights", torch.full((n_rows, m), 1 / m))
        self.register_buffer("stays", torch.full((n_rows,), 0.6))
        self.register_buffer("skips", torch.full((config.n_units,), 0.2))
        self.register_buffer("units", torch.full((n_symbols,), -1, dtype=torch.int16))
        self.register_buffer("pauses", torch.zeros(n_symbols))

    @property
    def inventory_version(self) -> str:
        """``PhonemeInventory.version`` of the phonemes that it understands."""
        return self.config.inventory_version

    def fingerprint(self) -> str:
        """Twelve hex digits over the weights, as they are stored."""
        return fingerprint(json.dumps(to_dict(self.config)), sorted(self._stored().items()))

    def save(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` and ``config.json``."""
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / WEIGHTS_FILE, save(self._stored()))
        config = {"kind": "aligner", **to_dict(self.config)}
        write_atomic(folder / CONFIG_FILE, (json.dumps(config) + "\n").encode())

    @classmethod
    def load(cls, folder: str | Path) -> Aligner:
        """Read what ``save`` wrote.

        Raises:
            ValleError: the folder holds no aligner.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        try:
            values = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
            if values.pop("kind") != "aligner":
                raise ValueError("it is of another kind")
            aligner = cls(from_dict(AlignerConfig, values, str(folder / CONFIG_FILE)))
            stored = load_file(folder / WEIGHTS_FILE)
            aligner.load_state_dict(stored)
        except (
            OSError,
            ValueError,
            KeyError,
            AttributeError,
            TypeError,
            RuntimeError,
            SafetensorError,
            ValleError,
        ) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValleError(
                f"{folder} is not an aligner ({reason}); train one with `valle asr train-aligner`"
            ) from error
        return aligner.eval()

    @torch.no_grad()
    def align(self, wav: Tensor, phonemes: Sequence[int]) -> Alignment:
        """Frames of each phoneme.

        Silence before the first phone is counted to it, silence after the last to the pause symbols that follow it or
        else to itself, and of pause symbols that meet, the first has it all.

        Args:
            wav: [1, N] at 24 kHz.
            phonemes: S ids of the inventory ``inventory_version``.

        Raises:
            ValleError: fewer frames than phones, no phone at all, or an id that the inventory does not have.
        """
        if wav.dim() != 2 or wav.shape[0] != 1 or not wav.shape[1]:
            raise ValleError(
                f"the recording has the shape {list(wav.shape)}; one channel of samples, [1, N], is needed"
            )
        chain = self.chain(phonemes)
        n_phones, n_frames = int((chain.roles == FIRST).sum()), -(-wav.shape[1] // HOP_LENGTH)
        if n_frames < n_phones:
            raise ValleError(
                f"the recording has {n_frames} frames and its text {n_phones} phones, which need one each; "
                "give the text that is spoken in it"
            )
        paths, likelihoods, best = self.viterbi([self.features(wav.float())], [chain])
        durations = torch.bincount(chain.owners[paths[0]], minlength=len(phonemes))  # [S]
        return Alignment(durations, (likelihoods[0] - best[0]) / n_frames)

    def chain(self, phonemes: Sequence[int]) -> Chain:
        """The states of an utterance.

        Raises:
            ValleError: an id that the inventory does not have, or no phone among them.
        """
        ids = [int(i) for i in phonemes]
        kinds = self.config.kinds
        for i in ids:
            if not 0 <= i < len(kinds):
                raise ValleError(f"{i} is no phoneme id of the inventory {self.inventory_version!r}")
        sounding = [s for s, i in enumerate(ids) if kinds[i] == PHONE]
        if not sounding:
            raise ValleError("the text has no phone, only marks and pauses; give one with words")
        silence_row = 2 * self.config.n_units
        units: list[int] = self.units.tolist()
        pauses: list[float] = self.pauses.tolist()
        rows: list[int] = []
        roles: list[int] = []
        probabilities: list[float] = []
        owners: list[int] = []

        def add_silence(owner: int, probability: float) -> None:
            rows.extend(range(silence_row, silence_row + N_SILENCE))
            roles.extend(range(SILENCE, SILENCE + N_SILENCE))
            probabilities.extend([probability] * N_SILENCE)
            owners.extend([owner] * N_SILENCE)

        add_silence(sounding[0], _SILENT_ENDS)
        for s, following in zip(sounding, [*sounding[1:], len(ids)], strict=True):
            unit = units[ids[s]]
            rows += [2 * unit, 2 * unit + 1]
            roles += [FIRST, SECOND]
            probabilities += [0.0, 0.0]
            owners += [s, s]
            marks = [p for p in range(s + 1, following) if kinds[ids[p]] == PAUSE]
            if following == len(ids):
                add_silence(marks[0] if marks else s, max([_SILENT_ENDS, *(pauses[ids[p]] for p in marks)]))
            elif marks:
                add_silence(marks[0], max(pauses[ids[p]] for p in marks))
        return Chain(torch.tensor(rows), torch.tensor(roles), torch.tensor(probabilities), torch.tensor(owners))

    def viterbi(
        self, features: Sequence[Tensor], chains: Sequence[Chain]
    ) -> tuple[list[Tensor], list[float], list[float]]:
        """The likeliest path through each chain: for each utterance [T] positions, and the log-likelihood of all of it.

        The third list is the log-likelihood of the states that fit best, frame by frame and whatever the text.

        Utterances must come longest first, each with as many frames as phones at least.
        """
        lens = [len(x) for x in features]
        assert lens == sorted(lens, reverse=True), "the longest first"
        x = nn.utils.rnn.pad_sequence(list(features), batch_first=True)  # [B, T, 39]
        rows = nn.utils.rnn.pad_sequence([c.rows for c in chains], batch_first=True)  # [B, J]
        scores = self.emissions(x)  # [B, T, rows]
        emitted = scores.gather(2, rows.unsqueeze(1).expand(-1, x.shape[1], -1))  # [B, T, J]
        offset = emitted.max(2).values  # [B, T]; without it the sums would leave single precision
        emitted = (emitted - offset.unsqueeze(2)).transpose(0, 1).contiguous()  # [T, B, J]
        paths, best = _search(emitted, self._transitions(rows, chains), lens)
        total = [float(b) + float(o[:n].double().sum()) for b, o, n in zip(best, offset, lens, strict=True)]
        free = [float(row[:n].double().sum()) for row, n in zip(scores.amax(2), lens, strict=True)]
        return paths, total, free

    def emissions(self, x: Tensor) -> Tensor:
        """Log-likelihoods of frames [..., 39] in every state: [..., rows]."""
        n_rows, m, d = self.means.shape
        means, precision = self.means.transpose(0, 1), 1 / self.variances.transpose(0, 1)  # [M, rows, 39]
        matrix = torch.cat([means * precision, -0.5 * precision], dim=2).reshape(m * n_rows, 2 * d).t()
        bias = self.weights.t().clamp(min=1e-10).log() - 0.5 * (
            d * math.log(2 * math.pi) - precision.log().sum(2) + (means.square() * precision).sum(2)
        )  # [M, rows]
        blocks = x.reshape(-1, d).split(_BLOCK)  # type: ignore[no-untyped-call]
        each = (torch.addmm(bias.reshape(-1), torch.cat([f, f.square()], dim=1), matrix) for f in blocks)
        return torch.cat([e.view(-1, m, n_rows).logsumexp(1) for e in each]).view(*x.shape[:-1], n_rows)

    def _transitions(self, rows: Tensor, chains: Sequence[Chain]) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of coming from each of ``_STEPS`` [5, B, J], of beginning [B, J] and of ending [B, J]."""
        pad = nn.utils.rnn.pad_sequence
        roles = pad([c.roles for c in chains], batch_first=True, padding_value=NOTHING)  # [B, J]
        pauses = pad([c.pauses for c in chains], batch_first=True)  # [B, J]
        is_first, is_second = roles == FIRST, roles == SECOND
        starts_silence, in_silence = roles == SILENCE, roles > SILENCE
        leave = (1 - self.stays)[rows].log()
        skips = self.skips[(rows // 2).clamp(max=self.config.n_units - 1)]
        leave_phone = torch.where(is_first, leave + skips.log(), leave)  # out of a phone, from either of its states
        silence, no_silence = pauses.clamp(min=1e-10).log(), (1 - pauses).clamp(min=1e-10).log()
        never = torch.full_like(leave, _NEVER)
        after_phone = _shifted(roles, 1, NOTHING) == SECOND
        after_silence = _shifted(roles, 1, NOTHING) == SILENCE + N_SILENCE - 1

        stay = torch.where(roles == NOTHING, never, self.stays[rows].log())
        step = torch.where(is_second, _shifted(leave + (1 - skips).log(), 1), never)
        step = torch.where(is_first & after_phone, _shifted(leave_phone, 1), step)
        step = torch.where((is_first & after_silence) | in_silence, _shifted(leave, 1), step)
        step = torch.where(starts_silence & after_phone, _shifted(leave_phone, 1) + silence, step)
        over_second = torch.where(is_first & after_phone, _shifted(leave_phone, 2), never)
        over_second = torch.where(starts_silence & after_phone, _shifted(leave_phone, 2) + silence, over_second)
        over = is_first & after_silence & (_shifted(roles, N_SILENCE + 1, NOTHING) == SECOND)
        without = _shifted(no_silence, N_SILENCE)
        over_silence = torch.where(over, _shifted(leave_phone, N_SILENCE + 1) + without, never)
        over_both = torch.where(over, _shifted(leave_phone, N_SILENCE + 2) + without, never)

        start, end = never.clone(), never.clone()
        start[:, 0], start[:, N_SILENCE] = silence[:, 0], no_silence[:, 0]
        for b, chain in enumerate(chains):
            last = len(chain.roles) - 1
            end[b, last] = leave[b, last]
            for j in (last - N_SILENCE, last - N_SILENCE - 1):
                end[b, j] = leave_phone[b, j] + no_silence[b, last]
        return torch.stack([stay, step, over_second, over_silence, over_both]), start, end

    def _stored(self) -> dict[str, Tensor]:
        """Half precision for all that is no integer."""
        return {
            name: (t.half() if t.is_floating_point() else t).contiguous().cpu() for name, t in self.state_dict().items()
        }


def _search(
    emitted: Tensor, transitions: tuple[Tensor, Tensor, Tensor], lens: Sequence[int]
) -> tuple[list[Tensor], Tensor]:
    """Viterbi: emitted [T, B, J] -> for each utterance the path [T_i], and the score of it [B]."""
    steps, start, end = transitions
    n_frames, n_rows, n_states = emitted.shape
    margin = _STEPS[-1]
    # The scores with a margin before the first state, so that every predecessor is a view.
    score = torch.full((n_rows, margin + n_states), _NEVER)
    score[:, margin:] = start + emitted[0]
    back = torch.zeros(n_frames, n_rows, n_states, dtype=torch.uint8)
    alive = [sum(n > t for n in lens) for t in range(n_frames)]
    choices = [torch.full((n_rows, n_states), k, dtype=torch.uint8) for k in _STEPS]
    for t in range(1, n_frames):
        n = alive[t]
        here = back[t, :n]
        best = score[:n, margin:] + steps[0, :n]
        for k, choice, step in zip(_STEPS[1:], choices[1:], steps[1:], strict=True):
            candidate = score[:n, margin - k : margin - k + n_states] + step[:n]
            better = candidate > best
            best = torch.maximum(best, candidate)
            here.copy_(torch.where(better, choice[:n], here))
        score[:n, margin:] = best.add_(emitted[t, :n])
    final, position = (score[:, margin:] + end).max(1)  # [B]
    at, trace = position.numpy(), back.numpy()
    paths = []
    for b, length in enumerate(lens):
        j, path, steps_back = int(at[b]), [0] * length, trace[:, b]
        for t in range(length - 1, -1, -1):
            path[t] = j
            j -= int(steps_back[t, j])
        paths.append(torch.tensor(path))
    return paths, final


def _shifted(x: Tensor, n: int, fill: float = _NEVER) -> Tensor:
    """x [B, J] moved n to the right: at each position what stood n before it."""
    return F.pad(x, (n, 0), value=fill)[:, : x.shape[1]]


def _slopes(x: Tensor) -> Tensor:
    """Slope of each feature over five frames: [T, D] -> [T, D]."""
    padded = torch.cat([x[:1], x[:1], x, x[-1:], x[-1:]])
    return (2 * (padded[4:] - padded[:-4]) + padded[3:-1] - padded[1:-3]) / 10
