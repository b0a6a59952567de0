"""Parts of terminals and pages that several commands share: numbers as text, tables, charts, templates."""
