"""The command line: one thin module a command. The only room that prints or ends the process."""
