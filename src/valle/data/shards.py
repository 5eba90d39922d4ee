"""Shards of a pack: utterances and their versions to phonemes, durations and codes.

Each recording is encoded alone, because padding would change the codes at its end. What is in a shard follows from its
utterances alone, whoever makes it and in whichever order (``valle.data.engine``). A shard that is complete and was made
from the same input is kept, so that a build that was stopped goes on where it was.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from valle.config import to_dict
from valle.data.ahead import ahead
from valle.data.augment import RECIPE, scale_durations, version_name, voice_of
from valle.data.corpus import Utterance
from valle.data.pack import INFO_FILE, PackedUtterance, PackInfo, PackSplit, ShardInfo, write_shard
from valle.data.progress import Done
from valle.data.reading import Phonemize, PrepareConfig, Rejected, load_utterance, read_utterance
from valle.errors import ValleError

if TYPE_CHECKING:
    from valle.asr import PhonemeAligner
    from valle.codec.base import Codec
    from valle.text import PhonemeInventory


class ShardMaker:
    """Makes one shard after the other."""

    def __init__(
        self,
        info: PackInfo,
        codec: Codec,
        inventory: PhonemeInventory,
        phonemize: Phonemize,
        config: PrepareConfig,
        device: str | torch.device,
        aligner: PhonemeAligner | None,
    ) -> None:
        self.info, self.codec, self.inventory, self.config = info, codec, inventory, config
        self.phonemize, self.device, self.aligner = phonemize, device, aligner
        self.speakers = {name: i for i, name in enumerate(info.speakers)}
        self.known: dict[str, tuple[PackSplit, int]] | None = None
        self._aligned_by = None if aligner is None else aligner.fingerprint()

    def recall(self, splits: Iterable[PackSplit]) -> None:
        """Take phonemes and durations from these splits instead of making them."""
        self.known = {name: (split, i) for split in splits for i, name in enumerate(split.ids)}

    def _recalls(self, utterance: Utterance) -> bool:
        """Whether its phonemes and durations are those of another pack."""
        return self.known is not None and utterance.id in self.known

    def make(
        self,
        path: Path,
        split: str,
        utterances: list[Utterance],
        note: Callable[[Done], None] | None = None,
        refused: Mapping[str, Rejected] | None = None,
    ) -> tuple[ShardInfo, list[dict[str, str]]]:
        """Write one shard, or keep the one that is there; returns it and what was left out of it.

        ``note`` is told how far it is after each utterance; those in ``refused``, by their ids, are left out unread.
        The file appears whole or not at all, at the end.
        """
        note = note or (lambda done: None)
        note(Done())
        n_versions = self.config.n_versions(split)
        key = self._key(utterances, n_versions)
        metadata = metadata_of(path)
        if metadata.get("key") == key:
            note(Done(kept_s=sum(u.seconds for u in utterances), rejected=len(json.loads(metadata["rejected"]))))
        else:
            packed: list[PackedUtterance] = []
            left_out: list[dict[str, str]] = []
            made_s = 0.0
            read_one = functools.partial(self._read, n_versions, refused or {})
            reads = ahead(read_one, utterances, depth=max(2, 16 // (1 + n_versions)))
            for utterance, read in zip(utterances, reads, strict=True):
                try:
                    if isinstance(read, Rejected):
                        raise read
                    packed += self._encode(utterance, *read)
                except Rejected as reason:
                    detail = str(reason.__cause__ or "")
                    left_out.append({"id": utterance.id, "split": split, "reason": str(reason), "detail": detail})
                made_s += utterance.seconds
                note(Done(made_s, rejected=len(left_out)))
            n_frames = sum(u.codes.shape[1] for u in packed)
            # Without it the folder is no pack: what it said of the shards is true no more.
            (path.parent / INFO_FILE).unlink(missing_ok=True)
            extra = {"key": key, "n_frames": str(n_frames), "rejected": json.dumps(left_out)}
            write_shard(path, packed, self.info, compact=self.config.compact, metadata=extra)
            metadata = metadata_of(path)
        hours = int(metadata["n_frames"]) / self.info.frame_rate / 3600
        rejected: list[dict[str, str]] = json.loads(metadata["rejected"])
        return ShardInfo(path.name, split, len(json.loads(metadata["ids"])), round(hours, 4)), rejected

    def _read(
        self, n_versions: int, refused: Mapping[str, Rejected], utterance: Utterance
    ) -> tuple[list[int], list[Tensor]] | Rejected:
        """What can be done before the codec's turn comes, in another thread: phonemes, and the wav of each version."""
        if utterance.id in refused:
            return refused[utterance.id]
        rate = self.codec.sample_rate
        try:
            if self.known is not None and utterance.id in self.known:
                split, i = self.known[utterance.id]
                ids, wav = split.phonemes(i).tolist(), load_utterance(utterance, rate, self.config)  # [S], [1, N]
            elif self.known is None or self.aligner is not None:
                ids, wav = read_utterance(utterance, rate, self.inventory, self.phonemize, self.config)
            else:
                raise Rejected("not in the pack it was to be like")
        except Rejected as reason:
            return reason
        return ids, [wav, *(self._version(utterance, wav, version) for version in range(1, n_versions + 1))]

    def _version(self, utterance: Utterance, wav: Tensor, version: int) -> Tensor:
        """wav [1, N] as a virtual voice, [1, N']; the level is set last, as that of a reference is."""
        from valle.audio import normalise_loudness

        voice = voice_of(utterance.speaker, utterance.id, version)
        wav = voice.apply(wav, self.codec.sample_rate, utterance.id)
        return normalise_loudness(wav, self.codec.sample_rate) if self.config.normalise else wav

    def _encode(self, utterance: Utterance, ids: list[int], wavs: list[Tensor]) -> list[PackedUtterance]:
        """Codes, and durations if they are known, of each version of an utterance that is fit; or ``Rejected``."""
        durations = self._durations(utterance, ids, wavs[0])  # [S]
        packed: list[PackedUtterance] = []
        for version, wav in enumerate(wavs):
            with torch.inference_mode():
                codes = self.codec.encode(wav.unsqueeze(0).to(self.device))[0].cpu().to(torch.int16)  # [8, T]
            lasting = durations
            if durations is not None and version:
                lasting = scale_durations(durations, codes.shape[1])
            elif durations is not None and int(durations.sum()) != codes.shape[1]:
                assert self._recalls(utterance), "the aligner and the codec disagree about the frames"
                raise Rejected("a recording that is not as it was in the pack it was to be like")
            speaker = -1 if utterance.speaker is None else self.speakers[version_name(utterance.speaker, version)]
            name = version_name(utterance.id, version)
            packed.append(PackedUtterance(name, torch.tensor(ids), codes, speaker, lasting))
        return packed

    def _durations(self, utterance: Utterance, ids: list[int], wav: Tensor) -> Tensor | None:
        """Frames of each phoneme [S] in the recording, None where nothing tells them; or ``Rejected``."""
        if self._recalls(utterance):
            assert self.known is not None
            split, i = self.known[utterance.id]
            return split.durations(i) if self.info.aligned else None
        if self.aligner is None:
            return None
        try:
            alignment = self.aligner.align(wav, ids)
        except ValleError as error:
            raise Rejected("text and audio that cannot be aligned") from error
        least = self.config.min_fit
        if least is not None and alignment.fit < least:
            raise Rejected("text that is hardly what is said")
        return alignment.durations

    def _key(self, utterances: list[Utterance], n_versions: int) -> str:
        """What a shard was made from; another key means that it must be made again."""
        digest = hashlib.sha256()
        config = to_dict(self.config)
        del config["augment"], config["augment_splits"]  # n_versions says it, and only where there are versions
        del config["probe"]  # it names the reason, but what cannot be read is left out in any case
        del config["segment"]  # the ids of pieces say it
        if config["quality"] is None:
            del config["quality"]
        made_by = [self.info.codec_fingerprint, self.inventory.version, config]
        if self._aligned_by is None:
            del config["min_fit"]  # it decides nothing
        else:
            made_by.append(self._aligned_by)
        if self.known is not None:
            made_by.append(f"like {self.info.aligner}")
        if n_versions:
            made_by.append(f"virtual voices {n_versions}, recipe {RECIPE}")
        digest.update(json.dumps(made_by).encode())
        for u in utterances:
            number = None if u.speaker is None else self.speakers[u.speaker]
            digest.update(json.dumps([u.id, str(u.path), u.text, u.lang, number]).encode())
            if n_versions and u.speaker is not None:  # its name draws the voices
                numbers = [self.speakers[version_name(u.speaker, v)] for v in range(1, n_versions + 1)]
                digest.update(json.dumps([u.speaker, numbers]).encode())
            if self.known is not None and u.id in self.known:
                split, i = self.known[u.id]
                durations = split.durations(i).tolist() if self.info.aligned else []
                digest.update(json.dumps([split.phonemes(i).tolist(), durations]).encode())
        return digest.hexdigest()[:16]


def parts(utterances: list[Utterance], hours: float) -> list[list[Utterance]]:
    """Cut into runs of about ``hours`` each."""
    parts: list[list[Utterance]] = [[]]
    filled = 0.0
    for utterance in utterances:
        if filled >= hours * 3600:
            parts.append([])
            filled = 0.0
        parts[-1].append(utterance)
        filled += utterance.seconds
    return parts


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of a shard; empty when it is not there or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}
