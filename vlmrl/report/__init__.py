"""What a reader sees, computed from records alone: `tables` (`render` writes them as
Markdown, CSV, LaTeX and on the terminal), `figures`, a verdict on each `claims` of the
paper from the intervals of `evidence`, and one self-contained page, `html`."""
