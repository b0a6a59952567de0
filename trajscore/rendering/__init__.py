"""A conversation -> the token ids that training would see, and which of them are the response's own.

Templates, special tokens spelt in text, text that a template drops, thinking, sentences, tokenizers and their alignment.
"""
