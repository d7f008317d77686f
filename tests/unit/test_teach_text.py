"""A text encoder that is taught tells more of a scene, and a U-Net that is turned with it sees what it saw."""

from __future__ import annotations

import shutil
import sys
from copy import deepcopy
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from latentgen.checkpoints.folder import load_model, load_text_encoder, load_unet
from latentgen.corpus.records import make_record
from latentgen.corpus.splits import held_out_pairs
from latentgen.models.tokenizer import Tokenizer
from scripts.teach_text import (
    Lessons,
    answers_of,
    main,
    map_between,
    move_apart,
    state_of_the_end,
    teach,
    turn_contexts,
)
from tests.tiny import TINY_UNET, tiny_text_encoder, tiny_unet
from tests.tiny_bundle import MERGES, save_tiny_model


def test_a_turned_unet_takes_the_new_states_for_the_old() -> None:
    torch.manual_seed(0)
    width = TINY_UNET.cross_attention_dim
    new, mapping = torch.randn(5000, width), torch.randn(width, width) / width**0.5
    found, share = map_between(new, new @ mapping)
    torch.testing.assert_close(found.float(), mapping, rtol=1e-2, atol=1e-3)
    assert share == pytest.approx(1, abs=1e-5)
    _, share = map_between(new, new @ mapping + torch.randn(5000, width) * (new @ mapping).std())
    assert share == pytest.approx(0.5, abs=0.03)
    unet, turned = tiny_unet(), tiny_unet()
    turned.load_state_dict(unet.state_dict())
    turn_contexts(turned, mapping.double())
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), torch.randn(2, 77, width)
    with torch.no_grad():
        expected = unet(x, t, context @ mapping)
        torch.testing.assert_close(turned(x, t, context), expected, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(unet(x, t, context), expected, atol=1e-2)


def test_answers_are_those_of_the_scene() -> None:
    several = next(
        record for seed in range(1000)
        if len((record := make_record("heroes", seed, 1)).scene.subjects) == 2 and not record.scene.behind
    )  # fmt: skip
    answers = answers_of(several.labels())
    first, second = several.scene.subjects
    assert (answers["relation"], answers["noun 1"], answers["noun 2"]) == ("beside", first.noun.name, second.noun.name)
    assert (answers["colour 1"], answers["colour 2"]) == (str(first.colour), str(second.colour))
    single = next(record for seed in range(1000) if (record := make_record("heroes", seed, 1)).scene.side == "left")
    answers = answers_of(single.labels())
    assert (answers["relation"], answers["side"], answers["noun 2"]) == ("alone", "left", "none")


def test_no_lesson_is_of_a_held_out_composition() -> None:
    lessons = Lessons.of_scenes(200, 300)
    assert len(lessons.captions) >= 200
    assert all(len(answers) == len(lessons.captions) for answers in lessons.answers.values())
    reserved = {
        caption
        for seed in range(300, 600)
        if held_out_pairs((record := make_record("heroes", seed, 2)).scene)
        for caption in record.captions
    }
    assert reserved
    assert not reserved & set(lessons.captions)


def test_lessons_in_any_colour_tell_of_colours_that_a_noun_never_has() -> None:
    def colours_of_castles(lessons: Lessons) -> set[str]:
        return {c for n, c in zip(lessons.answers["noun 1"], lessons.answers["colour 1"], strict=True) if n == "castle"}

    usual = colours_of_castles(Lessons.of_scenes(600, 300))
    assert usual <= {"white", "gray", "pink", "brown", "blue"}
    assert "purple" in colours_of_castles(Lessons.of_scenes(600, 300, colours="any"))


def test_the_end_is_the_mean_of_all_end_tokens() -> None:
    states = torch.arange(10.0).reshape(1, 5, 2)
    read = state_of_the_end(states, torch.tensor([[7, 3, 9, 9, 9]]), 9)
    torch.testing.assert_close(read, states[:, 2:].mean(dim=1))


def test_it_learns_and_stays_near() -> None:
    torch.manual_seed(0)
    encoder, tokenizer, lessons = tiny_text_encoder(), Tokenizer.published(MERGES), Lessons.of_scenes(400, 0)
    before = deepcopy(encoder)
    notes: list[str] = []
    shares = teach(encoder, before, tokenizer, lessons, 60, report=notes.append)
    assert shares["relation"] > 0.75, "from the words between two things"
    assert len(notes) == 1
    ids = tokenizer.encode(["a red castle on the left"])
    with torch.no_grad():
        away = (encoder(ids) - before(ids)).square().mean() / before(ids).square().mean()
    assert 0 < away < 1


def test_two_words_are_moved_apart() -> None:
    encoder, tokenizer = tiny_text_encoder(), Tokenizer.published(MERGES)
    rows = encoder.text_model.embeddings.token_embedding.weight
    before = rows.clone()
    torch.manual_seed(0)
    move_apart(encoder, tokenizer, "a:b")
    moved = (rows - before).norm(dim=1).nonzero().flatten().tolist()
    assert sorted(moved) == sorted(int(tokenizer.tokenize(word)[0]) for word in ("a", "b"))


def call(*arguments: Path | str) -> None:
    with patch.object(sys, "argv", ["teach_text.py", *map(str, arguments)]):
        main()


def test_a_model_is_written_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_tiny_model(tmp_path / "model")
    with patch("scripts.teach_text.MAPPED_ON", 60):
        call(
            model,
            tmp_path / "taught",
            "--steps",
            "2",
            "--captions",
            "60",
            "--colours",
            "any",
            "--apart",
            "a:b",
            "--apart",
            "c:d",
        )
    out = capsys.readouterr().out
    assert "told from the end of a caption: relation" in out
    assert "of the old ones' variance" in out
    bundle = load_model(tmp_path / "taught")
    old = load_text_encoder(model).state_dict()
    assert any(not torch.equal(value, old[name]) for name, value in bundle.text_encoder.state_dict().items())
    unets = [each.state_dict() for each in (load_unet(model), bundle.unet)]
    changed = {name for name, value in unets[0].items() if not torch.equal(value, unets[1][name])}
    assert changed
    assert all(".attn2.to_k." in name or ".attn2.to_v." in name for name in changed)


def test_a_text_encoder_alone(tmp_path: Path) -> None:
    """The model/ of a train-clip run: its image tower knows another encoder, and stays behind."""
    model = save_tiny_model(tmp_path / "model")
    shutil.rmtree(model / "unet")
    (model / "clip").mkdir()
    call(model, tmp_path / "taught", "--steps", "1", "--captions", "60")
    assert not (tmp_path / "taught" / "clip").exists()
    assert not (tmp_path / "taught" / "unet").exists()
    load_text_encoder(tmp_path / "taught")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("model",), "is there already"),
        (("new", "--apart", "left"), "--apart left: not two words of one token each"),
        (("new", "--apart", "a:a"), "--apart a:a: not two words of one token each"),
        (("new", "--steps", "0"), "--steps 0 is not 1 or more"),
        (("new", "--captions", "0"), "--captions 0 is not 8 or more"),
        (("new", "--seed", "-1"), "--seed -1 is not 0 or more"),
    ],
)
def test_what_is_refused_is_one_line(
    arguments: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny_model(tmp_path / "model")
    with pytest.raises(SystemExit) as ended:
        call("model", *arguments)
    assert str(ended.value).startswith("teach_text.py: ")
    assert says in str(ended.value)
    assert not (tmp_path / "new").exists()
