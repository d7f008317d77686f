"""What a model has seen: the words of the captions it was trained on, and how many captions held each.

`vocabulary.json` lies beside a model's `model_index.json`, and in `OUT/model` of a `train-unet` run. Of captions it
keeps single words, no sentence. What a model without the file has seen (a single file, somebody else's) nobody knows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from latentgen.errors import ModelLoadError
from latentgen.jsonfile import read_json
from latentgen.prompts.words import content_words, inflections

LEAST_SHARE = 2e-4
"""Of the captions that must hold a word for it to count as seen: rarer ones are slips, or are not learnt."""

Counts = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Words and the numbers of captions that held them, the most frequent first; function words are left out."""

    captions: int
    words: Counts
    scenes: Mapping[str, Counts] = field(default_factory=dict[str, Counts])
    """What the labels of the built-in corpus name, by kind, with the numbers of pictures; empty for other data."""

    def has_seen(self, word: str) -> bool:
        """Whether a caption held the word or one of its inflected forms."""
        return word in self.words or any(form in self.words for form in inflections(word))

    def unseen(self, text: str) -> list[str]:
        """The content words of a text that no caption held, each once, in its order."""
        return [word for word in dict.fromkeys(content_words(text)) if not self.has_seen(word)]

    def __add__(self, other: Vocabulary) -> Vocabulary:
        """What a model has seen that was trained on the one and then on the other."""
        kinds = dict.fromkeys((*self.scenes, *other.scenes))
        return Vocabulary(
            self.captions + other.captions,
            _added(self.words, other.words),
            {kind: _added(self.scenes.get(kind, {}), other.scenes.get(kind, {})) for kind in kinds},
        )

    def to_json(self) -> dict[str, Any]:
        scenes = {"scenes": {kind: dict(counts) for kind, counts in self.scenes.items()}} if self.scenes else {}
        return {"captions": self.captions, **scenes, "words": dict(self.words)}


def count_words(captions: Iterable[str], labels: Iterable[Mapping[str, Any]] = ()) -> Vocabulary:
    """The vocabulary of a data set: of its captions, and of the labels of its pictures where they are the corpus's.

    A word counts once a caption. Words in less than `LEAST_SHARE` of the captions are left out.
    """
    total, words = 0, Counter[str]()
    for caption in captions:
        total += 1
        words.update(set(content_words(caption)))
    frequent = Counter({word: count for word, count in words.items() if count >= LEAST_SHARE * total})
    scenes: dict[str, Counter[str]] = {}
    for each in labels:
        for kind, name in _scene_names(each):
            scenes.setdefault(kind, Counter()).update([name])
    return Vocabulary(total, _sorted(frequent), {kind: _sorted(counts) for kind, counts in scenes.items()})


def read_vocabulary(path: Path) -> Vocabulary | None:
    """The vocabulary in a file; None if there is no such file. Raises ModelLoadError for one that is damaged."""
    if not path.exists():
        return None
    content = read_json(path)
    captions, words, scenes = content.get("captions"), content.get("words"), content.get("scenes", {})
    is_whole = isinstance(scenes, dict) and all(map(_is_counts, (words, *scenes.values())))
    if not isinstance(captions, int) or not is_whole:
        raise ModelLoadError(f"{path} is no list of words that latentgen wrote", hint="drawing does without: delete it")
    return Vocabulary(captions, cast("Counts", words), cast("Mapping[str, Counts]", scenes))


def _is_counts(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    return all(isinstance(count, int) for count in cast("dict[str, object]", value).values())


def _scene_names(labels: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Kind and name of what a picture of the corpus shows, each once; nothing for other labels."""
    subjects = labels.get("subjects")
    if not isinstance(subjects, list):
        return ()
    shown = [each for each in cast("list[object]", subjects) if isinstance(each, Mapping)]
    names = [("nouns", each.get("noun")) for each in shown]
    names += [(f"{kind}s", labels.get(kind)) for kind in ("setting", "time", "weather", "style")]
    names += [("colours", each.get("colour")) for each in shown]
    return dict.fromkeys((kind, name) for kind, name in names if isinstance(name, str))


def _added(some: Counts, others: Counts) -> Counts:
    return _sorted(Counter(some) + Counter(others))


def _sorted(counts: Counter[str]) -> Counts:
    """The most frequent first; equals by the alphabet, so that the same data gives the same file."""
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
