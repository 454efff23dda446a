"""How nodes find each other: mDNS on the LAN, Nostr in public, pairing by hand."""
