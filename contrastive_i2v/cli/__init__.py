"""The command line: one file a command, each generated from the config dataclass it takes."""
