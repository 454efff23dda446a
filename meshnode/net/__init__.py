"""QUIC and UDP sockets: endpoint, streams with backpressure, key pinning, NAT traversal, relaying."""
