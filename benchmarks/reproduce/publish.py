"""Put generated tables into a page between their marks; all else in it is written by hand.

A mark is `<!-- reproduce: NAME -->` before, and `<!-- end -->` after.
"""

from collections.abc import Mapping

END = "<!-- end -->"


def marked(page: str, tables: Mapping[str, str]) -> str:
    """Return the page with the tables between their marks; what else it marks stays.

    Raises:
        ValueError: if the page lacks the marks of a table.
    """
    for name, table in tables.items():
        begin = f"<!-- reproduce: {name} -->"
        before, _, rest = page.partition(begin)
        _, end, after = rest.partition(END)
        if not end:
            raise ValueError(f"the page has no {begin} with {END} after it: add both")
        page = f"{before}{begin}\n{table}\n{END}{after}"
    return page
