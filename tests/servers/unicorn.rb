# UNICORN_FD, by `--fd-env=unicorn`, says the rest.
worker_processes 2
