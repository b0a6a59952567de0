"""Files and folders, here or on an object store: paths, atomic writing, Parquet, JSON lines; not what is in them."""
