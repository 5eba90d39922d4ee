"""``valle eval codec | speech | lm | judges | claims | ablations``: measure, and write it into a folder.

There is ``results.json`` for programs, ``report.md`` and ``report.html`` for people.

Measurements are kept one by one in ``utterances.jsonl`` beside them: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from valle.data.corpus import Utterance
    from valle.eval.journal import Journal
    from valle.eval.judges import Judges
    from valle.eval.trials import Trial

Measured = tuple[dict[str, Any], str]

_WEIGHTS = ("auto", "fp32", "fp16", "int8", "int4", "bf16")  # valle.pretrained.WEIGHTS, which would import torch


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code.

    Raises:
        ValleError: what the user got wrong.
    """
    # --max_utterances is --max-utterances; what follows = is the user's own.
    spelt = [re.sub("^--[^=]*", lambda option: option[0].replace("_", "-"), arg) for arg in argv]
    args = _parser().parse_args(spelt)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    results, markdown = args.measure(args)
    _write(args, spelt, results, markdown)
    return 0


def _codec(args: argparse.Namespace) -> Measured:
    from valle.codec.base import load_codec
    from valle.eval.codec_table import measure_codec
    from valle.eval.journal import digest

    judges, codec = _judges(args), load_codec(args.codec)
    about = {"type": codec.codec_type, "fingerprint": codec.fingerprint(), "digest": digest(args.codec)}
    results, text = measure_codec(
        codec,
        _utterances(args),
        judges,
        _journal(args, judges, codec=about["digest"]),
        n_quantizers=args.n_quantizers,
        max_utterances=args.max_utterances,
        n_listen=args.listen,
        wavs=Path(args.out) / "wavs" if args.listen else None,
    )
    n_parameters = sum(p.numel() for p in codec.parameters())
    return {"codec": {**about, "parameters": n_parameters}, "judges": judges.names, **results}, text


def _speech(args: argparse.Namespace) -> Measured:
    from valle.eval.journal import digest
    from valle.eval.quality import SoundQuality
    from valle.eval.results import without_folders
    from valle.eval.synthesis import RECORDING, ROUND_TRIP, ValleSystem, measure_speech
    from valle.eval.systems import parse_systems
    from valle.eval.trials import save_trials
    from valle.tts import VALLE

    judges, tts = _judges(args), VALLE.from_pretrained(args.model, args.device, args.weights)
    baselines = parse_systems(args.system, [RECORDING, ROUND_TRIP, tts.model.info.name])
    quality = SoundQuality(threads=args.threads) if args.quality else None
    folder, out = _folder(args), Path(args.out)
    trials = _trials(args, folder, tts.model.info.continual_s)
    options = _options(args)
    about = {"name": tts.model.info.name, "digest": digest(tts.model.path)}
    settings = {"quality": quality.name} if quality else {}  # without it the journal is as it always was
    if args.weights != "auto":
        settings["weights"] = args.weights
    if args.stream:
        settings["streamed"] = "early"
    journal = _journal(args, judges, model=about["digest"], options=options, **settings)
    save_trials(out / "trials.jsonl", trials)
    results, text = measure_speech(
        ValleSystem(tts, args.stream, **options),
        tts.model.codec,
        trials,
        folder,
        judges,
        journal,
        baselines=baselines,
        runs=args.runs,
        quality=quality,
        n_hard=args.hard,
        n_listen=args.listen,
        wavs=None if args.listen == 0 else out / "wavs",
    )
    told: dict[str, Any] = {"model": {**about, "options": options}, "judges": judges.names, "seed": args.seed}
    if baselines:
        told["systems"] = {b.name: without_folders(b.identity) for b in baselines}
    return {**told, **settings, **results}, text


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Of ``VALLE.generate``, those that were given."""
    names = ("temperature", "nar_temperature", "guidance", "voice_guidance", "nar_guidance", "top_p", "top_k")
    asked = {name: getattr(args, name) for name in (*names, "num_candidates")}
    return {name: value for name, value in asked.items() if value is not None}


def _trials(args: argparse.Namespace, folder: Path, continual_s: float) -> list[Trial]:
    """Read from --trials, or drawn."""
    from valle.eval.lists import read_list
    from valle.eval.trials import draw_continual, draw_trials, load_trials

    if args.trials:
        listed = str(args.trials).endswith(".lst")
        return read_list(args.trials, folder, seed=args.seed) if listed else load_trials(args.trials)
    if getattr(args, "protocol", "") == "continual":
        return draw_continual(_utterances(args), args.n, folder=folder, prompt_s=continual_s, seed=args.seed)
    return draw_trials(_utterances(args), args.n, folder=folder, prompt_s=args.prompt_s, seed=args.seed)


def _claim(args: argparse.Namespace) -> Measured:
    from valle.codec.pitch import require_praat
    from valle.eval.claims.diversity import measure_diversity
    from valle.eval.claims.emotion import measure_emotion
    from valle.eval.claims.environment import measure_environment
    from valle.eval.claims.scene import Stage, ValleVoice
    from valle.eval.journal import digest
    from valle.eval.judges import Judges
    from valle.eval.trials import save_trials
    from valle.tts import VALLE

    require_praat("eval")
    judges = Judges(None, None, {}) if args.claim == "emotion" else _judges(args)
    settings: dict[str, Any] = {"claim": args.claim}
    emotions = None
    if args.claim == "emotion" and args.emotion:
        from valle.eval.pretrained_judges import EmotionClassifier
        from valle.pretrained import pick_device

        emotions = EmotionClassifier(args.emotion, device=str(pick_device(args.device)))
        settings["emotion"] = f"{Path(args.emotion).name} ({digest(emotions.folder)})"
    tts = VALLE.from_pretrained(_model(args), args.device)
    options, about = _options(args), {"name": tts.model.info.name, "digest": digest(tts.model.path)}
    folder, out = _folder(args), Path(args.out)
    trials = _trials_of_others(args, folder)
    journal = _journal(args, judges, model=about["digest"], options=options, **settings)
    save_trials(out / "trials.jsonl", trials)
    voice = ValleVoice(tts, **options)
    stage = Stage(voice, tts.model.codec, trials, folder, journal, out, judges, n_listen=args.listen)
    if args.claim == "diversity":
        results, text = measure_diversity(stage, _utterances(args), n_seeds=args.seeds)
    elif args.claim == "environment":
        results, text = measure_environment(stage, rooms_s=args.rooms)
    else:
        results, text = measure_emotion(stage, shifts=args.shifts, emotions=emotions)
        text += f"\nEmotions: {settings['emotion']}.\n" if emotions else ""
    told = {**settings, "model": {**about, "options": options}, "judges": judges.names, "seed": args.seed}
    title = {"diversity": "Diversity", "environment": "Acoustic environment", "emotion": "Emotion and prosody"}
    return {**told, **results}, f"# {title[args.claim]}: {about['name']} ({about['digest']})\n\n{text}"


def _ablations(args: argparse.Namespace) -> Measured:
    from valle.eval.ablations import load_nars, measure_ablations
    from valle.eval.journal import digest
    from valle.eval.trials import save_trials
    from valle.tts import VALLE

    judges, tts = _judges(args), VALLE.from_pretrained(_model(args), args.device)
    options, about = _options(args), {"name": tts.model.info.name, "digest": digest(tts.model.path)}
    folder, out = _folder(args), Path(args.out)
    nars, trials = load_nars(args.nar, tts.model), _trials_of_others(args, folder)
    journal = _journal(args, judges, model=about["digest"], options=options)
    save_trials(out / "trials.jsonl", trials)
    results, text = measure_ablations(
        tts, nars, trials, folder, judges, journal, options=options, n_listen=args.listen, wavs=out / "wavs"
    )
    told = {"model": {**about, "options": options}, "judges": judges.names, "seed": args.seed}
    return {**told, **results}, f"# Ablations: {about['name']} ({about['digest']})\n\n{text}"


def _model(args: argparse.Namespace) -> str | None:
    """--model, where ``embedded`` is the embedded one."""
    return None if args.model == "embedded" else args.model


def _trials_of_others(args: argparse.Namespace, folder: Path) -> list[Trial]:
    """Trials whose prompt is another utterance.

    Raises:
        ValleError: those of --trials are not.
    """
    from valle.errors import ValleError

    trials = _trials(args, folder, 0.0)
    if any(trial.continual for trial in trials):
        raise ValleError(
            f"{args.trials} continues recordings; here the prompt must be another utterance of the speaker"
        )
    return trials


def _lm(args: argparse.Namespace) -> Measured:
    from valle.data.pack import Pack
    from valle.eval.journal import digest
    from valle.eval.lm import measure_lm
    from valle.pretrained import load_pretrained

    model = load_pretrained(args.model, args.device, args.weights)
    about = {"name": model.info.name, "digest": digest(model.path)}
    results, text = measure_lm(model, Pack(args.pack), args.split, max_utterances=args.max_utterances)
    return {"model": about, **results}, text


def _measure_judges(args: argparse.Namespace) -> Measured:
    from valle.eval.judges import measure_judges

    judges = _judges(args)
    results, text = measure_judges(
        _utterances(args),
        judges,
        _journal(args, judges),
        max_utterances=args.max_utterances,
        n_pairs=args.pairs,
        seed=args.seed,
    )
    return {"judges": judges.names, "seed": args.seed, **results}, text


def _write(args: argparse.Namespace, argv: list[str], results: dict[str, Any], body: str) -> None:
    from valle.eval.document import markdown
    from valle.eval.report_page import N_PLAYERS, write_report_page
    from valle.eval.results import made_by, write_results

    source = Path(getattr(args, "manifest", None) or args.pack)
    data = {"source": source.parent.name if source.is_file() else source.name, "split": args.split}
    values = {"kind": args.command, "made": made_by(argv), "data": data, **results}
    text = markdown(values, body)
    write_results(args.out, values, text)
    n_players, embedded = getattr(args, "players", N_PLAYERS), getattr(args, "embed_audio", False)
    write_report_page(Path(args.out), n_players=n_players, embedded=embedded)
    sys.stdout.write(f"{text}\nwritten: {args.out}/report.md, {args.out}/report.html, {args.out}/results.json\n")


def _judges(args: argparse.Namespace) -> Judges:
    from valle.eval.judges import load_judges

    device = getattr(args, "device", "auto")
    return load_judges(args.whisper, args.speaker, recogniser=args.recogniser, device=device, threads=args.threads)


def _utterances(args: argparse.Namespace) -> list[Utterance]:
    from valle.data.corpus import read_manifest

    return read_manifest(args.manifest, [args.split])


def _folder(args: argparse.Namespace) -> Path:
    path = Path(args.manifest)
    return path if path.is_dir() else path.parent


def _journal(args: argparse.Namespace, judges: Judges, **settings: Any) -> Journal:
    """The journal in ``--out``, of measurements with these judges, data and settings."""
    from valle.eval.journal import Journal

    settings |= {"kind": args.command, "manifest": _folder(args).resolve().name, "split": args.split}
    path = Path(args.out) / "utterances.jsonl"
    return Journal(path, {**settings, "judges": dict(judges.names)}, overwrite=args.overwrite)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="valle eval", description="Measure codecs, models and judges.")
    parser.epilog = (
        "`valle eval report --help`: write the report of a folder again. `valle eval samples --help`: a page of "
        "samples. `valle eval publish` and `valle eval readme`: results into docs and README. `valle eval listening "
        "--help`: ask people."
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="codec | speech | lm | judges | claims | ablations"
    )

    def add(name: str, measure: Callable[[argparse.Namespace], Measured], about: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        command.set_defaults(measure=measure)
        command.add_argument(
            "--out", default=f"docs/results/{name}", metavar="DIR", help="where results go (%(default)s)"
        )
        command.add_argument("--split", default="test", help="of the data (%(default)s)")
        command.add_argument("--threads", type=int, default=0, help="of the processor; 0: all")
        return command

    codec = add("codec", _codec, "what a codec's round trip leaves of recordings, by number of codebooks")
    codec.add_argument("--codec", required=True, metavar="DIR", help="folder of the codec")
    codec.add_argument("--n-quantizers", type=_numbers, default=(1, 2, 4, 8), metavar="K,K", help="codebooks (1,2,4,8)")
    codec.add_argument(
        "--max-utterances", type=_count, metavar="N", help="judge so many, spread over the speakers (all)"
    )
    codec.add_argument("--listen", type=int, default=0, metavar="N", help="write the waves of so many (0)")
    add_page_options(codec)
    _add_judging(codec)

    speech = add("speech", _speech, "words and voice of a model's speech, by the zero-shot protocol of the paper")
    speech.add_argument("--model", metavar="DIR", help="folder or hub id of the model (the embedded one)")
    speech.add_argument("--n", type=_count, default=50, help="trials (%(default)s)")
    speech.add_argument(
        "--prompt-s", type=float, default=3.0, help="length of the prompts in seconds, about (%(default)s)"
    )
    speech.add_argument(
        "--protocol",
        choices=("cross-sentence", "continual"),
        default="cross-sentence",
        help="the prompt is another utterance, or the first 3 s of the recording itself (%(default)s)",
    )
    speech.add_argument(
        "--trials",
        metavar="FILE",
        help="a list of trials, in place of --n, --protocol and --prompt-s: trials.jsonl, or a .lst of Seed-TTS-eval "
        "or F5-TTS (with the folder of its recordings as --manifest)",
    )
    speech.add_argument("--runs", type=_count, default=1, help="speak each so often, from other seeds (%(default)s)")
    speech.add_argument(
        "--system",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="another row: espeak, or a command with {text} and {out}, and {ref}, {ref_text}, {seed} if it takes them",
    )
    speech.add_argument("--stream", action="store_true", help="judge what a stream sounds like, begun early")
    speech.add_argument("--quality", action="store_true", help="DNSMOS, and the statistics of pitch and level")
    speech.add_argument(
        "--hard", type=int, default=5, metavar="N", help="tell the N sentences understood worst (%(default)s)"
    )
    speech.add_argument("--seed", type=int, default=0, help="of trials and speech (%(default)s)")
    speech.add_argument("--listen", type=int, metavar="N", help="write the waves of so many trials (all)")
    add_page_options(speech)
    _add_sampling(speech)
    speech.add_argument("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    speech.add_argument("--weights", choices=_WEIGHTS, default="auto", help="how a CPU reads them (%(default)s)")
    _add_judging(speech)

    lm = add("lm", _lm, "loss and accuracy of the AR and the NAR model on held-out recordings")
    lm.add_argument("--model", metavar="DIR", help="folder or hub id of the model (the embedded one)")
    lm.add_argument("--pack", required=True, metavar="DIR", help="packed dataset, made with the model's codec")
    lm.add_argument("--max-utterances", type=_count, metavar="N", help="so many, evenly over the split (all)")
    lm.add_argument("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    lm.add_argument("--weights", choices=_WEIGHTS, default="fp32", help="how a CPU reads them (%(default)s)")

    judges = add("judges", _measure_judges, "how good the judges are on recordings of people")
    judges.add_argument("--max-utterances", type=_count, metavar="N", help="recognise so many (all)")
    judges.add_argument("--pairs", type=_count, default=200, help="pairs of one speaker, and of two (%(default)s)")
    judges.add_argument("--seed", type=int, default=0, help="of the pairs (%(default)s)")
    _add_judging(judges)
    _add_claims(commands)
    ablations = commands.add_parser(
        "ablations",
        help="the paper's ablations of NAR and AR",
        description="The paper's ablations.",
        allow_abbrev=False,
    )
    ablations.set_defaults(measure=_ablations)
    ablations.add_argument(
        "--nar",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="another NAR to compare: a run such as runs/ablations/nar-phonemes/nar, or a model; may be repeated",
    )
    _add_speaking(ablations, "docs/results/ablations", n=50)
    _add_judging(ablations)
    return parser


def _add_claims(commands: Any) -> None:
    about = "what the paper says of its speech without numbers, measured"
    claims = commands.add_parser("claims", help=about, description=about)
    kinds = claims.add_subparsers(dest="claim", required=True, metavar="diversity | environment | emotion")

    def add(name: str, about: str) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = kinds.add_parser(name, help=about, description=about, allow_abbrev=False)
        command.set_defaults(measure=_claim)
        _add_speaking(command, f"docs/results/{name}", n=20)
        return command

    diversity = add("diversity", "one text and prompt, many seeds: how far what is said lies apart")
    diversity.add_argument("--seeds", type=_count, default=10, metavar="N", help="of each sentence (%(default)s)")
    _add_judging(diversity)
    environment = add("environment", "prompts in rooms of known reverberation: does the speech ring as long?")
    environment.add_argument(
        "--rooms", type=_decimals, default=(0.0, 0.3, 0.6, 0.9), metavar="S,S", help="T60 in seconds (0,0.3,0.6,0.9)"
    )
    _add_judging(environment)
    emotion = add("emotion", "pitch, level and rate of the prompt: how much of them the speech keeps")
    emotion.add_argument(
        "--shifts",
        type=_decimals,
        default=(-3.0, 3.0),
        metavar="N,N",
        help="of the prompt's pitch, semitones (--shifts=-3,3)",
    )
    emotion.add_argument("--emotion", metavar="DIR", help="classifier of emotions: a model's folder or hub id")
    _add_data(emotion)


def _add_speaking(command: argparse.ArgumentParser, out: str, *, n: int) -> None:
    """What commands that speak trials by a model have."""
    command.add_argument("--model", metavar="DIR", help="folder or hub id of the model, or embedded (the embedded one)")
    command.add_argument("--out", default=out, metavar="DIR", help="where results go (%(default)s)")
    command.add_argument("--split", default="test", help="of the data (%(default)s)")
    command.add_argument("--threads", type=int, default=0, help="of the processor; 0: all")
    command.add_argument("--n", type=_count, default=n, help="trials (%(default)s)")
    command.add_argument("--prompt-s", type=float, default=3.0, help="length of the prompts, about (%(default)s s)")
    command.add_argument("--trials", metavar="FILE", help="a list of trials, in place of --n and --prompt-s")
    command.add_argument("--seed", type=int, default=0, help="of trials and speech (%(default)s)")
    command.add_argument("--listen", type=int, default=0, metavar="N", help="write the waves of so many trials (0)")
    command.add_argument("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    _add_sampling(command)


def _add_sampling(command: argparse.ArgumentParser) -> None:
    command.add_argument("--temperature", type=float, help="of the sampling (the model's choice)")
    command.add_argument("--nar-temperature", type=float, help="of codebooks 2 to 8 (the model's choice)")
    command.add_argument("--guidance", type=float, help="by the text, 1 is off (the model's choice)")
    command.add_argument("--voice-guidance", type=float, help="by the voice, for codebook 1 (the model's choice)")
    command.add_argument("--nar-guidance", type=float, help="by the voice, for codebooks 2 to 8 (the model's choice)")
    command.add_argument("--top-p", type=float, help="of the sampling (the model's choice)")
    command.add_argument("--top-k", type=int, help="of the sampling (the model's choice)")
    command.add_argument(
        "--num-candidates", type=int, metavar="N", help="speak each so often and keep the best (the model's choice)"
    )


def _add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument("--manifest", required=True, metavar="FILE", help="manifest.jsonl of the recordings")
    command.add_argument("--overwrite", action="store_true", help="measure anew what --out has already")


def _add_judging(command: argparse.ArgumentParser) -> None:
    _add_data(command)
    command.add_argument("--whisper", metavar="DIR", help="Whisper for the word error rate: a folder, a name, or none")
    command.add_argument(
        "--recogniser", metavar="KIND:DIR", help="in its place: whisper: or hubert: and a folder or a name, or none"
    )
    command.add_argument(
        "--speaker",
        metavar="FILE",
        help="for the speaker similarity: an ONNX file, wavlm: and a folder or name, or none",
    )


def add_page_options(command: argparse.ArgumentParser) -> None:
    """How ``report.html`` is to be."""
    from valle.eval.report_page import N_PLAYERS

    command.add_argument(
        "--players",
        type=int,
        default=N_PLAYERS,
        metavar="N",
        help="utterances to listen to in report.html, the first of those whose waves were written (%(default)s)",
    )
    command.add_argument(
        "--embed-audio", action="store_true", help="put them inside report.html, to send it as one file"
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(_count(part) for part in text.split(","))


def _decimals(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be numbers with commas between them") from None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)
