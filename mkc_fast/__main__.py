"""``python -m mkc_fast``: the same as the program ``mkc-fast``."""

from mkc_fast.cli import program

if __name__ == "__main__":
    program()
