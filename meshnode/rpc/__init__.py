"""llama.cpp RPC between nodes: the two ends of a tunnel, direct pushes between workers, weights by reference.

A host runs llama-server, which takes `HostEnd`'s loopback port for a ggml-rpc-server. Behind it a stream of the mesh
leads to the worker's node, whose `WorkerEnd` speaks to the real one. Nothing here knows meshes, models or engines: what
is needed of them is handed in.
"""
