"""Files and folders, here or on an object store, and servers that are asked; not what is in them.

Places are in `paths.py`, what may be written there is in `outputs.py`; `atomic.py` writes whole or not at all.
`parquet.py`, `json_lines.py`, `csv_cells.py`, `frames.py` and `fields.py` are about formats; `ours.py` and `recorded_folder.py`
recognise our own files and folders. `http.py` bounds what a server may send and how long it may take, `asking.py` asks one,
`call_cache.py` keeps its answers.
"""
