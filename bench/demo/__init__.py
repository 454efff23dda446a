"""Training of the demo models that ship with meshnode: tokenizer, text, network, export and scoring."""
