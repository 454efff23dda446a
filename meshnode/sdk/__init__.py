"""Asks a model API that runs in this process, with the names of the OpenAI SDK where it has them. Knows no mesh."""
