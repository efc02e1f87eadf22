"""Articles of an encyclopaedia as plain text: wikitext without its markup, lead and body apart.

The file is an export of the MediaWiki software (`pages-articles.xml.bz2`). What is no running text
goes: templates, tables, pictures, references, formulas, and the sections at the end that only
list. It is a reading by regular expressions, not MediaWiki's own; a few marks may survive it.
"""

from __future__ import annotations

import bz2
import html
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

_LISTS_ONLY = {
    "bibliography",
    "citations",
    "external links",
    "footnotes",
    "further reading",
    "gallery",
    "notes",
    "notes and references",
    "references",
    "references and notes",
    "see also",
    "sources",
    "works cited",
}
"""Sections without running text."""
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_EMPTY_TAG = re.compile(r"<(?:ref|references|br|hr)\b[^<>]*/>", re.IGNORECASE)
_NO_TEXT = re.compile(
    r"<(ref|math|gallery|timeline|source|syntaxhighlight|imagemap|score)\b[^<>]*>.*?</\1\s*>",
    re.IGNORECASE | re.DOTALL,
)
_TAG = re.compile(r"</?[a-z][^<>]*>", re.IGNORECASE)
_TEMPLATE = re.compile(r"\{\{([^{}]*)\}\}")
_TABLE = re.compile(r"\{\|(?:(?!\{\|).)*?\|\}", re.DOTALL)
_LINK = re.compile(r"\[\[([^\[\]]*)\]\]")
_NOT_IN_TEXT = re.compile(r"\s*:?(?:file|image|category|wikt|[a-z]{2,3})\s*:", re.IGNORECASE)
_URL = re.compile(r"\[(?:https?:|ftp:|mailto:)?//[^\s\]]*\s*([^\]]*)\]")
_HEADING = re.compile(r"^(={2,6})[ \t]*(.+?)[ \t]*\1[ \t]*$", re.MULTILINE)
_QUOTES = re.compile(r"'{2,5}")
_SWITCH = re.compile(r"__[A-Z]+__")
_BULLETS = re.compile(r"^[*#:;]+[ \t]*", re.MULTILINE)
_EMPTY_BRACKETS = re.compile(r"[ \t]*\([\s,;:–]*\)")
_SPACES = re.compile(r"[ \t\u00a0]+")
_LINES = re.compile(r"[ \t]*\n\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Article:
    """The running text before the first heading, and that of the sections after it. Paragraphs and
    headings are lines."""

    title: str
    lead: str
    body: str


def articles(file: Path) -> Iterator[Article]:
    """Every article of an export that has sections, in its order; no redirects and no pages about
    the encyclopaedia itself."""
    with bz2.open(file) as stream:
        for _, element in ElementTree.iterparse(stream):
            space, _, name = element.tag.rpartition("}")
            if name != "page":
                continue
            of = f"{space}}}" if space else ""
            source = element.findtext(f"{of}revision/{of}text") or ""
            is_article = element.findtext(f"{of}ns") == "0"
            if is_article and element.find(f"{of}redirect") is None:
                title = element.findtext(f"{of}title") or ""
                lead, body = parts(source)
                if body:
                    yield Article(title=title, lead=lead, body=body)
            element.clear()


def parts(source: str) -> tuple[str, str]:
    """The lead of one page's wikitext, and its body (empty where it has no sections)."""
    text = _without_markup(source)
    headings = list(_HEADING.finditer(text))
    if not headings:
        return _tidy(text), ""
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    kept, left_out = [], 0
    for heading, end in zip(headings, ends, strict=True):
        level, name = len(heading[1]), _tidy(heading[2])
        if left_out and level > left_out:
            continue  # inside a section that was left out
        left_out = level if name.lower() in _LISTS_ONLY else 0
        section = _tidy(text[heading.end() : end])
        if not left_out and (section or level == 2):
            kept.append(f"{name}\n{section}" if section else name)
    return _tidy(text[: headings[0].start()]), "\n".join(kept)


def _without_markup(text: str) -> str:
    text = _COMMENT.sub("", text)
    # A reference without content would else begin one that ends at the next `</ref>`.
    text = _EMPTY_TAG.sub(" ", text)
    text = _NO_TEXT.sub("", text)
    text = _from_within(_TEMPLATE, _template, text)
    text = _from_within(_TABLE, lambda table: "", text)
    text = _from_within(_LINK, _link, text)
    text = _URL.sub(r"\1", text)
    text = _TAG.sub("", text)
    return html.unescape(_SWITCH.sub("", _QUOTES.sub("", text)))


def _from_within(
    pattern: re.Pattern[str], replaced: Callable[[re.Match[str]], str], text: str
) -> str:
    """What nests is replaced from the innermost outwards."""
    count = 1
    while count:
        text, count = pattern.subn(replaced, text)
    return text


def _template(found: re.Match[str]) -> str:
    """Nothing, but for the few that stand for words of a sentence."""
    name, *values = (part.strip() for part in found[1].split("|"))
    plain = [value for value in values if "=" not in value]
    match name.lower():
        case "convert" | "cvt" if len(plain) >= 2:
            return " ".join(plain[:2])
        case "lang" if len(plain) >= 2:
            return plain[1]
        case "nowrap" | "nobr" | "small" | "circa" | "c." | "formatnum:" if plain:
            return plain[0]
    return ""


def _link(found: re.Match[str]) -> str:
    """The words that a link shows; nothing for pictures, categories and other languages."""
    target, _, shown = found[1].partition("|")
    if _NOT_IN_TEXT.match(target):
        return ""
    return shown.rpartition("|")[2] or target


def _tidy(text: str) -> str:
    text = _EMPTY_BRACKETS.sub("", _BULLETS.sub("", text))
    return _LINES.sub("\n", _SPACES.sub(" ", text)).strip()
