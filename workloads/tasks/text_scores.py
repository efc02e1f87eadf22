"""How a text is judged by a reference text: BLEU, ROUGE-L, and the facts of a document's ending;
and what stands in for a summary without any model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

LEAD_WORDS = 250
"""Words of a summary that is made without a model."""
_WORD = re.compile(r"\w+(?:[.,'’_-]\w+)*")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


def bleu(said: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of a corpus, 0 to 100 (Papineni et al. 2002, as sacrebleu computes it by default: Post
    2018; tokens as in WMT's 13a, exponential smoothing)."""
    import sacrebleu

    return float(sacrebleu.corpus_bleu(list(said), [list(references)]).score)


def rouge_l(said: Sequence[str], references: Sequence[str]) -> float:
    """Mean over texts of 100 times the F1 of the longest common subsequence of words, stemmed (Lin
    2004, as rouge-score computes it; the whole text is one sequence)."""
    # The package has no types.
    from rouge_score import rouge_scorer  # type: ignore[import-untyped]

    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(references, said, strict=True)
    return float(np.mean([100 * scorer.score(*pair)["rougeL"].fmeasure for pair in pairs]))


def words_of(text: str) -> list[str]:
    """Words, numbers and identifiers in order, without the marks around them: `3.14`, `U.S`,
    `os.path`, `well-known`, `__init__`."""
    return _WORD.findall(text)


def ending_facts(document: str, reference: str) -> set[str]:
    """The reference's facts that only the document's last third gives, lower-cased.

    A fact is a word of the reference that begins with a capital, holds a digit, an underscore or a
    capital further inside: a name, a number, an identifier. It counts where it is among the words
    of the last third of the document (by number of words, from the document as it is before any
    cut) and not among those of the first two thirds, whatever their case. So a word that only
    begins a sentence is hardly ever one: it is in the first two thirds as well.
    """
    words = [word.lower() for word in words_of(document)]
    border = len(words) - len(words) // 3
    only_in_ending = set(words[border:]) - set(words[:border])
    return {word.lower() for word in words_of(reference) if _names(word)} & only_in_ending


def _names(word: str) -> bool:
    return any(letter.isupper() or letter.isdigit() or letter == "_" for letter in word)


def ending_recall(
    said: Sequence[str], documents: Sequence[str], references: Sequence[str]
) -> float | None:
    """The share of the ending's facts, all documents together, that are words of what was said;
    None where no reference has such a fact."""
    found = total = 0
    for text, document, reference in zip(said, documents, references, strict=True):
        facts = ending_facts(document, reference)
        found += len(facts.intersection(word.lower() for word in words_of(text)))
        total += len(facts)
    return found / total if total else None


def lead(document: str) -> str:
    """The document's first words."""
    return " ".join(document.split()[:LEAD_WORDS])


def random_sentences(document: str, generator: np.random.Generator) -> str:
    """Sentences of the document drawn without replacement, up to as many words."""
    sentences = [sentence.split() for sentence in _SENTENCE.split(document) if sentence.strip()]
    words = [word for place in generator.permutation(len(sentences)) for word in sentences[place]]
    return " ".join(words[:LEAD_WORDS])


def baselines(
    documents: Sequence[str],
    references: Sequence[str],
    fitted: Callable[[str], str],
    generator: np.random.Generator,
) -> dict[str, float]:
    """Scores of each document's first words, `baseline_NAME`, and of its random sentences,
    `baseline_random_NAME`, each cut by `fitted`."""
    said = {
        "": [fitted(lead(document)) for document in documents],
        "random_": [fitted(random_sentences(document, generator)) for document in documents],
    }
    found: dict[str, float] = {}
    for name, texts in said.items():
        found[f"baseline_{name}bleu"] = bleu(texts, references)
        found[f"baseline_{name}rouge_l"] = rouge_l(texts, references)
        recall = ending_recall(texts, documents, references)
        if recall is not None:
            found[f"baseline_{name}ending_recall"] = recall
    return found


def frequency_loss(counts: NDArray[np.int64], asked: NDArray[np.int64]) -> float:
    """Mean nats of the tokens asked under how often each token was learnt, one more of each."""
    share = (counts + 1.0) / (counts + 1.0).sum()
    return float(-np.log(share)[asked].mean())
