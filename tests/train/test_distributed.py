"""Several ranks equal one with accumulation, go on from what others saved, and survive one that dies.

The loop runs where only torch, safetensors and tqdm are.
"""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_loop import FRAMES, config_file, log, untimed

from valle.errors import ValleError
from valle.train.checkpoint import load_checkpoint
from valle.train.config import RunConfig, load_train_config
from valle.train.distributed import Ranks, batches_per_rank, rows_of
from valle.train.loop import Trainer, train

SRC = Path(__file__).parents[2] / "src"

# The NAR, because its gradients are of other weights at every stage. Other packages than these three fail to import.
BARE = """
import sys

ABSENT = {"soundfile", "soxr", "phonemizer", "espeakng_loader", "num2words", "tensorboard", "tyro", "rich", "mutagen"}

class OnlyTheseThree:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, OnlyTheseThree())
import torch
torch.set_num_threads(1)
from valle.train import spikes
from valle.train.loop import main
spikes.WINDOW = 1
sys.exit(main(sys.argv[1:]))
"""


# The same with a rank that dies in a step, once: as when a machine is lost.
DIES = """
import os, pathlib, sys
import torch
torch.set_num_threads(1)
from valle.train import loop
original = loop.Trainer.train_step

def train_step(self, means):
    mark = pathlib.Path(os.environ["DIED"])
    if self.step == 3 and self.ranks.rank == 1 and not mark.exists():
        self.writer.wait()
        mark.touch()
        os._exit(9)
    return original(self, means)

loop.Trainer.train_step = train_step
sys.exit(loop.main(sys.argv[1:]))
"""


def environment() -> dict[str, str]:
    """Of a process that imports from here, on one thread."""
    return {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def run_ranks(n: int, *args: str, program: str = BARE, timeout: float = 240) -> None:
    """A program with ``args`` in n processes without torchrun; by default the loop, on a bare machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    there = {**environment(), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(n)}
    command = [sys.executable, "-c", program, *args]
    ranks = [subprocess.Popen(command, env={**there, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(n)]
    try:
        assert [process.wait(timeout=timeout) for process in ranks] == [0] * n
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def config_of(tmp_path: Path, pack: Path, name: str, **changes) -> str:
    return str(config_file(tmp_path, pack, **changes).rename(tmp_path / f"{name}.toml"))


def whole_tensors(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of the newest checkpoint, put together."""
    groups = load_checkpoint(run / "checkpoints").tensors
    return {f"{group}/{name}": tensor for group, named in groups.items() for name, tensor in named.items()}


def assert_same(run: Path, other: Path, atol: float) -> None:
    a, b = whole_tensors(run), whole_tensors(other)
    assert a.keys() == b.keys()
    assert {name.split("/")[0] for name in a} == {"model", "optimizer", "average"}
    for name, tensor in a.items():
        torch.testing.assert_close(b[name], tensor, rtol=0, atol=atol, msg=name)


def test_two_ranks_equal_one_with_accumulation_on_a_bare_machine(tmp_path, make_pack, monkeypatch):
    monkeypatch.setattr("valle.train.spikes.WINDOW", 1)
    pack = make_pack({"train": FRAMES, "dev": [40]})
    steps = {"max_steps": 4, "max_spike": 1.01}  # a step whose gradient grew is skipped
    run_ranks(2, "nar", config_of(tmp_path, pack, "two", accumulate=1, **steps), "--out", str(tmp_path / "two"))
    train("nar", config_of(tmp_path, pack, "one", accumulate=2, **steps), out=tmp_path / "one")
    assert_same(tmp_path / "one" / "nar", tmp_path / "two" / "nar", atol=1e-7)
    last, last_of_two = log(tmp_path / "one" / "nar")[-2], log(tmp_path / "two" / "nar")[-2]
    assert last.keys() == last_of_two.keys()
    for name in ("train/loss", "train/top10", *(key for key in last if key.startswith("train/loss_"))):
        assert last[name] == pytest.approx(last_of_two[name], abs=1e-6)  # of what both ranks have read
    assert last["train/skipped"] == last_of_two["train/skipped"] >= 1
    assert last["train/padding"] == pytest.approx(last_of_two["train/padding"], abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "changes"), [("ar", {"alignment": True, "activation_checkpointing": True}), ("nar", {})]
)
def test_two_ranks_that_share_the_model_out_equal_one_after_20_steps(kind, changes, tmp_path, make_pack):
    pack = make_pack({"train": FRAMES, "dev": [40, 50]}, aligned=bool(changes))
    # Adam moves a number whose gradient is rounding alone, as that of the keys' bias is, by as much as all others; not
    # with this eps.
    steps = {"max_steps": 20, "eval_every": 10, "checkpoint_every": 7, "eps": 1e-4, **changes}
    two, one = tmp_path / "two" / kind, tmp_path / "one" / kind
    config = config_of(tmp_path, pack, "two", accumulate=1, parallel="fsdp", **steps)
    run_ranks(2, kind, config, "--out", str(two.parent))
    train(kind, config_of(tmp_path, pack, "one", accumulate=2, **steps), out=one.parent)
    assert_same(one, two, atol=1e-5)
    pieces = [f.name for f in sorted((two / "checkpoints" / "step-00000020").glob("model*"))]
    assert pieces == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    judged = [[event["dev/loss"] for event in log(run) if "dev/loss" in event] for run in (one, two)]
    assert len(judged[0]) == 2
    assert judged[0] == pytest.approx(judged[1], abs=1e-4)
    a, b = (load_file(run / "best" / "model.safetensors") for run in (one, two))
    for name, tensor in a.items():
        torch.testing.assert_close(b[name], tensor, rtol=0, atol=1e-5, msg=name)


def test_what_two_ranks_saved_goes_on_with_one_and_with_three_and_in_the_other_way(tmp_path, make_pack):
    pack = make_pack({"train": [*FRAMES, 44, 36, 58, 49], "dev": [40]})
    steps = {"batches_per_step": 6, "checkpoint_every": 4, "max_frames": 70, "max_seconds": 0.9, "eps": 1e-4}
    config = config_of(tmp_path, pack, "two", max_steps=4, parallel="fsdp", **steps)
    run_ranks(2, "ar", config, "--out", str(tmp_path / "two"))
    for n, parallel in ((1, "ddp"), (3, "fsdp"), (2, "ddp")):
        out = tmp_path / f"{parallel}{n}"
        shutil.copytree(tmp_path / "two", out)
        config = config_of(tmp_path, pack, out.name, max_steps=8, parallel=parallel, **steps)
        if n == 1:
            train("ar", config, out=out, resume=True)
        else:
            run_ranks(n, "ar", config, "--resume", "--out", str(out))
    for other in ("fsdp3", "ddp2"):
        assert log(tmp_path / other / "ar")[-1]["step"] == 8
        assert_same(tmp_path / "ddp1" / "ar", tmp_path / other / "ar", atol=1e-5)
    message = "batches_per_step is 6, which 4 ranks cannot share evenly; start one of 1, 2, 3, 6 ranks"
    with pytest.raises(ValleError, match=message):
        batches_per_rank(6, 1, 4)
    assert [batches_per_rank(6, 1, 3), batches_per_rank(0, 5, 3)] == [2, 5]
    with pytest.raises(ValleError, match="set one of them"):
        RunConfig(batches_per_step=6, accumulate=2)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_torchrun_starts_a_run_again_whose_rank_died_and_nothing_is_lost(parallel, tmp_path, make_pack):
    pack = make_pack({"train": FRAMES, "dev": [40]})
    steps = {"max_steps": 5, "checkpoint_every": 2, "eval_every": 5, "parallel": parallel}
    config = config_of(tmp_path, pack, "run", **steps)
    (tmp_path / "dies.py").write_text(DIES)
    for name in ("died", "lived"):
        if name == "lived":
            (tmp_path / "lived.mark").touch()
        subprocess.run(
            [
                sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                "--max-restarts", "1", str(tmp_path / "dies.py"), "ar", config, "--out", str(tmp_path / name),
            ],
            env={**environment(), "DIED": str(tmp_path / f"{name}.mark")}, check=True, timeout=240,
        )  # fmt: skip
    assert (tmp_path / "died.mark").exists()
    assert_same(tmp_path / "lived" / "ar", tmp_path / "died" / "ar", atol=0)  # on two ranks too: bit for bit
    assert untimed(tmp_path / "lived" / "ar") == untimed(tmp_path / "died" / "ar")


@pytest.mark.parametrize(("n", "size"), [(7, 2), (2, 3), (1, 4), (8, 4), (9, 4)])
def test_rows_are_dealt_out_as_torch_chunks_them(n, size):
    chunks = [len(chunk) for chunk in torch.arange(n).chunk(size)]
    dealt = [torch.arange(n)[rows_of(n, rank, size)] for rank in range(size)]
    assert [len(rows) for rows in dealt] == chunks + [0] * (size - len(chunks))
    assert torch.equal(torch.cat(dealt), torch.arange(n))


def test_codebooks_that_ranks_draw_are_those_of_the_main_rank(tmp_path, make_pack):
    """What one rank loads before it draws, another loads afterwards."""
    pack = make_pack({"train": FRAMES, "dev": [40]})
    run_ranks(2, config_of(tmp_path, pack, "two", parallel="fsdp"), program=DRAWS)


# A validation that takes longer than what is between two checkpoints.
SLOW = """
import sys, time
from valle.train import loop
original = loop.validate

def validate(*args):
    time.sleep(3)
    return original(*args)

loop.validate = validate
sys.exit(loop.main(sys.argv[1:]))
"""


def test_ranks_save_together_though_the_main_one_was_busy_as_time_ran_out(tmp_path, make_pack):
    pack = make_pack({"train": FRAMES, "dev": [40]})
    steps = {"max_steps": 5, "eval_every": 2, "checkpoint_minutes": 0.04, "parallel": "fsdp"}
    config = config_of(tmp_path, pack, "slow", **steps)
    run_ranks(2, "ar", config, "--out", str(tmp_path / "slow"), program=SLOW, timeout=120)
    assert load_checkpoint(tmp_path / "slow" / "ar" / "checkpoints").step == 5


def test_ranks_that_would_go_on_from_different_steps_are_told_so(tmp_path, make_pack, monkeypatch):
    pack = make_pack({"train": FRAMES, "dev": [40]})
    trainer = Trainer("ar", load_train_config(config_of(tmp_path, pack, "run")), tmp_path / "run" / "ar")
    monkeypatch.setattr(Ranks, "total", lambda self, values: [0.0, 4.0])  # of a rank that sees another folder
    with pytest.raises(ValleError, match="would go on from different steps, 0, 4; all need to see the same folder"):
        trainer.start(resume=False)


# Ranks whose weights differ before the model is shared out.
DRAWS = """
import pathlib, sys
import torch
from valle.train import loop
original = loop.make_task

def make_task(*args):
    task = original(*args)
    torch.manual_seed(torch.distributed.get_rank() + 1)
    for p in task.model.parameters():
        p.data = torch.rand_like(p) + torch.distributed.get_rank()
    return task

loop.make_task = make_task
trainer = loop.Trainer("ar", loop.load_train_config(sys.argv[1]), pathlib.Path(sys.argv[1]).parent / "ar")
state = loop.whole_state(trainer.model)
trainer.ranks.leave()
assert all(float(v.max()) <= 1 for k, v in state.items() if v.is_floating_point() and "weight" in k), "mixed"
"""


def test_a_run_of_another_job_is_not_gone_on_with_unasked(tmp_path, make_pack, monkeypatch):
    pack = make_pack({"train": FRAMES, "dev": [40]})
    config = config_of(tmp_path, pack, "run", max_steps=2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first")
    train("ar", config, out=tmp_path / "run")
    train("ar", config, out=tmp_path / "run")  # as torchrun starts it again: there is nothing left to do
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "second")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(ValleError, match="already holds a run"):
        train("ar", config, out=tmp_path / "run")
