"""Files and folders, here or on an object store: paths, atomic writing, Parquet, JSON lines; not what is in them.

Places are in `paths.py`, what may be written there is in `outputs.py`; `atomic.py` writes whole or not at all.
`parquet.py`, `json_lines.py`, `csv_cells.py`, `frames.py` and `fields.py` are about formats; `rows.py` copies the rows that
`select` keeps, `ours.py` recognises our own files, `http.py` asks servers.
"""
