"""A model's text encoder taught what its captions say of a scene, and its U-Net turned to go on from there.

    python scripts/teach_text.py weights/embedded runs/taught --apart left:right
    python scripts/teach_text.py runs/clip/model runs/taught --apart left:right     (no U-Net yet)
    python scripts/teach_text.py weights/embedded runs/taught --colours any --apart purple:gray

CLIP's loss asks a text encoder for no more than telling a batch's captions apart. The embedded model's had so lost left
and right, and which of two things stands where (`latentgen evaluate words --exchange left:right` tells), and a U-Net on
frozen states cannot learn what they do not hold. Here heads that are thrown away read the labels of scenes (which thing
is on the left, in what colour, how many, where, when) from the mean of the states at a caption's end and behind it,
which are most of the 77; all states are held near what they were. No picture is used, and no scene with a held-out
composition.

What the U-Net makes of a state is kept by a linear map: that from the new states to the old, by least squares, goes
into its keys and values. Then it sees about what it saw, and `train-unet --init` teaches it the rest.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentgen.checkpoints.folder import (
    copied_without,
    load_text_encoder,
    load_tokenizer,
    load_unet,
    save_text_encoder,
    save_unet,
)
from latentgen.corpus.records import Colours, Settings, VocabularyName, make_record
from latentgen.errors import InputError, LatentgenError
from latentgen.models.attention import Attention
from latentgen.models.clip_text import CLIPTextModel
from latentgen.models.tokenizer import Tokenizer
from latentgen.models.unet import UNet

WEIGHTS: Mapping[str, float] = {
    "side": 3,
    **dict.fromkeys(("noun 1", "noun 2", "colour 1", "colour 2"), 2),
    **dict.fromkeys(("style", "time"), 0.5),
}
"""Of the questions' losses, where not 1: what the encoder knows least counts most."""
HELD_OUT = 1000
"""Captions that are asked about and not learnt from."""
BATCH = 128
NEAR_ITS_STATES = 0.7
"""Weight of the squared distance from the old states, relative to their square."""
LR, HEAD_LR, WARMUP_STEPS = 1e-3, 2e-3, 30
PADDINGS = ((2, 0.6), (8, 0.85), (40, 1.0))
"""How many end tokens a batch keeps behind its longest caption, and up to which draw in (0, 1)."""
APART = 0.7
"""How far the embeddings of two words are moved apart, in lengths of one."""
MAPPED_ON = 2400
"""Captions whose states, at all 77 tokens, the linear map is fitted to."""


@dataclass(frozen=True, slots=True)
class Lessons:
    """Captions, and the answers to every question about their scenes."""

    captions: list[str]
    answers: dict[str, list[str]]
    """By question: one a caption."""

    @classmethod
    def of_scenes(
        cls,
        captions: int,
        seed: int,
        vocabulary: VocabularyName = "heroes",
        colours: Colours = "usual",
        settings: Settings = "usual",
    ) -> Lessons:
        """Of seeds from `seed` upwards: two captions a scene, half of the plainest scenes left out."""
        found: list[str] = []
        answers: dict[str, list[str]] = {}
        for number in count(seed):
            record = make_record(vocabulary, number, 2, colours=colours, settings=settings)
            labels = record.labels()
            plain = record.scene.is_single and labels["side"] is None
            if labels["held_out"] or (plain and number % 2):
                continue
            for caption in record.captions:
                found.append(caption)
                for question, answer in answers_of(labels).items():
                    answers.setdefault(question, []).append(answer)
            if len(found) >= captions:
                return cls(found, answers)
        raise AssertionError("seeds do not end")


def answers_of(labels: Mapping[str, Any]) -> dict[str, str]:
    """What a caption may say of its scene: of two things, the first stands on the left or in front."""
    first, second = labels["subjects"][0], dict(enumerate(labels["subjects"])).get(1)
    return {
        "relation": "alone" if second is None else "behind" if labels["behind"] else "beside",
        "count": str(first["count"]),
        "noun 1": first["noun"],
        "colour 1": str(first["colour"]),
        "noun 2": "none" if second is None else second["noun"],
        "colour 2": "none" if second is None else str(second["colour"]),
        **{name: str(labels[name]) for name in ("side", "setting", "time", "weather", "style", "size")},
    }


def state_of_the_end(states: Tensor, token_ids: Tensor, end: int) -> Tensor:
    """The mean of the states (B, N, D) at the end token and those behind it: (B, D)."""
    is_end = (token_ids == end).unsqueeze(-1).float()
    return (states * is_end).sum(dim=1) / is_end.sum(dim=1)


def teach(
    encoder: CLIPTextModel,
    before: CLIPTextModel,
    tokenizer: Tokenizer,
    lessons: Lessons,
    steps: int,
    *,
    report: Callable[[str], None] = print,
) -> dict[str, float]:
    """Train the encoder in place; the share of right answers on the first `HELD_OUT` captions, by question.

    before: the encoder as it was, whose states those of the trained one stay near.
    """
    end = encoder.config.eos_token_id
    options = {question: sorted(set(answers)) for question, answers in lessons.answers.items()}
    right = {
        question: torch.tensor([options[question].index(answer) for answer in answers])
        for question, answers in lessons.answers.items()
    }
    width = encoder.config.hidden_size
    heads = nn.ModuleDict({question: nn.Linear(width, len(known)) for question, known in options.items()})
    for head in heads.children():
        nn.init.normal_(head.weight, std=0.06)  # pyright: ignore[reportArgumentType]
    token_ids = torch.cat(
        [tokenizer.encode(lessons.captions[at : at + 500]) for at in range(0, len(right["side"]), 500)]
    )
    groups = [
        {"params": list(encoder.parameters()), "lr": LR, "weight_decay": 0.0},
        {"params": list(heads.parameters()), "lr": HEAD_LR, "weight_decay": 0.01},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    held_out = min(HELD_OUT, len(token_ids) // 4)
    for step in range(steps):
        chosen = held_out + torch.randint(len(token_ids) - held_out, (BATCH,))
        ids = token_ids[chosen]
        longest = int((ids == end).int().argmax(dim=1).max()) + 1
        drawn = float(torch.rand(()))
        ids = ids[:, : longest + next(more for more, up_to in PADDINGS if drawn <= up_to)]
        with torch.autocast("cpu", torch.bfloat16):
            states = encoder(ids)
            with torch.no_grad():
                old_states = before(ids)
        states, old_states = states.float(), old_states.float()
        read = state_of_the_end(states, ids, end)
        losses = [
            WEIGHTS.get(question, 1) * F.cross_entropy(head(read), right[question][chosen])
            for question, head in heads.items()
        ]
        away = (states - old_states).square().mean() / old_states.square().mean()
        loss = torch.stack(losses).mean() + NEAR_ITS_STATES * away
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            of_all, of_states = float(loss.detach()), float(away.detach())
            report(f"step {step + 1}: loss {of_all:.3f}, {of_states:.3f} of the states' square away")
    encoder.eval()
    with torch.inference_mode():
        asked = token_ids[:held_out]
        read = torch.cat([state_of_the_end(encoder(ids), ids, end) for ids in asked.split(100)])
        return {
            question: float((head(read).argmax(dim=1) == right[question][:held_out]).float().mean())
            for question, head in heads.items()
        }


@torch.no_grad()
def move_apart(encoder: CLIPTextModel, tokenizer: Tokenizer, words: str) -> None:
    """Move the embeddings of two words apart, in place. Raises InputError unless each is one token."""
    rows = encoder.text_model.embeddings.token_embedding.weight
    tokens = [tokenizer.tokenize(word) for word in words.split(":")]
    if len(tokens) != 2 or any(len(each) != 1 for each in tokens) or tokens[0] == tokens[1]:
        raise InputError(f"--apart {words}: not two words of one token each", hint="as left:right")
    (first,), (second,) = tokens
    direction = torch.randn(rows.shape[1])
    direction *= APART * rows[first].norm() / direction.norm()
    rows[first] += direction
    rows[second] -= direction


def map_between(new: Tensor, old: Tensor) -> tuple[Tensor, float]:
    """The matrix (D, D) by which the states new (N, D) tell the old ones best, and how much of their variance it does.

    Least squares, with a trace of ridge; a tenth of the states are not fitted to, and measured on.
    """
    new, old = new.double(), old.double()
    fitted = len(new) - len(new) // 10
    gram = new[:fitted].T @ new[:fitted]
    gram += 1e-4 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    mapping = torch.linalg.solve(gram, new[:fitted].T @ old[:fitted])
    untold = (new[fitted:] @ mapping - old[fitted:]).square().sum()
    return mapping, 1 - float(untold / (old[fitted:] - old[fitted:].mean(dim=0)).square().sum())


@torch.no_grad()
def turn_contexts(unet: UNet, mapping: Tensor) -> None:
    """Make the U-Net take states s where it took s @ mapping, in place; mapping (D, D)."""
    for name, module in unet.named_modules():
        if name.endswith("attn2") and isinstance(module, Attention):
            for layer in (module.to_k, module.to_v):
                layer.weight.copy_(layer.weight.double() @ mapping.T)


@torch.inference_mode()
def states_of(encoder: CLIPTextModel, tokenizer: Tokenizer, captions: list[str]) -> Tensor:
    """At all tokens of all captions, (N, D)."""
    groups = [captions[at : at + 100] for at in range(0, len(captions), 100)]
    return torch.cat([encoder(tokenizer.encode(group)).flatten(0, 1) for group in groups])


def run(
    model: Path,
    out: Path,
    *,
    steps: int,
    captions: int,
    seed: int,
    vocabulary: VocabularyName,
    colours: Colours,
    settings: Settings,
    apart: list[str],
) -> None:
    """Write the model with its text encoder taught and its U-Net, if it has one, turned.

    Raises LatentgenError for what cannot be read, InputError for an out that is there already, for numbers that are no
    lessons and as `move_apart`.
    """
    for name, value, least in (("steps", steps, 1), ("captions", captions, 8), ("seed", seed, 0)):
        if value < least:
            raise InputError(f"--{name} {value} is not {least} or more")
    if out.exists():
        raise InputError(f"{out} is there already", hint="name a new folder")
    encoder, tokenizer = load_text_encoder(model), load_tokenizer(model)
    unet = load_unet(model) if (model / "unet").is_dir() else None
    before = deepcopy(encoder)
    torch.manual_seed(0)
    for words in apart:
        move_apart(encoder, tokenizer, words)
    shares = teach(encoder, before, tokenizer, Lessons.of_scenes(captions, seed, vocabulary, colours, settings), steps)
    print("told from the end of a caption: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items()))
    if unet is not None:
        records = (
            make_record(vocabulary, number, 1, colours=colours, settings=settings) for number in count(seed + 10**7)
        )
        trained_on = (record for record in records if not record.labels()["held_out"])
        fresh = [record.captions[0] for record in islice(trained_on, MAPPED_ON)] + [""] * (MAPPED_ON // 20)
        shuffled = [fresh[int(k)] for k in torch.randperm(len(fresh))]
        mapping, share = map_between(*(states_of(each, tokenizer, shuffled) for each in (encoder, before)))
        print(f"the new states, mapped, tell {share:.1%} of the old ones' variance")
        turn_contexts(unet, mapping)
    # The image tower of a train-clip run knows the encoder as it was; weights may have had other names than ours.
    with copied_without(model, out, "clip", "text_encoder", "unet") as aside:
        save_text_encoder(encoder, aside / "text_encoder")
        if unet is not None:
            save_unet(unet, aside / "unet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=720)
    parser.add_argument("--captions", type=int, default=30000)
    parser.add_argument("--seed", type=int, default=70_000_000, help="of the first scene")
    parser.add_argument("--vocabulary", choices=("heroes", "heroes20"), default="heroes")
    parser.add_argument("--colours", choices=("usual", "any"), default="usual", help="as of `data render`")
    parser.add_argument("--settings", choices=("usual", "any"), default="usual", help="as of `data render`")
    parser.add_argument(
        "--apart", metavar="A:B", action="append", default=[], help="two words whose embeddings are moved apart before"
    )
    options = parser.parse_args()
    try:
        run(
            options.model,
            options.out,
            steps=options.steps,
            captions=options.captions,
            seed=options.seed,
            vocabulary=options.vocabulary,
            colours=options.colours,
            settings=options.settings,
            apart=options.apart,
        )
    except (LatentgenError, OSError) as error:
        sys.exit(f"teach_text.py: {error}")


if __name__ == "__main__":
    main()
