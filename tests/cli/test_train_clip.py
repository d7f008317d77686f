"""train-clip's own options: the towers it leaves, going on from them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from latentgen.checkpoints.clip_folder import read_image_tower
from latentgen.checkpoints.folder import load_text_encoder, load_tokenizer
from tests.cli.conftest import Cli
from tests.cli.test_train_vae import assert_refused
from tests.tiny import TINY_MODEL
from tests.training.tiny_runs import write_pictures

MERGES = str(TINY_MODEL.text_encoder.vocab_size - 514)
MINIMAL = ("train-clip", "--data", "data", "--max-steps", "2")
QUICK = ("--batch-size", "4", "--warmup", "1", "--threads", "1")


def test_both_towers_are_left_and_gone_on_from(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """clip/ opens in transformers with the text encoder's own numbers; --init starts where it ended."""
    from transformers import CLIPModel

    monkeypatch.setattr("latentgen.cli.train_clip.EMBEDDED", TINY_MODEL)
    write_pictures(tmp_path / "data", 12)
    size = ("--text-layers", "1", "--text-width", "32", "--text-heads", "4", "--merges", MERGES, "--resolution", "32")
    first = cli(*MINIMAL, "--out", "first", *size, *QUICK)
    assert (first.code, first.out) == (0, "first/model\n"), first.err
    assert "retrieval_top1_of_12" in first.err
    assert "picture_retrieval_top1_of_12" in first.err
    assert sorted(path.name for path in Path("first/model").iterdir()) == ["clip", "text_encoder", "tokenizer"]
    encoder = load_text_encoder(Path("first/model"))
    config = encoder.config
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (1, 32, 64)
    theirs, report = CLIPModel.from_pretrained(Path("first/model/clip"), output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = load_tokenizer(Path("first/model")).encode(["a red picture"])
    with torch.inference_mode():
        states = theirs.text_model(ids).last_hidden_state
        torch.testing.assert_close(encoder(ids), states, rtol=1e-4, atol=1e-5)

    # At a learning rate of all but nothing the towers stay what they were.
    still = ("--lr", "1e-12", "--weight-decay", "0", "--no-ema")
    second = cli(*MINIMAL, "--out", "second", "--init", "first/model", *QUICK, *still)
    assert second.code == 0, second.err
    after = CLIPModel.from_pretrained(Path("second/model/clip")).state_dict()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(after[name], value, rtol=1e-6, atol=1e-9)
    assert read_image_tower(Path("second/model")).side_px == 32
    log = [json.loads(line) for line in Path("second/log.jsonl").read_text().splitlines()]
    assert "training_retrieval_top1_of_12" in log[-1]

    # A text encoder alone: with an image tower of the asked-for size.
    (tmp_path / "first/model/clip/model.safetensors").unlink()
    (tmp_path / "first/model/clip/config.json").unlink()
    (tmp_path / "first/model/clip").rmdir()
    third = cli(*MINIMAL, "--out", "third", "--init", "first/model", "--resolution", "16", *QUICK, *still)
    assert third.code == 0, third.err
    for name, value in load_text_encoder(Path("third/model")).state_dict().items():
        torch.testing.assert_close(value, encoder.state_dict()[name], rtol=1e-6, atol=1e-9)
    assert read_image_tower(Path("third/model")).side_px == 16

    for arguments, says in (
        (("--init", "second/model", "--resolution", "64"), "image tower takes 32 px (leave --resolution out)"),
        (("--init", "second/model", "--text-layers", "2"), "--merges and the --text- options are --init's own"),
        (("--init", "second/model", "--merges", "10"), "--merges and the --text- options are --init's own"),
    ):
        assert_refused(cli(*MINIMAL, "--out", "fourth", *arguments), says)
    assert_refused(cli(*MINIMAL, "--out", "fourth", "--init", "nowhere"), "nowhere", code=3)
    assert not (tmp_path / "fourth").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--text-layers", "0"), "'--text-layers'"),
        (("--text-width", "30", "--text-heads", "4"), "width 30 does not split over 4 heads"),
        (("--resolution", "100"), "--resolution 100: sides are multiples of 16"),
        (("--aspect-buckets",), "--aspect-buckets: the image tower sees squares only (leave it out)"),
        (("--weight-decay", "inf"), "--weight-decay inf must be a number"),
    ],
)
def test_refused(arguments: tuple[str, ...], says: str, cli: Cli, tmp_path: Path) -> None:
    assert_refused(cli(*MINIMAL, "--out", "run", *arguments), says)
    assert list(tmp_path.iterdir()) == []
