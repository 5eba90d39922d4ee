"""``valle asr train CONFIG``: from recordings and their texts to a recogniser (paper §4.1, §5.1).

Stages, each kept in ``out`` so that a run that was stopped goes on after the last that is complete: features, Gaussians
(``bootstrap/``), labels, the network by cross-entropy (``network/``) and, if wanted, from sequences (``sequence/``),
and last ``model/``, which is all that is needed afterwards.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from valle.asr.hybrid.batches import Item
from valle.asr.hybrid.bootstrap import Spoken, bootstrap, label
from valle.asr.hybrid.config import HybridConfig, LanguageConfig, identity, load_hybrid_config
from valle.asr.hybrid.corpus import Phonemised, name_of, phonemise, spoken, store_features, units_and_gaps
from valle.asr.hybrid.learn import NetworkTraining
from valle.asr.hybrid.lexicon import Lexicon, make_lexicon, variants, words_of
from valle.asr.hybrid.lm import Gram, NGrams, train_ngrams
from valle.asr.hybrid.model import LM_FILE, WEIGHTS_FILE, HybridModel, ModelConfig
from valle.asr.hybrid.network import Network
from valle.asr.hybrid.recogniser import HybridRecogniser, load_graph
from valle.asr.hybrid.sequence import SequenceLoss, phone_model
from valle.asr.hybrid.store import TensorStore
from valle.asr.hybrid.tune import Known, calibration, tuned
from valle.asr.hybrid.units import Units
from valle.asr.hybrid.wordlists import read_list
from valle.config import from_dict, require_same, to_dict
from valle.data.corpus import Utterance
from valle.data.recognise import pick
from valle.data.sources import need
from valle.errors import ValleError
from valle.files import write_atomic
from valle.train.checkpoint import latest_checkpoint


def train_recogniser(config: HybridConfig, *, resume: bool = False, max_minutes: float = 0.0) -> Path:
    """Train all of it; what each stage brought goes to standard error.

    Args:
        config: what, and where.
        resume: go on with the run that is in ``config.out``.
        max_minutes: of the network's training in this call; 0 for no bound.

    Returns:
        The folder of the model, ``out/model``.

    Raises:
        ValleError: nothing to learn from, a run that is already there (without ``resume``) or was begun with other
            options (with it), or a package is missing.
    """
    return _Run(config, resume).run(max_minutes)


def read_utterances(config: HybridConfig) -> tuple[list[Utterance], list[Utterance]]:
    """(train, dev) with texts, by ``max_hours``.

    Raises:
        ValleError: no recording with a text in ``train_split``, or two that have one id.
    """
    from valle.data.sources import read_source

    everything = [u for source in config.sources for u in read_source(source) if (u.text or "").strip()]
    train = [u for u in everything if u.split == config.train_split]
    if not train:
        raise ValleError(
            f"no source has a recording with a text in the split {config.train_split!r}; check sources and train_split"
        )
    dev = [u for u in everything if u.split == config.dev_split]
    used = (config.train_split, config.dev_split)
    (often, n), *_ = Counter(u.id for u in everything if u.split in used).most_common(1)
    if n > 1:
        raise ValleError(f"{n} recordings have the id {often!r}; ids must differ, those of different sources too")
    if config.max_hours:
        left, chosen = config.max_hours * 3600, set()
        for u in pick(train, len(train)):
            if left <= 0:
                break
            chosen.add(u.id)
            left -= u.seconds
        train = [u for u in train if u.id in chosen]
    return train, dev


def check_parts(config: LanguageConfig) -> None:
    """Find out now, before hours of work, what its last stages would miss.

    Raises:
        ValleError: a package, a text or a list is not there.
    """
    for package in ("kaldi_native_fbank", "kaldifst", "kaldi_decoder"):
        need(package, "the hybrid recogniser", "asr")
    for path in (config.arpa,) if config.arpa else config.texts:
        if not Path(path).is_file():
            raise ValleError(f"there is no file {path} for the language model; give one that exists")
    for where, n_words in ((config.words, 1), (config.pairs, 2)):
        if where and not config.arpa:
            read_list(where, n_words)


def train_language(config: LanguageConfig, sentences: Sequence[Sequence[str]], lang: str = "en-us") -> NGrams:
    """The language model of a run.

    Args:
        config: what else it is made of.
        sentences: the transcripts.
        lang: language of further texts.

    Raises:
        ValleError: a list or a text cannot be read.
    """
    if config.arpa:
        return NGrams.load(config.arpa)
    texts = [*sentences]
    for path in config.texts:
        try:
            with Path(path).open(encoding="utf-8") as file:
                texts += [w for line in file if (w := words_of(line, lang))]
        except (OSError, UnicodeDecodeError) as error:
            raise ValleError(f"the text {path} cannot be read: {error}") from error
    more: list[dict[Gram, float]] = []
    if config.words:
        listed = read_list(config.words, 1)
        total = sum(listed.values())
        scale = config.weight * sum(map(len, texts)) / max(total, 1.0)
        frequent = sorted(listed, key=lambda g: (-listed[g], g))[: config.n_words]
        more.append({g: scale * listed[g] for g in frequent})
        if config.pairs:
            more.append({g: scale * n for g, n in read_list(config.pairs, 2).items()})
    return train_ngrams(texts, config.order, more=more)


def _begun_with(path: Path) -> HybridConfig:
    """The configuration that a run keeps; options newer than the run are at their defaults.

    Raises:
        ValleError: the file is damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValleError(f"{path} cannot be read ({error}); give another folder as out") from error
    return from_dict(HybridConfig, values, str(path))


class _Run:
    def __init__(self, config: HybridConfig, resume: bool) -> None:
        self.config, self.out = config, Path(config.out)
        self.started = time.monotonic()
        path = self.out / "config.json"
        if path.is_file() and not resume:
            raise ValleError(f"{self.out} already holds a run; continue it with --resume, or give another folder")
        if path.is_file():
            begun = [latest_checkpoint(self.out / n / "checkpoints") is not None for n in ("network", "sequence")]
            before, now = (
                identity(c, has_network=begun[0], has_sequence=begun[1]) for c in (_begun_with(path), config)
            )
            require_same(before, now, self.out)
        check_parts(config.language)
        self.out.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (json.dumps(to_dict(config), indent=1) + "\n").encode())
        self.features = TensorStore(self.out / "features")
        self.labels = TensorStore(self.out / "labels")

    def run(self, max_minutes: float) -> Path:
        config = self.config
        train, dev = read_utterances(config)
        said = phonemise(train)
        said_dev = phonemise(dev)
        self.tell(f"{len(said)} recordings, {sum(p.utterance.seconds for p in said) / 3600:.2f} h; dev {len(said_dev)}")
        for speed in sorted(set(config.training.speeds) | {1.0}, key=lambda s: s != 1.0):
            store_features(self.features, [p.utterance for p in said], speed)
        store_features(self.features, [p.utterance for p in said_dev])
        model = self.bootstrap(said)
        self.label(model, said + said_dev)
        model, minutes, is_done = self.add_network(model, said, said_dev, max_minutes)
        after = None
        if config.sequence.epochs:
            left = max_minutes - minutes if max_minutes else 0.0
            if is_done and (left > 0 or not max_minutes):
                after = self.add_sequence(model, said, said_dev, left)
            else:
                self.tell("training from sequences begins when that by cross-entropy is done; go on with --resume")
        return self.finish(model, after, said, said_dev)

    def bootstrap(self, said: Sequence[Phonemised]) -> HybridModel:
        """Gaussians and tree."""
        folder = self.out / "bootstrap"
        if (folder / WEIGHTS_FILE).is_file():
            return HybridModel.load(folder)
        noise = self.config.bootstrap.noise
        units = Units.seen_in([p.symbols for p in said], self.config.min_phone_count, noise)
        self.tell(f"{len(units)} units: {' '.join(units.names)}")
        by_id = {p.utterance.id: p for p in said}
        few: list[Phonemised] = []
        hours = 0.0
        for u in pick([p.utterance for p in said], len(said)):
            if hours < self.config.bootstrap.max_hours:
                few.append(by_id[u.id])
                hours += u.seconds / 3600
        made = bootstrap(spoken(self.features, units, few), units, self.config.bootstrap)
        n_pdfs = int(made.pdfs.max()) + 1
        described = ModelConfig(units.names, n_pdfs, self.config.lang, network=self.config.network)
        model = HybridModel(described, made.pdfs, None, torch.zeros(n_pdfs), made.gmm)
        model.save(folder)
        return HybridModel.load(folder)  # as it is stored: what follows is the same after a stop

    def label(self, model: HybridModel, said: Sequence[Phonemised]) -> None:
        """The state of every frame."""
        gmm = model.gmm
        assert gmm is not None, "the bootstrap makes Gaussians"
        by_id = {p.utterance.id: p for p in said if name_of(p.utterance) in self.features}
        often = 0.2 if sys.stderr.isatty() else 30.0
        with tqdm(total=len(by_id), desc="labels", file=sys.stderr, mininterval=often) as bar:

            def make(names: Sequence[str]) -> Iterable[Tensor | None]:
                for name in names:
                    bar.update()
                    spoken_so = units_and_gaps(model.units, by_id[name].symbols)
                    yield label(gmm, model.pdfs, Spoken(self.features[name], *spoken_so), model.units.has_noise)

            self.labels.fill(list(by_id), make, f"labels {model.fingerprint()}")

    def items(self, said: Sequence[Phonemised], speeds: Sequence[float]) -> list[Item]:
        """What the network sees."""
        return [
            Item(name_of(p.utterance, s), p.utterance.id, s, self.features.length(name_of(p.utterance, s)))
            for s in speeds
            for p in said
            if name_of(p.utterance, s) in self.features and p.utterance.id in self.labels
        ]

    def add_network(
        self, model: HybridModel, said: Sequence[Phonemised], dev: Sequence[Phonemised], max_minutes: float
    ) -> tuple[HybridModel, float, bool]:
        """The network as far as it is trained, minutes of this call's training, and whether that is all of it."""
        items = self.items(said, self.config.training.speeds)
        dev_items = self.items(dev, (1.0,))
        n_pdfs = model.config.n_pdfs
        training = NetworkTraining(
            self.config, self.out / "network", n_pdfs, self.features, self.labels, items, dev_items
        )
        n = sum(p.numel() for p in training.network.parameters())
        self.tell(f"network of {n / 1e6:.2f} M parameters; {training.total_steps} steps")
        started = time.monotonic()
        network: Network = training.run(max_minutes)
        minutes = (time.monotonic() - started) / 60
        counts = np.zeros(n_pdfs)
        for p in said:
            if p.utterance.id in self.labels:
                counts += np.bincount(self.labels[p.utterance.id].numpy(), minlength=n_pdfs)
        priors = torch.from_numpy(np.log((counts + 10) / (counts + 10).sum())).float()
        described = replace(model.config, network=network.config)
        return HybridModel(described, model.pdfs, network, priors, model.gmm), minutes, training.is_done()

    def add_sequence(
        self, model: HybridModel, said: Sequence[Phonemised], dev: Sequence[Phonemised], max_minutes: float
    ) -> HybridModel:
        """The network trained on from sequences, as far as it is."""
        config, sequence = self.config, self.config.sequence
        items = self.items(said, config.training.speeds)
        phones = phone_model(self.labels, list(dict.fromkeys(i.label for i in items)), model.pdfs)
        smoothing = config.training.label_smoothing
        criterion = SequenceLoss(sequence, self.labels, model.pdfs, model.priors, phones, smoothing)
        how = replace(
            config,
            optimiser=replace(config.optimiser, lr=sequence.lr, warmup_steps=sequence.warmup_steps),
            training=replace(config.training, epochs=sequence.epochs, budget_minutes=sequence.budget_minutes),
        )
        training = NetworkTraining(
            how,
            self.out / "sequence",
            model.config.n_pdfs,
            self.features,
            self.labels,
            items,
            self.items(dev, (1.0,)),
            criterion=criterion,
            start=model.network,
        )
        self.tell(f"training from sequences; {training.total_steps} steps")
        network = training.run(max_minutes)
        scales = replace(
            model.config.decoding, acoustic_scale=sequence.acoustic_scale, prior_scale=sequence.prior_scale
        )
        return HybridModel(replace(model.config, decoding=scales), model.pdfs, network, model.priors, model.gmm)

    def finish(
        self, model: HybridModel, after: HybridModel | None, said: Sequence[Phonemised], dev: Sequence[Phonemised]
    ) -> Path:
        """Words, language model, graph, and what is chosen on dev: the weights, and which network.

        Args:
            model: as cross-entropy left it.
            after: as training from sequences left it, if there was any.
            said: what was learned from.
            dev: what is chosen by.
        """
        config = self.config
        sentences = [list(s) for s in dict.fromkeys(tuple(words_of(p.utterance.text or "", config.lang)) for p in said)]
        hours = sum(p.utterance.seconds for p in said) / 3600
        sets = ", ".join(sorted({p.utterance.dataset or "unnamed" for p in said}))
        model.config = replace(model.config, trained_on=f"{hours:.2f} h: {sets}")
        lm = train_language(config.language, sentences, config.lang)
        model.lexicon = self.lexicon(model.units, lm.words, said)
        folder = self.out / "model"
        model.save(folder)
        lm.save(folder / LM_FILE)
        dev_words = [words_of(p.utterance.text or "", config.lang) for p in dev]
        perplexity, unknown = lm.perplexity(dev_words)
        self.tell(
            f"language model: {len(lm.words)} words, {len(lm.probabilities)} grams; dev: perplexity "
            f"{perplexity:.0f}, {100 * unknown:.1f} % of the words unknown"
        )
        model = HybridModel.load(folder)  # as it is stored
        graph = load_graph(model)
        self.tell(f"graph: {graph.fst.num_states} states, {graph.n_arcs} arcs")
        known: list[Known] = []
        seconds = 0.0
        by_id = {p.utterance.id: w for p, w in zip(dev, dev_words, strict=True)}
        for u in pick([p.utterance for p in dev], len(dev)):
            if seconds < config.tune_seconds and name_of(u) in self.features:
                known.append(Known(self.features[name_of(u)].float(), by_id[u.id]))
                seconds += u.seconds
        if after is not None:
            after = self.as_stored(after, model)
        if known:
            by_gmm = tuned(HybridRecogniser(model, acoustics="gmm", graph=graph), known)
            decoding = by_gmm.recogniser.model.config.decoding
            best = tuned(HybridRecogniser(by_gmm.recogniser.model, graph=graph), known)
            for line in [*by_gmm.told, *best.told]:
                self.tell(f"dev: {line}")
            if after is not None:
                after.config = replace(
                    after.config, decoding=replace(after.config.decoding, gmm_scale=decoding.gmm_scale)
                )
                other = tuned(HybridRecogniser(after, graph=graph), known)
                for line in other.told:
                    self.tell(f"dev, from sequences: {line}")
                chosen = "that from sequences" if other.error < best.error else "that by cross-entropy"
                self.tell(
                    f"dev: WER {100 * best.error:.2f} % by cross-entropy, {100 * other.error:.2f} % from sequences; "
                    f"the network is {chosen}"
                )
                best = other if other.error < best.error else best
            model = best.recogniser.model
            sure = calibration(best.recogniser, known)
            model.config = replace(model.config, decoding=replace(model.config.decoding, calibration=sure))
        elif after is not None:
            self.tell("without recordings of dev to choose by, the network is that from sequences")
            model = after
        model.save(folder)
        self.tell(f"{folder}: {model.fingerprint()}, {(folder / WEIGHTS_FILE).stat().st_size / 1e6:.1f} MB")
        return folder

    def as_stored(self, after: HybridModel, model: HybridModel) -> HybridModel:
        """A model with the words of another, and its weights in half precision, as they will be stored."""
        assert after.network is not None, "it was trained"
        for weight in after.network.parameters():
            weight.data = weight.data.half().float()
        described = replace(model.config, decoding=after.config.decoding)
        out = HybridModel(described, model.pdfs, after.network, model.priors, model.gmm)
        out.lexicon, out.folder = model.lexicon, model.folder
        return out

    def lexicon(self, units: Units, words: Sequence[str], said: Sequence[Phonemised]) -> Lexicon:
        """Of all words, with how the transcripts say them."""
        seen = variants(((p.utterance.text or "", p.symbols) for p in said), self.config.lang)
        lexicon = make_lexicon(words, units, seen, self.config.lang)
        self.tell(f"lexicon: {len(lexicon)} of {len(words)} words, {sum(map(len, lexicon.values()))} pronunciations")
        return lexicon

    def tell(self, text: str) -> None:
        tqdm.write(f"[{(time.monotonic() - self.started) / 60:.1f} min] {text}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``valle asr train``."""
    parser = argparse.ArgumentParser(
        prog="valle asr train", description="Train the hybrid DNN-HMM recogniser from recordings and their texts."
    )
    parser.add_argument("config", metavar="CONFIG", help="a TOML file, such as configs/asr.toml")
    parser.add_argument("--resume", action="store_true", help="go on with the run that is there")
    parser.add_argument("--out", metavar="DIR", help="in place of the configuration's")
    parser.add_argument("--max-hours", type=float, metavar="F", help="an even choice of the recordings, F hours of it")
    parser.add_argument("--max-minutes", type=float, default=0.0, metavar="F", help="stop the network's training after")
    args = parser.parse_args(argv)
    config = load_hybrid_config(args.config)
    if args.out:
        config = replace(config, out=args.out)
    if args.max_hours is not None:
        if args.max_hours <= 0:
            raise ValleError(f"--max-hours is {args.max_hours:g}; it must be above 0")
        config = replace(config, max_hours=args.max_hours)
    folder = train_recogniser(config, resume=args.resume, max_minutes=args.max_minutes)
    sys.stdout.write(f"{folder}\n")
    return 0
