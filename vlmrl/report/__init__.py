"""What a reader sees: everything here is computed from records alone.

tables.py   tables as data, then Markdown, CSV, LaTeX, and the terminal
figures.py  the figures of a run, PNG and PDF
claims.py   a verdict on each claim of the paper, from intervals
html.py     one self-contained page: claims, tables, figures, single examples
"""
