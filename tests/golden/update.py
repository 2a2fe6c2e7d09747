"""`python -m tests.golden.update`: store the curve of today's code."""

from tests.golden.curve import write

if __name__ == "__main__":
    write()
