"""Runs the script."""

from mkc_fast.benchmarks.gpu.run import main

if __name__ == "__main__":
    raise SystemExit(main())
