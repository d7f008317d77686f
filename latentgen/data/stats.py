"""What a data set consists of, counted: sizes, aspect ratios, captions, words, labels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from statistics import mean, median
from typing import Any, cast

from latentgen.data.record import Record
from latentgen.data.scan import Scan
from latentgen.models.tokenizer import CHUNK_LENGTH

ASPECT_EDGES = (0.5, 0.67, 0.8, 0.95, 1.05, 1.25, 1.5, 2.0)
"""Bins of width / height: from tall to wide, each 1.2 to 1.3 times the last; the middle one is square."""
SHOWN = 15
"""Most frequent words."""
VALUES_SHOWN = 5
"""Most frequent sizes, and values of a label."""
FUNCTION_WORDS = frozenset(
    ("a", "an", "and", "at", "by", "for", "from", "in", "is", "it", "of", "on", "or", "the", "to", "with")
)
"""Not counted among the words: they say nothing of what is shown."""


def data_stats(scanned: Scan, count_tokens: Callable[[str], int]) -> dict[str, Any]:
    """Figures of the pictures that can be used. count_tokens: of a caption, without its start and end."""
    records = scanned.used
    captions = [caption for record in records for caption in record.captions]
    tokens = [count_tokens(caption) for caption in captions]
    widths, heights = zip(*(record.size_px for record in records), strict=True)
    sizes = Counter(f"{width}x{height}" for width, height in zip(widths, heights, strict=True))
    return {
        "found": scanned.found,
        "pictures": len(records),
        "skipped": scanned.reasons,
        "identical pictures": scanned.identical,
        "disk MB": round(sum(record.size_bytes for record in records) / 1e6, 1),
        "width": _spread(widths),
        "height": _spread(heights),
        "sizes": dict(sizes.most_common(VALUES_SHOWN)),
        "aspect ratios": _histogram(width / height for width, height in zip(widths, heights, strict=True)),
        "captions": len(captions),
        "distinct captions": len(set(captions)),
        "captions per picture": _spread([len(record.captions) for record in records]),
        "tokens per caption": _spread(tokens),
        f"captions above {CHUNK_LENGTH} tokens": sum(count > CHUNK_LENGTH for count in tokens),
        "words": dict(_words(captions).most_common(SHOWN)),
        "labels": _labels(records),
    }


def _spread(values: Sequence[int]) -> dict[str, float]:
    return {"min": min(values), "median": median(values), "mean": round(mean(values), 2), "max": max(values)}


def _histogram(aspects: Iterable[float]) -> dict[str, int]:
    """Pictures in each bin of `ASPECT_EDGES`, the outer two open."""
    edges = ASPECT_EDGES
    names = [f"below {edges[0]}", *(f"{a}-{b}" for a, b in pairwise(edges)), f"above {edges[-1]}"]
    counts = [0] * len(names)
    for aspect in aspects:
        counts[sum(aspect >= edge for edge in edges)] += 1
    return dict(zip(names, counts, strict=True))


def _words(captions: Iterable[str]) -> Counter[str]:
    """How many captions hold each word."""
    words: Counter[str] = Counter()
    for caption in captions:
        words.update(set(re.findall(r"[^\W\d_]+", caption.lower())) - FUNCTION_WORDS)
    return words


def _labels(records: Sequence[Record]) -> dict[str, dict[str, int]]:
    """For each label that is a word, a number or a list of them, its most frequent values; not where all differ."""
    values: dict[str, Counter[str]] = {}
    for record in records:
        for name, value in record.labels.items():
            each = cast("list[Any]", value) if isinstance(value, list) else [value]
            plain = [str(one) for one in each if isinstance(one, str | int | float)]
            values.setdefault(name, Counter()).update(plain)
    return {
        name: dict(counts.most_common(VALUES_SHOWN))
        for name, counts in sorted(values.items())
        if counts and (len(counts) < counts.total() or counts.total() == 1)
    }
