"""Classes that trainers load, and the loaders of theirs that `export --check` calls.

One file per trainer, imported only where that trainer is installed.
"""
