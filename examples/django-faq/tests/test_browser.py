"""In Chromium: an editor changes an answer in the admin, and a visitor finds it, whether Qdrant is up or down."""

from __future__ import annotations

import os
import unittest
from pathlib import Path
from urllib.parse import quote

from tests.live import Browser, World, get, wait_for
from tests.test_commands import all_healthy_in

world: World
browser: Browser
url: str

#: What WCAG asks of text, and names of everything that can be used.
AUDIT = """
const found = [];
const shown = (e) => e.getClientRects().length > 0;
const parse = (c) => c.match(/[\\d.]+/g).map(Number);
const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const ground = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
  if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
for (const e of document.querySelectorAll('main *, header *, footer *')) {
  if (!shown(e) || ![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
  const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
  if ((a + 0.05) / (b + 0.05) < 4.5) found.push(`contrast ${((a + 0.05) / (b + 0.05)).toFixed(2)}: ${e.outerHTML.slice(0, 80)}`);
}
for (const e of document.querySelectorAll('input, select, button, a')) {
  if (!shown(e)) continue;
  const name = e.innerText?.trim() || e.getAttribute('aria-label') || [...(e.labels || [])].map((l) => l.innerText).join('');
  if (!name) found.push(`no name: ${e.outerHTML.slice(0, 80)}`);
}
if (!document.documentElement.lang) found.push('no language');
if (document.querySelectorAll('h1').length !== 1) found.push('not one h1');
if (document.documentElement.scrollWidth > innerWidth) found.push('wider than the screen');
if (new Set([...document.querySelectorAll('[id]')].map((e) => e.id)).size !== document.querySelectorAll('[id]').length) found.push('an id twice');
return found;
"""


def setUpModule() -> None:
    global world, browser, url
    world = World(with_qdrant=True)
    world.migrate()
    world.vecsync.start_ready()
    world.fill()
    world.manage(
        "createsuperuser", "--noinput", "--username", "editor", "--email", "editor@example.org",
        environment={"DJANGO_SUPERUSER_PASSWORD": "of-the-browser-tests"},
    )  # fmt: skip
    url = world.start_site()
    all_healthy_in(world)
    browser = Browser()


def tearDownModule() -> None:
    browser.close()
    world.close()


class Pages(unittest.TestCase):
    def ask(self, question: str, category: str = "") -> None:
        browser.open(f"{url}/?q={quote(question)}&category={quote(category)}")

    def wait_for_answer(self, question: str, part: str) -> None:
        def look() -> bool:
            self.ask(question)
            said = browser.text("#answer")
            assert part in said, f"{said!r} {browser.text('#failure')!r}"
            return True

        wait_for(f"{part!r} to be the answer", look)

    def audit(self, name: str) -> None:
        for size in ((1280, 900), (390, 844)):
            for dark in (False, True):
                browser.screen(*size, dark=dark)
                self.assertEqual(browser.run(AUDIT), [], f"{name} {size} {'dark' if dark else 'light'}")
                if folder := os.environ.get("VECSYNC_TEST_PICTURES"):
                    path = Path(folder) / f"{name}-{size[0]}-{'dark' if dark else 'light'}.png"
                    path.write_bytes(browser.picture())
        browser.screen(1280, 900)

    def edit(self, pk: int, answer: str) -> None:
        browser.open(f"{url}/admin/faq/faq/{pk}/change/")
        browser.fill("#id_answer", answer)
        browser.click("[name=_save]")
        wait_for("the admin to say that it was saved", lambda: "changed successfully" in browser.text(".messagelist"))

    def test_addresses_that_lead_nowhere_are_said_to(self) -> None:
        for path in (
            "/static/%2e%2e/%2e%2e/manage.py",
            "/static/nothing.css",
            "/faq/99999999999999999999/",
            "/faq/0/",
            "/nothing",
        ):
            self.assertEqual(get(url + path)[0], 404, path)
        for path in (
            "/static/faq/site.css",
            "/static/admin/css/base.css",
            "/favicon.ico",
            "/?q=%00",
            "/?q=%ff",
            f"/?q={'x' * 5000}",
        ):
            self.assertEqual(get(url + path)[0], 200, path)

    def test_an_edit_in_the_admin_is_what_visitors_find(self) -> None:
        assert world.qdrant
        browser.open(f"{url}/admin/")
        browser.fill("#id_username", "editor")
        browser.fill("#id_password", "of-the-browser-tests")
        browser.click("[type=submit]")
        browser.open(f"{url}/admin/faq/faq/add/")
        browser.fill("#id_question", "Where is my <b>parcel</b>?")
        browser.fill("#id_answer", "The courier sends you a link.")
        browser.fill("#id_category", "Delivery")
        browser.click("[name=_save]")
        wait_for("the admin to say that it was added", lambda: "added successfully" in browser.text(".messagelist"))
        pk = world.postgres.execute("shop", "SELECT id FROM faq_faq WHERE category = 'Delivery'")[0][0]

        # As a visitor: from the form, by the keyboard, to the answer and its source.
        self.wait_for_answer("lost shipment", "The courier sends you a link.")
        browser.open(url)
        self.assertEqual(browser.run("return document.activeElement.id"), "q")
        self.audit("start")
        browser.fill("#q", "lost shipment")
        browser.run("document.querySelector('form').requestSubmit()")
        wait_for("the answer", lambda: "courier" in browser.text("#answer"))
        self.assertIn("by qdrant", browser.text("#served"))
        self.assertIn(f"Source: FAQ {pk} in Delivery", browser.text("#answer"))
        self.assertIn("Where is my <b>parcel</b>?", browser.text("#answer-title"), "markup is text")
        self.assertEqual(browser.text("#degraded"), "")
        self.audit("answer")
        browser.click("#answer .source a")
        wait_for("its page", lambda: f"FAQ {pk}, last changed" in browser.text("main"))
        self.audit("entry")
        self.ask("lost shipment", "Delivery")
        self.assertIn("courier", browser.text("#answer"))
        self.ask("qzxv wkjh", "Delivery")
        self.assertIn("Nothing here answers that", browser.text("#nothing"))
        self.audit("nothing")

        self.edit(pk, "Ask at the front desk.")
        self.wait_for_answer("lost shipment", "Ask at the front desk.")

        world.qdrant.kill()
        self.edit(pk, "Ask at the back door.")
        self.wait_for_answer("lost shipment", "Ask at the back door.")
        self.assertIn("by local", browser.text("#served"))
        self.assertIn("stand-by", browser.text("#degraded"))
        self.audit("degraded")

        world.qdrant.start()

        def answered_by_qdrant() -> bool:
            self.ask("lost shipment")
            return "by qdrant" in browser.text("#served") and "back door" in browser.text("#answer")

        wait_for("Qdrant to answer again, with what it missed", answered_by_qdrant)

        world.vecsync.stop()
        self.ask("lost shipment")
        self.assertIn("Search is not available just now", browser.text("#failure"))
        self.assertEqual(browser.text("#answer") + browser.text("#nothing"), "", "a failure is not an empty answer")
        self.audit("failure")
        world.vecsync.start_ready()

        browser.open(f"{url}/admin/faq/faq/{pk}/change/")
        browser.click("#id_is_active")
        browser.click("[name=_save]")

        def gone() -> bool:
            self.ask("lost shipment")
            return "back door" not in browser.text("#answer") and not browser.text("#failure")

        wait_for("the answer to be gone", gone)
        severe = [line for line in browser.complaints() if "SEVERE" in line and " 503 " not in line]
        self.assertEqual(severe, [])


if __name__ == "__main__":
    unittest.main()
