"""The subcommands that read what was recorded: each a function that imports what it needs when it is called."""
