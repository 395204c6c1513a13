#!/usr/bin/env python3
"""Turns the FAQ pages of two unpacked Debian packages into JSON lines. Downloads nothing, touches no database.

usage: faq.py DEBIAN_FAQ_ROOT PYTHON_DOC_ROOT OUTPUT
"""

import json
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

VOID = {"br", "hr", "img", "link", "meta", "input"}
# Elements that make no text of an answer: navigation, tables of contents, anchors, footnote marks.
SKIP_TAGS = {"nav", "script", "style", "table", "img", "link", "meta", "hr"}
SKIP_CLASSES = {"toc", "titlepage", "headerlink", "indexterm", "footnotes", "navheader", "navfooter", "contents"}
BLOCKS = {"p", "div", "section", "ul", "ol", "dl", "pre", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6"}
NUMBER = re.compile(r"^(Chapter\s+)?\d+(\.\d+)*\.\s+")
CROSS_REFERENCE = re.compile(r"^(Section|Chapter)\s+[\d.]+,\s+")


class Node:
    """An element: its tag, its attributes, its children (nodes and strings)."""

    def __init__(self, tag, attributes=()):
        self.tag = tag
        self.attributes = dict(attributes)
        self.classes = set((self.attributes.get("class") or "").split())
        self.children = []

    def nodes(self):
        return [child for child in self.children if isinstance(child, Node)]

    def walk(self):
        yield self
        for child in self.nodes():
            yield from child.walk()

    def raw(self):
        return "".join(child if isinstance(child, str) else child.raw() for child in self.children)


class TreeBuilder(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.root = Node("root")
        self.open = [self.root]

    def handle_starttag(self, tag, attrs):
        node = Node(tag, attrs)
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].children.append(Node(tag, attrs))

    def handle_endtag(self, tag):
        for depth in range(len(self.open) - 1, 0, -1):
            if self.open[depth].tag == tag:
                del self.open[depth:]
                return

    def handle_data(self, data):
        self.open[-1].children.append(data)


def parse(path):
    builder = TreeBuilder()
    builder.feed(path.read_text(encoding="utf-8"))
    builder.close()
    return builder.root


def squeeze(text):
    return " ".join(text.replace("\u200b", "").split())


def is_skipped(node):
    return node.tag in SKIP_TAGS or bool(node.classes & SKIP_CLASSES)


class Text:
    """Renders the blocks of one section as plain text, and gathers the footnotes met on the way."""

    def __init__(self, footnotes):
        self.footnotes = footnotes
        self.met = []

    def inline(self, item):
        if isinstance(item, str):
            return item
        if item.tag == "br":
            return "\n"
        if item.tag == "a" and "footnote" in item.classes:
            self.met.append((item.attributes.get("href") or "").lstrip("#"))
            return ""
        if is_skipped(item):
            return ""
        text = "".join(map(self.inline, item.children))
        if "xref" in item.classes and item.tag == "a":
            return CROSS_REFERENCE.sub("", squeeze(text))
        return text

    def blocks(self, children):
        """A list of text blocks; loose inline content between block elements becomes a paragraph."""
        found, loose = [], []

        def flush():
            text = squeeze("".join(loose))
            loose.clear()
            if text:
                found.append(text)

        for child in children:
            if isinstance(child, str) or child.tag not in BLOCKS:
                loose.append(self.inline(child))
            elif not is_skipped(child):
                flush()
                rendered = self.block(child)
                # The rest of a sentence that a code block interrupts.
                if found and child.tag == "p" and rendered and re.match(r"[.,;:)]", rendered[0]):
                    found[-1] += rendered.pop(0)
                found.extend(rendered)
        flush()
        return found

    def block(self, node):
        if node.tag == "pre":
            lines = [line.rstrip() for line in node.raw().expandtabs(8).replace("\xa0", " ").split("\n")]
            return ["\n".join(lines).strip("\n")] if any(lines) else []
        if node.tag in ("ul", "ol"):
            return self.list(node)
        if node.tag == "dl":
            return self.definitions(node)
        if "admonition-title" in node.classes:
            return [squeeze(self.inline(node)) + ":"]
        return self.blocks(node.children)

    def list(self, node):
        items = []
        for number, item in enumerate((n for n in node.nodes() if n.tag == "li"), start=1):
            mark = "- " if node.tag == "ul" else f"{number}. "
            body = self.blocks(item.children)
            if body:
                items.append(mark + indent(join(body), len(mark)))
        # An item of several paragraphs needs air around it; short items stay one a line.
        gap = "\n\n" if any("\n\n" in item for item in items) else "\n"
        return [gap.join(items)] if items else []

    def definitions(self, node):
        found, terms = [], []
        for child in node.nodes():
            if child.tag == "dt":
                terms.append(squeeze(self.inline(child)))
            elif child.tag == "dd":
                term, terms = ", ".join(terms), []
                mark = "- " + (term if term.endswith((":", "?", ".")) else term + ":")
                found.append(mark + "\n  " + indent(join(self.blocks(child.children)), 2))
        return ["\n\n".join(found)] if found else []

    def notes(self):
        found = []
        for name in self.met:
            if name in self.footnotes:
                found.append("Note: " + join(self.blocks(self.footnotes[name])))
        return found


def indent(text, width):
    return re.sub(r"\n(?=[^\n])", "\n" + " " * width, text)


def join(blocks):
    return "\n\n".join(blocks)


def footnotes_of(root):
    """Footnote id → its content without the back reference."""
    found = {}
    for node in root.walk():
        if node.tag == "div" and "footnote" in node.classes and node.attributes.get("id"):
            for inner in node.walk():
                inner.children = [
                    c for c in inner.children if isinstance(c, str) or not (c.tag == "a" and "para" in c.classes)
                ]
            found[node.attributes["id"]] = node.children
    return found


def is_section(node):
    return node.tag == "section" or (node.tag == "div" and "section" in node.classes)


def title_of(section):
    for node in section.nodes():
        if re.fullmatch("h[1-6]", node.tag) or "titlepage" in node.classes:
            heading = next(n for n in node.walk() if re.fullmatch("h[1-6]", n.tag))
            return NUMBER.sub("", squeeze(Text({}).inline(heading)))
    return ""


def questions(section, footnotes, leaves_ask):
    """The entries of a section and of those below it, in the order of the page.

    A subsection that asks nothing is a part of the answer it stands in, under its title. In pages whose outermost
    headings only group (`leaves_ask`), a section without subsections asks, whatever its punctuation.
    """
    title = title_of(section)
    asks = "?" in title or (leaves_ask and not any(map(is_section, section.nodes())))
    if not asks:
        return [entry for child in section.nodes() if is_section(child)
                for entry in questions(child, footnotes, leaves_ask)]
    own, below = answer_parts(section, footnotes, leaves_ask)
    return ([(title, join(own))] if own else []) + below


def answer_parts(section, footnotes, leaves_ask):
    text = Text(footnotes)
    content = [c for c in section.children
               if isinstance(c, str) or not (is_section(c) or re.fullmatch("h[1-6]", c.tag))]
    own = text.blocks(content)
    own += text.notes()
    below, folded = [], []
    for child in filter(is_section, section.nodes()):
        if "?" in title_of(child):
            below += questions(child, footnotes, leaves_ask)
        else:
            part, deeper = answer_parts(child, footnotes, leaves_ask)
            folded += [title_of(child) + ":"] + part
            below += deeper
    return own + folded, below


def debian_pages(root):
    folder = root / "usr/share/doc/debian/FAQ"
    index = parse(folder / "index.en.html")
    seen = []
    for node in index.walk():  # chapters in the order of the table of contents
        page = (node.attributes.get("href") or "").split("#")[0]
        if node.tag == "a" and page.endswith(".en.html") and page != "index.en.html" and page not in seen:
            seen.append(page)
    for page in seen:
        tree = parse(folder / page)
        chapter = next(n for n in tree.walk() if "chapter" in n.classes and n.tag == "div")
        yield "Debian: " + title_of(chapter), chapter, footnotes_of(tree), False


def python_pages(root):
    folder = next((root / "usr/share/doc").glob("python3*/html/faq"))
    index = parse(folder / "index.html")
    pages = []
    for node in index.walk():
        page = node.attributes.get("href") or ""
        if node.tag == "a" and re.fullmatch(r"[a-z]+\.html", page) and (folder / page).exists() and page not in pages:
            pages.append(page)
    for page in pages:
        tree = parse(folder / page)
        body = next((n for n in tree.walk() if n.attributes.get("role") == "main"), None)
        chapter = next((n for n in body.nodes() if n.tag == "section"), None) if body else None
        if chapter and page != "index.html":
            yield "Python: " + re.sub("[“”]", "", title_of(chapter)), chapter, {}, True


def entries(debian_root, python_root):
    for category, chapter, footnotes, leaves_ask in [*debian_pages(debian_root), *python_pages(python_root)]:
        for section in filter(is_section, chapter.nodes()):
            for question, answer in questions(section, footnotes, leaves_ask):
                yield {"question": question, "answer": answer, "category": category}


def main(arguments):
    if len(arguments) != 3:
        sys.exit(__doc__)
    debian_root, python_root, output = map(Path, arguments)
    found = list(entries(debian_root, python_root))
    if len(found) < 200:
        sys.exit(f"faq: only {len(found)} questions found below {debian_root} and {python_root}; their layout changed")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + f".{os.getpid()}")
    partial.write_text("".join(json.dumps(e, ensure_ascii=False) + "\n" for e in found), encoding="utf-8")
    partial.replace(output)
    print(f"faq: {len(found)} questions in {output}")


if __name__ == "__main__":
    main(sys.argv[1:])
