"""The commands of tpudeploy. Each parses its options, calls another room, and prints what comes back.

Nothing but typer is imported at module level: ``tpudeploy --help`` imports all of them.
"""
