"""Learning curves from logs: the right numbers in the table, a picture that says what it shows."""

import json

import pytest

from valle.errors import ValleError
from valle.train.curve import main, picture, read_curve, table


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "small" / "ar"
    folder.mkdir(parents=True)
    lines = [{"step": s, "train/loss": 7 - s / 100, "train/top10": s / 1000} for s in range(10, 301, 10)]
    lines += [{"step": s, "dev/loss": 7 - s / 120, "dev/top10": s / 1100} for s in (100, 200, 300)]
    lines.append({"step": 305, "train/loss": None, "train/top10": None})  # a loss that was not finite
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 310, "tra')
    return folder


def test_the_table_has_the_numbers_of_the_log(run):
    lines = table(read_curve(run)).splitlines()
    assert lines[0].startswith("| small/ar, step |")
    assert lines[2:] == [
        "| 100 | 6.00 | 10.0% | 6.17 | 9.1% |",
        "| 200 | 5.00 | 20.0% | 5.33 | 18.2% |",
        "| 300 | 4.00 | 30.0% | 4.50 | 27.3% |",
    ]
    assert len(table(read_curve(run), n_rows=2).splitlines()) == 4


def test_the_picture_has_the_lines_of_the_log_and_says_whose_they_are(run, tmp_path, capsys):
    figure = picture([read_curve(run)] * 2)
    assert [ax.get_ylabel() for ax in figure.axes] == ["loss, nats a code", "top-10 accuracy"]
    for ax, metric in zip(figure.axes, ("loss", "top10"), strict=True):
        lines = ax.get_lines()
        assert len(lines) == 2 * 2  # runs, training and dev
        assert dict(zip(*lines[1].get_data(), strict=True)) == read_curve(run).values[f"dev/{metric}"]
        assert len(lines[0].get_xdata()) == 30
    assert main([str(run), "--out", str(tmp_path / "c.svg")]) == 0
    assert "small/ar, dev" in (tmp_path / "c.svg").read_text()
    assert "| 300 |" in capsys.readouterr().out
    assert main([str(run), "--out", str(tmp_path / "c.png")]) == 0
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert main([str(run), "--out", str(tmp_path / "c.doc")]) == 2
    assert "ends in .svg or .png" in capsys.readouterr().err


def test_a_folder_without_a_log_is_one_sentence(tmp_path, capsys):
    with pytest.raises(ValleError, match=r"has no log\.jsonl; give the folder of a run"):
        read_curve(tmp_path)
    (tmp_path / "log.jsonl").write_text("")
    assert main([str(tmp_path)]) == 2
    assert "tells no step yet" in capsys.readouterr().err
