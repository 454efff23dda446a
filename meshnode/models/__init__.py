"""Models: what they are called, what their files say, where they lie, how they get here.

`names` resolves what a person types, `catalog` is the short list, `gguf` reads headers, `shapes` derives the memory a
model needs, `store` keeps the Hugging Face cache and `hub` talks to the hub. A leaf: nothing here knows the engine.
"""
