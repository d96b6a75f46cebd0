"""The figures of the house, and the picture of its rooms."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from benchmarks import house
from tests.root import ROOT


def test_the_house_is_in_order() -> None:
    found = house.figures()
    assert found["circles"] == found["imports against the order"] == 0
    assert found["names defined twice"] == []
    assert (
        found["Any in the seam and the engine"] == found["lines copied between the backends"] == 0
    )
    assert int(str(found["modules at the top"])) <= 6
    assert int(str(found["rooms from the command to a product"])) <= 4


def test_the_picture_is_current() -> None:
    assert (ROOT / "docs" / "rooms.svg").read_text(encoding="utf-8") == house.picture()


def test_the_picture_shows_every_room() -> None:
    words = {text.text for text in ET.fromstring(house.picture()).iter() if text.text}
    assert words >= {"cli", "engine", "backends", "spec", "files"}
