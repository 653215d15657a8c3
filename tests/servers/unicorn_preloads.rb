# The application is loaded by the master, before any worker: if that hangs, no worker is left behind by a master that
# was killed. UNICORN_FD, by `--fd-env=unicorn`, says the rest.
worker_processes 2
preload_app true
