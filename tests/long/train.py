"""Long check of `valle train`: killed again and again, a run ends with the same weights (`make train-kill`).

A run of 300 steps is made undisturbed, and again in processes that are ended by ``kill -9`` at 20 random moments,
while they compute, validate, or write. Weights, moments, averages and the log of losses must be equal bit for bit, and
no torn file may be left. With ``--ranks 2`` both ranks of a run are ended; ``--parallel fsdp`` shares the model out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from packs import write_pack  # noqa: E402
from valle.train.checkpoint import checkpoints, load_checkpoint  # noqa: E402

CONFIG = """
pack = "{pack}"
out = "{out}"
device = "cpu"
precision = "fp32"
[{kind}.model.transformer]
dim = 64
n_layers = 3
n_heads = 4
ff_dim = 256
dropout = 0.1
[{kind}.batches]
max_frames = 1200
max_seconds = 4.0
min_seconds = 0.1
join_same_speaker = 0.4
[{kind}.optimiser]
lr = 2e-3
warmup_steps = 30
[{kind}.run]
max_steps = {steps}
batches_per_step = 2
parallel = "{parallel}"
ema_decay = 0.99
log_every = 1
eval_every = 25
checkpoint_every = 5
samples = false
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=("ar", "nar"), default="ar")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--parallel", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which to kill")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="valle-train-") as name:
        folder = Path(name)
        rng = random.Random(args.seed)
        lengths = [rng.randint(40, 290) for _ in range(120)]
        pack = write_pack(folder / "pack", {"train": lengths, "dev": lengths[:12]})
        runs = {}
        for run in ("whole", "killed"):
            runs[run] = folder / run / args.kind
            config = folder / f"{run}.toml"
            values = {"pack": pack, "out": folder / run, "kind": args.kind}
            config.write_text(CONFIG.format(**values, steps=args.steps, parallel=args.parallel), encoding="utf-8")
        began = time.monotonic()
        start(args, folder / "whole.toml", runs["whole"]).wait()
        seconds = time.monotonic() - began
        steps_at, restarts = kill_often(args, folder / "killed.toml", runs["killed"], rng)
        sys.stdout.write(
            f"{args.kind}, {args.steps} steps in {seconds:.0f} s undisturbed, {args.ranks} rank(s), {args.parallel}: "
            f"killed {len(steps_at)} times, after steps {', '.join(map(str, steps_at))}; {restarts} starts\n"
        )
        return compare(runs["whole"], runs["killed"], args.steps)


def start(args: argparse.Namespace, config: Path, run: Path) -> subprocess.Popen[bytes]:
    """A process (with several ranks torchrun and its own) in a group of its own, which goes on where there is a run."""
    command = [sys.executable, "-m"]
    if args.ranks > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(args.ranks), "-m"]
    command += ["valle.train.loop", args.kind, str(config)]
    if checkpoints(run / "checkpoints"):
        command.append("--resume")
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=quiet, stderr=quiet, cwd=ROOT, start_new_session=True, env={**os.environ})


def kill_often(args: argparse.Namespace, config: Path, run: Path, rng: random.Random) -> tuple[list[int], int]:
    """Run to the end with ``args.kills`` kills, each where the log has grown by a number of lines drawn at random."""
    steps_at: list[int] = []
    n_starts = 0
    while True:
        process = start(args, config, run)
        n_starts += 1
        if len(steps_at) == args.kills:
            process.wait()
            return steps_at, n_starts
        left = args.steps - last_step(run)
        # So far that the kills spread over the whole run; a little before the wait ends lies any moment of a step.
        goal = last_step(run) + rng.randint(1, max(1, round(2 * left / (args.kills - len(steps_at) + 1))))
        while process.poll() is None and last_step(run) < goal:
            time.sleep(rng.uniform(0.001, 0.03))
        if process.poll() is None:
            for pid in [process.pid, *descendants(process.pid)]:  # torchrun's ranks are in groups of their own
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
            steps_at.append(last_step(run))
        elif last_step(run) >= args.steps:
            raise SystemExit(f"the run ended after {len(steps_at)} of {args.kills} kills; give more --steps")
        else:
            raise SystemExit(f"the run failed at step {last_step(run)}")


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid:
                found += [int(folder.name), *descendants(int(folder.name))]
    return found


def last_step(run: Path) -> int:
    """The step of the last whole line of the log."""
    try:
        lines = (run / "log.jsonl").read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return 0
    whole = [line for line in lines[-2:] if line.endswith(b"\n")]
    return int(json.loads(whole[-1])["step"]) if whole else 0


def compare(whole: Path, killed: Path, steps: int) -> int:
    a, b = (load_checkpoint(run / "checkpoints") for run in (whole, killed))
    wrong = [f"steps {a.step} and {b.step}"] if not a.step == b.step == steps else []
    n = 0
    for group, named in a.tensors.items():
        for name, tensor in named.items():
            n += 1
            if not tensor.equal(b.tensors[group][name]):
                wrong.append(f"{group}/{name}")
    losses = [
        {e["step"]: e["train/loss"] for e in map(json.loads, (run / "log.jsonl").open()) if "train/loss" in e}
        for run in (whole, killed)
    ]
    wrong += [f"loss of step {s}" for s in losses[0] if losses[0][s] != losses[1].get(s)]
    wrong += [f"left behind: {f.name}" for f in killed.rglob("*.tmp") if f.parent.name != "checkpoints"]
    sys.stdout.write(f"{n} tensors and {len(losses[0])} losses compared: {len(wrong)} differ\n")
    sys.stdout.writelines(f"  {line}\n" for line in wrong[:20])
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
