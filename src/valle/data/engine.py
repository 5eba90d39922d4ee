"""Who makes the shards of a pack: this process, or many workers by Ray Data, on this machine or on a cluster.

The unit of work is a shard. What is in it follows from its utterances alone (``valle.data.shards``), a shard's file
appears whole or not at all, and each worker computes with one thread, in this process too: so the pack is the same
whatever the number of workers, and whoever was stopped repeats at most the shards that were in the making. A worker
holds the codec, the aligner, the recogniser and the pack that is to be like; they are loaded once, on its first shard.

With several workers each shard's transcripts go into a file of their own (``transcripts.parts_folder``), and these are
merged before and after the run.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import platform
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from valle.data.corpus import Utterance
from valle.data.cutting import Cutter, pieces_in, recall_pieces, transcribed
from valle.data.pack import PHONEMES_FILE, Pack, PackInfo, ShardInfo
from valle.data.progress import Done, Progress
from valle.data.reading import Phonemize, PrepareConfig, Rejected
from valle.data.shards import ShardMaker
from valle.errors import ValleError

if TYPE_CHECKING:
    from valle.asr import PhonemeAligner
    from valle.codec.base import Codec
    from valle.data.segment import SpeechDetector
    from valle.data.transcripts import Recogniser, TranscriptCache
    from valle.text import PhonemeInventory

TRIES = 3
"""How often a shard is begun whose worker dies; then the others are made, and it is an error."""

_LISTEN_WIDELY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # despite its name: 0 binds to 127.0.0.1, read at the import
_TOLD_EVERY_S = 2.0  # between two messages of a worker about its shard
_LOOKED_EVERY_S = 1.0  # between two looks at these messages


class Shard(NamedTuple):
    """A shard to be made."""

    number: int
    """Its place among all shards of the pack, from 0."""
    file: str
    """Its name inside the pack."""
    split: str
    """The split of its utterances."""
    utterances: list[Utterance]
    """In their order; those without text are transcribed where there is a recogniser."""

    def to_json(self) -> str:
        """For another process."""
        return json.dumps([*self[:3], [asdict(u) for u in self.utterances]], default=str)  # a path is no JSON

    @classmethod
    def from_json(cls, text: str) -> Shard:
        """What ``to_json`` wrote."""
        number, file, split, utterances = json.loads(text)
        return cls(number, file, split, [Utterance(**{**u, "path": Path(u["path"])}) for u in utterances])


class Made(NamedTuple):
    """A shard that is complete."""

    info: ShardInfo
    """What ``dataset.json`` says of it."""
    rejected: list[dict[str, str]]
    """What was left out of it: id, split, reason, detail."""

    def to_json(self) -> str:
        """For another process."""
        return json.dumps([asdict(self.info), self.rejected])

    @classmethod
    def from_json(cls, text: str) -> Made:
        """What ``to_json`` wrote."""
        info, rejected = json.loads(text)
        return cls(ShardInfo(**info), rejected)


@dataclass(frozen=True)
class Recipe:
    """All that a worker needs, the same for every shard; it can be sent to another machine."""

    out: Path
    """The pack's folder, which all workers see."""
    info: PackInfo
    """What the shards are to agree with."""
    codec: Codec
    """Makes the codes."""
    inventory: PhonemeInventory
    """Phoneme ids."""
    phonemize: Phonemize
    """(text, language) -> symbols."""
    config: PrepareConfig
    """What to leave out."""
    device: str | torch.device = "cpu"
    """Where the codec runs, and a recogniser that can."""
    aligner: PhonemeAligner | None = None
    """Tells how long each phoneme lasts."""
    like: Path | None = None
    """A pack whose phonemes and durations are taken over."""
    like_splits: tuple[str, ...] = ()
    """Which splits of it."""
    recogniser: Recogniser | str | None = None
    """Transcribes, or the name of one that is loaded by each worker (``recognise.load_recogniser``)."""
    transcripts: Path | None = None
    """Where transcripts are kept."""
    min_confidence: float = 0.0
    """Transcripts of which the recogniser is less sure are left out."""
    detector: SpeechDetector | str | None = None
    """Tells speech from pauses in recordings that are too long, or the name of the one that each worker must find
    (``segment.load_detector``); None where none is too long."""

    @property
    def on_gpu(self) -> bool:
        """Whether a worker needs a GPU."""
        return torch.device(self.device).type == "cuda"


class Worker:
    """Makes shards, one after the other."""

    def __init__(self, recipe: Recipe, *, alone: bool = True) -> None:
        """
        Args:
            recipe: what of.
            alone: whether nobody else writes into the file of transcripts.

        Raises:
            ValleError: the recogniser or the detector cannot be loaded, or transcripts not be kept.
        """
        self.recipe, self._alone = recipe, alone
        self._pieces: dict[str, list[tuple[float, float]]] = {}  # of long recordings, in the pack that is to be like
        codec = recipe.codec.to(recipe.device).eval()
        self._maker = ShardMaker(
            recipe.info, codec, recipe.inventory, recipe.phonemize, recipe.config, recipe.device, recipe.aligner
        )
        if recipe.like is not None:
            like = Pack(recipe.like)
            splits = [like.split(split) for split in recipe.like_splits]
            self._maker.recall(splits)
            self._pieces = pieces_in(id for split in splits for id in split.ids)
        self._cutter = None if recipe.detector is None else _load_cutter(recipe)
        self._recogniser: Recogniser | None = None
        self._transcripts: TranscriptCache | None = None
        if recipe.recogniser is not None:
            from valle.data.recognise import load_recogniser
            from valle.data.transcripts import TranscriptCache

            assert recipe.transcripts is not None, "transcripts are kept"
            self._recogniser = (
                load_recogniser(recipe.recogniser, device="cuda" if recipe.on_gpu else "cpu")
                if isinstance(recipe.recogniser, str)
                else recipe.recogniser
            )
            self._transcripts = TranscriptCache(recipe.transcripts)

    def make(self, shard: Shard, note: Callable[[Done], None] | None = None) -> Made:
        """Write a shard, or keep the one that is there; ``note`` is told how far it is."""
        note = note or (lambda done: None)
        note(Done())  # listening takes its time too
        path = self.recipe.out / shard.file
        utterances, refused = self._ready(shard)
        # What is between the pieces of a long recording is done with them.
        stretch = sum(u.seconds for u in shard.utterances) / max(sum(u.seconds for u in utterances), 1e-9)

        def note_all(done: Done) -> None:
            note(Done(done.made_s * stretch, done.kept_s * stretch, done.rejected))

        info, rejected = self._maker.make(path, shard.split, utterances, note_all, refused)
        return Made(info, rejected)

    def close(self) -> None:
        """Free the file of transcripts."""
        if self._transcripts is not None:
            self._transcripts.close()
            self._transcripts = None

    def _ready(self, shard: Shard) -> tuple[list[Utterance], dict[str, Rejected]]:
        """The utterances of a shard, long ones cut and all with texts as far as possible; and why some are left out."""
        config = self.recipe.config
        utterances = recall_pieces(shard.utterances, self._pieces, config)
        if self._recogniser is None or self._transcripts is None:
            return utterances, {}
        from valle.data.transcripts import TranscriptCache, parts_folder

        cache = self._transcripts
        if not self._alone:
            folder = parts_folder(cache.path)
            folder.mkdir(exist_ok=True)
            cache = TranscriptCache(folder / f"{Path(shard.file).stem}.jsonl", base=cache)
        try:
            least = self.recipe.min_confidence
            return transcribed(utterances, self._cutter, self._recogniser, cache, config, min_confidence=least)
        finally:
            if not self._alone:
                cache.close()


def _load_cutter(recipe: Recipe) -> Cutter:
    """
    Raises:
        ValleError: this machine has another detector than the one that the others cut by.
    """
    from valle.data.segment import load_detector

    detector = recipe.detector
    if isinstance(detector, str):
        wanted, detector = detector, load_detector()
        if detector.name != wanted:
            raise ValleError(
                f"the machine {platform.node()} tells speech from pauses by {detector.name}, the others by {wanted}; "
                "install the same packages on all of them: pip install 'valle[prepare]'"
            )
    assert detector is not None
    return Cutter(detector, recipe.config)


def make_shards(
    recipe: Recipe,
    shards: Sequence[Shard],
    progress: Progress,
    *,
    workers: int = 1,
    ray_address: str | None = None,
) -> Iterator[Made]:
    """Make all shards; yields them in their order.

    Args:
        recipe: what of.
        shards: numbered from 0.
        progress: is told how far each one is.
        workers: how many at a time; 1 without ``ray_address`` works in this process and needs no Ray.
        ray_address: of a cluster's head, ``HOST:PORT`` or ``auto``; its machines need this program, and the recordings
            and the pack's folder at the same paths.

    Raises:
        ValleError: Ray is missing or cannot be reached, there are too few GPUs, a worker does not see the files, or one
            died ``TRIES`` times at the same shard.
    """
    check_workers(workers, ray_address)
    if recipe.recogniser is not None and recipe.transcripts is not None:
        from valle.data.transcripts import merge_transcripts

        merge_transcripts(recipe.transcripts)  # left by a run that was stopped
    if workers == 1 and ray_address is None:
        yield from _make_here(recipe, shards, progress)
        return
    yield from _make_by_ray(recipe, shards, progress, workers, ray_address)
    if recipe.recogniser is not None and recipe.transcripts is not None:
        merge_transcripts(recipe.transcripts)


def check_workers(workers: int, ray_address: str | None) -> None:
    """
    Raises:
        ValleError: there can be no such number of workers, or Ray is needed and missing.
    """
    if workers < 1:
        raise ValleError(f"--workers is {workers}; give how many to work with at a time, 1 or more")
    if workers == 1 and ray_address is None:
        return
    # It would report to its makers, and listen to the whole network; read when it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its coming default, of which it warns
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns of its own doings
    if ray_address is None:
        os.environ.setdefault(_LISTEN_WIDELY, "0")
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        asked = f"--workers {workers}" if ray_address is None else f"--ray-address {ray_address}"
        raise ValleError(
            f"{asked} needs the Python package ray[data] ({error}); pip install 'valle[cluster]', or leave it out to "
            "work in one process"
        ) from error


def _make_here(recipe: Recipe, shards: Sequence[Shard], progress: Progress) -> Iterator[Made]:
    worker = Worker(recipe)
    try:
        for shard in shards:
            with _one_thread():
                made = worker.make(shard, functools.partial(progress.note, shard.number))
            yield made
    finally:
        worker.close()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """NOTE sums over more threads differ in their last bits, and codes with them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Failure(NamedTuple):
    """What a worker could not do."""

    message: str
    """One sentence, or a traceback."""
    kind: Literal["mistake", "defect", "lost"]
    """What the user did, what nobody foresaw, or a shard whose workers died."""


class _Tally:
    """Hears from all workers which shards they begin and how far they are; an actor of Ray."""

    def __init__(self) -> None:
        self._begun: dict[int, int] = {}
        self._news: dict[int, Done] = {}

    def begin(self, number: int) -> int:
        """How often a shard was begun, this time too."""
        self._begun[number] = self._begun.get(number, 0) + 1
        return self._begun[number]

    def note(self, number: int, done: Done) -> None:
        """A shard is so far."""
        self._news[number] = done

    def news(self) -> dict[int, Done]:
        """What was noted since the last time."""
        news, self._news = self._news, {}
        return news


class _RayWorker:
    """A ``Worker`` as an actor of Ray Data's pool: rows ``{number, shard}`` to rows ``{number, made, done, failure}``.

    What is in a row is a number or JSON; ``made`` is empty where there is a failure.

    NOTE what fails goes back as a row: Ray would wrap one sentence in pages. And Ray begins a shard again for ever when
    its worker dies, so it is counted here.
    """

    def __init__(self, recipe: Any, tally: Any, tries: int, folder: str, seen: list[Path]) -> None:
        self._recipe, self._tally, self._tries, self._folder, self._seen = recipe, tally, tries, folder, seen
        self._worker: Worker | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        made, done, failure = "", Done(), _Failure("", "lost")
        if self._begin(row["number"]) <= self._tries:
            try:
                result, done = self._make(Shard.from_json(row["shard"]))
                made = result.to_json()
            except ValleError as error:
                failure = _Failure(str(error), "mistake")
            except Exception:
                failure = _Failure(traceback.format_exc(), "defect")
        return {"number": row["number"], "made": made, "done": json.dumps(done), "failure": json.dumps(failure)}

    def _begin(self, number: int) -> int:
        import ray

        try:
            n_begun: int = ray.get(self._tally.begin.remote(number))
        except ray.exceptions.RayError:  # who counts has died; it counts from 1 again
            return 1
        return n_begun

    def _make(self, shard: Shard) -> tuple[Made, Done]:
        if self._worker is None:
            self._worker = self._load()
        last, told_s = Done(), 0.0

        def note(done: Done) -> None:
            nonlocal last, told_s
            last = done
            if time.monotonic() - told_s > _TOLD_EVERY_S:
                told_s = time.monotonic()
                self._tally.note.remote(shard.number, done)

        return self._worker.make(shard, note), last

    def _load(self) -> Worker:
        import ray

        with contextlib.suppress(OSError):  # paths of the manifest may be relative
            os.chdir(self._folder)
        recipe: Recipe = ray.get(self._recipe)
        for path in (recipe.out / PHONEMES_FILE, *self._seen):
            if not path.exists():
                raise ValleError(
                    f"the machine {platform.node()} does not see {path}; put the recordings and the pack into folders "
                    "that all machines of the cluster have at the same path"
                )
        torch.set_num_threads(1)
        return Worker(recipe, alone=False)


def _make_by_ray(
    recipe: Recipe, shards: Sequence[Shard], progress: Progress, workers: int, address: str | None
) -> Iterator[Made]:
    recipe = replace(recipe, out=recipe.out.absolute(), codec=recipe.codec.to("cpu"))
    if recipe.transcripts is not None:
        recipe = replace(recipe, transcripts=recipe.transcripts.absolute())
    if recipe.like is not None:
        recipe = replace(recipe, like=recipe.like.absolute())
    if recipe.on_gpu:
        recipe = replace(recipe, device="cuda")  # each worker sees the one that Ray gives it
    workers = min(workers, len(shards))
    seen: dict[str, Path] = {}  # a recording of each data set, to tell whether a worker sees it too
    for utterance in (u for shard in shards for u in shard.utterances):
        if utterance.dataset not in seen and utterance.path.exists():
            seen[utterance.dataset] = utterance.path
    with _ray(workers, address):
        import ray.data

        _check_gpus(recipe, workers, address)
        tally = ray.remote(num_cpus=0, max_restarts=-1)(_Tally).remote()
        rows = [{"number": shard.number, "shard": shard.to_json()} for shard in shards]
        made = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _RayWorker,
            fn_constructor_args=(_put(recipe), tally, TRIES, os.getcwd(), list(seen.values())),
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            num_gpus=1 if recipe.on_gpu else None,
        )
        yield from _in_order(made.iter_rows(), tally, shards, progress)


def _put(recipe: Recipe) -> Any:
    """The recipe in Ray's store, from which each worker takes it once.

    Raises:
        ValleError: a recogniser or a codec that cannot be sent to another process.
    """
    import ray

    try:
        return ray.put(recipe)
    except TypeError as error:
        raise ValleError(
            f"what makes the shards cannot be sent to other processes ({str(error).splitlines()[0]}); name the "
            "recogniser (KIND:MODEL), or work with 1 worker"
        ) from error


def _in_order(rows: Any, tally: Any, shards: Sequence[Shard], progress: Progress) -> Iterator[Made]:
    """The shards that come back as ``rows`` in any order, in theirs."""
    import ray

    waiting: dict[int, Made] = {}
    finished: set[int] = set()
    coming = 0
    stop = threading.Event()

    def listen() -> None:
        while not stop.wait(_LOOKED_EVERY_S):
            with contextlib.suppress(Exception):  # nothing but the bar depends on it
                news: dict[int, Done] = ray.get(tally.news.remote(), timeout=10 * _LOOKED_EVERY_S)
                for number, done in news.items():
                    if number not in finished:
                        progress.note(number, done)
            progress.show()

    listener = threading.Thread(target=listen, name="progress", daemon=True)
    listener.start()
    try:
        for row in _told_simply(rows):
            if not row["made"]:
                failure = _Failure(*json.loads(row["failure"]))
                if failure.kind == "defect":
                    raise RuntimeError(f"a worker failed:\n{failure.message}")
                if failure.kind == "mistake":
                    raise ValleError(failure.message)
                continue
            finished.add(row["number"])
            waiting[row["number"]] = Made.from_json(row["made"])
            progress.note(row["number"], Done(*json.loads(row["done"])))
            while coming in waiting:
                yield waiting.pop(coming)
                coming += 1
    finally:
        stop.set()
        listener.join()
    lost = [shard.file for shard in shards if shard.number not in finished]
    if lost:
        raise ValleError(
            f"workers died {TRIES} times each while they made {', '.join(lost[:5])}{' ...' * (len(lost) > 5)}; all "
            "other shards are complete. Run the same again to go on, with fewer --workers if memory is short"
        )


def _told_simply(rows: Any) -> Iterator[dict[str, Any]]:
    """Ray's rows, and its errors as one sentence."""
    import ray.exceptions

    try:
        yield from rows
    except (ray.exceptions.RayError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValleError(
            f"Ray cannot go on ({type(error).__name__}: {reason}); complete shards stay, run the same again to go on"
        ) from error


def _check_gpus(recipe: Recipe, workers: int, address: str | None) -> None:
    """
    Raises:
        ValleError: workers would wait for GPUs for ever.
    """
    import ray

    there = int(ray.cluster_resources().get("GPU", 0))
    if recipe.on_gpu and there < (workers if address is None else 1):
        where = "this machine" if address is None else f"the cluster {address}"
        raise ValleError(
            f"--device {recipe.device} takes one GPU a worker, but {where} has {there} for {workers} workers; give "
            "fewer --workers, or --device cpu"
        )


def _check_that_it_stays_here() -> None:
    """
    Raises:
        ValleError: Ray was imported before it was told to listen to this machine alone.
    """
    from ray._private import ray_constants

    if ray_constants.ENABLE_RAY_CLUSTER and os.environ.get(_LISTEN_WIDELY) == "0":
        raise ValleError(
            "Ray was imported before `valle prepare` was asked, and would listen to the whole network; set "
            f"{_LISTEN_WIDELY}=0 in the environment before Python starts, or import ray afterwards"
        )


@contextlib.contextmanager
def _ray(workers: int, address: str | None) -> Iterator[None]:
    """Ray, started on this machine for this process alone, or that of a cluster; what is already running is used.

    Raises:
        ValleError: there is no such cluster, or Ray does not start.
    """
    check_workers(workers, address)
    import ray.data

    ours = not ray.is_initialized()
    if ours:
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        try:
            if address is None:
                _check_that_it_stays_here()
                # NOTE only "local" starts one in any case; without an address Ray would join one that is running.
                own: dict[str, Any] = {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
                ray.init("local", num_cpus=workers, **own, **quiet)
            else:
                ray.init(address, **quiet)
        except ValleError:
            raise
        except Exception as error:  # Ray raises nothing narrower when a part of it does not come up in time
            what = "Ray does not start on this machine" if address is None else f"there is no Ray cluster at {address}"
            reason = " ".join(str(error).split())[:200]
            raise ValleError(f"{what} ({reason}); give --ray-address HOST:PORT of a head that runs, or none") from error
    context = ray.data.DataContext.get_current()
    ours_for_now = {
        "enable_progress_bars": False,  # there is one already
        "print_on_execution_start": False,
        "execution_no_progress_timeout_s": -1,  # a shard may take an hour
    }
    before = {name: getattr(context, name) for name in ours_for_now if hasattr(context, name)}
    logger = logging.getLogger("ray.data")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        for name in before:
            setattr(context, name, ours_for_now[name])
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)
        if ours:
            ray.shutdown()
