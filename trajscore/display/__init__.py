"""What terminals and pages are made of, shared by all that people look at: numbers as text, tables, charts, templates."""
