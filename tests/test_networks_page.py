"""The committed page of networks of other makes is what the tested tables say."""

from pathlib import Path

from networks_page import page

PAGE = Path(__file__).parent.parent / "NETWORKS.md"


def test_the_page_is_written_from_the_tables_that_are_tested():
    assert PAGE.read_text() == page(), "write it again: python tests/networks_page.py NETWORKS.md"
