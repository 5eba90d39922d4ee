"""A model written once loads for ever and says the same: ``tests/data/golden``, a few kB of random weights.

When a format changes on purpose, what was written before must still load, or the format's number must change with a
clear error. Only then write it anew: ``python tests/train/test_golden.py``.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from aligners import tiny_aligner
from valle.codec.spectral import SpectralCodec, SpectralCodecConfig
from valle.model.ar import AR, ARBatch, ARConfig
from valle.model.nar import NAR, NARBatch, NARConfig, draw_prompt
from valle.model.transformer import TransformerConfig
from valle.pretrained import ModelInfo, Pretrained, load_pretrained, save_pretrained
from valle.text import PhonemeInventory

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def outputs(model: Pretrained, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Logits of both models for a padded batch, and the wave of its first row."""
    phonemes, phoneme_lens, codes, code_lens = (inputs[n] for n in ("phonemes", "phoneme_lens", "codes", "code_lens"))
    in_loss = torch.ones(codes.shape[0], codes.shape[2], dtype=torch.bool)
    prompt, prompt_lens = codes[:, :, :4], torch.tensor([4, 3])
    with torch.no_grad():
        out = {"ar": model.ar(ARBatch(phonemes, phoneme_lens, codes[:, 0], code_lens))}
        for stage in (2, 8):
            batch = NARBatch(phonemes, phoneme_lens, codes, code_lens, prompt, prompt_lens, in_loss)
            out[f"nar_{stage}"] = model.nar(batch, stage)
        out["wav"] = model.codec.decode(codes[:1])
    return out


def test_golden_model_says_the_same():
    model = load_pretrained(GOLDEN / "model", "cpu", "fp32")
    stored = load_file(GOLDEN / "expected.safetensors")
    got = outputs(model, stored)
    assert set(got) == {"ar", "nar_2", "nar_8", "wav"}
    for name, value in got.items():
        torch.testing.assert_close(value, stored[name], rtol=1e-5, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
        assert float(value.std()) > 1e-3  # not all the same


def aligned_outputs(model: Pretrained, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same of a model with every departure, and where its aligner finds the phonemes of a noise."""
    assert model.aligner is not None
    phonemes, phoneme_lens, codes, code_lens, durations = (
        inputs[n] for n in ("phonemes", "phoneme_lens", "codes", "code_lens", "durations")
    )
    with torch.no_grad():
        said = model.ar.outputs(ARBatch(phonemes, phoneme_lens, codes[:, 0], code_lens, durations))
        assert said.moves is not None
        batch = draw_prompt(
            phonemes, phoneme_lens, codes, code_lens, prompt_frames=3, mode="prefix", durations=durations
        )
        together = model.nar.all_stages(batch)
        assert together.vectors is not None
        return {
            "ar": said.codes,
            "moves": said.moves,
            "nar_2": together.logits[0],
            "nar_8": together.logits[6],
            "vectors": together.vectors,
            "wav": model.codec.decode(codes[:1]),
            "aligned": model.aligner.align(inputs["noise"], phonemes[0].tolist()).durations.float(),
        }


def test_golden_aligned_model_says_the_same():
    model = load_pretrained(GOLDEN / "aligned", "cpu", "fp32")
    stored = load_file(GOLDEN / "expected-aligned.safetensors")
    got = aligned_outputs(model, stored)
    for name, value in got.items():
        # The noise in the wave is drawn anew, and no more exact than the library that draws it.
        tolerance = 1e-3 if name == "wav" else 1e-5
        torch.testing.assert_close(
            value, stored[name], rtol=1e-5, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )
        assert float(value.std()) > 1e-3


def write_aligned() -> None:
    """Make ``tests/data/golden/aligned``."""
    torch.manual_seed(1)
    transformer = TransformerConfig(dim=16, n_layers=1, n_heads=2, ff_dim=16, dropout=0.1)
    sizes = {"encoder_dim": 8, "encoder_layers": 1, "decoder_dim": 8, "decoder_layers": 1, "codebook_dim": 4}
    codec = SpectralCodec(SpectralCodecConfig(**sizes, n_mels=8, codebook_size=16, decoder="harmonic")).eval()
    codec.decoder.filters.bias.data += 4
    inventory = PhonemeInventory("golden-2", tuple(" ˈabcde"))
    n, kinds = len(inventory), inventory.kinds
    ar = AR(ARConfig(n_phonemes=n, codebook_size=16, transformer=transformer, alignment=True, phoneme_kinds=kinds))
    nar = NAR(
        NARConfig(
            n_phonemes=n,
            codebook_size=16,
            transformer=transformer,
            alignment=True,
            prompt_summary=True,
            one_pass=True,
            local_layers=1,
            codebook_dim=4,
            complete_by="vectors",
        )
    )
    nar.begin_with(codec.codebooks())
    nar.set_codebooks(codec.codebooks())
    info = ModelInfo(name="golden-2", codec_fingerprint="", inventory_version="")
    folder = GOLDEN / "aligned"
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"codec": codec, "inventory": inventory, "info": info, "aligner": tiny_aligner(inventory)}
    save_pretrained(folder, ar=ar.eval(), nar=nar.eval(), **parts)
    inputs = {
        "phonemes": torch.tensor([[1, 2, 0, 3, 4], [5, 6, 0, 0, 0]]),
        "phoneme_lens": torch.tensor([5, 2]),
        "durations": torch.tensor([[0, 4, 1, 2, 2], [3, 4, 0, 0, 0]]),
        "codes": torch.randint(16, (2, 8, 9)),
        "code_lens": torch.tensor([9, 7]),
        "noise": torch.randn(1, 4000) * 0.1,
    }
    expected = aligned_outputs(load_pretrained(folder, "cpu", "fp32"), inputs)
    save_file({**inputs, **expected}, GOLDEN / "expected-aligned.safetensors")


def write() -> None:
    """Make ``tests/data/golden``."""
    torch.manual_seed(0)
    transformer = TransformerConfig(dim=16, n_layers=1, n_heads=2, ff_dim=16, dropout=0.1)
    sizes = {"encoder_dim": 8, "encoder_layers": 1, "decoder_dim": 8, "decoder_layers": 1, "codebook_dim": 4}
    codec = SpectralCodec(SpectralCodecConfig(**sizes, n_mels=8, codebook_size=16)).eval()
    ar = AR(ARConfig(n_phonemes=6, codebook_size=16, transformer=transformer)).eval()
    nar = NAR(NARConfig(n_phonemes=6, codebook_size=16, transformer=transformer)).eval()
    for parameter in nar.transformer.parameters():  # so that the stage matters
        parameter.data += 0.1 * torch.randn_like(parameter)
    inventory = PhonemeInventory("golden", tuple(" abcde"))
    info = ModelInfo(name="golden", codec_fingerprint="", inventory_version="")
    (GOLDEN / "model").mkdir(parents=True, exist_ok=True)
    save_pretrained(GOLDEN / "model", ar=ar, nar=nar, codec=codec, inventory=inventory, info=info)
    inputs = {
        "phonemes": torch.randint(6, (2, 5)),
        "phoneme_lens": torch.tensor([5, 3]),
        "codes": torch.randint(16, (2, 8, 9)),
        "code_lens": torch.tensor([9, 7]),
    }
    expected = outputs(load_pretrained(GOLDEN / "model", "cpu", "fp32"), inputs)
    save_file({**inputs, **expected}, GOLDEN / "expected.safetensors")


if __name__ == "__main__":
    write()
    write_aligned()
