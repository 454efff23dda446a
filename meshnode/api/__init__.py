"""The HTTP gateway: OpenAI and Anthropic endpoints forwarded to llama-server, and the node's control API."""
