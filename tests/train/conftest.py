import pytest

from packs import make_pack

__all__ = ["make_pack"]


@pytest.fixture(autouse=True)
def short_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run measures what the machine can compute; here it need not do so well."""
    monkeypatch.setattr("valle.train.devices.MEASURE_S", 0.001)
    monkeypatch.setattr("valle.train.devices.CPU_SIZE", 64)
