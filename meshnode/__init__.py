"""meshnode: a peer-to-peer node that pools machines to serve language models through llama.cpp.

Nothing is imported here, so that `meshnode --version` stays fast. Start reading at ARCHITECTURE.md.
"""

__version__ = "0.1.0"
