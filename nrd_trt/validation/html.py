"""HTML without a template engine: elements whose text is always escaped, tables, and the page. No third parties."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_VOID = frozenset({"img", "meta", "br", "line", "rect", "circle"})

STYLE = """
:root{--bg:#f6f7f9;--card:#fff;--ink:#1d2430;--soft:#5b6675;--line:#dfe3e9;--good:#1a7f4b;--bad:#b3261e;--warn:#8a5a00;
--ref:#8a97a8;--eng:#1b6ca8;--track:#e8ebf0}
@media(prefers-color-scheme:dark){:root{--bg:#12161c;--card:#1b212a;--ink:#e7ebf0;--soft:#9aa7b6;--line:#303946;
--good:#58c98b;--bad:#ff8a80;--warn:#e6b450;--ref:#76849a;--eng:#5aa9e6;--track:#2a323d}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:28px 20px 48px}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:1.12rem;margin:0 0 10px}
p{margin:6px 0}
.soft{color:var(--soft)}.small{font-size:.87rem}
.head{display:flex;gap:14px;flex-wrap:wrap;align-items:flex-start;justify-content:space-between;margin-bottom:18px}
.head>div{flex:1 1 320px;min-width:0}
.verdict{font-weight:700;border-radius:999px;padding:5px 16px;border:2px solid;white-space:nowrap}
.good{color:var(--good)}.bad{color:var(--bad)}.warn{color:var(--warn)}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:18px 20px;margin:0 0 16px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:0 0 16px}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 14px}
.card b{display:block;font-size:1.45rem;line-height:1.25;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto}.plot{min-width:600px}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th{font-weight:600;color:var(--soft);text-align:left;font-size:.82rem}
th,td{padding:6px 10px;border-bottom:1px solid var(--line);vertical-align:middle}
tr:last-child td{border-bottom:0}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.w{min-width:150px}
.swatch{display:inline-block;width:12px;height:12px;border-radius:3px;border:1px solid var(--line);margin-right:8px;
vertical-align:-1px}
.flow{display:flex;flex-wrap:wrap;gap:6px 4px;align-items:center;margin:2px 0 12px}
.chip{border:1.5px solid;border-radius:8px;padding:3px 10px;font-size:.86rem;font-weight:600}
.chip.first{background:var(--bad);border-color:var(--bad);color:var(--card)}
.arrow{color:var(--soft)}
.hint{border-left:4px solid var(--bad);padding:6px 12px;margin:0 0 12px;background:var(--bg);border-radius:0 6px 6px 0}
.shots{display:grid;grid-template-columns:repeat(4,1fr);gap:8px;margin:6px 0 16px}
@media(max-width:720px){.shots{grid-template-columns:repeat(2,1fr)}main{padding:18px 10px}section{padding:14px 12px}}
figure{margin:0}figcaption{font-size:.8rem;color:var(--soft)}
img{width:100%;height:auto;display:block;border-radius:5px;image-rendering:auto}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--soft);font-size:11px}
ul{margin:6px 0;padding-left:20px}
code{font:.86rem ui-monospace,SFMono-Regular,Menlo,monospace;overflow-wrap:anywhere}
"""


class Html(str):
    """Text that is HTML already; every other string is escaped when it becomes part of an element."""

    __slots__ = ()


Child = str | Html | Iterable["Child"] | None


def tag(name: str, /, *children: Child, **attributes: str | float | None) -> Html:
    """Return an element.

    Args:
        name: Of the element.
        *children: Strings, which are escaped, elements, iterables of both, or None.
        **attributes: A trailing underscore is dropped (``class_``), others become hyphens; None leaves one out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{given}>" if name in ("img", "meta", "br") else f"<{name}{given}/>")
    return Html(f"<{name}{given}>{join(*children)}</{name}>")


def join(*children: Child) -> Html:
    """Return children one after the other; strings are escaped."""
    parts = []
    for child in children:
        if isinstance(child, Html):
            parts.append(str(child))
        elif isinstance(child, str):
            parts.append(escape(child))
        elif child is not None:
            parts.append(str(join(*child)))
    return Html("".join(parts))


def section(title: str, *children: Child) -> Html:
    """Return a framed part of the page."""
    return tag("section", tag("h2", title), *children)


def table(head: Sequence[str], rows: Iterable[Sequence[Child]], numbers: Sequence[int] = ()) -> Html:
    """Return a table that scrolls sideways on narrow screens.

    Args:
        head: Titles of the columns; empty for none.
        rows: Cells.
        numbers: Columns of figures, set flush right.
    """

    def kind(column: int) -> str | None:
        return "n" if column in numbers else None

    header = tag("thead", tag("tr", [tag("th", title, class_=kind(i)) for i, title in enumerate(head)]))
    body = [tag("tr", [tag("td", cell, class_=kind(i)) for i, cell in enumerate(row)]) for row in rows]
    return tag("div", tag("table", header if head else None, tag("tbody", body)), class_="scroll")


def page(title: str, *children: Child) -> str:
    """Return a whole document that loads nothing from anywhere."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        Html(f"<style>{STYLE}</style>"),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', tag('main', *children)), lang='en')}\n"
