"""What both experiments share: their words, and tables that go between the marks of a page.

All else in the page is written by hand. A mark is `<!-- reproduce: NAME -->` before a table, and
`<!-- end -->` after.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

END = "<!-- end -->"


def options_of(words: Sequence[str], names: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Return the options of these names, and the other words, which are overrides of a config."""
    pairs = [(word, *word.partition("=")[::2]) for word in words]
    options = {key: value for _, key, value in pairs if key in names}
    return options, [word for word, key, _ in pairs if key not in names]


def write_tables(tables: Mapping[str, str], folder: Path, page: Path | None) -> None:
    """Print each table, write it into the folder, and put it into the page if there is one."""
    for name, table in tables.items():
        (folder / f"{name}.md").write_text(table + "\n", encoding="utf-8")
        print(f"\n{name}\n\n{table}")
    if page is not None:
        page.write_text(marked(page.read_text(encoding="utf-8"), tables), encoding="utf-8")


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
