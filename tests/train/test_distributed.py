"""Two ranks equal one rank with accumulation; and the loop runs where only torch, safetensors and tqdm are."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_loop import config_file, last_tensors, log

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


def test_two_ranks_equal_one_with_accumulation_on_a_bare_machine(tmp_path, make_pack, monkeypatch):
    monkeypatch.setattr("valle.train.spikes.WINDOW", 1)
    pack = make_pack({"train": [30, 41, 38, 55, 47, 33, 62, 29], "dev": [40]})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    steps = {"max_steps": 4, "max_spike": 1.01}  # a step whose gradient grew is skipped
    two = config_file(tmp_path, pack, accumulate=1, **steps).rename(tmp_path / "two.toml")
    one = config_file(tmp_path, pack, accumulate=2, **steps)
    environment = {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    command = [sys.executable, "-c", BARE, "nar"]
    ranks = [
        subprocess.Popen([*command, str(two), "--out", str(tmp_path / "two")], env={**environment, "RANK": str(rank)})
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]

    from valle.train.loop import train

    a, b = last_tensors(train("nar", one, out=tmp_path / "one")), last_tensors(tmp_path / "two" / "nar")
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        torch.testing.assert_close(b[name], tensor, rtol=0, atol=1e-7, msg=name)
    last, last_of_two = log(tmp_path / "one" / "nar")[-2], log(tmp_path / "two" / "nar")[-2]
    assert last["train/skipped"] == last_of_two["train/skipped"] >= 1
    assert last["train/padding"] == pytest.approx(last_of_two["train/padding"], abs=1e-12)
