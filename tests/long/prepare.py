"""Long checks of `valle prepare`: killed again and again (`make prepare-kill`), and its speed (`make prepare-speed`).

``kill`` makes a pack in one undisturbed run, and again in runs of which processes are ended by ``kill -9`` at random
points. Both must be equal byte for byte, no complete shard may have been made twice, and no torn file may be left.
``speed`` times one worker bound to one core, one that has all of them, and more, over the same recordings.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from valle.data.corpus import read_manifest
from valle.data.recognise import pick

ROOT = Path(__file__).parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=("kill", "speed"))
    parser.add_argument("--corpus", type=Path, default=ROOT / "../shared/speech", help="a folder with a manifest")
    parser.add_argument("--codec", type=Path, default=ROOT / "src/valle/assets/model/codec")
    parser.add_argument("--n", type=int, default=500, help="utterances of it, drawn by their names (500)")
    parser.add_argument("--shard-s", type=float, default=60.0, help="seconds of recordings in a shard (60)")
    parser.add_argument("--workers", type=int, default=2, help="of the run that is killed, or the most to time (2)")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the points at which to kill")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="valle-prepare-") as folder:
        corpus = Path(folder) / "corpus"
        shorten(args.corpus, corpus, args.n)
        command = [sys.executable, "-m", "valle.data.prepare", str(corpus), "--codec", str(args.codec.resolve())]
        command += ["--shard-hours", str(args.shard_s / 3600)]
        return (kill if args.check == "kill" else speed)(command, Path(folder), args)


def shorten(corpus: Path, out: Path, n: int) -> None:
    """A manifest of ``n`` utterances of the splits train and dev, of both at least one."""
    out.mkdir()
    utterances = read_manifest(corpus, ["train", "dev"])
    chosen = pick((u for u in utterances if u.split == "dev"), max(1, n // 10))
    chosen += pick((u for u in utterances if u.split == "train" and u.text), n - len(chosen))
    with (out / "manifest.jsonl").open("w", encoding="utf-8") as file:
        for u in chosen:
            record = {"id": u.id, "path": str(u.path.resolve()), "seconds": u.seconds, "split": u.split}
            file.write(json.dumps({**record, "text": u.text, "speaker": u.speaker, "lang": u.lang}) + "\n")


def kill(command: list[str], folder: Path, args: argparse.Namespace) -> int:
    rng = random.Random(args.seed)
    whole, out = folder / "whole", folder / "killed"
    begun = time.monotonic()
    process = start([*command, "--out", str(whole)], folder / "whole.log")
    while not (whole / "phonemes.json").exists() and process.poll() is None:
        time.sleep(0.1)
    startup_s = time.monotonic() - begun
    if process.wait() != 0:
        return fail("the undisturbed run failed", folder / "whole.log")
    n_shards = len(list(whole.glob("*.safetensors")))
    shard_s = (time.monotonic() - begun - startup_s) / n_shards
    print(f"undisturbed: {n_shards} shards, {startup_s:.1f} s to start and {shard_s:.2f} s a shard", flush=True)

    command = [*command, "--out", str(out), "--workers", str(args.workers)]
    complete: dict[str, tuple[int, int]] = {}  # shards that were seen whole: file number and time of writing
    n_runs, n_kills, log = 1, 0, folder / "killed.log"
    process = start(command, log)
    while n_kills < args.kills:
        before = len(shards(out))
        ahead = rng.randint(0, max(1, (n_shards - before) // (args.kills - n_kills)))
        while ahead and len(shards(out)) < min(before + ahead, n_shards - 1) and process.poll() is None:
            time.sleep(0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, shard_s if ahead else startup_s + shard_s))
        if process.poll() is not None:
            if process.returncode != 0:
                return fail(f"a run ended with exit code {process.returncode} after {n_kills} kills", log)
            break
        complete.update(shards(out))
        family = descendants(process.pid)
        workers = [pid for pid, name in family.items() if name.startswith("ray::")]
        victim = rng.choice(workers) if workers and rng.random() < 0.5 else process.pid
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(victim, signal.SIGKILL)
        n_kills += 1
        what = "the run" if victim == process.pid else "a worker"
        print(f"kill {n_kills}: {what}, with {len(shards(out))} of {n_shards} shards", flush=True)
        if victim == process.pid:
            process.wait()
            wait_for_end(family)
            process = start(command, log)
            n_runs += 1
    if process.wait() != 0:
        return fail("the last run failed", log)
    now = shards(out)
    again = [name for name, mark in complete.items() if now[name] != mark]
    torn = [path.name for path in out.iterdir() if path.name.endswith((".part", ".parts"))]
    differing = different(whole, out)
    print(f"{n_kills} kills, {n_runs} runs of {args.workers} workers, {n_shards} shards")
    print(f"complete shards that were made again: {', '.join(again) or 'none'}")
    print(f"torn files left: {', '.join(torn) or 'none'}")
    print(f"files that differ from the undisturbed run's: {', '.join(differing) or 'none'}")
    if n_kills < args.kills:
        print(f"NOTE: the run was over after {n_kills} kills; give more --n or a smaller --shard-s")
    return int(bool(again or torn or differing or n_kills < args.kills))


def speed(command: list[str], folder: Path, args: argparse.Namespace) -> int:
    print("| workers | seconds in all | hours an hour, without starting | times one core | files that differ |")
    print("|---|---|---|---|---|")
    counts = [1]
    while counts[-1] * 2 <= args.workers:
        counts.append(counts[-1] * 2)
    one_core = 0.0
    for n_workers, n_cores in [(1, 1), *((n, 0) for n in counts)]:
        name = f"by-{n_workers}" + "-on-one-core" * n_cores
        out, log = folder / name, folder / f"{name}.log"
        begun = time.monotonic()
        asked = [*command, "--out", str(out), "--workers", str(n_workers)]
        if start(asked, log, n_cores).wait() != 0:
            return fail(f"{n_workers} workers failed", log)
        seconds = time.monotonic() - begun
        rate = float(re.findall(r"([\d.]+) h/h", log.read_text())[-1])
        one_core = one_core or rate
        differing = ", ".join(different(folder / "by-1-on-one-core", out)) or "none"
        told = f"{n_workers}{', bound to one core' * n_cores}"
        print(f"| {told} | {seconds:.1f} | {rate} | {rate / one_core:.2f} | {differing} |", flush=True)
    return 0


def start(command: list[str], log: Path, n_cores: int = 0) -> subprocess.Popen[bytes]:
    """A process of this program, on the first ``n_cores`` cores that this one may use; 0: on all of them."""
    cores = sorted(os.sched_getaffinity(0))[: n_cores or None]
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL)
    os.sched_setaffinity(process.pid, cores)
    return process


def fail(what: str, log: Path) -> int:
    print(f"{what}:\n{log.read_text(errors='replace')[-3000:]}")
    kept = shutil.copy(log, Path(tempfile.gettempdir()) / log.name)
    print(f"the whole log is {kept}")
    return 1


def shards(out: Path) -> dict[str, tuple[int, int]]:
    """Name -> file number and time of writing: another one if it is written again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.glob("*.safetensors")}


def different(one: Path, other: Path) -> list[str]:
    """Files of two packs that are not the same byte for byte."""
    names = {path.name for folder in (one, other) for path in folder.iterdir() if path.name != "transcripts.jsonl"}
    return sorted(n for n in names if not all((f / n).is_file() for f in (one, other)) or not same(one / n, other / n))


def same(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


def descendants(pid: int) -> dict[int, str]:
    """The processes that ``pid`` has started, and theirs, with their names."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {p: names.get(p, "") for p in found - {pid}}


def wait_for_end(pids: dict[int, str], patience_s: float = 20.0) -> None:
    """Ray's processes end when their driver has gone; those that do not are ended."""
    deadline = time.monotonic() + patience_s
    while alive := [pid for pid in pids if lives(pid)]:
        if time.monotonic() > deadline:
            print(f"outlived their run by {patience_s:g} s and are ended: {[pids[p][:60] for p in alive]}", flush=True)
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.1)


def lives(pid: int) -> bool:
    """Whether a process runs; one that only waits for somebody to ask how it ended does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
