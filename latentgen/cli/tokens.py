"""`latentgen tokens`: a prompt as the text encoder reads it, without loading a network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentgen.cli import options
from latentgen.cli.boundary import escape as escape_line
from latentgen.cli.model_names import resolve_model
from latentgen.cli.prompt_syntax import Embeddings, Plain
from latentgen.prompts.syntax import ParsedPrompt, escape, parse_prompt
from latentgen.request import check_text

if TYPE_CHECKING:
    from latentgen.models.tokenizer import Tokenizer
    from latentgen.prompts.chunks import Chunk, Token


def tokens(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="A prompt as for `generate`.")],
    model: options.Model = None,
    embedding: Embeddings = None,
    plain_prompt: Plain = False,
    json_output: options.Json = False,
) -> None:
    """Show the tokens of a prompt: their ids, weights and chunks.

    A token that ends with a hyphen goes on in the next one.

    latentgen tokens "a (red:1.3) lighthouse, fog BREAK oil painting"
    """
    from latentgen.checkpoints.layout import read_config
    from latentgen.cli.embeddings import look_at_embeddings

    check_text("prompt", prompt)
    parsed = parse_prompt(escape(prompt) if plain_prompt else prompt)
    folder = resolve_model(model)
    files = look_at_embeddings(embedding, read_config(folder)) if embedding else []
    from latentgen.checkpoints.tokenizers import load_tokenizer
    from latentgen.prompts.chunks import chunk_prompt

    tokenizer = load_tokenizer(folder)
    vectors = {file.name: file.vectors for file in files}
    chunks = chunk_prompt(parsed, tokenizer, vectors)
    if json_output:
        print(json.dumps(_as_json(prompt, parsed, chunks, tokenizer, vectors)))
    else:
        _print_table(parsed, chunks, tokenizer, vectors)


def _as_json(
    prompt: str, parsed: ParsedPrompt, chunks: Sequence[Chunk], tokenizer: Tokenizer, vectors: Mapping[str, int]
) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "chunks": [[_token_json(token, tokenizer) for token in chunk] for chunk in chunks],
        "tokens": sum(len(chunk) for chunk in chunks),
        "loras": [{"name": tag.name, "scale": tag.scale} for tag in parsed.loras],
        "embeddings": [{"name": name, "vectors": vectors[name]} for name in _embeddings_in(chunks)],
        "unsupported": list(parsed.unsupported),
    }


def _token_json(token: Token, tokenizer: Tokenizer) -> dict[str, Any]:
    if token.embedding is not None:
        return {"embedding": token.embedding, "vector": token.vector, "weight": token.weight}
    return {"token": tokenizer.spell(token.id), "id": token.id, "weight": token.weight}


def _print_table(
    parsed: ParsedPrompt, chunks: Sequence[Chunk], tokenizer: Tokenizer, vectors: Mapping[str, int]
) -> None:
    rows = [("chunk", "place", "token", "id", "weight")]
    for number, chunk in enumerate(chunks, start=1):
        for place, token in enumerate(chunk, start=1):
            rows.append((str(number), str(place), *_token_columns(token, tokenizer), f"{token.weight:.4g}"))
    width = max(len(row[2]) for row in rows)
    for chunk, place, token, number, weight in rows:
        print(f"{chunk:>5}  {place:>5}  {token:{width}}  {number:>6}  {weight:>6}")
    print()
    for number, chunk in enumerate(chunks, start=1):
        print(f"chunk {number}: {len(chunk)} of 75 tokens")
    for tag in parsed.loras:
        print(f"LoRA {escape_line(tag.name)}: scale {tag.scale:g}")
    for name in _embeddings_in(chunks):
        print(f"embedding {escape_line(name)}: {vectors[name]} vectors")
    for text in parsed.unsupported:
        print(f"not supported, read as words: {escape_line(text)}")


def _token_columns(token: Token, tokenizer: Tokenizer) -> tuple[str, str]:
    """Text and id."""
    if token.embedding is not None:
        return f"{escape_line(token.embedding)} [{token.vector + 1}]", ""
    text = tokenizer.spell(token.id)
    return escape_line(text[:-1] if text.endswith(" ") else f"{text}-"), str(token.id)


def _embeddings_in(chunks: Sequence[Chunk]) -> list[str]:
    return list(dict.fromkeys(token.embedding for chunk in chunks for token in chunk if token.embedding is not None))
