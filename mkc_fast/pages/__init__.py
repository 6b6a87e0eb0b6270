"""What the self-contained HTML pages of reports share: their style, their tables, and the style of their pictures."""
