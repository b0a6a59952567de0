"""Parts of terminals and pages that several commands share: numbers as text, tables, charts, templates.

`writer.py` is the only way to a terminal, `formatting.py` makes control characters visible and writes numbers, `terminal.py`
has tables, `pages.py` HTML, `charts.py` pictures, `notebook.py` how results show themselves in a notebook.
"""
