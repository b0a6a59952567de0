"""One module per command; each is a function that a command calls and that Python users call the same way."""
