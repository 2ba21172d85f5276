"""The command line: `asynctask run`, `runs`, `cache`, `store`, `config`, `version`."""
