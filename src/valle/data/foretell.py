"""The codes that a model's NAR foretells for recordings: what a decoder has to make speech of when the model speaks.

A codec's decoder learns from codes of recordings. Spoken text has other codes: codebook 1 from the AR model, the others
as the NAR model thinks likely in a voice, which is duller than speech. Here the NAR completes the recordings' own
codebook 1 in the voice of another utterance of the same speaker, frame by frame in step with the recording, so that a
decoder can learn to make the recording of it (``foretold`` in the configuration of ``valle codec train``).

What is written is a pack (``valle.data.pack``) of the split "train" whose codes are these; it grows shard by shard,
speaker after speaker by turns, goes on where it stopped, and is complete whenever it is stopped.

    python -m valle.data.foretell data/pack --out data/foretold --minutes 30
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from valle.data.pack import INFO_FILE, Pack, PackedUtterance, PackSplit, ShardInfo, write_info, write_shard
from valle.errors import ValleError
from valle.files import write_atomic
from valle.model.alignment import frame_index
from valle.model.nar import NAR
from valle.pretrained import Pretrained, load_pretrained
from valle.train.signals import stop_signals

logger = logging.getLogger(__name__)

SPLIT = "train"
BATCH = 8
SHARD = 128
"""Utterances of a file: as many are lost at most when it is stopped."""
MIN_FRAMES = 75
"""Shorter utterances are left out."""
TARGET_FRAMES, PROMPT_FRAMES = 450, 300
"""Of longer ones the beginning is taken, up to the last word that ends by then."""


class Pair(NamedTuple):
    """An utterance, and one of the same speaker that it is foretold from; places in a split."""

    target: int
    prompt: int


class Beginning(NamedTuple):
    """What is taken of an utterance."""

    phonemes: Tensor  # [S]
    codes: Tensor  # [8, T]
    durations: Tensor | None  # [S]


def draw_pairs(split: PackSplit, seed: int = 0) -> list[Pair]:
    """Every usable utterance once, one of each speaker by turns, each with another of its speaker; by a seed.

    Utterances of virtual voices (``id~1``) are left out: there are no recordings of them.
    """
    generator = torch.Generator().manual_seed(seed)
    by_speaker: dict[int, list[int]] = {}
    for i, (n, speaker) in enumerate(zip(split.n_frames.tolist(), split.speakers.tolist(), strict=True)):
        if speaker >= 0 and n >= MIN_FRAMES and "~" not in split.ids[i]:
            by_speaker.setdefault(speaker, []).append(i)
    turns: list[list[Pair]] = []
    for own in by_speaker.values():
        if len(own) < 2:
            continue
        order = [own[k] for k in torch.randperm(len(own), generator=generator).tolist()]
        for turn, (target, prompt) in enumerate(zip(order, order[1:] + order[:1], strict=True)):
            if turn == len(turns):
                turns.append([])
            turns[turn].append(Pair(target, prompt))
    pairs = []
    for turn_pairs in turns:
        pairs += [turn_pairs[k] for k in torch.randperm(len(turn_pairs), generator=generator).tolist()]
    return pairs


def beginning(split: PackSplit, i: int, n_frames: int, separator_id: int) -> Beginning:
    """Utterance i up to the last word that ends within ``n_frames``; all of it where its words are not aligned."""
    phonemes, codes = split.phonemes(i), split.codes(i)
    if not split.info.aligned:
        return Beginning(phonemes, codes, None)
    durations = split.durations(i)
    if codes.shape[1] <= n_frames:
        return Beginning(phonemes, codes, durations)
    ends = durations.cumsum(0)
    is_last = torch.cat([phonemes[1:] == separator_id, torch.tensor([True])])  # [S] of a word
    places = (is_last & (ends <= n_frames) & (ends > 0)).nonzero()
    n = int(places[-1]) + 1 if len(places) else len(phonemes)
    return Beginning(phonemes[:n], codes[:, : int(ends[n - 1])], durations[:n])


@torch.inference_mode()
def complete(nar: NAR, targets: Sequence[Beginning], prompts: Sequence[Beginning], separator_id: int) -> list[Tensor]:
    """Codebooks 2 to 8 by the NAR for codebook 1 of each target: codes [8, T_i] each."""
    device = nar.code_emb.weight.device
    separator, none = torch.tensor([separator_id]), torch.zeros(1, dtype=torch.int64)
    pairs = list(zip(prompts, targets, strict=True))
    phonemes, phoneme_lens = _pad([torch.cat([p.phonemes, separator, t.phonemes]) for p, t in pairs], device)
    prompt, prompt_lens = _pad([p.codes.t() for p in prompts], device)  # [B, T', 8]
    codes_1, lens = _pad([t.codes[0] for t in targets], device)
    index = prompt_index = None
    if nar.config.alignment:
        told = [(p.durations, t.durations) for p, t in pairs]
        known = [(a, b) for a, b in told if a is not None and b is not None]
        assert len(known) == len(told), "a NAR with alignment needs an aligned pack"
        of_prompts, _ = _pad([torch.cat([a, none, torch.zeros_like(b)]) for a, b in known], device)  # [B, S]
        of_targets, _ = _pad([torch.cat([torch.zeros_like(a), none, b]) for a, b in known], device)
        prompt_index = frame_index(of_prompts, phoneme_lens, prompt.shape[1])
        index = frame_index(of_targets, phoneme_lens, codes_1.shape[1])
    codes = nar.generate(
        phonemes, phoneme_lens, prompt.transpose(1, 2), prompt_lens, codes_1, lens, index, prompt_index
    )
    return [codes[i, :, : t.codes.shape[1]].cpu() for i, t in enumerate(targets)]


def foretell(model: Pretrained, pack: Pack, out: Path, *, minutes: float = 0.0, limit: int = 0, seed: int = 0) -> Path:
    """Write or continue the pack ``out``; returns it.

    Args:
        model: whose NAR foretells.
        pack: of the same codec and phoneme inventory; aligned if the NAR needs it.
        out: a new folder, or one of an earlier call with the same arguments.
        minutes: after which it stops at the end of a shard; 0: never.
        limit: most utterances in all; 0: all of them.
        seed: of the order and the prompts.

    Raises:
        ValleError: the pack does not fit the model, or ``out`` belongs to something else.
    """
    pack.require(codec_fingerprint=model.info.codec_fingerprint, inventory_version=model.info.inventory_version)
    if model.nar.config.alignment and not pack.info.aligned:
        raise ValleError(f"the pack {pack.folder} is not aligned, which this NAR needs; build it again with --aligner")
    split = pack.split(SPLIT)
    info = replace(pack.info, shards=(), augment=0, rejected={})
    if (out / INFO_FILE).is_file():
        begun = Pack(out).info
        if replace(begun, shards=()) != info:
            raise ValleError(f"{out} is a pack of other speech or another codec; give another --out")
        info = begun
    elif out.exists() and any(out.iterdir()):
        raise ValleError(f"{out} exists and is no pack; give another --out")
    pairs = draw_pairs(split, seed)
    pairs = pairs[:limit] if limit else pairs
    done = sum(s.utterances for s in info.shards)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "phonemes.json", (pack.folder / "phonemes.json").read_bytes())
    end = time.monotonic() + 60 * minutes if minutes else float("inf")
    with tqdm(total=len(pairs), initial=done, unit="utt", desc="foretelling") as bar, stop_signals() as stop:
        for first in range(done, len(pairs), SHARD):
            some = pairs[first : first + SHARD]
            targets = [beginning(split, p.target, TARGET_FRAMES, info.separator_id) for p in some]
            prompts = [beginning(split, p.prompt, PROMPT_FRAMES, info.separator_id) for p in some]
            utterances: dict[int, PackedUtterance] = {}
            for batch in _batches(targets, prompts):
                if stop:
                    return out
                codes = complete(model.nar, [targets[i] for i in batch], [prompts[i] for i in batch], info.separator_id)
                for i, of_one in zip(batch, codes, strict=True):
                    utterances[i] = PackedUtterance(
                        split.ids[some[i].target],
                        targets[i].phonemes,
                        of_one,
                        int(split.speakers[some[i].target]),
                        targets[i].durations,
                    )
                bar.update(len(batch))
            name = f"{SPLIT}-{len(info.shards):05d}.safetensors"
            write_shard(out / name, [utterances[i] for i in range(len(some))], info)
            hours = sum(u.codes.shape[1] for u in utterances.values()) / info.frame_rate / 3600
            info = replace(info, shards=(*info.shards, ShardInfo(name, SPLIT, len(some), hours)))
            write_info(out, info)
            if time.monotonic() > end:
                break
    return out


def _batches(targets: Sequence[Beginning], prompts: Sequence[Beginning]) -> Iterator[list[int]]:
    """Places of pairs that are about equally long."""
    lengths = [t.codes.shape[1] + p.codes.shape[1] for t, p in zip(targets, prompts, strict=True)]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), BATCH):
        yield order[start : start + BATCH]


def _pad(rows: list[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    return pad_sequence(rows, batch_first=True).to(device), torch.tensor([len(r) for r in rows], device=device)


def main(argv: Sequence[str]) -> int:
    """``python -m valle.data.foretell PACK --out DIR``."""
    parser = argparse.ArgumentParser(prog="python -m valle.data.foretell", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("pack", type=Path, help="packed dataset (`valle prepare`)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new pack")
    parser.add_argument("--model", help="model folder or hub id (the embedded model)")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after so long (never)")
    parser.add_argument("--limit", type=int, default=0, help="most utterances (all)")
    parser.add_argument("--seed", type=int, default=0, help="of the order and the prompts (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    args = parser.parse_args(argv)
    model = load_pretrained(args.model, args.device)
    folder = foretell(model, Pack(args.pack), args.out, minutes=args.minutes, limit=args.limit, seed=args.seed)
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ValleError as error:
        sys.exit(f"error: {error}")
