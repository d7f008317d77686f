"""`train-clip`: parse, build the objective, fit, write the text encoder, its tokenizer and both towers."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from latentgen.cli.train_data import open_pictures
from latentgen.cli.train_held_out import ValidationPictures, items_set_aside, open_held_out
from latentgen.cli.train_options import Init, RunOptions, print_settings, run_command
from latentgen.cli.train_run import finish, run_training, say_in, start_process
from latentgen.config import ImageTowerConfig, TextEncoderConfig
from latentgen.errors import InputError
from latentgen.presets import EMBEDDED

DEFAULT_MERGES = 7680

Resolution = Annotated[
    int | None,
    typer.Option("--resolution", min=16, help="Side of the pictures the image tower sees (default: --init's, or 128)."),
]
Merges = Annotated[
    int | None,
    typer.Option(
        "--merges", min=0, max=48894, help="Merges of CLIP's BPE kept: the vocabulary's size less 514 (default: 7680)."
    ),
]
TextLayers = Annotated[
    int | None, typer.Option("--text-layers", min=1, help="Layers of the text tower (default: the embedded model's).")
]
TextWidth = Annotated[
    int | None, typer.Option("--text-width", min=1, help="Width of the text tower: that of the U-Net's context.")
]
TextHeads = Annotated[int | None, typer.Option("--text-heads", min=1, help="Attention heads of the text tower.")]


@run_command(batch_size=128, lr=1e-3, warmup=50, weight_decay=0.05, ema_decay=0.99, log_every=20)
def train_clip(
    run: RunOptions,
    *,
    init: Init = None,
    resolution: Resolution = None,
    merges: Merges = None,
    text_layers: TextLayers = None,
    text_width: TextWidth = None,
    text_heads: TextHeads = None,
    validation_pictures: ValidationPictures = None,
) -> None:
    """Train the text encoder against an image tower; writes OUT/model/text_encoder, tokenizer and clip.

    OUT/model/clip holds both towers in transformers' CLIP format. --init MODEL goes on from its clip/, or with a fresh
    image tower from its text_encoder/ alone.

    latentgen train-clip --data corpus --out runs/clip --max-minutes 10 --mixed-precision bf16

    latentgen train-clip --data corpus --out runs/more --init runs/clip/model --max-minutes 10 --lr 3e-4
    """
    from latentgen.training.sizes import check_patches

    config = run.train_config()
    if run.aspect_buckets:
        raise InputError("--aspect-buckets: the image tower sees squares only", hint="leave it out")
    image = ImageTowerConfig()
    if init is None:
        text = _text_shape(DEFAULT_MERGES if merges is None else merges, text_layers, text_width, text_heads)
    else:
        if any(given is not None for given in (merges, text_layers, text_width, text_heads)):
            raise InputError("--merges and the --text- options are --init's own", hint="leave them out")
        from latentgen.checkpoints.clip_folder import read_init_towers

        text, own_image = read_init_towers(init)
        if own_image is not None:
            image = own_image
            if resolution not in (None, image.side_px):
                hint = "leave --resolution out"
                raise InputError(f"--resolution {resolution}: {init}'s image tower takes {image.side_px} px", hint=hint)
    side_px = image.side_px if resolution is None else resolution
    check_patches(side_px, image.patch_px)
    image = replace(image, side_px=side_px)
    if run.dry_run:
        return print_settings(config, run, {"resolution": side_px, "init": init, "text_encoder": text})
    import torch

    from latentgen.checkpoints.clip_folder import as_open_clip, load_init_towers, save_towers
    from latentgen.checkpoints.folder import load_tokenizer, save_text_encoder
    from latentgen.data.records import fingerprint
    from latentgen.models.tokenizer import Tokenizer
    from latentgen.training.captions import cut_captions
    from latentgen.training.clip import RETRIEVED_AMONG, CLIPObjective, text_encoder_of

    process = start_process(config, run)
    if init is None:
        tokenizer, published = Tokenizer.published(text.vocab_size - 514), {}
    else:
        tokenizer, published = load_tokenizer(init), load_init_towers(init)
        if tokenizer.vocab_size > text.vocab_size:
            raise InputError(f"{init}: its tokenizer has {tokenizer.vocab_size} tokens, its encoder {text.vocab_size}")
    cache = run.out / "cache"
    records, pixels, keep = open_pictures(run, side_px, cache, process)
    cut_captions(records, tokenizer, say_in(process, run))
    held_out = open_held_out(run, side_px, cache, process, count=RETRIEVED_AMONG)
    validation = items_set_aside(validation_pictures, len(records), run, process, held_out=held_out is not None)
    torch.manual_seed(run.seed)
    data = fingerprint(records)
    objective = CLIPObjective(text, image, records, pixels, tokenizer, data, held_out=held_out, validation=validation)
    if init is not None:
        fresh = objective.network.state_dict()
        objective.network.load_state_dict({**fresh, **as_open_clip(published, fresh, init)})
    trained = run_training(objective, config, run, keep)
    if trained is None:
        return
    objective.network.load_state_dict(trained.weights)
    figures = objective.validate(objective.network.eval())
    save_text_encoder(text_encoder_of(trained.weights, text), run.out / "model" / "text_encoder")
    save_towers(trained.weights, text, objective.image, run.out / "model" / "clip")
    tokenizer.save(run.out / "model" / "tokenizer")
    finish(run, trained.outcome, figures)


def _text_shape(merges: int, layers: int | None, width: int | None, heads: int | None) -> TextEncoderConfig:
    """The embedded model's text encoder, with the vocabulary and the size asked for."""
    preset = EMBEDDED.text_encoder
    width = preset.hidden_size if width is None else width
    entries = 2 * 256 + merges  # each byte alone and at a word's end, and the merges; then the two specials
    return replace(
        preset,
        vocab_size=entries + 2,
        bos_token_id=entries,
        eos_token_id=entries + 1,
        pad_token_id=entries + 1,
        hidden_size=width,
        intermediate_size=width * preset.intermediate_size // preset.hidden_size,
        num_hidden_layers=preset.num_hidden_layers if layers is None else layers,
        num_attention_heads=preset.num_attention_heads if heads is None else heads,
    )
