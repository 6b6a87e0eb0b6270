"""``python -m mkc_fast``: the same as the program ``mkc-fast``."""

import sys

from mkc_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
