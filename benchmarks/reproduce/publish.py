"""Put generated tables into a page between their marks; all else in it is written by hand.

A mark is `<!-- reproduce: NAME -->` before, and `<!-- end -->` after.
"""

import re
from collections.abc import Mapping


def marked(page: str, tables: Mapping[str, str]) -> str:
    """Return the page with the tables between their marks.

    Raises:
        ValueError: if the page marks a table that is not there, or lacks a mark.
    """
    names = re.findall(r"<!-- reproduce: (\w+) -->", page)
    for name in names:
        if name not in tables:
            raise ValueError(f"the page marks {name}, which is no table: {', '.join(tables)}")
    for name, table in tables.items():
        if name not in names:
            raise ValueError(f"the page has no mark <!-- reproduce: {name} -->: add it")
        begin = f"<!-- reproduce: {name} -->"
        pattern = re.compile(re.escape(begin) + r".*?<!-- end -->", re.DOTALL)
        if not pattern.search(page):
            raise ValueError(f"{begin} has no <!-- end --> after it: add it")
        page = pattern.sub(lambda _, text=f"{begin}\n{table}\n<!-- end -->": text, page)  # type: ignore[misc]
    return page
