"""llama.cpp: fetching, patching, building and finding it, its command lines, its supervised processes."""
