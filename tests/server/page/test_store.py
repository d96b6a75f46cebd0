"""Conversations in the browser's storage: kept, found, shared by tabs, damaged, full."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.chat_page import BrowserContext, ChatPage, expect
from tests.support.page_server import Gate, ScriptedServer, ended, said, thought

pytestmark = pytest.mark.slow

FULL = "IDBObjectStore.prototype.put = () => { throw new DOMException('', 'QuotaExceededError') };"
GONE = (
    "for (const name of ['indexedDB', 'localStorage', 'sessionStorage'])"
    "  Object.defineProperty(window, name, {"
    "    get() { throw new DOMException('', 'SecurityError'); }"
    "  });"
)


@pytest.mark.parametrize("broken", [FULL, GONE], ids=["full", "refused"])
def test_a_browser_that_stores_nothing_is_told_of_once(
    chat: ChatPage, server: ScriptedServer, broken: str
) -> None:
    chat.page.add_init_script(broken)
    chat.open()
    chat.ask("One")
    expect(chat.page.locator(".note")).to_have_count(2 if broken == GONE else 1)
    chat.press("Close the note")
    chat.ask("Two")
    expect(chat.page.locator(".note")).to_have_count(1 if broken == GONE else 0)
    chat.press("New conversation")
    chat.ask("Three")
    chat.page.locator("#conversations a", has_text="One").click()
    expect(chat.page.locator(".message")).to_have_count(4)
    assert chat.texts() == ["One", "Hello.", "Two", "Hello."]
    with chat.page.expect_download() as download:
        chat.press("Settings")
        chat.press("Export")
    exported = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert len(exported["conversations"]) == 2


def test_damaged_records_are_left_out_and_left_alone(
    chat: ChatPage, server: ScriptedServer
) -> None:
    chat.open()
    chat.ask("Good one")
    chat.page.evaluate(
        """() => new Promise((resolve) => {
            localStorage.setItem('gptoss.options', '{"effort": 7, "model": []');
            localStorage.setItem('gptoss.theme', '{');
            indexedDB.open('gptoss').onsuccess = ({ target }) => {
                const change = target.result.transaction('conversations', 'readwrite');
                const table = change.objectStore('conversations');
                table.put({ id: 'a', messages: [{ role: 'user', content: 5 }] });
                table.put({ id: 'b' });
                table.put({ id: 'c', messages: [null], title: {} });
                change.oncomplete = () => { target.result.close(); resolve(); };
            };
        })"""
    )
    chat.reload()
    assert "3 conversations" in chat.note()
    expect(chat.page.locator(".note")).to_have_count(1)
    assert chat.titles() == ["Good one"]
    expect(chat.ended().locator(".content")).to_have_text("Hello.")
    chat.page.goto(f"{server.url}/#b")
    expect(chat.page.locator("#welcome")).to_be_visible()


def test_two_tabs_see_each_other_and_lose_nothing(
    chat: ChatPage, server: ScriptedServer, context: BrowserContext
) -> None:
    chat.open()
    chat.ask("Shared")
    other = ChatPage(context, server.url).open(chat.page.url.rsplit("/", 1)[1])
    expect(other.page.locator(".message")).to_have_count(2)
    other.ask("From the other tab")
    expect(chat.page.locator(".message")).to_have_count(4)
    gate = Gate()
    server.answer([*said("Slow"), gate, ended()])
    chat.send("Mine")
    expect(chat.page.locator(".assistant .content").last).to_have_text("Slow")
    expect(other.page.locator(".message")).to_have_count(6)
    other.ask("Yours")
    gate.open()
    chat.ended()
    assert "copy" in chat.note()
    expect(chat.page.locator("#conversations li")).to_have_count(2)
    assert chat.texts()[-2:] == ["Mine", "Slow"]
    assert other.texts()[-2:] == ["Yours", "Hello."]
    chat.reload()
    expect(chat.page.locator(".message")).to_have_count(6)
    assert other.faults == []


def test_conversations_are_renamed_found_deleted_and_brought_back(
    chat: ChatPage, server: ScriptedServer
) -> None:
    chat.open()
    server.answer([*said("Apples and Pears"), ended()])
    chat.ask("First")
    chat.press("New conversation")
    chat.ask("Second")
    chat.page.locator("#conversations li", has_text="First").hover()
    chat.press("Rename First")
    chat.page.get_by_label("Name of the conversation").fill("Fruit")
    chat.page.keyboard.press("Enter")
    expect(chat.page.locator("#conversations li a", has_text="Fruit")).to_be_visible()
    chat.page.keyboard.press("Control+k")
    expect(chat.page.locator("#search")).to_be_focused()
    chat.page.keyboard.type("pEARS")
    expect(chat.page.locator("#conversations li")).to_have_count(1)
    assert chat.titles() == ["Fruit"]
    chat.page.locator("#search").fill("")
    expect(chat.page.locator("#conversations li")).to_have_count(2)
    chat.press("Delete Second")
    expect(chat.page.locator("#welcome")).to_be_visible()
    assert chat.titles() == ["Fruit"]
    chat.press("Undo")
    expect(chat.page.locator("#conversations li")).to_have_count(2)
    chat.reload()
    expect(chat.page.locator("h1")).to_have_text("Second")
    assert sorted(chat.titles()) == ["Fruit", "Second"]


def test_an_export_can_be_imported(chat: ChatPage, server: ScriptedServer, tmp_path: Path) -> None:
    chat.open()
    server.answer([*thought("Hm."), *said("Yes — ✓"), ended(thoughts=2)])
    chat.ask("Question")
    with chat.page.expect_download() as download:
        chat.press("Export Question")
    path = tmp_path / "exported.json"
    download.value.save_as(path)
    chat.press("Delete Question")
    chat.page.set_input_files("#import-file", path)
    expect(chat.page.locator("h1")).to_have_text("Question")
    expect(chat.page.locator(".assistant .content")).to_have_text("Yes — ✓")
    expect(chat.page.locator("summary")).to_contain_text("2 tokens")
    exported = json.loads(path.read_text(encoding="utf-8"))
    exported["conversations"][0]["messages"].append({"role": "nobody", "content": ""})
    path.write_text(json.dumps(exported), encoding="utf-8")
    chat.page.set_input_files("#import-file", path)
    expect(chat.page.locator(".note").last).to_contain_text("Conversation 1")
    assert chat.titles() == ["Question"]
