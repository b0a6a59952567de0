"""Decisions over metric values: which rows are kept, and why not. No files here, and no models."""
