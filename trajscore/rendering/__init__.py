"""A conversation -> the token ids that training would see, and which of them are the response's own.

Put together in `renderer.py`. `sources.py` chooses the template; `templates.py` applies it, finds the turns and refuses (with
`chat.py`, `reasoning.py`, `anchors.py`, `frames.py`, `literals.py` and `limits.py`); `lost_text.py` compares what came out with
the messages. `phases.py`, `sentences.py` and `loops.py` look at the text, `tokenizer.py` and `decoding.py` load tokenizers,
`rendered_text.py` notices text that is rendered already, `wording.py` counts words. `alignment.py` sets two tokenizers side by
side, `tokens.py` is what an engine gets.
"""
