"""What each command of `valle` does. A command is a dataclass: its fields are the options, its ``run`` does the work.

``cli`` imports this only when a command is known, and the commands import torch only when they need it.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from valle.errors import ValleError

if TYPE_CHECKING:
    import numpy as np

    from valle.audio import Audio
    from valle.codec.base import Codec


def _arg(metavar: str, *aliases: str) -> Any:
    """An option whose default says nothing worth showing."""
    return arg(metavar=metavar, aliases=aliases, help_behavior_hint="")


Device = Annotated[str, arg(metavar="auto|cpu|cuda")]
ModelName = Annotated[str, _arg("MODEL", "-m")]
Number = Annotated[float | None, _arg("F")]
Count = Annotated[int | None, _arg("N")]
Flag = Annotated[bool, arg(help_behavior_hint="")]


@dataclass(frozen=True)
class Say:
    """Speak a text: given here, in a file, or through a pipe. A text that begins with a dash goes after `--`.

    The voice is that of a recording of 1 to 15 s (3 to 10 s are best) whose words -s tells, or one by name.
    """

    text: Annotated[Positional[tuple[str, ...]], _arg("[TEXT...]")] = ()
    """What to say."""
    file: Annotated[str, _arg("FILE", "-f")] = ""
    """Read the text from this file; - is standard input."""
    ref_audio: Annotated[str, _arg("REF.wav", "-r")] = ""
    """Recording of the voice (wav, flac, mp3, opus ...)."""
    ref_text: Annotated[str, _arg("REF_TEXT", "-s")] = ""
    """The words spoken in the recording."""
    voice: Annotated[str, _arg("NAME")] = ""
    """A voice by name (`valle voice list`)."""
    model: ModelName = ""
    """A model's folder or Hugging Face hub id; the embedded one by default."""
    output: Annotated[str, arg(aliases=["-o"], metavar="OUT.wav|-")] = "out.wav"
    """Where to write; - is standard output."""
    format: Annotated[Literal["", "wav", "flac", "mp3", "opus", "pcm"], _arg("wav|flac|mp3|opus|pcm")] = ""
    """Of the output; by default what its suffix says. pcm is 24 kHz, 16 bit, mono, without a header."""
    temperature: Number = None
    """Below 1 plays safe, above 1 is bolder, 0 always takes the likeliest; by default what the model was tuned to."""
    nar_temperature: Number = None
    """The same for codebooks 2 to 8."""
    guidance: Number = None
    """Above 1 the text pulls harder, for models that have learnt to go without; 1 is off."""
    voice_guidance: Number = None
    """The same for the recording's voice, in codebook 1; no gain has been measured."""
    nar_guidance: Number = None
    """The same for codebooks 2 to 8, for models that have learnt to go without."""
    top_p: Number = None
    """Draw only from the likeliest codes that together have this probability."""
    top_k: Count = None
    """Draw only from the N likeliest codes; 0 for all."""
    repetition_aware: Flag = False
    """Break loops by repetition-aware sampling."""
    num_candidates: Count = None
    """Speak each sentence N times and keep the best; by default what the model was tuned to."""
    max_seconds: Number = None
    """Cut the speech there."""
    seed: Count = None
    """One seed, one file."""
    lang: Annotated[str, arg(metavar="LANG")] = "en-us"
    """Language of text and recording, as espeak names it."""
    device: Device = "auto"
    """Where to compute."""
    weights: Annotated[
        Literal["auto", "fp32", "fp16", "int8", "int4", "bf16"], arg(metavar="auto|fp32|fp16|int8|int4|bf16")
    ] = "auto"
    """How weights are read: the fewer bits the faster, and the less exact (bf16: on a GPU); auto loses nothing
    measurable."""
    continual: Annotated[bool, arg(name="continue", help_behavior_hint="")] = False
    """Go on from the first 3 s of the recording with the rest of its transcript, then the text; none is needed."""
    json: Flag = False
    """Tell how it went as one line of JSON."""

    def run(self) -> int:
        """Speak and write."""
        text = self._text()
        to_stdout = self.output == "-"
        if to_stdout and sys.stdout.isatty():
            raise ValleError("standard output is a terminal, which cannot show sound; give a file (-o) or a pipe")
        from valle.files import check_writable, format_of

        format = self.format or format_of(self.output)
        if not to_stdout:
            check_writable(self.output)
        from valle.tts import VALLE

        tts = VALLE.from_pretrained(self.model or None, self.device, self.weights)
        options: dict[str, Any] = {
            "ref_audio": self.ref_audio or None,
            "ref_text": self.ref_text or None,
            "voice": self.voice or None,
            "continual": self.continual,
            "seed": self.seed,
            "temperature": self.temperature,
            "nar_temperature": self.nar_temperature,
            "guidance": self.guidance,
            "voice_guidance": self.voice_guidance,
            "nar_guidance": self.nar_guidance,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "repetition_aware": self.repetition_aware or None,
            "num_candidates": self.num_candidates,
            "max_seconds": self.max_seconds,
            "lang": self.lang,
        }
        if to_stdout and format == "pcm":  # what has no header can be heard at once
            info = _play(tts.stream(text, **options))
        else:
            with _spinner("speaking") as tell:
                audio = tts.generate(
                    text, progress=lambda done, total: tell(f"speaking, {done} of {total} sentences"), **options
                )
            audio.save(self.output, format)
            info = audio.info
        for warning in info["warnings"]:
            _message(f"warning: {warning}")
        out = sys.stderr if to_stdout else sys.stdout
        if self.json:
            # Whether the file says that it is synthetic: raw samples have no place for it.
            report = {"output": self.output, "format": format, "marked": format != "pcm", **info}
            out.write(json.dumps(report, ensure_ascii=False) + "\n")
        else:
            stop = {
                "eos": "stopped at the end token",
                "max_frames": "stopped at the longest length",
                "streamed": f"first heard after {info.get('first_audio_s', 0):.1f} s",
            }
            out.write(
                f"{self.output}: {info['seconds']:.1f} s of speech in {info['elapsed_s']:.1f} s "
                f"(real-time factor {info['rtf']:.2f}), voice {info['voice']}, seed {info['seed']}, "
                f"{stop.get(info['stop'], 'cut at --max-seconds')}\n"
            )
        return 0

    def _text(self) -> str:
        if self.text and self.file:
            raise ValleError("a text and a file (-f) are given; give one of them")
        if self.text:
            return " ".join(self.text)
        piped = sys.stdin is not None and not sys.stdin.isatty()
        if self.file == "-" or (not self.file and piped and not self.continual):
            return _decode(sys.stdin.buffer.read() if sys.stdin is not None else b"", "standard input")
        if not self.file:
            return ""
        try:
            return _decode(Path(self.file).read_bytes(), self.file)
        except OSError as error:
            raise ValleError(f"the text file {self.file} cannot be read: {error.strerror or error}") from error


def _play(chunks: Iterator[Audio]) -> dict[str, Any]:
    """Write chunks to standard output as they come, as raw samples; how it went."""
    began = time.perf_counter()
    info: dict[str, Any] = {}
    first_s, seconds = 0.0, 0.0
    for chunk in chunks:
        chunk.save("-", "pcm")
        first_s = first_s or time.perf_counter() - began
        seconds += chunk.seconds
        info = chunk.info
    elapsed = time.perf_counter() - began
    return {
        **info,
        "stop": "streamed",
        "seconds": round(seconds, 3),
        "first_audio_s": round(first_s, 3),
        "elapsed_s": round(elapsed, 3),
        "rtf": round(elapsed / max(seconds, 1e-9), 3),
    }


@dataclass(frozen=True)
class VoiceAdd:
    """Keep a voice under a name. Its recording is copied; nothing leaves this machine."""

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """Letters, digits, _, - and dots."""
    ref_audio: Annotated[Positional[str], arg(metavar="REF.wav")]
    """Recording of 1 to 15 s; 3 to 10 s are best."""
    ref_text: Annotated[str, _arg("REF_TEXT", "-s")] = ""
    """The words spoken in it; without them every `say` with this voice needs -s."""
    force: Flag = False
    """Replace a voice of that name."""

    def run(self) -> int:
        """Add."""
        from valle.voices import add_voice

        voice = add_voice(self.name, self.ref_audio, self.ref_text or None, force=self.force)
        sys.stdout.write(f"added {voice.name}; use it with `valle say --voice {voice.name} ...`\n")
        if voice.text is None:
            _message(f"warning: {voice.name} has no transcript: `valle say --voice {voice.name}` will need -s REF_TEXT")
        return 0


@dataclass(frozen=True)
class VoiceList:
    """List the voices: name, origin and transcript, separated by tabs."""

    def run(self) -> int:
        """List."""
        from valle.voices import list_voices

        for voice in list_voices():
            origin = f"built in, {voice.licence}" if voice.built_in else "added"
            sys.stdout.write(f"{voice.name}\t{origin}\t{voice.text or '(no transcript)'}\n")
        return 0


@dataclass(frozen=True)
class VoiceRemove:
    """Delete a voice that was added."""

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """Which."""

    def run(self) -> int:
        """Delete."""
        from valle.voices import remove_voice

        remove_voice(self.name)
        sys.stdout.write(f"removed {self.name}\n")
        return 0


@dataclass(frozen=True)
class CodecEncode:
    """Speech to codes: OUT.npz gets ``codes`` int16 [K, T], the codec's fingerprint and the number of samples."""

    input: Annotated[Positional[str], arg(metavar="IN.wav")]
    """Any sound file; it is mixed to mono and resampled."""
    output: Annotated[Positional[str], arg(metavar="OUT.npz")]
    """Where to write."""
    n_quantizers: Count = None
    """Codebooks to use, the first N; all by default."""
    model: ModelName = ""
    """Folder of a codec or a model, or a hub id; the embedded one by default."""
    device: Device = "auto"
    """Where to compute."""

    def run(self) -> int:
        """Encode."""
        import numpy as np

        from valle.audio import load
        from valle.files import check_writable, write_atomic

        check_writable(self.output)
        codec = _codec(self.model, self.device, self.n_quantizers)
        audio = load(self.input, codec.sample_rate)
        wav = audio.waveform.unsqueeze(0).to(next(codec.parameters()).device)
        codes = codec.encode(wav, self.n_quantizers)[0].cpu().numpy().astype(np.int16)  # [K, T]
        out = io.BytesIO()
        np.savez_compressed(
            out, codes=codes, codec=codec.fingerprint(), n_samples=wav.shape[2], sample_rate=codec.sample_rate
        )
        write_atomic(self.output, out.getvalue())
        n_bits = codes.size * (codec.codebook_size - 1).bit_length()
        sys.stdout.write(
            f"{self.output}: {codes.shape[0]} x {codes.shape[1]} codes, {n_bits / audio.seconds / 1000:.1f} kbit/s\n"
        )
        return 0


@dataclass(frozen=True)
class CodecDecode:
    """Codes to speech."""

    input: Annotated[Positional[str], arg(metavar="IN.npz")]
    """What `valle codec encode` wrote."""
    output: Annotated[Positional[str], arg(metavar="OUT.wav")]
    """Where to write: wav, flac, mp3, opus or pcm."""
    n_quantizers: Count = None
    """Codebooks to use, the first N; all by default."""
    model: ModelName = ""
    """Folder of a codec or a model, or a hub id; the embedded one by default."""
    device: Device = "auto"
    """Where to compute."""

    def run(self) -> int:
        """Decode."""
        import torch

        from valle.audio import Audio
        from valle.files import check_writable, format_of

        format = format_of(self.output)
        check_writable(self.output)
        codec = _codec(self.model, self.device, self.n_quantizers)
        values = _read_npz(self.input)
        codes = values["codes"][: self.n_quantizers]  # [K, T]
        made_by = str(values["codec"])
        if made_by != codec.fingerprint():
            raise ValleError(
                f"{self.input} was made by the codec {made_by}, this is {codec.fingerprint()}; give that one with -m"
            )
        if codes.shape[0] > codec.n_quantizers or codes.min() < 0 or codes.max() >= codec.codebook_size:
            raise ValleError(f"{self.input} holds codes that this codec does not have; encode the recording again")
        wav = codec.decode(torch.from_numpy(codes.astype("int64")).unsqueeze(0).to(next(codec.parameters()).device))
        info = {"synthetic": True, "model": "codec reconstruction", "codec": codec.fingerprint()}
        audio = Audio(wav[0, :, : int(values["n_samples"])].cpu(), codec.sample_rate, info=info)
        audio.save(self.output, format)
        sys.stdout.write(f"{self.output}: {audio.seconds:.1f} s from {codes.shape[0]} codebooks\n")
        return 0


@dataclass(frozen=True)
class CodecTrain:
    """Train a codec as a TOML file describes it (configs/codec.toml)."""

    config: Annotated[Positional[Path], arg(metavar="CONFIG")]
    """The TOML file."""
    resume: Flag = False
    """Go on from the newest checkpoint."""
    out: Annotated[Path | None, _arg("DIR")] = None
    """Where the run is kept, in place of what CONFIG says."""

    def run(self) -> int:
        """Train."""
        from valle.codec.train import train_codec

        train_codec(self.config, self.resume, self.out)
        return 0


@dataclass(frozen=True)
class AsrAlign:
    """When each phoneme of a recording is spoken: symbol, start and end in seconds, separated by tabs.

    Silence before the first phone is counted to it, silence between words to the word boundary or mark there.
    """

    audio: Annotated[Positional[str], arg(metavar="AUDIO")]
    """Any sound file."""
    text: Annotated[str, arg(metavar="T")]
    """The words spoken in it."""
    aligner: Annotated[str, arg(metavar="DIR")] = ""
    """What `valle asr train-aligner` or `valle asr train` wrote; the embedded model's aligner by default. A hybrid
    recogniser tells words and phones, and which words of the text are not said or not in it."""
    lang: Annotated[str, arg(metavar="LANG")] = "en-us"
    """Language of the text, as espeak names it."""
    frame_shift: Annotated[float | None, _arg("S")] = None
    """Print first frame and the one after the last in place of seconds, at S seconds a frame; the paper has 0.03."""
    json: Flag = False
    """As one line of JSON."""

    def run(self) -> int:
        """Align."""
        from valle.asr.aligner import HOP_LENGTH, SAMPLE_RATE, Aligner
        from valle.asr.intervals import intervals
        from valle.audio import load, normalise_loudness
        from valle.pretrained import find_model
        from valle.text import DEFAULT_INVENTORY, Phonemizer

        if self.aligner:
            from valle.asr.hybrid.model import is_hybrid

            if is_hybrid(self.aligner):
                if self.frame_shift is not None:
                    raise ValleError(
                        f"{self.aligner} is a hybrid recogniser, whose times are in seconds; leave out --frame-shift"
                    )
                from valle.asr.hybrid.transcribe import print_alignment

                return print_alignment(self.audio, self.text, self.aligner, as_json=self.json)
        aligner = Aligner.load(self.aligner or find_model() / "aligner")
        if aligner.inventory_version != DEFAULT_INVENTORY.version:
            raise ValleError(
                f"the aligner {self.aligner} knows the phonemes {aligner.inventory_version}, this program writes "
                f"{DEFAULT_INVENTORY.version}; train one with `valle asr train-aligner`"
            )
        wav = normalise_loudness(load(self.audio, SAMPLE_RATE).waveform, SAMPLE_RATE)  # [1, N]
        symbols = Phonemizer(self.lang)(self.text)
        ids = DEFAULT_INVENTORY.encode(symbols)
        alignment = aligner.align(wav, ids)
        if self.frame_shift is not None:
            frames = [i[1:] for i in intervals(alignment.durations, ids, self.frame_shift)]
            rows = [(symbol, *span) for symbol, span in zip(symbols, frames, strict=True)]
            if self.json:
                named = [dict(zip(("symbol", "start_frame", "end_frame"), row, strict=True)) for row in rows]
                told_frames = {"symbols": named, "frame_shift": self.frame_shift, "fit": round(alignment.fit, 3)}
                sys.stdout.write(json.dumps(told_frames, ensure_ascii=False) + "\n")
            else:
                sys.stdout.write("".join("\t".join(map(str, row)) + "\n" for row in rows))
            return 0
        ends = [round(n * HOP_LENGTH / SAMPLE_RATE, 3) for n in alignment.durations.cumsum(0).tolist()]
        spans = list(zip(symbols, [0.0, *ends[:-1]], ends, strict=True))
        if self.json:
            told = [{"symbol": symbol, "start": start, "end": end} for symbol, start, end in spans]
            report = {"symbols": told, "fit": round(alignment.fit, 3)}
            sys.stdout.write(json.dumps(report, ensure_ascii=False) + "\n")
        else:
            sys.stdout.write("".join(f"{symbol}\t{start:.3f}\t{end:.3f}\n" for symbol, start, end in spans))
        return 0


@dataclass(frozen=True)
class Train:
    """Train the AR or the NAR model as a TOML file describes it (configs/)."""

    kind: Annotated[Positional[Literal["ar", "nar"]], arg(metavar="ar|nar")]
    """Which of the two."""
    config: Annotated[Positional[Path], arg(metavar="CONFIG")]
    """The TOML file."""
    resume: Flag = False
    """Go on from the newest checkpoint."""
    out: Annotated[Path | None, _arg("DIR")] = None
    """Where the run is kept, in place of what CONFIG says."""
    init: Annotated[str | None, _arg("MODEL")] = None
    """A model to begin with, in place of what CONFIG says: a folder, or `embedded`."""
    lora: Annotated[int | None, _arg("RANK")] = None
    """Leave its weights as they are and learn so much beside them (16 is usual; 0: all weights learn)."""

    def run(self) -> int:
        """Train."""
        from valle.train.loop import train

        train(self.kind, self.config, resume=self.resume, out=self.out, init=self.init, lora=self.lora)
        return 0


@dataclass(frozen=True)
class Info:
    """What a model is, or how a sound file was made."""

    what: Annotated[Positional[str], _arg("[MODEL|FILE]")] = ""
    """A model's folder or hub id, the embedded one by default; or a sound file."""
    json: Flag = False
    """As one line of JSON."""

    def run(self) -> int:
        """Tell."""
        if self.what and Path(self.what).is_file():
            from valle.provenance import read_provenance

            made = read_provenance(self.what)
            told: dict[str, Any] = made or {"synthetic": "not marked as such"}
        else:
            from valle.pretrained import describe, find_model

            told = describe(find_model(self.what or None))
        sys.stdout.write(json.dumps(told, ensure_ascii=False) + "\n" if self.json else "".join(_lines(told)))
        return 0


_COMMANDS: dict[str, type[Any]] = {
    "say": Say,
    "voice add": VoiceAdd,
    "voice list": VoiceList,
    "voice rm": VoiceRemove,
    "codec encode": CodecEncode,
    "codec decode": CodecDecode,
    "codec train": CodecTrain,
    "asr align": AsrAlign,
    "train": Train,
    "info": Info,
}


def run(name: str, argv: list[str]) -> int:
    """Read the arguments of the command ``name`` and run it; ``--a-b`` and ``--a_b`` are the same."""
    command = tyro.cli(_COMMANDS[name], args=argv, prog=f"valle {name}", config=(tyro.conf.FlagCreatePairsOff,))
    code: int = command.run()
    return code


def _codec(model: str, device: str, n_quantizers: int | None) -> Codec:
    """The codec in a codec's or a model's folder."""
    from valle.codec.base import load_codec
    from valle.pretrained import INFO_FILE, find_model, pick_device

    is_codec = bool(model) and (Path(model) / "config.json").is_file() and not (Path(model) / INFO_FILE).is_file()
    codec = load_codec(Path(model) if is_codec else find_model(model or None) / "codec", pick_device(device))
    if n_quantizers is not None and not 1 <= n_quantizers <= codec.n_quantizers:
        raise ValleError(f"n_quantizers is {n_quantizers}; this codec has 1 to {codec.n_quantizers}")
    return codec


def _read_npz(path: str) -> dict[str, np.ndarray]:
    """The arrays of `valle codec encode`, never a pickle."""
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            values = {name: file[name] for name in ("codes", "codec", "n_samples")}
    except OSError as error:
        if isinstance(error, FileNotFoundError | IsADirectoryError | PermissionError):
            raise ValleError(f"the codes {path} cannot be read: {error.strerror}") from error
        values = {}
    except (ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile):
        values = {}
    codes = values.get("codes")
    fit = codes is not None and codes.ndim == 2 and codes.size and codes.dtype.kind in "iu"
    if (
        not fit
        or any(values[name].ndim for name in ("codec", "n_samples"))
        or values["n_samples"].dtype.kind not in "iu"
    ):
        raise ValleError(f"{path} holds no codes; give a file that `valle codec encode` wrote")
    return values


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValleError(f"the text of {name} is not UTF-8; save it in that encoding") from error


def _message(text: str) -> None:
    sys.stderr.write(f"valle: {text}\n")


@contextmanager
def _spinner(text: str) -> Iterator[Callable[[str], None]]:
    """Show on a terminal that something is going on; yields a function that changes the text."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda _text: None
        return
    from rich.console import Console

    with Console(stderr=True).status(text) as status:
        yield lambda text: status.update(text)


def _lines(values: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Nested values as indented lines."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield f"{indent}{name}:\n"
            yield from _lines(value, indent + "  ")
        else:
            yield f"{indent}{name}: {value}\n"
