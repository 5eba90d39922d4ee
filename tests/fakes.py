"""A codec and an inventory of letters, for the tests of preparing: quick, and easy to foretell."""

import torch

from valle.text import PhonemeInventory

INVENTORY = PhonemeInventory("test", (" ", *"abcdefghijklmnopqrstuvwxyz"))


class FakeCodec:
    """Codes that follow the samples; counts what it encodes."""

    sample_rate, hop_length, n_quantizers, codebook_size, frame_rate = 24000, 320, 8, 1024, 75.0

    def __init__(self):
        self.encoded = 0

    def to(self, device):
        return self

    def eval(self):
        return self

    def fingerprint(self):
        return "fake"

    def encode(self, wav):
        self.encoded += 1
        assert wav.shape[:2] == (1, 1)
        wav = torch.nn.functional.pad(wav[0, 0], (0, -wav.shape[2] % 320)).view(-1, 320)
        level = (wav.square().mean(1).sqrt() * 1000).long().clamp(max=1000)  # [T]
        return (level + torch.arange(8).unsqueeze(1)).unsqueeze(0)  # [1, 8, T]
