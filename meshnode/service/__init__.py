"""A node that starts with the machine: the files of systemd and launchd, their commands, and what a node tells them."""
