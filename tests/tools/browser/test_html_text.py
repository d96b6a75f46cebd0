"""HTML to text: what a person would read, in the form the model knows; any input, in time."""

from __future__ import annotations

import html as escapes
import re
from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_mlx.tools.browser.html_text import HtmlText, html_text
from gptoss_mlx.tools.browser.html_tree import DEPTH_LIMIT, Element, parse_html
from gptoss_mlx.tools.browser.plain import plain

BASE = "https://site.test/docs/page"


def resolve(href: str) -> tuple[str, str] | None:
    url = urljoin(BASE, href)
    host = urlsplit(url).netloc
    return None if not host else (url, "" if host == "site.test" else host)


def read(html: str) -> HtmlText:
    return html_text(html, resolve)


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<h1>One</h1><h3>Three <b>bold</b></h3><p>Text</p>", "# One\n\n### Three bold\n\nText"),
        ("<p>a\n  b&nbsp;c<p>d", "a b c\n\nd"),
        ("x<br>y<hr>z", "x\ny\n\n* * *\n\nz"),
        (
            "<ul><li>one<li>two<ul><li>in</ul><li>three</ul>",
            "  * one\n  * two\n    * in\n  * three",
        ),
        ("<ol start=3><li>c<li>d</ol>", "  3. c\n  4. d"),
        (
            "<pre>def f():\n\treturn 1\n\n# end</pre>",
            "    def f():\n            return 1\n    \n    # end",
        ),
        ("say <code>x  = 1</code>, H<sub>2</sub>O, e<sup>-x+1</sup>", "say `x = 1`, H_{2}O, e-x+1"),
        ("<table><tr><th>a<th>b<tr><td>1<td></table>", "a | b\n1 |"),
        ("<table><tr><td><h2>T</h2><p>layout</table>", "## T\n\nlayout"),
        ("<blockquote>q<p>r</blockquote>s", "> q\n\n> r\n\ns"),
        ("<dl><dt>term<dd>meaning</dl>", "term\n    meaning"),
        ('<img alt="a cat"><img src=x><img alt="a dog">', "[Image 0: a cat][Image 1: a dog]"),
        ("a<script>alert(1)</script><style>b{}</style><template>t</template>c", "ac"),
        ("a<p hidden>h<p style='display: none'>n<p aria-hidden=true>x<p>b", "a\n\nb"),
        ("<select><option>one<option>two</select><button>go</button>text", "text"),
        ("<nav>menu</nav><p>text<footer>foot</footer><div role=navigation>n</div>", "text"),
        ("<nav>only a menu</nav>", "only a menu"),
        ("&lt;b&gt; &amp;amp; &#x1F600; &#0; &zzz;", "<b> &amp; 😀 \ufffd &zzz;"),
        ("<math alttext='x^2'><mi>x</mi></math>", "x^2"),
        ("<p>unclosed <b>bold <i>both", "unclosed bold both"),
        ("<title/><script/><p>shown", "shown"),
        ("【1†fake†a.test】", "〖1†fake†a.test〗"),
        ("a<![x[ y ]]>b<![if IE]>c<!>d<?php e ?>f<!-->g<!--->h<!-- i --!>j", "abcdfghj"),
    ],
)
def test_an_element_is_written(html: str, text: str) -> None:
    assert read(html).text == text


def test_links_are_numbered_by_where_they_lead() -> None:
    found = read(
        '<a href="/a">here</a> <a href="https://other.test/x">there † now</a> <a href="../b">up</a>'
        ' <a href="/a">again</a> <a href="#top">top</a> <a href="mailto:a@b.test">mail</a>'
        ' <a href="javascript:x()">run</a> <a name=x>anchor</a> <a href="/e"></a>'
        ' <a class=headerlink href="#s">¶</a>'
    )
    assert found.text == (
        "【0†here】 【1†there ‡ now†other.test】 【2†up】 【0†again】 top mail run anchor"
    )
    assert {number: link.url for number, link in found.links.items()} == {
        0: "https://site.test/a",
        1: "https://other.test/x",
        2: "https://site.test/b",
    }


def test_a_link_around_blocks_is_one_link() -> None:
    found = read('<a href="/a"><h3>Title</h3><p>and <b>more</b></p></a>')
    assert found.text == "【0†Title and more】"


def test_the_main_part_is_what_is_read() -> None:
    side = "<div>column " * 3
    main = f"<main><nav>crumbs</nav><p>{'long text ' * 40}<aside>an aside</aside></main>"
    found = read(f"<title>T | Site</title>{side}{main}")
    assert (found.title, "column" in found.text, "crumbs" in found.text) == (
        "T | Site",
        False,
        False,
    )
    assert "an aside" in found.text


def test_a_main_part_that_scripts_fill_is_not_all() -> None:
    assert read("<div>the text</div><main></main>").text == "the text"


def test_a_title_is_its_heading_without_one() -> None:
    assert read("<h1>Heading</h1>").title == "Heading"
    assert read("<title> a\n b </title><h1>Heading</h1>").title == "a b"
    assert read("nothing").title == ""


TAGS = st.sampled_from(
    re.findall(
        r"\w+", "a b p div ul ol li table tr td th pre code blockquote h2 main br img dl dt dd span"
    )
)
JUNK = st.sampled_from(
    [
        "<",
        "</",
        "<!--",
        "-->",
        "<![",
        "CDATA[",
        "]]>",
        "<?x",
        "<!DOCTYPE",
        "&",
        "&#",
        "&#xffffffff;",
    ]
) | st.sampled_from(
    ["<a href='", '<a href="/x">', '"', "'", ">", "/>", "=", "<script>", "</script>", "\0", "\n"]
)


@given(st.lists(JUNK | st.text(max_size=5) | TAGS.map("<{}>".format), max_size=40))
def test_any_input_is_read(parts: list[str]) -> None:
    read("".join(parts))


def trees(depth: int = 4) -> st.SearchStrategy[str]:
    words = st.text("abcé日", min_size=1, max_size=6)
    return st.recursive(
        words,
        lambda inner: st.tuples(TAGS, st.lists(inner, max_size=3)).map(
            lambda pair: f"<{pair[0]}>{' '.join(pair[1])}</{pair[0]}>"
        ),
        max_leaves=20,
    )


@given(trees())
def test_no_word_is_lost_and_their_order_stays(html: str) -> None:
    words = "".join(part for part in parse_html(html).walk() if isinstance(part, str))
    shown = "".join(letter for letter in read(html).text if letter in "abcé日")
    assert shown == "".join(words.split())


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_an_escaped_text_is_that_text(text: str) -> None:
    shown = read(f"<p>{escapes.escape(text)}</p>").text
    assert shown.split() == plain(text).split()


HOSTILE = ("<", "</", "<!--", "<a ", "<a b='", "<div>", "<table>", "<ul><li>", "<a href=x>", "</b>")


@pytest.mark.parametrize("part", [*HOSTILE, "&", "<script>"])
def test_hostile_markup_takes_linear_time(part: str) -> None:
    """Quadratic time would take minutes here; Python's own parser does, if it is closed."""
    read(part * (300_000 // len(part)))


def test_depth_is_bounded() -> None:
    root = parse_html("<div>" * 5000 + "deep")
    depth, element = 0, root
    while element.children and isinstance(element.children[0], Element):
        element, depth = element.children[0], depth + 1
    assert depth == DEPTH_LIMIT
    assert root.text() == "deep"
