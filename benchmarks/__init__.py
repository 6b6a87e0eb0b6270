"""Every measurement of mkc-fast, the baseline that it is compared with, and the report."""
