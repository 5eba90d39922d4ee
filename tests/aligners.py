"""An aligner that has learnt nothing, for the tests of what uses one."""

import torch

from valle.asr.aligner import Aligner, AlignerConfig
from valle.text import PAUSE, PHONE, PhonemeInventory


def tiny_aligner(inventory: PhonemeInventory) -> Aligner:
    """Three units with random Gaussians."""
    aligner = Aligner(AlignerConfig(inventory.version, inventory.kinds, n_units=3))
    kinds = torch.tensor(inventory.kinds)
    units = torch.arange(len(kinds)) % 3
    aligner.units.copy_(units.where(kinds == PHONE, -1))
    aligner.pauses.copy_((kinds == PAUSE) * 0.5)
    aligner.means.copy_(torch.randn(aligner.means.shape, generator=torch.Generator().manual_seed(0)))
    return aligner.eval()
