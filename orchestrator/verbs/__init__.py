"""One verb of the command line a file: `run(arguments) -> exit code`."""
