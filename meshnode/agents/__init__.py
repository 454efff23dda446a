"""Programs that people already use, pointed at a node: what each needs, how its own files are changed, how it is run.

`recipes` says what to set, `merging` puts that into a file that has other things in it, `writing` does so on the disk
with a backup, and `launching` runs a program with nothing but its environment and arguments.
"""
