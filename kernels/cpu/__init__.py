"""Operators for CPUs in C++, and the code that finds their library."""
